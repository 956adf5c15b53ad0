"""Full fine-tuning's ΔW in hand: trained, subtracted, cut down to its first directions, and scored again.

LoRA takes for granted that ΔW may be a product of two thin matrices. Here nothing is taken for granted: every
matrix trains whole, ΔW = W after − W before, and the network is scored with a part of every ΔW only (`svd.py`).
That a task needs few directions to change is argued by Aghajanyan et al. 2020 (arXiv 2012.13255) and taken up by
Hu et al. 2021 (arXiv 2106.09685). Taught in 01.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from .adapters import adapt
from .config import train_config
from .experiment import Rows, load_for
from .identity import identity
from .methods import FullFineTuning
from .outcome import Callback, Row, StoppedError
from .runs import Store, config_key
from .sites import find_sites, matrix_of
from .svd import Directions, directions
from .tasks import load_task
from .train import Trainer

# d out, k in


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Site -> a copy of its W (d, k), for every matrix of a known architecture.

    Raises:
        ValueError: the architecture is not in the table of `sites`.
    """
    return {site.name: matrix_of(model, site).cpu().clone() for site in find_sites(model)}


@dataclass
class FineTuned:
    """A network trained without branches, and all that is needed to cut its ΔW and score it again.

    model: the trained network.  rows: its task's rows.  before: site -> W before training (d, k).
    trained: names of the parameters that trained.  history: (step, site, name, value) of the training.
    """

    model: Any
    rows: Rows
    before: dict[str, Tensor]
    trained: list[str] = field(default_factory=list)
    history: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.after = weights(self.model)
        self.changes = {name: after - self.before[name] for name, after in self.after.items()}

    @cached_property
    def directions(self) -> dict[str, Directions]:
        """Site -> the directions of its ΔW."""
        return {name: directions(delta) for name, delta in self.changes.items()}

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of one name of the history."""
        found = [(step, value) for step, site, what, value in self.history if what == name and not site]
        return [step for step, _ in found], [value for _, value in found]

    @contextmanager
    def cut(self, keep: slice | Sequence[int]) -> Iterator[Any]:
        """The network with only these directions of every ΔW, as long as the block lasts.

        keep: as in `Directions.keep`.  Biases, norms and head stay as trained: slice(0) still has those.
        """
        self._write({name: self.before[name].double() + found.keep(keep).matrix()
                     for name, found in self.directions.items()})
        try:
            yield self.model
        finally:
            self._write(self.after)

    def score(self, keep: slice | Sequence[int] = slice(None), split: str = "test") -> dict[str, float]:
        """Metrics of the network cut to these directions, the headline first."""
        with self.cut(keep) as model:
            return self.rows.score(model, split)

    def count(self, split: str = "test") -> int:
        """How many rows a score rests on."""
        return len(self.rows.splits.get(split, self.rows.splits["validation"]))

    @torch.no_grad()
    def _write(self, weights: dict[str, Tensor]) -> None:
        for site in find_sites(self.model):
            matrix_of(self.model, site).copy_(weights[site.name])


def fine_tune(task: str = "rt", backbone: str = "minilm-l6", profile: str | None = None, seed: int = 0, *,
              trains: str = "no_embeddings", callbacks: Iterable[Callback] = (), **training: Any) -> FineTuned:
    """Train every matrix whole, and keep the network in hand (`fit` keeps a record, but no dense ΔW).

    Args:
        task, backbone, profile, seed, training: as in `fit`; give an lr far below that of LoRA.
        trains: as in `FullFineTuning`; the word embeddings are most of a small network and stay out.

    Raises:
        KeyboardInterrupt, StoppedError: Ctrl-C or a callback; the same call goes on where it stopped.
    """
    c = train_config(profile, **training)
    made_from = identity(task, backbone)
    data = load_task(task, n_train=c.n_train, n_validation=c.n_validation, n_test=c.n_test)
    model, tokenizer = load_for(backbone, data, seed)
    rows = Rows(data, tokenizer, c, getattr(model.config, "is_encoder_decoder", False))
    before = weights(model)
    adapters = adapt(model, FullFineTuning(trains=trains), seed=seed)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    key = config_key({"changes": trains, "task": task, "backbone": backbone, "seed": seed, "training": asdict(c)},
                     made_from)
    store = Store()
    store.check()
    checkpoint = store.checkpoint(key)
    outcome = Trainer(adapters, rows.train, rows.collate, c, seed=seed, callbacks=list(callbacks),
                      checkpoint=checkpoint, identity=key).run()
    if not outcome.finished:
        raise StoppedError(f"stopped after step {outcome.step}; the same call goes on there")
    checkpoint.unlink(missing_ok=True)
    return FineTuned(model, rows, before, trained, outcome.history)

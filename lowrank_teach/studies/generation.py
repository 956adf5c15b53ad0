"""Data to text, stored: LoRA, its control, Delta-LoRA and AutoLoRA on one causal model, and the texts they write.

    python -m lowrank_teach.texts e2e webnlg    # with LOWRANK_TEACH_DATA naming the folder of their rows

Every training is a run of the store; what it learned is then added to the pretrained matrices, and the test inputs
are written out greedily. Where a study has a grid of rates, each arm takes the one whose texts for validation inputs
score best; their validation loss is kept too, since it may say otherwise. The file of a task is written anew after
each run, so an interrupted study keeps what it has, and the same command goes on. Of the data only the samples are
copied, with the licence beside them. What is stored is read by `lowrank_teach.texts`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import slots, texts
from ..experiment import fit
from ..features import encode
from ..live import smooth
from ..metrics import score
from ..models import load_backbone
from ..outcome import DivergedError
from ..runs import Run, Store, machine
from ..sites import find_sites, matrix_of
from ..tasks import TaskData, load_task
from ..writing import Generation, generate
from .text_studies import ARMS, BACKBONE, PROFILE, RATE_OF, TEXT_STUDIES, settings

OnRun = Callable[[str, int, Mapping[str, float]], None]   # arm, seed, what was measured

UNTRAINED = "not trained"
SAMPLES, BEAMS = 12, (1, 2, 4)   # inputs shown with their texts, widths tried on these


@torch.no_grad()
def deploy(model: nn.Module, factors: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Add what a run has learned to a pretrained model: W += left right at each site of the record."""
    matrices = {site.name: matrix_of(model, site) for site in find_sites(model)}
    for name, (left, right) in factors.items():
        matrices[name].add_((left @ right).to(matrices[name]))


@dataclass
class Inputs:
    """The first test inputs of a task, or validation inputs, with all references of each."""

    data: TaskData
    count: int
    split: str = "test"

    @cached_property
    def rows(self) -> Any:
        """One row an input, its references in the column "references"."""
        task, rows = self.data.task, getattr(self.data, self.split)
        if rows is None:
            raise ValueError(f"{task.name} has no {self.split} rows to write texts for")
        wanted = rows.groupby(task.group, sort=False)[task.label].agg(list)
        first = rows.drop_duplicates(task.group).head(self.count).reset_index(drop=True)
        return first.assign(references=[wanted[group] for group in first[task.group]])

    @property
    def sources(self) -> list[str]:
        return self.rows[self.data.task.text[0]].tolist()

    @property
    def references(self) -> list[list[str]]:
        return self.rows["references"].tolist()

    @property
    def parts(self) -> list[str]:
        return self.rows[self.data.task.part].tolist() if self.data.task.part else []


class Writer:
    """A fresh model a run, its change added; the texts it writes for the inputs, and what they are worth."""

    def __init__(self, inputs: Inputs, backbone: str) -> None:
        self.inputs, self.task, self.backbone = inputs, inputs.data.task, backbone
        self.values = slots.value_lists(inputs.data.train[self.task.text[0]])
        self.left_out: dict[str, str] = {}   # metric -> why
        for name in TEXT_STUDIES[self.task.name].scores:
            try:
                score([name], ["a pub"], ["a pub by the river"], self.task)
            except ImportError as error:
                self.left_out[name] = str(error)

    def write(self, run: Run | None, count: int | None = None, num_beams: int = 1) -> list[str]:
        """One text an input, for the first `count` of them; a run of None is the pretrained model as it is."""
        model, tokenizer = load_backbone(self.backbone)
        if run is not None:
            deploy(model, run.factors)
        task = self.task
        rows = encode(self.inputs.rows.head(count or self.inputs.count), task, tokenizer,
                      causal=not model.config.is_encoder_decoder)
        return generate(model, rows, tokenizer, Generation(max_new_tokens=task.max_target, num_beams=num_beams))

    def judged(self, written: Sequence[str]) -> dict[str, Any]:
        """Scores over all inputs and by part, what they add up for each text, slot errors of each text."""
        references, names = self.inputs.references[:len(written)], self._names()
        found = score(names, written, references, self.task)
        parts = self.inputs.parts[:len(written)]
        for part in sorted(set(parts)):
            here = [i for i, one in enumerate(parts) if one == part]
            of_part = score(names, [written[i] for i in here], [references[i] for i in here], self.task)
            found |= {f"{name}.{part}": value for name, value in of_part.items()}
        sums = {name: texts.statistics(name, written, references).round(4).tolist() for name in names
                if name in texts.STATISTICS}
        checks = [slots.check(text, source, self.values)
                  for text, source in zip(written, self.inputs.sources, strict=False)]
        return {"scores": found, "statistics": sums,
                "slots": [[len(one.missing), one.made_up, one.slots] for one in checks]}

    def headline(self, run: Run) -> float:
        """The first of the task's scores, of what a run writes."""
        name = TEXT_STUDIES[self.task.name].scores[0]
        return score([name], self.write(run), self.inputs.references, self.task)[name]

    def humans(self) -> dict[str, float]:
        """What the rule of `slots` says of the references themselves, as shares of the fields there are."""
        checks = [slots.check(text, source, self.values)
                  for source, many in zip(self.inputs.sources, self.inputs.references, strict=True) for text in many]
        fields = sum(one.slots for one in checks)
        return {"missing": sum(len(one.missing) for one in checks) / fields,
                "made_up": sum(one.made_up for one in checks) / fields}

    def _names(self) -> list[str]:
        return [name for name in TEXT_STUDIES[self.task.name].scores if name not in self.left_out]


@dataclass
class _Trainer:
    """The trainings of one study: arms at rates and seeds, each a run of the store."""

    task: str
    backbone: str
    training: Mapping[str, Any]
    rates: Sequence[float]
    store: Store | None
    on_run: OnRun | None
    grid: list[dict[str, Any]] = field(default_factory=list)   # runs that chose a rate, with score and loss

    def fit(self, arm: str, seed: int, rate: float) -> Run:
        return fit(ARMS[arm], self.task, self.backbone, PROFILE, seed, progress=False, store=self.store,
                   **{**self.training, "lr": rate})

    def choose(self, arm: str, seed: int, worth: Callable[[Run], float]) -> float:
        """The rate whose run is worth most; where runs tie, the one with the lower validation loss.

        Raises:
            DivergedError: at every rate of the grid.
        """
        if len(self.rates) < 2:
            return float(self.rates[0])
        found: dict[float, tuple[float, float]] = {}
        for rate in self.rates:
            tried: dict[str, Any] = {"arm": arm, "seed": seed, "lr": rate, "score": None, "loss": None}
            with suppress(DivergedError):
                run = self.fit(arm, seed, rate)
                tried |= {"score": worth(run), "loss": run.metrics["validation"]["loss"]}
                found[rate] = tried["score"], -tried["loss"]
                self.say(f"{arm} at {rate:g}", seed, {"validation score": tried["score"]})
            self.grid.append(tried)
        if not found:
            raise DivergedError(f"{arm} on {self.task} diverges at every rate of the grid; lower the rates")
        return max(found, key=found.__getitem__)

    def say(self, arm: str, seed: int, found: Mapping[str, float]) -> None:
        if self.on_run is not None:
            self.on_run(arm, seed, found)


def make(task: str, folder: Path | str | None = None, *, seeds: int | None = None, inputs: int | None = None,
         rates: Sequence[float] | None = None, backbone: str = BACKBONE, arms: Iterable[str] | None = None,
         beams: Sequence[int] = BEAMS, store: Store | None = None, on_run: OnRun | None = None,
         **training: Any) -> texts.Texts:
    """Train every arm with every seed, write the test inputs out, keep scores and samples.

    Args:
        folder: where the file goes; None takes figures/data of the checkout.  arms: some of ARMS, None for all.
        seeds, inputs, rates: as in `TextStudy`; None takes the task's own.
        beams: widths tried with the first arm of the first seed.
        on_run: told of a run's scores, in the grid of that on validation inputs.
        training: fields of `TrainConfig` beside TRAINING; with an lr, that is the rate and no other is tried.

    Raises:
        ValueError: a task that no texts are stored for.  FileNotFoundError: its rows are not there.
    """
    if task not in TEXT_STUDIES:
        raise ValueError(f"texts are stored for {', '.join(TEXT_STUDIES)}, not for {task!r}")
    study, data = TEXT_STUDIES[task], load_task(task)
    training, own = settings(task, training)
    trainer = _Trainer(task, backbone, training, rates or own, store, on_run)
    count = study.inputs if inputs is None else inputs
    writer, judge = (Writer(Inputs(data, count, split), backbone) for split in ("test", "validation"))
    many = range(study.seeds if seeds is None else seeds)
    stored: dict[str, Any] = {"about": _about(writer, trainer, many), "records": [],
                              "samples": _samples(writer.inputs), "beams": {}}

    def keep(arm: str, seed: int, rate: float | None, run: Run | None) -> None:
        written = writer.write(run)
        stored["records"].append({"arm": arm, "seed": seed, "lr": rate, **_of_run(run), **writer.judged(written)})
        if seed == many[0]:
            for sample, text in zip(stored["samples"], written, strict=False):
                sample["texts"][arm] = text
                sample["checks"][arm] = asdict(slots.check(text, sample["source"], writer.values))
        _save(stored, texts.path_of(task, folder))
        trainer.say(arm, seed, stored["records"][-1]["scores"])

    keep(UNTRAINED, many[0], None, None)
    chosen_by = {arm: RATE_OF.get(arm, arm) for arm in (ARMS if arms is None else arms)}
    rate_of = {arm: trainer.choose(arm, many[0], judge.headline) for arm in dict.fromkeys(chosen_by.values())}
    for seed in many:
        for arm, chooser in chosen_by.items():
            run = trainer.fit(arm, seed, rate_of[chooser])
            keep(arm, seed, rate_of[chooser], run)
            if not stored["beams"] and beams:
                stored["beams"] = {"arm": arm, "widths": [_at_width(writer, run, width) for width in beams]}
    _save(stored, texts.path_of(task, folder))
    return texts.load(task, folder)


def _about(writer: Writer, trainer: _Trainer, seeds: Sequence[int]) -> dict[str, Any]:
    task, data = writer.task, writer.inputs.data
    folder = Path(writer.backbone)   # of a model in a folder, only its name
    count = writer.inputs.count
    return {"task": task.name, "licence": TEXT_STUDIES[task.name].licence, "source": data.source,
            "backbone": folder.name if folder.is_absolute() else writer.backbone,
            "profile": PROFILE, "training": trainer.training, "seeds": list(seeds), "inputs": len(writer.inputs.rows),
            "rates": [*trainer.rates], "rate_of": RATE_OF, "grid": trainer.grid,
            "parts": writer.inputs.parts, "generation": {"num_beams": 1, "max_new_tokens": task.max_target},
            "human": writer.humans(), "left_out": writer.left_out, "machine": machine(),
            "command": f"python -m lowrank_teach.texts {task.name} --seeds {len(seeds)} --inputs {count}"}


def _samples(inputs: Inputs) -> list[dict[str, Any]]:
    """The first few inputs; of a task with parts, as many of each."""
    parts = inputs.parts or [""] * len(inputs.sources)
    return [{"source": source, "references": references, "part": part, "texts": {}, "checks": {}}
            for source, references, part in zip(inputs.sources, inputs.references, parts, strict=True)][:SAMPLES]


def _of_run(run: Run | None) -> dict[str, Any]:
    if run is None:
        return {"method": {}, "series": {}, "seconds": {}, "parameters": {}, "ranks": {}, "validation": {}}
    last = int(run.seconds["steps.training"])   # without a search, and counted from the training's own start
    steps, values = smooth((range(1, last + 1), run.series("loss")[1][-last:]), width=5)
    return {"key": run.key, "identity": run.identity, "commit": run.machine["commit"],
            "method": run.config["method"],
            "seconds": run.seconds, "parameters": run.parameters,
            "series": {"loss": [list(steps), [round(value, 4) for value in values]]}, "ranks": run.ranks,
            "validation": {"loss": run.metrics["validation"]["loss"]}}


def _at_width(writer: Writer, run: Run, width: int) -> dict[str, Any]:
    written = writer.write(run, SAMPLES, num_beams=width)
    judged = writer.judged(written)
    return {"num_beams": width, "scores": judged["scores"], "texts": written,
            "words": float(np.mean([len(text.split()) for text in written])), "slots": judged["slots"]}


def _save(stored: Mapping[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(stored, ensure_ascii=False) + "\n", encoding="utf-8")

"""A short training in float64 for the loops that a reader writes, what compares them with the library, and a guesser.

    bench = Bench(data, settings)      # bench.network(), bench.batches: the same for every loop
    say_equal("losses of all steps", losses, losses_of(trainer.run()))
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from ..adapters import adapt
from ..errors import require
from ..experiments.fit import Rows, load_for
from ..methods import LoRA
from ..tasks.load import load_task
from ..tasks.task import TaskData
from ..training.config import TrainConfig
from ..training.trainer import Trainer


class Bench:
    """A small network in float64, where rounding hides nothing, and the batches of one short training.

    data, settings: as given.  rows, collate: the examples, and what makes a batch of them, for the library's trainer.
    batches: one a step, in the order of that trainer.  classes: how many; 0 where labels are numbers.

    Args:
        data: few examples of a task.  settings: of the training, with its steps and the size of a batch.
        backbone, seed: of the network, its new head and the order of the examples.  dropout: False switches it off.
    """

    def __init__(self, data: TaskData, settings: TrainConfig, backbone: str = "minilm-l3", seed: int = 0, *,
                 dropout: bool = True) -> None:
        self.data, self.settings, self.classes = data, settings, len(data.task.labels)
        self.pretrained, self.tokenizer = load_for(backbone, data, seed)
        self.pretrained.double()
        for module in () if dropout else self.pretrained.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if hasattr(module, "dropout_prob"):
                module.dropout_prob = 0.0
        made = Rows(data, self.tokenizer, settings, encoder_decoder=False)
        self.rows, self._collate = made.train, made.collate
        loop = Trainer(adapt(self.network(), LoRA(), seed=seed), self.rows, self.collate, settings, seed=seed)
        self.chosen = [loop.rows_of("train", step)[0] for step in range(1, settings.steps + 1)]   # rows of each step
        self.batches = [self.collate(rows) for rows in self.chosen]

    def network(self) -> Any:
        """Return a fresh copy of the pretrained network with its new head, a plain model of `transformers`."""
        return copy.deepcopy(self.pretrained)

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Return rows as one batch; labels that are numbers in float64."""
        return {name: values.double() if values.is_floating_point() else values
                for name, values in self._collate(rows).items()}


def few_examples(task: str, n_train: int) -> TaskData:
    """Return the first training examples of a task with classes, which the loops by hand need.

    Raises:
        ValueError: the task has no classes.
    """
    data = load_task(task, n_train=n_train, n_validation=8, n_test=8)
    require(data.task.kind == "classification", f"the loop by hand needs a task with classes, not {task}")
    return data


# ---- two loops compared -------------------------------------------------------------------------------------


def say_equal(what: str, ours: Iterable[Any], theirs: Iterable[Any], tolerance: float = 1e-10) -> None:
    """Print the largest difference between two lists of numbers or tensors, compared in float64.

    Raises:
        AssertionError: it is above the tolerance.
    """
    pairs = [[torch.as_tensor(x, dtype=torch.float64).detach() for x in pair]
             for pair in zip(ours, theirs, strict=True)]
    apart = max((float((a - b).abs().max()) for a, b in pairs if a.numel()), default=0.0)
    assert apart <= tolerance, (f"{what} differ by {apart:.1e}, more than rounding: run the cells of this section "
                                "again, from the first one on")
    print(f"{what}: " + (f"largest difference {apart:.0e}" if apart else "equal to the last bit"))


def losses_of(outcome: Any) -> list[float]:
    """Return the loss of each step of a training by the library."""
    return [value for _, site, name, value in outcome.history if name == "loss" and not site]


# ---- who knows only how often each label is -----------------------------------------------------------------


def guess(labels: Sequence[Any], classes: int) -> tuple[float, float | None]:
    """Return the loss and the accuracy of always answering with the share of each label.

    labels: (n,).  classes: 0 where labels are numbers; the loss is then their variance, and there is no accuracy.
    """
    values = pd.Series(labels)
    if not classes:
        return float(values.var(ddof=0)), None
    share = values.value_counts(normalize=True).to_numpy()
    return float(-(share * np.log(share)).sum()), float(share.max())


def scored(data: TaskData) -> pd.Series:
    """Return the labels of the examples that a score is computed on: the test's, else the validation's."""
    return (data.validation if data.test is None else data.test)[data.task.label]

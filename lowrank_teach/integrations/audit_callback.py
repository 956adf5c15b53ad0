"""Measure a LoRA while it trains: sizes and ranks of every matrix each few steps, drawn live, kept as a table.

    watch = WatchUpdates(model, every=50)                  # a model of peft, or one that lt.adapt has changed
    trainer = transformers.Trainer(model, ..., callbacks=[watch])
    watch.log = trainer.log                                # to send the medians where report_to sends the losses
    trainer.train()
    watch.frame(); watch.figure(); watch.save("updates.parquet")
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import nn
from transformers import TrainerCallback

from ..analysis import style
from ..lowrank import Adapted
from ..methods.base import Clock
from ..training.callbacks import in_notebook
from .audit import MatrixReport, Update, measure

SHOWN = {"norm": "‖ΔW‖", "effective": "effective rank", "half": "energy in half of the rank"}


def live_updates(model: nn.Module) -> Iterator[Update]:
    """Yield the update of each matrix that carries a LoRA now: peft's active adapter, or this package's branches.

    The path is that of the module in the model; a fused layer gives one update a slice.
    """
    for path, module in model.named_modules():
        if isinstance(module, Adapted):
            for name, branch in module.branches.items():
                left, right = branch.factors()   # the whole change from the pretrained W, scale included
                own = f"{path}.{name.rpartition('.')[2]}" if len(module.branches) > 1 else path
                yield Update(own, right.detach(), left.detach(), 1.0)
        elif isinstance(getattr(module, "lora_A", None), nn.ModuleDict):
            for name in module.active_adapters:
                if name in module.lora_A:
                    yield Update(path, module.lora_A[name].weight.detach(), module.lora_B[name].weight.detach(),
                                 float(module.scaling[name]))


class WatchUpdates(TrainerCallback):
    """Measure every update each `every` steps, of transformers' Trainer or of this package's loop.

    Args:
        model: the model with its adapters.  every: steps between two measurements; the last step is measured, too.
        live: draw in a notebook while it trains; None asks whether this is one.

    Attributes: reports: (step, report) in order.  log: called with {"update/…": median over matrices}, such as
        `trainer.log`; None sends nothing.
    """

    def __init__(self, model: nn.Module, every: int = 50, *, live: bool | None = None) -> None:
        if every < 1:
            raise ValueError(f"every {every} is a number of steps, 1 or more")
        if next(live_updates(model), None) is None:
            raise ValueError("this model carries no LoRA: call get_peft_model or lt.adapt first")
        self.model, self.every = model, every
        self.live = in_notebook() if live is None else live
        self.reports: list[tuple[int, MatrixReport]] = []
        self.log: Callable[[dict[str, float]], Any] | None = None
        self._id, self._drawn = uuid.uuid4().hex, False

    def measure(self, step: int) -> None:
        """Measure all updates now, log their medians, and draw."""
        if self.reports and self.reports[-1][0] == step:
            return
        with torch.no_grad():
            self.reports += [(step, measure(update)) for update in live_updates(self.model)]
        if self.log is not None:
            now = self.frame().loc[step]
            self.log({f"update/{name}": float(now[name].median()) for name in SHOWN})
        if self.live:
            self._draw()

    def frame(self) -> pd.DataFrame:
        """Return a table with a row a step and matrix: norm, effective rank, and the energy in half of the rank."""
        rows = [{"step": step, "path": one.path, "layer": one.layer, "matrix": one.matrix, "finite": one.finite,
                 **{name: getattr(one, name) for name in SHOWN}} for step, one in self.reports]
        return pd.DataFrame(rows).set_index(["step", "path"]) if rows else pd.DataFrame()

    def save(self, path: str | Path) -> Path:
        """Write the table as a parquet file."""
        self.frame().reset_index().to_parquet(path)
        return Path(path)

    def figure(self) -> Figure:
        """Draw each number over the steps: the median of each kind of matrix, and the range over layers.

        Raises:
            ValueError: nothing has been measured yet.
        """
        if not self.reports:
            raise ValueError("nothing has been measured yet: train first")
        table = self.frame().reset_index()
        fig, axes = style.panels(len(SHOWN), len(SHOWN), 2.6, None)
        looks = style.looks(list(dict.fromkeys(table["matrix"])))
        for ax, (name, label) in zip(axes, SHOWN.items(), strict=True):
            for matrix, look in looks.items():
                over = table[table["matrix"] == matrix].groupby("step")[name]
                steps, middle = over.median().index, over.median()
                ax.plot(steps, middle, **{**look, "markersize": 3})
                ax.fill_between(steps, over.min(), over.max(), color=look["color"], alpha=0.12, linewidth=0)
            ax.set_ylim(bottom=0)
            style.dress(ax, "Optimizer step", "", label)
        style.legend(fig)
        fig.set_label(f"Three panels over the steps, {', '.join(SHOWN.values())}: a line a kind of matrix, with the "
                      "range over its layers.")
        return fig

    def _draw(self) -> None:
        from IPython.display import display

        fig = self.figure()
        data, metadata = style.image_bundle(style.png_bytes(fig), round(fig.get_figwidth() * style.DPI),
                                            str(fig.get_label()))
        display(data, raw=True, metadata=metadata, display_id=self._id, update=self._drawn)
        self._drawn = True

    # -- transformers' Trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every == 0:
            self.measure(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.measure(state.global_step)

    # -- this package's loop

    def on_step(self, clock: Clock, values: dict[str, float]) -> None:
        if clock.step % self.every == 0 or clock.step == clock.total:
            self.measure(clock.step)

    def on_eval(self, clock: Clock, metrics: dict[str, float]) -> None:
        """Measure nothing: an evaluation changes no weight."""

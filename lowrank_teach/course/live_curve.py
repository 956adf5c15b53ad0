"""A loss curve that grows while a run trains, drawn over a stored reference run.

`LiveCurve` is a callback of `fit`. In a notebook it replaces one image, at most once a second (no widget, so the
notebook still renders on a repository page); elsewhere it prints lines. A reference is a small JSON file with
its provenance under figures/data. Notebook 02 explains it; 03–09 use it.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..analysis import plots, style
from ..analysis.statistics import Curve, smooth
from ..experiments.runs import Run
from ..methods.base import Clock
from ..reproduction.results import made_on, references_folder
from ..training.callbacks import Callback, ProgressLine, in_notebook


class LiveCurve(Callback):
    """The training loss, growing.

    Args:
        name: the curve's name in the legend (a method's short name gives it its colour).
        reference: curves drawn behind it, as `load_reference` returns them.
        every: seconds between two pictures.  images: None asks `in_notebook`.
        display: how a picture is shown, for tests; (data, metadata, first) -> None.
    """

    def __init__(self, name: str = "lora", reference: Mapping[str, Curve] | None = None, *, every: float = 1.0,
                 images: bool | None = None, display: Callable[[dict, dict, bool], None] | None = None) -> None:
        self.name, self.reference, self.every = name, dict(reference or {}), every
        self.images = (display is not None or in_notebook()) if images is None else images
        self.display, self._id = display or self._display, uuid.uuid4().hex
        self.steps: list[int] = []
        self.losses: list[float] = []
        self.drawn = 0
        self._last = 0.0
        # above the picture, or in its place where there is none
        self.line = ProgressLine() if display is None else None

    def on_begin(self, label: str) -> None:
        """Show a line while examples and weights are read, before the first step."""
        if self.line:
            self.line.on_begin(label)

    def on_end(self) -> None:
        if self.line:
            self.line.on_end()

    def on_step(self, clock: Clock, values: dict[str, float]) -> None:
        self.steps.append(clock.step)
        self.losses.append(values["loss"])
        if self.line:
            self.line.on_step(clock, values)
        now = time.monotonic()
        if clock.step < clock.total and now - self._last < self.every:
            return
        if self.images:
            self._draw()
        self._last = time.monotonic()  # after drawing: a slow picture must not eat the training

    def on_eval(self, clock: Clock, metrics: dict[str, float]) -> None:
        """The picture shows the training loss alone."""

    def finish(self, run: Run, caption: str) -> None:
        """Show the last picture, from the run's own record (it may come from the store), and its caption."""
        self.steps, self.losses = run.series("loss")
        if not self.images:
            print(caption)
            return
        self._draw()
        if self.display == self._display:
            from IPython.display import display

            display(style.caption_bundle(caption), raw=True)

    def words(self) -> str:
        """Say what the picture shows, for a reader who cannot see it."""
        behind = f"; grey behind it: {', '.join(self.reference)}" if self.reference else ""
        return (f"Training loss of {self.name} over {len(self.steps)} steps, from {self.losses[0]:.2f} to "
                f"{np.mean(self.losses[-10:]):.2f} (mean of the last ten){behind}.")

    def _draw(self) -> None:
        reference = {name: smooth(curve) for name, curve in self.reference.items()}
        fig = plots.learning_curves({self.name: smooth((self.steps, self.losses))}, reference=reference,
                                    ylabel="Training loss (mean of 10 steps)")
        data, metadata = style.image_bundle(style.png_bytes(fig), round(fig.get_figwidth() * style.DPI),
                                            self.words())
        self.display(data, metadata, self.drawn == 0)
        self.drawn += 1

    def _display(self, data: dict, metadata: dict, first: bool) -> None:
        from IPython.display import display

        display(data, raw=True, metadata=metadata, display_id=self._id, update=not first)


def load_reference(name: str) -> tuple[dict[str, Curve], str]:
    """Load a stored reference's curves and a line on where they were made; {} and why, if there is no file."""
    path = Path(os.environ.get("LOWRANK_REFERENCES") or ".") / f"{name}.json"
    with suppress(FileNotFoundError):   # an installed package has none
        path = path if path.exists() else references_folder() / f"{name}.json"
    if not path.exists():
        return {}, f"no stored reference {name} beside this package: your curve stands alone"
    stored = json.loads(path.read_text(encoding="utf-8"))
    c = stored["config"]
    return ({label: (curve[0], curve[1]) for label, curve in stored["arrays"].items()},
            f"reference: {c['backbone']} on {c['task']}, profile {c['profile']!r}, seed {c['seed']}; "
            f"{made_on(stored['machine'])}")


def keep_reference(name: str, make: Callable[[], Run]) -> None:
    """Store the loss of `make`'s run as the reference if LOWRANK_REFERENCES names a folder; else do not call it."""
    folder = os.environ.get("LOWRANK_REFERENCES")
    if not folder:
        return
    run = make()
    steps, values = run.series("loss")
    data: dict[str, Any] = {
        "name": name, "arrays": {f"{run.label}, seed {run.config['seed']}": [steps, [round(v, 5) for v in values]]},
        "config": run.config, "metrics": run.metrics, "machine": run.machine}
    text = json.dumps(data, ensure_ascii=False)
    (Path(folder) / f"{name}.json").write_text(text + "\n", encoding="utf-8")

"""A button that trains: choose a method, a seed and a length; watch the loss fall; stop, and go on later.

The training runs in a process of its own (`training_process`), so the sliders of the page keep moving and other
cells can be run meanwhile. Nothing starts by itself. Notebook 10 shows it.
"""

from __future__ import annotations

import base64
import html
import logging
from collections.abc import Mapping
from typing import Any

import torch

from ..analysis.style import METHOD_STYLE
from ..experiments.compare import LINEUP
from ..experiments.runs import Run, Store
from ..methods import Method
from ..methods.base import Clock
from ..training.config import default_profile, train_config
from .explorer import named_image, need_ipywidgets, number_row
from .live_curve import LiveCurve
from .training_process import Job, Message, Training, asked_for

FAILED = "stopped with an error"   # what the tests of the notebooks look for


class TrainNow:
    """The widget; `box` is what a notebook shows.

    Args:
        task, backbone, profile: as for `fit`.  methods: label -> configuration; None takes those of notebook 00.
        store: where runs and checkpoints are kept.  threads: of torch; None leaves one to the page.
        training: fields of `TrainConfig` to change.

    Raises:
        ImportError: ipywidgets is not installed.
    """

    def __init__(self, task: str = "rt", backbone: str = "minilm-l6", profile: str | None = None, *,
                 methods: Mapping[str, Method] | None = None, store: Store | None = None,
                 threads: int | None = None, **training: Any) -> None:
        self.task, self.backbone, self.profile = task, backbone, profile or default_profile()
        self.methods, self.store = dict(methods or LINEUP), store or Store()
        self.threads = threads or max(1, torch.get_num_threads() - 1)
        self.settings = training
        self.job: Job | None = None
        self.training: Training | None = None
        self.run: Run | None = None
        self.curve = LiveCurve()
        self.finished: dict[str, Any] = {}   # label -> loss curve, drawn behind the next one
        self._build(train_config(self.profile, **training).steps)

    def _build(self, steps: int) -> None:
        w = need_ipywidgets()
        names = [(METHOD_STYLE.get(label, (label,))[0], label) for label in self.methods]
        self.method = w.Dropdown(options=names, value="lora" if "lora" in self.methods else names[0][1],
                                 layout=w.Layout(width="14em"))
        self.seed = w.BoundedIntText(value=0, min=0, max=9999, layout=w.Layout(width="6em"))
        self.steps = w.BoundedIntText(value=steps, min=1, max=5000, layout=w.Layout(width="6em"))
        self.start = w.Button(description="Train this now", button_style="primary", tooltip="start, or go on")
        self.stop = w.Button(description="Stop", disabled=True, tooltip="stop after the step in progress")
        self.image = named_image()
        self.image.layout.display = "none"   # until there is something to see
        self.text = w.HTML("Nothing is trained yet. Choose, and press the button.")
        self.start.on_click(lambda _: self._start())
        self.stop.on_click(lambda _: self._stop())
        chosen = number_row(("Method", self.method), ("Seed", self.seed), ("Steps", self.steps))
        self.box = w.VBox([chosen, w.HBox([self.start, self.stop]), self.image, self.text])

    def chosen(self) -> Job:
        """Return the job that the boxes describe."""
        method = asked_for(self.methods[self.method.value])
        return Job(method, self.task, self.backbone, self.profile, self.seed.value, str(self.store.folder),
                   self.threads, {**self.settings, "steps": self.steps.value})

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until nothing trains any more, for at most `seconds`; return whether that is so. A page need not."""
        return self.training is None or self.training.wait(seconds)

    # what the buttons do

    def _start(self) -> None:
        job = self.chosen()
        if job == self.job and self.run is not None:   # found at once; a process would find it, too
            self.trained = False
            return self._hear({"finished": self.run.key})
        if job != self.job:   # the same job goes on with its curve
            self.job, self.run = job, None
            self.last = self.offset = 0
            self.curve = LiveCurve(self.method.value, self.finished, images=True, display=self._show)
        self.trained = False
        self._running(True)
        self._say("A process of its own is starting, and loads the model. Sliders and cells can be used meanwhile.")
        try:
            self.training = Training(job, self._hear)
        except OSError as error:
            self._hear({"failed": str(error)})
        return None

    def _stop(self) -> None:
        self.stop.disabled = True
        if self.training is not None:
            self._say("Stopping after the step in progress …")
            self.training.stop()

    def _running(self, running: bool) -> None:
        for widget in (self.start, self.method, self.seed, self.steps):
            widget.disabled = running
        self.stop.disabled = not running

    # what the training says

    def _hear(self, message: Message) -> None:
        """Take a message in the listening thread, where an error would be seen nowhere: it is shown as a failure."""
        try:
            self._take(message)
        except Exception as error:
            logging.getLogger(__name__).exception("the training's message %s could not be shown", message)
            self._end(f"<b>The page {FAILED}: {html.escape(repr(error))}</b>", "Train this now")

    def _take(self, message: Message) -> None:
        if "step" in message:
            self._step(**message)
        elif "finished" in message:
            self._finish(message["finished"])
        elif "stopped" in message:
            self._end(f"Stopped after {self.last} steps; the checkpoint is kept, and the button goes on from there.",
                      "Go on")
        else:
            logging.getLogger(__name__).error("the training %s: %s", FAILED, message["failed"])
            self._end(f"<b>The training {FAILED}: {html.escape(message['failed'])}</b>", "Train this now")

    def _step(self, step: int, total: int, loss: float) -> None:
        if step <= self.last:   # a second stage counts from 1 again
            self.offset += self.last
        self.last, self.trained = step, True
        self.curve.on_step(Clock(self.offset + step, self.offset + total, 1), {"loss": loss})
        if not self.stop.disabled:
            stage = f" (after {self.offset} of a search)" if self.offset else ""
            self._say(f"Step {step} of {total}{stage}, loss {loss:.3f}.")

    def _finish(self, key: str) -> None:
        run = self.store.get(key)
        if run is None:
            raise FileNotFoundError(f"run {key} is not in {self.store.folder}")
        self.run = run
        self.curve.finish(run, "")
        name, score = run.score("test")
        what = f"{METHOD_STYLE.get(self.method.value, (self.method.value,))[0]}, seed {run.config['seed']}"
        self.finished[what] = run.series("loss")
        took = run.seconds["training"] + run.seconds.get("search", 0.0)
        how = f"{took:.0f} s of steps" if self.trained else "found in the store, not trained again"
        self._end(f"{html.escape(what[0].upper() + what[1:])}: finished, {how}; test {name} {score:.3f}. "
                  f"{html.escape(self.curve.words())}", "Train this now")

    def _end(self, words: str, again: str) -> None:
        self._running(False)
        self.start.description = again
        self.text.value = words

    def _say(self, words: str) -> None:
        self.text.value = html.escape(words)

    def _show(self, data: dict, metadata: dict, first: bool) -> None:
        self.image.value = base64.b64decode(data["image/png"])
        self.image.tooltip = metadata["image/png"]["alt"]
        self.image.layout.display = None


def train_now(*arguments: Any, **options: Any) -> Any:
    """Make the widget for a notebook; arguments as for `TrainNow`."""
    return TrainNow(*arguments, **options).box

"""Callbacks of the training loop, its outcome, and a line of progress."""

from __future__ import annotations

import html
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from rich.progress import TaskID

from ..console import bars, column, console
from ..methods.base import Clock, Method

LogEntry = tuple[int, str, str, float]  # step, site ("" for the whole model), name, value


class Callback(Protocol):
    """An observer of the training loop, which stops after this step if `on_step` returns True.

    If it has `on_begin(label)`, `fit` calls that before the examples and weights are read, and `on_end()` at the end,
    also after an error.
    """

    def on_step(self, clock: Clock, values: dict[str, float]) -> bool | None: ...

    def on_eval(self, clock: Clock, metrics: dict[str, float]) -> None: ...


@contextmanager
def watched(callbacks: Sequence[Callback], label: str) -> Iterator[None]:
    """Call `on_begin` and `on_end` of the callbacks that have them; see `Callback`."""
    with ExitStack() as ends:
        for callback in callbacks:
            if hasattr(callback, "on_begin"):
                ends.callback(callback.on_end)  # type: ignore[attr-defined]
                callback.on_begin(label)
        yield


@dataclass
class Outcome:
    """The result of a training beside the model: history, seconds spent in steps, and whether it was finished."""

    history: list[LogEntry] = field(default_factory=list)
    seconds: float = 0.0
    step: int = 0
    finished: bool = False
    following: Method | None = None  # the method to train next from the pretrained weights, after a search
    notes: list[str] = field(default_factory=list)  # warnings for the run's record


# ---- a line of progress --------------------------------------------------------------------------------------
# A notebook shows HTML and not a widget, whose state would stop repository pages from rendering the notebook.

READING, EVALUATING = "reading examples and weights", "evaluating"
Show = Callable[[dict[str, str], str, bool], None]   # (data by MIME type, display id, whether it is an update)


def in_notebook() -> bool:
    """Return whether this process is a notebook's kernel, which can show images."""
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    shell = get_ipython()
    return shell is not None and hasattr(shell, "kernel")


class ProgressLine(Callback):
    """Show step, loss and remaining time in one line that is replaced, and removed at the end.

    On a terminal it is a bar of rich, in a notebook the browser's bar; a file or pipe gets a line at intervals.

    Args:
        every: seconds between two updates in a notebook; lines of a file come at five times that interval.
        show: the function that shows data in a notebook, for tests.
    """

    def __init__(self, every: float = 1.0, show: Show | None = None) -> None:
        self.every, self.label = every, ""
        self.show = show or (_display if in_notebook() else None)
        self.name, self.shown = uuid.uuid4().hex, False
        drawn = not self.show and console.is_terminal
        self.bar = bars(column("{task.fields[loss]}"), transient=True) if drawn else None
        self.row: TaskID | None = None
        self.step = self.first = 0
        self.started = self.last = 0.0

    def on_begin(self, label: str) -> None:
        """Show the line from here on."""
        self.label = label
        if self.bar:
            self.bar.start()
        self._wait(READING)

    def on_step(self, clock: Clock, values: dict[str, float]) -> None:
        now = time.monotonic()
        if clock.step != self.step + 1 or clock.step == 1:  # a stage begins or is resumed
            self.first, self.started, self.last = clock.step, now, -5 * self.every
        self.step = clock.step
        if self.bar:
            self._bar(clock.step, clock.total, f"loss {values['loss']:.3f}")
        elif clock.step in (self.first, clock.total) or now - self.last >= self.every * (1 if self.show else 5):
            self.last = now
            done = clock.step - self.first
            left = f", {(now - self.started) / done * (clock.total - clock.step):.0f} s left" if done else ""
            self._print(f"step {clock.step}/{clock.total}  loss {values['loss']:.3f}{left}", clock.step, clock.total)
        if clock.step == clock.total:
            self._wait(EVALUATING)

    def on_eval(self, clock: Clock, metrics: dict[str, float]) -> None:
        if not self.bar and not self.show:
            shown = "  ".join(f"{name} {value:.3f}" for name, value in metrics.items())
            self._print(f"step {clock.step}/{clock.total}  validation {shown}")

    def on_end(self) -> None:
        """Remove the line, where that is possible."""
        if self.bar:
            self.bar.stop()
        elif self.show:
            self._put({"text/plain": ""})

    def _wait(self, activity: str) -> None:
        """Show an activity of unknown length."""
        if self.bar:
            self._bar(0, None, activity)
        else:
            self._print(f"{activity} …")

    def _bar(self, step: int, total: int | None, text: str) -> None:
        assert self.bar is not None
        if self.row is None or self.bar.tasks[0].total != total:   # a new task restarts the remaining time
            if self.row is not None:
                self.bar.remove_task(self.row)
            self.row = self.bar.add_task(self.label, total=total, completed=max(step - 1, 0), loss=text)
        self.bar.update(self.row, completed=step, loss=text)

    def _print(self, text: str, step: int = 0, total: int = 0) -> None:
        if self.show:
            progress = f' value="{step}" max="{total}"' if total else ""
            line = f"{self.label}: {text}"
            self._put({"text/html": f"<progress{progress}></progress> {html.escape(line)}", "text/plain": line})
        else:
            print(text, flush=True)

    def _put(self, data: dict[str, str]) -> None:
        assert self.show is not None
        self.show(data, self.name, self.shown)
        self.shown = True


def _display(data: dict[str, Any], name: str, update: bool) -> None:
    from IPython.display import display

    display(data, raw=True, display_id=name, update=update)

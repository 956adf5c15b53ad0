"""What a caller hangs on the training loop, what the loop leaves, and how it stops early."""

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

Row = tuple[int, str, str, float]  # step, site ("" for the whole model), name, value



class Callback(Protocol):
    """What a caller can hang on the loop; return True from `on_step` to stop after this step.

    `fit` also tells one that has `on_begin(label)` that rows and weights are now read, and calls `on_end()` at the
    end, whatever it is.
    """

    def on_step(self, clock: Clock, values: dict[str, float]) -> bool | None: ...

    def on_eval(self, clock: Clock, metrics: dict[str, float]) -> None: ...


@contextmanager
def watched(callbacks: Sequence[Callback], label: str) -> Iterator[None]:
    """A run from before its rows are read to after its last evaluation; see `Callback`."""
    with ExitStack() as ends:
        for callback in callbacks:
            if hasattr(callback, "on_begin"):
                ends.callback(callback.on_end)  # type: ignore[attr-defined]
                callback.on_begin(label)
        yield


@dataclass
class Outcome:
    """What a training leaves beside the model: rows of history, seconds in steps, whether it came to its end."""

    history: list[Row] = field(default_factory=list)
    seconds: float = 0.0
    step: int = 0
    finished: bool = False
    following: Method | None = None  # what to train next, from the pretrained weights (after a search)
    notes: list[str] = field(default_factory=list)  # warnings that belong in the run's record


# ---- a line of progress ------------------------------------------------------------------------------------
# How far a training is, in one line that is replaced and goes in the end: a bar, the loss, the time that is left.
#
# It is there from the start, while rows and weights are read. On a terminal a bar of rich; in a notebook a bar of the
# browser's own, since bars of widgets leave models behind that stop a notebook from rendering on a repository page,
# and what is gone in the end leaves nothing in it; in a file or a pipe lines now and then.
READS, EVALUATES = "reads rows and weights", "evaluates"
Show = Callable[[dict[str, str], str, bool], None]   # what to show, of which name, and whether it is there already


def in_notebook() -> bool:
    """Whether there is a kernel that can show images."""
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    shell = get_ipython()
    return shell is not None and hasattr(shell, "kernel")


class ProgressLine(Callback):
    """The line.

    Args:
        every: seconds between two changes in a notebook, and five times that between two lines of a file.
        show: how a notebook shows it, for tests; given, it counts as one.
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
        """From here on it is seen."""
        self.label = label
        if self.bar:
            self.bar.start()
        self._wait(READS)

    def on_step(self, clock: Clock, values: dict[str, float]) -> None:
        now = time.monotonic()
        if clock.step != self.step + 1 or clock.step == 1:  # a stage begins, or one that was interrupted goes on
            self.first, self.started, self.last = clock.step, now, -5 * self.every
        self.step = clock.step
        if self.bar:
            self._bar(clock.step, clock.total, f"loss {values['loss']:.3f}")
        elif clock.step in (self.first, clock.total) or now - self.last >= self.every * (1 if self.show else 5):
            self.last = now
            done = clock.step - self.first
            left = f", {(now - self.started) / done * (clock.total - clock.step):.0f} s left" if done else ""
            self._say(f"step {clock.step}/{clock.total}  loss {values['loss']:.3f}{left}", clock.step, clock.total)
        if clock.step == clock.total:
            self._wait(EVALUATES)

    def on_eval(self, clock: Clock, metrics: dict[str, float]) -> None:
        if not self.bar and not self.show:
            shown = "  ".join(f"{name} {value:.3f}" for name, value in metrics.items())
            self._say(f"step {clock.step}/{clock.total}  validation {shown}")

    def on_end(self) -> None:
        """Where it can be taken away, it is."""
        if self.bar:
            self.bar.stop()
        elif self.show:
            self._put({"text/plain": ""})

    def _wait(self, what: str) -> None:
        """Something that takes a while, nobody knows how long: the bar moves to and fro."""
        if self.bar:
            self._bar(0, None, what)
        else:
            self._say(f"{what} …")

    def _bar(self, step: int, total: int | None, words: str) -> None:
        assert self.bar is not None
        if self.row is None or self.bar.tasks[0].total != total:   # a new clock for the time that is left
            if self.row is not None:
                self.bar.remove_task(self.row)
            self.row = self.bar.add_task(self.label, total=total, completed=max(step - 1, 0), loss=words)
        self.bar.update(self.row, completed=step, loss=words)

    def _say(self, words: str, step: int = 0, total: int = 0) -> None:
        if self.show:
            how_far = f' value="{step}" max="{total}"' if total else ""
            line = f"{self.label}: {words}"
            self._put({"text/html": f"<progress{how_far}></progress> {html.escape(line)}", "text/plain": line})
        else:
            print(words, flush=True)

    def _put(self, data: dict[str, str]) -> None:
        assert self.show is not None
        self.show(data, self.name, self.shown)
        self.shown = True


def _display(data: dict[str, Any], name: str, there: bool) -> None:
    from IPython.display import display

    display(data, raw=True, display_id=name, update=there)

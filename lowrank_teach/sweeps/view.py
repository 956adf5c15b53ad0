"""How far a sweep is: a bar for all runs and one for each in progress; plain lines where there is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from rich.console import Group
from rich.live import Live

from ..board import bars, column, console
from ..runs import Run
from .work import Message

SHOWN = 16   # runs in progress, on a cluster there may be many


class View:
    """Drawn over and over on a terminal; elsewhere a line a run, on standard error."""

    def __init__(self, really: bool) -> None:
        self.drawn = really and console.is_terminal
        self.lines = really and not self.drawn
        self.whole, self.each = bars(), bars(column("{task.fields[loss]}"))
        self.rows: dict[str, Any] = {}
        self.all: Any = None
        self.total = self.finished = self.failures = 0

    @contextmanager
    def shown(self) -> Iterator[None]:
        """For as long as the sweep goes on."""
        with Live(Group(self.whole, self.each), console=console, refresh_per_second=4) if self.drawn else \
                nullcontext():
            yield

    def begin(self, found: int, total: int) -> None:
        """So many of all runs were stored."""
        self.finished, self.total = found, total
        self.all = self.whole.add_task("runs", completed=found, total=total)
        if self.lines:
            self._say(f"{total} runs, {found} of them stored")

    def note(self, line: str) -> None:
        """A line on the sweep itself."""
        if self.drawn:
            console.print(line)
        elif self.lines:
            self._say(line)

    def step(self, label: str, message: Message) -> None:
        """A run in progress took some steps."""
        if message.key not in self.rows and len(self.rows) < SHOWN:
            self.rows[message.key] = self.each.add_task(label, loss="")
        if message.key in self.rows:
            self.each.update(self.rows[message.key], completed=message.step, total=message.total,
                             loss=f"loss {message.loss:.3f}")

    def done(self, label: str, run: Run) -> None:
        """A run ended well."""
        name, value = run.score()
        self._end(label, run.key, f"{name} {value:.3f}")

    def failed(self, label: str, message: Message) -> None:
        """A run ended otherwise."""
        self.failures += 1
        self._end(label, message.key, f"failed: {message.words}")

    def _end(self, label: str, key: str, words: str) -> None:
        self.finished += 1
        if (row := self.rows.pop(key, None)) is not None:
            self.each.remove_task(row)
        if self.all is not None:
            self.whole.update(self.all, completed=self.finished,
                              description=f"runs, {self.failures} failed" if self.failures else "runs")
        if self.lines:
            self._say(f"{label}: {words} ({self.finished} of {self.total})")

    @staticmethod
    def _say(words: str) -> None:
        print(words, file=sys.stderr, flush=True)

"""Progress as throttled lines of text.

Not a widget: bars that leave widget models behind stop a notebook from rendering on a repository page.
"""

from __future__ import annotations

import sys
import time

from .methods.base import Clock
from .train import Callback


class TextProgress(Callback):
    """A line every few seconds, and one at the end, each over the last where the output is a terminal."""

    def __init__(self, every: float = 5.0, label: str = "") -> None:
        self.every, self.label = every, label
        self.started = self.last = time.monotonic()

    def on_step(self, clock: Clock, values: dict[str, float]) -> None:
        now = time.monotonic()
        if clock.step == 1:
            self.started = self.last = now
        if clock.step not in (1, clock.total) and now - self.last < self.every:
            return
        self.last = now
        pace = (now - self.started) / max(clock.step - 1, 1)
        left = f", {pace * (clock.total - clock.step):.0f} s left" if clock.step > 1 else ""
        print(f"{self.label}step {clock.step}/{clock.total}  loss {values['loss']:.3f}{left}", file=sys.stdout,
              flush=True)

    def on_eval(self, clock: Clock, metrics: dict[str, float]) -> None:
        shown = "  ".join(f"{name} {value:.3f}" for name, value in metrics.items())
        print(f"{self.label}step {clock.step}/{clock.total}  validation {shown}", flush=True)

"""Progress as throttled lines of text.

Not a widget: bars that leave widget models behind stop a notebook from rendering on a repository page.
"""

from __future__ import annotations

import time

from .methods.base import Clock
from .outcome import Callback


class TextProgress(Callback):
    """A line at the first step, every few seconds, and at the last step of each stage."""

    def __init__(self, every: float = 5.0, label: str = "") -> None:
        self.every, self.label = every, label
        self.step = self.first = 0
        self.started = self.last = 0.0

    def on_step(self, clock: Clock, values: dict[str, float]) -> None:
        now = time.monotonic()
        if clock.step != self.step + 1 or clock.step == 1:  # a stage begins, or one that was interrupted goes on
            self.first, self.started, self.last = clock.step, now, -self.every
        self.step = clock.step
        if clock.step not in (self.first, clock.total) and now - self.last < self.every:
            return
        self.last = now
        done = clock.step - self.first
        left = f", {(now - self.started) / done * (clock.total - clock.step):.0f} s left" if done else ""
        print(f"{self.label}step {clock.step}/{clock.total}  loss {values['loss']:.3f}{left}", flush=True)

    def on_eval(self, clock: Clock, metrics: dict[str, float]) -> None:
        shown = "  ".join(f"{name} {value:.3f}" for name, value in metrics.items())
        print(f"{self.label}step {clock.step}/{clock.total}  validation {shown}", flush=True)

"""Methods that end badly, for sweeps: importable, since a worker of its own must find them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lowrank_teach.errors import Refusal
from lowrank_teach.methods import METHODS, LoRA
from lowrank_teach.methods.lora import LoRARule

PATIENCE_S = 250.0   # for what comes in a second, were it not for all else that the machine does
ENDLESS = 100_000    # steps of a run that must not be over before it is stopped


@dataclass(frozen=True, kw_only=True)
class Lethal(LoRA):
    """LoRA that kills its process (signal 9) or raises after one step, so many times; its diary has all steps.

    ends: "kill", "raise", "refuse", or "wait" for a file "go" beside the diary, which must come.
    """

    diary: str = ""
    at: int = 0
    times: int = 1
    ends: str = "kill"

    name: ClassVar[str] = "lethal"

    def rule(self):
        return LethalRule(self)


class LethalRule(LoRARule):
    def after_step(self, clock):
        super().after_step(clock)
        diary = Path(self.method.diary)
        diary.with_suffix(".pid").write_text(str(os.getpid()))
        with diary.open("a") as file:
            file.write(f"{clock.step}\n")
        if self.method.ends == "wait":
            if clock.step == self.method.at:
                until(diary.with_name("go").exists, "nobody let it go on")
            return
        if clock.step == self.method.at and steps(diary).count(clock.step) <= self.method.times:
            if self.method.ends != "kill":
                raise RuntimeError("it went wrong") if self.method.ends == "raise" else Refusal("it went wrong")
            os.kill(os.getpid(), signal.SIGKILL)


def until(happened: Callable[[], object], words: str) -> None:
    """Wait for an event; where it never comes, raise these words rather than wait for ever."""
    end = time.monotonic() + PATIENCE_S
    while not happened():
        if time.monotonic() > end:
            raise TimeoutError(words)
        time.sleep(0.05)


def lives(diary: Path) -> bool:
    """Whether the process that wrote last is there."""
    try:
        os.kill(int(diary.with_suffix(".pid").read_text()), 0)
    except ProcessLookupError:
        return False
    return True


def steps(diary: Path) -> list[int]:
    """The steps that were taken, over all processes."""
    return [int(line) for line in diary.read_text().splitlines()] if diary.exists() else []


del METHODS["lethal"]  # no other test shall find it among the methods

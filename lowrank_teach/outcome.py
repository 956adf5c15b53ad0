"""What a caller hangs on the training loop, what the loop leaves, and how it stops early."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from .errors import Refusal
from .methods.base import Clock, Method

Row = tuple[int, str, str, float]  # step, site ("" for the whole model), name, value


class LivenessError(Refusal, RuntimeError):
    """A method is not doing what it says; the message says what was found."""


class DivergedError(Refusal, RuntimeError):
    """The loss, or something that was learned, is not finite."""


class StoppedError(Refusal, RuntimeError):
    """A callback stopped the run; its checkpoint lets the same call go on."""


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

"""What a worker does, wherever it runs: train the runs of one group, and say how each is doing.

A group is what is trained together. It reaches a worker by cloudpickle: a method that was defined in a notebook or a
script travels by value, one of a module by its name. What a worker says is a `Message`; the record itself is in the
store.
"""

from __future__ import annotations

import pickle
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import cloudpickle

from ..errors import Refusal
from ..methods.base import Clock
from ..outcome import Callback, StoppedError
from ..run_config import RunConfig
from ..runs import Run, Store

Group = list[RunConfig]
Reporters = Callable[[RunConfig], Sequence[Callback]]
AUTOSAVE_S = 60.0     # seconds between checkpoints: what a killed worker may lose
SAY_EVERY_S = 0.3     # seconds between two messages on the same run


@dataclass(frozen=True)
class Message:
    """What is heard of one run.

    key: the run's.  kind: "step" on the way, then one of the others.  run: where the store is not within reach.
    """

    key: str
    kind: Literal["step", "done", "failed", "stopped"]
    step: int = 0
    total: int = 0
    loss: float = float("nan")
    words: str = ""
    trace: str = ""
    run: Run | None = None


def groups(configs: Sequence[RunConfig], replicas: int, workers: int) -> list[Group]:
    """The runs in groups of up to so many that may share a pass, and no larger than leaves each worker some."""
    if replicas == 1:
        return [[config] for config in configs]
    from ..many_runs import groups as may_share

    found = []
    for alike in may_share(configs):
        size = max(1, min(replicas, -(-len(alike) // workers)))
        found += [alike[i:i + size] for i in range(0, len(alike), size)]
    return found


class WorkerError(Refusal, RuntimeError):
    """No worker can be started or given its runs; the message says why and what to do."""


def packed(group: Group) -> bytes:
    """A group as it travels to another process, with the keys that its runs have here.

    Raises:
        WorkerError: it cannot.
    """
    try:
        return cloudpickle.dumps(([config.key for config in group], cloudpickle.dumps(group)))
    except Exception as error:   # whatever its objects raise
        raise WorkerError(f"a configuration cannot be handed to another process ({_line(error)}); define its method "
                          "in a module, or train in this process with processes=0") from error


def unpacked(given: bytes) -> Group:
    """What `packed` made, in another process.

    Raises:
        WorkerError: a class of it is not to be had here, or rows or a model are others here.
    """
    keys, inside = pickle.loads(given)
    try:
        group: Group = pickle.loads(inside)
    except Exception as error:   # whatever its modules raise
        raise WorkerError(f"the worker cannot load the method of these runs ({_line(error)}); define it in the "
                          "notebook or script itself, install its module where the workers find it, or use "
                          "processes=0") from error
    for key, config in zip(keys, group, strict=True):
        if config.key != key:
            raise WorkerError(f"where the worker stands, the rows of {config.task} or the weights of "
                              f"{config.backbone} are others than where the sweep was called; give it the same "
                              "files, and change none while a sweep runs")
    return group


def _line(error: Exception) -> str:
    words = " ".join(str(error).split())
    return words if len(words) <= 120 else words[:119] + "…"


class Reporter(Callback):
    """Says now and then where a run stands, and stops it once it is asked to.

    say: takes a message.  asked: whether to stop after this step.
    """

    def __init__(self, key: str, say: Callable[[Message], None], asked: Callable[[], bool]) -> None:
        self.key, self.say, self.asked = key, say, asked
        self.last = -SAY_EVERY_S

    def on_step(self, clock: Clock, values: dict[str, float]) -> bool:
        now = time.monotonic()
        if now - self.last >= SAY_EVERY_S or clock.step == clock.total:
            self.last = now
            self.say(Message(self.key, "step", clock.step, clock.total, values["loss"]))
        return self.asked()

    def on_eval(self, clock: Clock, metrics: dict[str, float]) -> None:
        """Nothing is shown of these."""


def train_group(group: Group, store: Store, say: Callable[[Message], None],
                asked: Callable[[], bool] = lambda: False, interrupted: bool = False) -> None:
    """Train the runs of a group, or find those that are stored; what one raises does not reach the others.

    A run that is stopped leaves a checkpoint.

    Args: asked: whether to stop now.  interrupted: let Ctrl-C through to the caller.
    """
    keys = [config.key for config in group]   # of the rows and weights as they are now

    def reporters(config: RunConfig) -> list[Reporter]:
        return [Reporter(keys[group.index(config)], say, asked)]

    try:
        ends = ([_fit(group[0], store, reporters)] if len(group) == 1 else
                _fit_together(group, keys, store, say, reporters))
    except KeyboardInterrupt as stopped:
        if interrupted:
            raise
        ends = [StoppedError(str(stopped)) for _ in group]
    for key, end in zip(keys, ends, strict=True):
        say(ending(key, end))


def _fit(config: RunConfig, store: Store, reporters: Reporters) -> Run | Exception:
    try:
        return config.fit(store=store, progress=False, callbacks=reporters(config), autosave=AUTOSAVE_S)
    except Exception as error:  # whatever it is, the other runs go on
        return error


def _fit_together(group: Group, keys: list[str], store: Store, say: Callable[[Message], None], reporters: Reporters
                  ) -> Sequence[Run | Exception]:
    """In one pass; each alone where that breaks, as when memory runs out: what was done by then is found."""
    from ..many_runs import fit_many

    try:
        return fit_many(group, store=store, callbacks=reporters, say=None, autosave=AUTOSAVE_S,
                        on_run=lambda config, run: say(ending(keys[group.index(config)], run)))
    except Exception as error:
        warnings.warn(f"a pass of {len(group)} runs broke ({type(error).__name__}: {error}); each of them is trained "
                      "alone", stacklevel=2)
        return [_fit(config, store, reporters) for config in group]


def words_of(error: Exception) -> str:
    """A refusal in its own words, else with the name of the error; in one line."""
    words = str(error) if isinstance(error, ValueError | Refusal) else f"{type(error).__name__}: {error}"
    return " ".join(words.split())


def ending(key: str, end: Run | Exception) -> Message:
    """What is said of a run that ended."""
    if isinstance(end, Run):
        return Message(key, "done")
    if isinstance(end, StoppedError):
        return Message(key, "stopped", words=str(end))
    return Message(key, "failed", words=words_of(end), trace="".join(traceback.format_exception(end)))

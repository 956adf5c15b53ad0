"""What a worker does, wherever it runs: train the runs of one group, and say how each is doing.

A group is what is trained together. It reaches a worker by cloudpickle: a method or a task that was defined in a
notebook or a script travels by value, one of a module by its name. What a worker says is a `Message`; the record
itself is in the store.
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
from ..tasks import TASKS, Task
from ..tasks.table import is_packaged, put_in_table

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


@dataclass(frozen=True)
class Parcel:
    """A group as it travels to another process, as often as it has to.

    keys: that its runs had when the sweep was called.  given: what the worker takes, see `unpacked`.
    """

    keys: list[str]
    given: bytes


def packed(group: Group, keys: list[str] | None = None) -> Parcel:
    """A group to hand to workers, with the tasks that are not the package's own.

    keys: None takes those that its runs have now.

    Raises:
        WorkerError: it cannot.
    """
    keys = keys or [config.key for config in group]
    try:
        return Parcel(keys, cloudpickle.dumps((keys, cloudpickle.dumps((group, _tasks_of(group))))))
    except Exception as error:   # whatever its objects raise
        raise WorkerError(f"a configuration cannot be handed to another process ({_line(error)}); define its method "
                          "and task in a module, or train in this process with processes=0") from error


def _tasks_of(group: Group) -> dict[str, Task | None]:
    """Every task that the runs need, by name; None for the package's own, which the worker has."""
    names = [config.task for config in group]
    for name in names:   # grows
        names += [other for other in (TASKS[name].made_of, TASKS[name].trained_on) if other and other not in names]
    return {name: None if is_packaged(name) else TASKS[name] for name in names}


def unpacked(given: bytes) -> tuple[Group, list[str]]:
    """The group and the keys of a parcel, in another process, whose table of tasks then has those that the runs need.

    Raises:
        WorkerError: a class of it is not to be had here, or rows or a model are others here.
    """
    try:
        keys, inside = pickle.loads(given)
        group, tasks = pickle.loads(inside)
        put_in_table(tasks)
        now = [config.key for config in group]
    except (Exception, SystemExit) as error:   # whatever its modules raise
        raise WorkerError(f"the worker cannot load the method or the task of these runs ({_line(error)}); define "
                          "them in the notebook or script itself, install their module where the workers find it, "
                          "or use processes=0") from error
    refuse_changed(group, keys, now)
    return group, keys


def refuse_changed(group: Group, keys: Sequence[str], now: Sequence[str]) -> None:
    """Refuse runs whose keys are no longer, or not here, those that were asked for.

    Raises:
        WorkerError: rows or a model are others.
    """
    for config, key, found in zip(group, keys, now, strict=True):
        if found != key:
            raise WorkerError(_changed(config.task, config.backbone))


def _changed(task: str, backbone: str) -> str:
    return (f"where this run was to be trained, the rows of {task} or the weights of {backbone} are "
            "others than where and when the sweep was called; give every worker the same files, and change none "
            "while a sweep runs")


def _line(error: BaseException) -> str:
    words = " ".join(f"{type(error).__name__}: {error}".split())
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
                asked: Callable[[], bool] = lambda: False, interrupted: bool = False,
                keys: list[str] | None = None) -> None:
    """Train the runs of a group, or find those that are stored; what one raises does not reach the others.

    A run that is stopped leaves a checkpoint.

    Args: asked: whether to stop now.  interrupted: let Ctrl-C through to the caller.  keys: that the runs had when
        the sweep was called; None takes those of now. A run that has another one failed.
    """
    now = [config.key for config in group]
    keys = keys or now
    try:
        refuse_changed(group, keys, now)
    except WorkerError as error:
        for key in keys:
            say(ending(key, error))
        return

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
    """What is said of a run that ended; one that became another since it was asked for has failed."""
    if isinstance(end, Run) and end.key != key:
        end = WorkerError(_changed(end.config["task"], end.config["backbone"]))
    if isinstance(end, Run):
        return Message(key, "done")
    if isinstance(end, StoppedError):
        return Message(key, "stopped", words=str(end))
    return Message(key, "failed", words=words_of(end), trace="".join(traceback.format_exception(end)))

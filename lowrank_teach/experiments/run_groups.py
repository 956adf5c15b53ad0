"""A group of a sweep's runs: how it travels to a worker, how it is trained there, and what is said of it."""

from __future__ import annotations

import math
import pickle
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import cloudpickle

from ..errors import Refusal, StoppedError
from ..methods.base import Clock
from ..tasks.table import TASKS, is_packaged, put_in_table
from ..tasks.task import Task
from ..training.callbacks import Callback
from .fit import RunConfig
from .fit_many import fit_many
from .runs import Run, Store


@dataclass(frozen=True)
class Message:
    """What is heard of one run.

    key: the run's.  kind: "step" on the way, the first before any is taken; then one of the others.  run: where the
    store is not within reach.
    """

    key: str
    kind: Literal["step", "done", "failed", "stopped"]
    step: int = 0
    total: int = 0
    loss: float = math.nan
    words: str = ""
    trace: str = ""
    run: Run | None = None


class WorkerError(Refusal, RuntimeError):
    """No worker can be started or given its runs; the message says why and what to do."""


class DeadWorkerError(Exception):
    """A worker died over its group, which another one can take up again; the message says how."""


@dataclass(frozen=True)
class Parcel:
    """A group as it travels to another process, as often as it has to.

    keys: that its runs had when the sweep was called.  given: what the worker takes, see `unpacked`.
    """

    keys: list[str]
    given: bytes

    def failed(self, words: str) -> list[Message]:
        """That none of its runs came to an end."""
        return [Message(key, "failed", words=words) for key in self.keys]


def packed(group: list[RunConfig], keys: list[str]) -> Parcel:
    """A group to hand to workers, with the tasks that are not the package's own.

    By cloudpickle: a method or a task of a notebook or a script travels by value, one of a module by its name.

    Raises:
        WorkerError: it cannot.
    """
    try:
        return Parcel(keys, cloudpickle.dumps((group, _tasks_of(group))))
    except Exception as error:   # whatever its objects raise
        raise WorkerError(f"a configuration cannot be handed to another process ({words_of(error)}); define its "
                          "method and task in a module, or train in this process with processes=0") from error


def _tasks_of(group: list[RunConfig]) -> dict[str, Task | None]:
    """Every task that the runs need, by name; None for the package's own, which the worker has."""
    names = [config.task for config in group]
    for name in names:   # grows
        names += [other for other in (TASKS[name].made_of, TASKS[name].trained_on) if other and other not in names]
    return {name: None if is_packaged(name) else TASKS[name] for name in names}


def unpacked(parcel: Parcel) -> list[RunConfig]:
    """The group, in another process, whose table of tasks then has those that the runs need.

    Raises:
        WorkerError: a class of it is not to be had here.
    """
    try:
        group, tasks = pickle.loads(parcel.given)
        put_in_table(tasks)
    except (Exception, SystemExit) as error:   # whatever its modules raise
        raise WorkerError(f"the worker cannot load the method or the task of these runs ({words_of(error)}); define "
                          "them in the notebook or script itself, install their module where the workers find it, "
                          "or use processes=0") from error
    return group


def words_of(error: BaseException) -> str:
    """A line of an error of some other library."""
    words = " ".join(f"{type(error).__name__}: {error}".split())
    return words if len(words) <= 120 else words[:119] + "…"


Say = Callable[[Message], None]
OnRun = Callable[[RunConfig, Run], None]
Reporters = Callable[[RunConfig], Sequence[Callback]]
AUTOSAVE_S = 60.0     # seconds between checkpoints: what a killed worker may lose
SAY_EVERY_S = 0.3     # seconds between two messages on the same run
LOOK_EVERY_S = 0.25   # seconds between two looks at what was said


def train_parcel(parcel: Parcel, store: Store, say: Say, asked: Callable[[], bool] = lambda: False) -> None:
    """Train what came from another process."""
    try:
        group = unpacked(parcel)
    except WorkerError as error:
        for key in parcel.keys:
            say(ending(key, error))
    else:
        train_group(group, parcel.keys, store, say, asked)


def train_group(group: list[RunConfig], keys: list[str], store: Store, say: Say,
                asked: Callable[[], bool] = lambda: False, interrupted: bool = False) -> None:
    """Train the runs of a group, or find those that are stored; what one raises does not reach the others.

    A run that is stopped leaves a checkpoint.

    Args: keys: that the runs had when the sweep was called; if one has another here, all failed.  asked: whether to
        stop now.  interrupted: let Ctrl-C through to the caller.
    """
    key_of = {id(config): key for config, key in zip(group, keys, strict=True)}

    def reporters(config: RunConfig) -> list[Reporter]:
        return [Reporter(key_of[id(config)], say, asked)]

    try:
        _refuse_changed(group, keys)
        for key in keys:
            say(Message(key, "step"))
        ends = _fit(group, store, reporters, lambda config, run: say(ending(key_of[id(config)], run)))
    except Exception as error:
        ends = [error for _ in group]
    except KeyboardInterrupt as stopped:
        if interrupted:
            raise
        ends = [StoppedError(str(stopped)) for _ in group]
    for key, end in zip(keys, ends, strict=True):
        say(ending(key, end))


def _fit(group: list[RunConfig], store: Store, reporters: Reporters, on_run: OnRun) -> Sequence[Run | Exception]:
    """In one pass; each alone where that breaks, as when memory runs out: what was done by then is found."""
    try:
        return fit_many(group, store=store, callbacks=reporters, say=None, autosave=AUTOSAVE_S, on_run=on_run)
    except Exception as error:   # whatever it is, the other runs go on
        if len(group) == 1:
            return [error]
        warnings.warn(f"a pass of {len(group)} runs broke ({type(error).__name__}: {error}); each of them is trained "
                      "alone", stacklevel=2)
        return [_fit([config], store, reporters, on_run)[0] for config in group]


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


def _refuse_changed(group: list[RunConfig], keys: list[str]) -> None:
    """Refuse runs whose keys are no longer, or not here, those that were asked for.

    Raises:
        WorkerError: rows or a model are others.
    """
    for config, key in zip(group, keys, strict=True):
        if config.key != key:
            raise WorkerError(_changed(config.task, config.backbone))


def _changed(task: str, backbone: str) -> str:
    return (f"where this run was to be trained, the rows of {task} or the weights of {backbone} are "
            "others than where and when the sweep was called; give every worker the same files, and change none "
            "while a sweep runs")


def ending(key: str, end: Run | Exception) -> Message:
    """What is said of a run that ended; one that became another since it was asked for has failed."""
    if isinstance(end, Run) and end.key != key:
        end = WorkerError(_changed(end.config["task"], end.config["backbone"]))
    if isinstance(end, Run):
        return Message(key, "done")
    if isinstance(end, StoppedError):
        return Message(key, "stopped", words=str(end))
    words = str(end) if isinstance(end, ValueError | Refusal) else f"{type(end).__name__}: {end}"
    return Message(key, "failed", words=" ".join(words.split()), trace="".join(traceback.format_exception(end)))

"""`sweep`: a list of runs, trained where there is room, each once; what is stored is found, what fails is told."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
import uuid
import warnings
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from statistics import median
from typing import Any, Literal, Protocol

import cloudpickle
import torch
from rich.console import Group
from rich.live import Live

from ..console import bars, column, console
from ..errors import Refusal, StoppedError, require
from ..methods.base import Clock
from ..models import packaged
from ..models.backbones import require_config
from ..models.packaged import expanded
from ..tasks.table import TASKS, is_packaged, put_in_table
from ..tasks.task import Task
from ..training.batches import ended_like_ctrl_c
from ..training.callbacks import Callback
from .fit import RunConfig
from .runs import Run, Store


# ---- short names of runs -----------------------------------------------------------------------------------
# What to call the runs of a sweep: by the values in which they differ.
def varied(configs: Sequence[RunConfig]) -> list[str]:
    """Of each run the values in which runs of its method differ, such as "r=4, lr=0.001"."""
    plain = [_plain(config) for config in configs]
    found: dict[str, dict[str, set[str]]] = {}
    for config, values in zip(configs, plain, strict=True):
        for name, one in values.items():
            found.setdefault(config.method.name, {}).setdefault(name, set()).add(str(one))
    return [", ".join(f"{name}={one}" for name, one in values.items() if len(found[config.method.name][name]) > 1)
            for config, values in zip(configs, plain, strict=True)]


def labels(configs: Sequence[RunConfig]) -> list[str]:
    """Of each run method, task, seed, and what sets it apart, such as "lora, rt, seed 0, lr=0.001"."""
    several = len({config.backbone for config in configs}) > 1
    return [", ".join([config.label, *([config.backbone] if several else []), *([values] if values else [])])
            for config, values in zip(configs, varied(configs), strict=True)]


def _plain(config: RunConfig) -> dict[str, Any]:
    """All values of the method, those of a composition's members too, and of the training."""
    method = dict(config.described["method"])
    members = method.pop("members", [])
    return {name: one for values in (*members, method, config.described["training"]) for name, one in values.items()}


# ---- how long it would take --------------------------------------------------------------------------------
# What a sweep would take, before it is started: from stored runs like its own.
@dataclass(frozen=True)
class Estimate:
    """How many runs there are, how many are stored, and seconds for the rest.

    seconds: of the runs that can be judged, one after another.  unknown: labels of those that cannot.
    """

    runs: int
    stored: int
    seconds: float
    unknown: tuple[str, ...]

    @property
    def missing(self) -> int:
        return self.runs - self.stored

    def words(self, processes: int) -> str:
        """Sentences for a reader, for so many processes."""
        known = self.missing - len(self.unknown)
        found = [f"{self.runs} runs, {self.stored} of them stored, {self.missing} to train"]
        if known:
            share = self.seconds / min(processes, known)
            workers = "1 process" if processes == 1 else f"{processes} processes"
            found.append(f"about {duration(share)} for {known} of them on {workers}, judged by stored runs on the "
                         "same model and batch, of the same method and task where there are some")
        if self.unknown:
            found.append(f"{len(self.unknown)} of them cannot be judged, such as {self.unknown[0]}: no run on that "
                         "model with that batch is stored; train one, and ask again")
        return "\n".join(found)


def duration(seconds: float) -> str:
    """In the unit that a reader would take: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def estimate(configs: Sequence[RunConfig], store: Store | None = None) -> Estimate:
    """Runs, stored ones, and the time of the others by stored runs on the same backbone, batch and row length.

    Of the nearest (the same method and task, the same method, any) the median seconds a step, and the median seconds
    beside the steps (loading, evaluating).
    """
    store = store or Store()
    known = _Timings(store)
    wanted = {config.key: config for config in configs}
    missing = [config for key, config in wanted.items() if not (store.path(key) / "run.json").exists()]
    judged = [(label, known.of(config.described)) for label, config in zip(labels(missing), missing, strict=True)]
    return Estimate(len(wanted), len(wanted) - len(missing), sum(seconds or 0.0 for _, seconds in judged),
                    tuple(label for label, seconds in judged if seconds is None))


class _Timings:
    """Seconds a step and seconds beside them, by what decides them, from near to far."""

    def __init__(self, store: Store) -> None:
        self.found: dict[tuple, list[tuple[float, float]]] = defaultdict(list)
        for record in _records(store):
            seconds, config = record["seconds"], record["config"]
            stepping = seconds["training"] + seconds.get("search", 0.0)
            pair = stepping / config["training"]["steps"], seconds["total"] - stepping
            for like in _likenesses(config):
                self.found[like].append(pair)

    def of(self, config: dict[str, Any]) -> float | None:
        """Seconds of a run of this configuration; None where nothing like it is stored."""
        for like in _likenesses(config):
            if pairs := self.found.get(like):
                return median(p[0] for p in pairs) * config["training"]["steps"] + median(p[1] for p in pairs)
        return None


def _likenesses(config: dict[str, Any]) -> list[tuple]:
    """What two runs must share to take like long, from near to far."""
    training = config["training"]
    far = (config["backbone"], *(training[name] for name in ("batch_size", "max_length", "epochs")))
    near = (*far, config["method"]["method"])
    return [(*near, config["task"]), near, far]


def _records(store: Store) -> Iterator[dict[str, Any]]:
    for key in store.names():
        try:
            yield json.loads((store.path(key) / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # damaged: `Store.get` warns of it


# ---- what a worker does ------------------------------------------------------------------------------------
# What a worker does, wherever it runs: train the runs of one group, and say how each is doing.
#
# A group is what is trained together. It reaches a worker by cloudpickle: a method or a task that was defined in a
# notebook or a script travels by value, one of a module by its name. What a worker says is a `Message`; the record
# itself is in the store.
RunGroup = list[RunConfig]
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


def groups(configs: Sequence[RunConfig], replicas: int, workers: int) -> list[RunGroup]:
    """The runs in groups of up to so many that may share a pass, and no larger than leaves each worker some."""
    if replicas == 1:
        return [[config] for config in configs]
    from .fit_many import groups as may_share

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


def packed(group: RunGroup, keys: list[str] | None = None) -> Parcel:
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


def _tasks_of(group: RunGroup) -> dict[str, Task | None]:
    """Every task that the runs need, by name; None for the package's own, which the worker has."""
    names = [config.task for config in group]
    for name in names:   # grows
        names += [other for other in (TASKS[name].made_of, TASKS[name].trained_on) if other and other not in names]
    return {name: None if is_packaged(name) else TASKS[name] for name in names}


def unpacked(given: bytes) -> tuple[RunGroup, list[str]]:
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


def refuse_changed(group: RunGroup, keys: Sequence[str], now: Sequence[str]) -> None:
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


def train_group(group: RunGroup, store: Store, say: Callable[[Message], None],
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


def _fit_together(group: RunGroup, keys: list[str], store: Store, say: Callable[[Message], None], reporters: Reporters
                  ) -> Sequence[Run | Exception]:
    """In one pass; each alone where that breaks, as when memory runs out: what was done by then is found."""
    from .fit_many import fit_many

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


# ---- processes of this machine -----------------------------------------------------------------------------
# Groups of runs on the processes of one machine: each worker trains one group at a time, on threads of its own.
#
# A worker is started anew (spawn). One that dies is replaced and its group is taken up again: finished runs of it are
# found in the store, the one in progress goes on from its checkpoint. Workers end with the process that started them.
RETRIES = 2          # how often a group is given to another worker after one was killed
PATIENCE_S = 120.0   # after a stop: until the step in progress must have come to its end
LOGS = "lowrank-teach-sweep-"
READY, LOADED, IDLE = "ready", "loaded", "idle"


class Worker:
    """One process, and the pipe to it.

    log: what it prints, since that would run through the display.

    Args: folder: of the run store.
    """

    def __init__(self, folder: Path, logs: Path) -> None:
        self.log = Path(tempfile.mkstemp(dir=logs, suffix=".log")[1])
        self.pipe, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self.process = context.Process(target=_work, args=(theirs, str(folder), str(self.log)), daemon=True)
        self.process.start()
        theirs.close()  # else its end would not be noticed
        self.ready, self.loaded, self.tries = False, False, 0
        self.group: Parcel | None = None

    def give(self, group: Parcel, tries: int) -> None:
        """A group to train; how many workers have died over it."""
        self.group, self.loaded, self.tries = group, False, tries
        self.pipe.send_bytes(group.given)

    def failed(self, words: str) -> list[Message]:
        """That none of its group came to an end."""
        return [Message(key, "failed", words=words) for key in self.group.keys] if self.group else []

    def end(self, seconds: float | None = None) -> None:
        """Close the pipe, at which it ends; one that does not is killed after these seconds."""
        self.pipe.close()
        self.process.join(seconds)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()

    def how_it_ended(self) -> str:
        """Words on a process that died, with the last that it printed."""
        self.process.join()
        code = self.process.exitcode or 0
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"status {code}"
        printed = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"its process ended with {how}" + (f": {printed[-1]}" if printed else "")


def logs_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder for what workers print; those of killed processes go."""
    packaged.remove_leftovers(Path(tempfile.gettempdir()), LOGS)
    return tempfile.TemporaryDirectory(prefix=packaged.of_this_process(LOGS))


class Pool:
    """So many workers of one thread each, and the packed groups that wait for one.

    Iterating gives the messages as they come; `close` stops what is under way, each run after its step.

    Raises:
        WorkerError: a worker cannot start.
        KeyboardInterrupt: a worker was told to stop by Ctrl-C.
    """

    def __init__(self, groups: list[Parcel], store: Store, processes: int) -> None:
        self.waiting = deque((group, 0) for group in groups)
        self.store, self.size = store, min(processes, len(groups))
        self.workers: list[Worker] = []
        self.logs = logs_folder()

    def __iter__(self) -> Iterator[Message]:
        self.workers = [self._start() for _ in range(self.size)]
        while self.workers:
            by_pipe = {worker.pipe: worker for worker in self.workers}
            for pipe in wait(list(by_pipe)):
                yield from self._hear(by_pipe[pipe])  # type: ignore[index]

    def _start(self) -> Worker:
        return Worker(self.store.folder, Path(self.logs.name))

    def _hear(self, worker: Worker) -> Iterator[Message]:
        try:
            said = worker.pipe.recv()
            if isinstance(said, Message):
                if said.kind == "stopped":   # Ctrl-C reached a worker: it was meant for all
                    raise KeyboardInterrupt
                yield said
            elif said == LOADED:
                worker.loaded = True
            else:
                if said not in (READY, IDLE):
                    yield from worker.failed(said)
                worker.ready, worker.group = True, None
                self._next(worker)
        except (EOFError, OSError):
            yield from self._lost(worker)

    def _next(self, worker: Worker) -> None:
        """The next group for an idle worker, or its end."""
        if self.waiting:
            worker.give(*self.waiting.popleft())
        else:
            self.workers.remove(worker)
            worker.end()

    def _lost(self, worker: Worker) -> Iterator[Message]:
        """A worker died: another one takes up its group, or the group is given up."""
        self.workers.remove(worker)
        how, tries = worker.how_it_ended(), worker.tries + 1
        worker.end()
        if not worker.ready:
            raise WorkerError(f"a worker could not start ({how}); in a script, call sweep() under "
                              "`if __name__ == \"__main__\":`, or train in this process with processes=0")
        if worker.group and not worker.loaded and "SIGKILL" not in how:   # it would again
            yield from worker.failed(f"a worker died as it loaded the method and the task of these runs ({how}); "
                                     "repair what their modules do when they are imported, or use processes=0")
        elif worker.group and tries <= RETRIES:
            self.waiting.appendleft((worker.group, tries))
        elif worker.group:
            words = f"given up after {tries} workers died over it ({how}); where memory ran out, use fewer processes"
            yield from worker.failed(words)
        if self.waiting:
            self.workers.append(self._start())

    def close(self) -> None:
        """Stop all workers: a run in progress ends its step and leaves a checkpoint. A second Ctrl-C does not
        wait."""
        try:
            for worker in self.workers:
                worker.pipe.close()   # a worker that nobody hears any more stops
            for worker in self.workers:
                worker.end(PATIENCE_S)
        except KeyboardInterrupt:
            for worker in self.workers:
                worker.end(0)
            raise
        finally:
            self.workers = []
            self.logs.cleanup()


def _work(pipe: Connection, folder: str, log: str) -> None:
    """A worker's life: a group, its messages, the next group; until the pipe is closed."""
    _set_up(log)
    store, alone = Store(folder), False

    def say(what: Message | str) -> None:
        nonlocal alone
        try:
            pipe.send(what)
        except OSError:
            alone = True

    def asked() -> bool:
        return alone or pipe.poll()   # nothing is sent during a group: it can only be the end of the pipe

    say(READY)
    while not alone:
        try:
            given = pipe.recv_bytes()
        except (EOFError, OSError):
            return
        try:
            group, keys = unpacked(given)
        except WorkerError as error:
            say(words_of(error))
        else:
            say(LOADED)
            train_group(group, store, say, asked, keys=keys)
            say(IDLE)


def _set_up(log: str) -> None:
    """One thread, what is printed into a file, and Ctrl-C left to the process that started this one."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    sys.stdout.flush()
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)


# ---- a Ray cluster -----------------------------------------------------------------------------------------
# Groups of runs on a Ray cluster: a task each, one core each; Ray starts a task anew whose worker or node died.
#
# Where the nodes see the run store's folder, records and checkpoints are written there, and a run goes on from its
# checkpoint on whatever node. Where they do not, each node keeps its own store, and records come back with the task's
# result. Every node needs this package, and the rows and models at the same places, which travel with each task: what
# the sweep's own process says of them, absolute.
def _ray() -> Any:
    """The library, which nothing else here needs.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError("a sweep over several machines needs Ray: pip install 'lowrank-teach[scale]'") from error
    return ray


LOOK_EVERY_S = 0.5
# what says where rows and models are; a worker is reused only by tasks that were given the same
FOLDERS = ("LOWRANK_TEACH_DATA", "LOWRANK_TEACH_HOME", "HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE")
OTHERS = ("HF_ENDPOINT", "HF_HUB_OFFLINE")


def environment() -> dict[str, str]:
    """This process's word on where rows and models are, as it holds in a process that stands elsewhere."""
    found = {name: str(expanded(os.environ[name], name).absolute()) for name in FOLDERS if os.environ.get(name)}
    found |= {name: os.environ[name] for name in OTHERS if name in os.environ}
    return {"LOWRANK_TEACH_DATA": "", **found}   # empty is unset, over what the node itself may say


class Mailbox:
    """Where tasks say how far they are; an actor. What is lost in it is lost to the display alone."""

    def __init__(self) -> None:
        self.latest: dict[str, Message] = {}

    def put(self, message: Message) -> None:
        self.latest[message.key] = message

    def take(self) -> list[Message]:
        found, self.latest = list(self.latest.values()), {}
        return found


class Cluster:
    """The groups as tasks of a cluster; iterating gives the messages as they come, `close` stops what is under way.

    Args: address: of the cluster, "auto" for the one this machine belongs to, "local" for a new one on this machine.
        at_once: the most groups at a time; None leaves it to the cluster's cores.

    Raises:
        ConnectionError: there is no cluster at this address.
    """

    def __init__(self, groups: list[Parcel], store: Store, address: str, at_once: int | None) -> None:
        self.waiting, self.store, self.at_once = deque(groups), store, at_once
        self.own = not _ray().is_initialized()
        if self.own:
            _ray().init(address=None if address == "local" else address, log_to_driver=False, include_dashboard=False
                     if address == "local" else None, logging_level="ERROR")
        self.token = store.folder.absolute() / f".seen-by-ray-{uuid.uuid4().hex}"
        self.token.touch()
        self.mailbox, self.answer = _ray().remote(Mailbox).options(num_cpus=0).remote(), None
        gpus = {"num_gpus": 1} if _ray().cluster_resources().get("GPU") else {}
        self.task = _ray().remote(_train_remotely).options(num_cpus=1, max_retries=RETRIES, **gpus,
                                               runtime_env={"env_vars": environment()})
        self.pending: dict[Any, Parcel] = {}

    def __iter__(self) -> Iterator[Message]:
        while self.waiting or self.pending:
            while self.waiting and (self.at_once is None or len(self.pending) < self.at_once):
                group = self.waiting.popleft()
                task = self.task.remote(group.given, group.keys, os.getcwd(), str(self.token), self.mailbox)
                self.pending[task] = group
            done, _ = _ray().wait(list(self.pending), timeout=LOOK_EVERY_S)
            yield from self._steps()
            for reference in done:
                yield from _result(reference, self.pending.pop(reference))

    def _steps(self) -> list[Message]:
        """What the mailbox holds; an answer that is late, as on a busy machine, is heard at a later look."""
        with suppress(_ray().exceptions.RayError):   # its node died: nothing but the display depends on it
            answer, self.answer = self.answer or self.mailbox.take.remote(), None
            if _ray().wait([answer], timeout=LOOK_EVERY_S)[0]:
                return _ray().get(answer)
            self.answer = answer
        return []

    def close(self) -> None:
        """Stop all tasks, each run after its step; a second Ctrl-C does not wait."""
        pending = list(self.pending)
        try:
            for reference in pending:
                _ray().cancel(reference)   # as Ctrl-C would
            if pending:
                _ray().wait(pending, num_returns=len(pending), timeout=PATIENCE_S)
        finally:
            self.token.unlink(missing_ok=True)
            _ray().kill(self.mailbox)
            if self.own:
                _ray().shutdown()


def _result(reference: Any, group: Parcel) -> list[Message]:
    """What a task said at its end, or that it came to none however often it was begun."""
    try:
        return _ray().get(reference)
    except _ray().exceptions.RayError as error:
        words = " ".join(f"given up after {RETRIES + 1} workers died over it: {error}".split())
        return [Message(key, "failed", words=words) for key in group.keys]


def _train_remotely(given: bytes, keys: list[str], folder: str, token: str, mailbox: Any) -> list[Message]:
    """A task: train a group into the sweep's store where it is within reach, else into this node's own.

    folder: where the sweep was called, to which the path of a model may be relative.
    """
    import torch

    torch.set_num_threads(1)
    with suppress(OSError):   # no such folder on this node: then only what is relative is not found
        os.chdir(folder)
    try:
        group, _ = unpacked(given)
    except WorkerError as error:
        return [Message(key, "failed", words=words_of(error)) for key in keys]
    near = os.path.exists(token)
    store, said = Store(os.path.dirname(token)) if near else Store(), list[Message]()

    def say(message: Message) -> None:
        if message.kind == "step":
            mailbox.put.remote(message)
        else:
            said.append(message if near else replace(message, run=store.get(message.key)))

    train_group(group, store, say, keys=keys)
    return said


# ---- what is shown -----------------------------------------------------------------------------------------
# How far a sweep is: a bar for all runs and one for each in progress; plain lines where there is no terminal.
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


# ---- sweep -------------------------------------------------------------------------------------------------

OnRun = Callable[[RunConfig, Run], None]
ALL = 1 << 20   # more replicas than any grid has: `fit_many` then plans by memory


class SweepError(Refusal, RuntimeError):
    """Some runs of a sweep failed; all others are stored.

    runs: in the order of the configurations, None where one failed.  failures: configuration, and why.
    traces: the same runs' tracebacks, where there was one.
    """

    def __init__(self, runs: list[Run | None], failures: list[tuple[RunConfig, str]], traces: list[str],
                 names: list[str]) -> None:
        self.runs, self.failures, self.traces = runs, failures, traces
        shown = "; ".join(f"{name}: {words}" for name, (_, words) in zip(names[:3], failures[:3], strict=True))
        more = f"; and {len(failures) - 3} more" if len(failures) > 3 else ""
        super().__init__(f"{len(failures)} of {len(runs)} runs failed: {shown}{more}. The others are stored, and the "
                         "same call goes on with what is missing")


def sweep(configs: Iterable[RunConfig], processes: int | None = None, ray: str | None = None,
          on_run: OnRun | None = None, *, replicas: int | None = None, store: Store | None = None,
          progress: bool = True) -> list[Run]:
    """Train every run of a list, or find those that are stored; the records are those of `fit`.

    Args:
        configs: from `grid`, or a list of `RunConfig`. One that stands in it twice is trained once.
        processes: workers on this machine, of one thread each; None takes one a core, or one in all with a GPU;
            0 trains here, in this process. With `ray` the most groups at a time.
        ray: address of a Ray cluster ("auto" for the one this machine is part of), or "local" to start one here.
        replicas: runs that a worker trains in one pass over one frozen network, at most, where they can
            (`fit_many`). None takes as many as fit with a GPU, and 1 on a CPU, which gains little from larger
            batches (`make bench`). Runs that share a pass draw other dropout masks than `fit` does; with replicas=1
            they are trained as by `fit`.
        on_run: called as each run is done or was found.  progress: say how far it is.

    Returns the runs, in the order of the configurations.

    Raises:
        SweepError: some runs raised, or their workers died again and again; it holds the others.
        ValueError, CheckpointError: a number out of range, a task or a model that there is not; nothing was trained.
        KeyboardInterrupt: Ctrl-C, SIGTERM, or the terminal was closed; every run in progress left a checkpoint, and
            the same call goes on.
    """
    configs, store = list(configs), store or Store()
    require(os.environ.get("WORLD_SIZE", "1") == "1", "a sweep starts its own workers: call it without a launcher of "
                                                      "several processes, which is for one run")
    require(processes is None or processes >= 0, f"processes = {processes} must be 0 or more")
    require(replicas is None or replicas >= 1, f"replicas = {replicas} must be 1 or more: runs in one pass")
    _refuse_unknown(configs)
    store.check()
    view = View(progress)
    for note in dict.fromkeys(note for config in configs for note in config.notes):
        view.note(note)
    tally = SweepResult(configs, store, on_run, view)
    with view.shown(), ended_like_ctrl_c():
        try:
            tally.find()
            missing = tally.missing()
            replicas = replicas or (ALL if torch.cuda.is_available() and ray is None else 1)
            workers = usable_processes() if processes is None else max(processes, 1)
            work = groups(missing, replicas, workers if ray is None else 1)
            _train(work, tally, workers, processes, ray)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"stopped with {len(tally.runs)} of {len(tally.by_key)} runs done; run the same "
                                    "again to go on") from None
    return tally.result()


def _refuse_unknown(configs: Sequence[RunConfig]) -> None:
    """What no worker could have: a model of that name."""
    for backbone in dict.fromkeys(config.backbone for config in configs):
        require_config(backbone)


class Messages(Protocol):
    """Workers somewhere: what they say as it comes, and a way to stop them."""

    def __iter__(self): ...

    def close(self) -> None: ...


def _train(work: list[RunGroup], tally: SweepResult, workers: int, processes: int | None, ray: str | None) -> None:
    if not work:
        return
    if processes == 0 and ray is None:
        for group in work:
            train_group(group, tally.store, tally.hear, interrupted=True, keys=tally.keys_of(group))
        return
    parcels = [packed(group, tally.keys_of(group)) for group in work]
    with closing(_workers(parcels, tally.store, workers, processes, ray)) as messages:
        for message in messages:
            tally.hear(message)


def _workers(work: list[Parcel], store: Store, workers: int, processes: int | None, ray: str | None) -> Messages:
    if ray is not None:

        return Cluster(work, store, ray, processes)

    return Pool(work, store, workers)


def usable_processes() -> int:
    """Workers of one thread that this machine has room for: one a core, or one in all where there is a GPU."""
    if torch.cuda.is_available():
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class SweepResult:
    """What is known of each run of a sweep; a message that comes twice changes nothing."""

    def __init__(self, configs: list[RunConfig], store: Store, on_run: OnRun | None, view: View) -> None:
        self.keys = [config.key for config in configs]
        self.by_key = dict(zip(self.keys, configs, strict=True))
        self.labels = dict(zip(self.by_key, labels(list(self.by_key.values())), strict=True))
        self.store, self.on_run, self.view = store, on_run, view
        self.runs: dict[str, Run] = {}
        self.failed: dict[str, Message] = {}

    def find(self) -> None:
        """The runs that are stored."""
        for key in self.by_key:
            if (run := self.store.get(key)) is not None:
                self._done(key, run)
        self.view.begin(len(self.runs), len(self.by_key))

    def missing(self) -> list[RunConfig]:
        return [config for key, config in self.by_key.items() if key not in self.runs]

    def keys_of(self, group: RunGroup) -> list[str]:
        """The keys that runs had when the sweep was called, whatever rows and models have become."""
        key_of = {id(config): key for key, config in self.by_key.items()}
        return [key_of[id(config)] for config in group]

    def hear(self, message: Message) -> None:
        """Note what a worker says."""
        key = message.key
        if key in self.runs or key in self.failed or key not in self.by_key:   # as where rows changed meanwhile
            return
        if message.kind == "step":
            self.view.step(self.labels[key], message)
        elif message.kind == "done":
            self._keep(key, message)
        else:
            self._fail(message)

    def _keep(self, key: str, message: Message) -> None:
        run = self.store.get(key)
        if run is None and message.run is not None:  # made where this store is out of reach
            self.store.put(message.run)
            run = message.run
        if run is None:
            self._fail(Message(key, "failed", words=f"its record is gone from {self.store.folder}"))
            return
        self._done(key, run)
        self.view.done(self.labels[key], run)

    def _done(self, key: str, run: Run) -> None:
        self.runs[key] = run
        if self.on_run is not None:
            self.on_run(self.by_key[key], run)

    def _fail(self, message: Message) -> None:
        self.failed[message.key] = message
        self.view.failed(self.labels[message.key], message)

    def result(self) -> list[Run]:
        """The runs in the order asked for.

        Raises:
            SweepError: one failed, or nothing was heard of it.
        """
        lost = [key for key in self.by_key if key not in self.runs]
        if not lost:
            return [self.runs[key] for key in self.keys]
        heard = [self.failed.get(key, Message(key, "failed", words="no worker said how it ended")) for key in lost]
        raise SweepError([self.runs.get(key) for key in self.keys],
                         [(self.by_key[m.key], m.words) for m in heard], [m.trace for m in heard],
                         [self.labels[m.key] for m in heard])

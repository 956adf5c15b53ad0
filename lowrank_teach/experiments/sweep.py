"""`sweep`: a list of runs, trained where there is room, each once; what is stored is found, what fails is told.

`sweep` hands groups of runs to workers and hears their messages; a worker trains its group into the run store.
Workers are processes of this machine or tasks of a Ray cluster: one loop (`messages`) waits for the futures of
either.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import sys
import tempfile
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from joblib import cpu_count
from joblib.externals.loky import ProcessPoolExecutor

from ..console import SweepBars
from ..errors import Refusal, require
from ..models import packaged
from ..models.backbones import require_config
from ..training.batches import ended_like_ctrl_c
from .estimate import labels
from .fit import RunConfig
from .fit_many import groups as may_share
from .run_groups import (
    LOOK_EVERY_S,
    DeadWorkerError,
    Message,
    OnRun,
    Parcel,
    WorkerError,
    packed,
    train_group,
    train_parcel,
    words_of,
)
from .runs import Run, Store

if TYPE_CHECKING:
    from .ray_cluster import Cluster

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
    for backbone in dict.fromkeys(config.backbone for config in configs):   # no worker could have it either
        require_config(backbone)
    store.check()
    view = SweepBars(progress)
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


def _train(work: list[list[RunConfig]], tally: SweepResult, workers: int, processes: int | None, ray: str | None
           ) -> None:
    if processes == 0 and ray is None:
        for group in work:
            train_group(group, tally.keys_of(group), tally.store, tally.hear, interrupted=True)
    elif work:
        parcels = [packed(group, tally.keys_of(group)) for group in work]
        with closing(messages(parcels, _workers(tally.store, workers, processes, ray))) as heard:
            for message in heard:
                tally.hear(message)


def _workers(store: Store, workers: int, processes: int | None, ray: str | None) -> Processes | Cluster:
    if ray is None:
        return Processes(store, workers)
    from .ray_cluster import Cluster  # it needs Ray, which nothing else does

    return Cluster(store, ray, processes)


def usable_processes() -> int:
    """Workers of one thread that this machine has room for: one a core, or one in all where there is a GPU."""
    return 1 if torch.cuda.is_available() else cpu_count()


def groups(configs: Sequence[RunConfig], replicas: int, workers: int) -> list[list[RunConfig]]:
    """The runs in groups of up to so many that may share a pass, and no larger than leaves each worker some."""
    if replicas == 1:
        return [[config] for config in configs]
    found = []
    for alike in may_share(configs):
        size = max(1, min(replicas, -(-len(alike) // workers)))
        found += [alike[i:i + size] for i in range(0, len(alike), size)]
    return found


class SweepResult:
    """What is known of each run of a sweep; a message that comes twice changes nothing."""

    def __init__(self, configs: list[RunConfig], store: Store, on_run: OnRun | None, view: SweepBars) -> None:
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

    def keys_of(self, group: list[RunConfig]) -> list[str]:
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


# ---- from the groups to their messages ---------------------------------------------------------------------
RETRIES = 2          # how often a group is given to another worker after one was killed
PATIENCE_S = 120.0   # after a stop: until the step in progress must have come to its end


def messages(parcels: Iterable[Parcel], workers: Processes | Cluster) -> Generator[Message]:
    """What workers say of all runs, as it comes. Closing this stops what is under way, each run after its step.

    A group whose worker was killed is given to another one: its finished runs are found in the store, the one in
    progress goes on from its checkpoint.

    Raises:
        WorkerError: no worker can start.  KeyboardInterrupt: Ctrl-C reached a worker; it was meant for all.
    """
    waiting = deque((parcel, 1) for parcel in parcels)
    pending: dict[Future, tuple[Parcel, int]] = {}
    try:
        while waiting or pending:
            while waiting and len(pending) < workers.size:
                parcel, attempt = waiting.popleft()
                pending[workers.submit(parcel)] = parcel, attempt
            ended, _ = wait(pending, LOOK_EVERY_S, FIRST_COMPLETED)
            said = workers.heard()
            for future in ended:
                parcel, attempt = pending.pop(future)
                try:
                    said += workers.result(future, parcel)
                except DeadWorkerError as death:
                    if attempt <= RETRIES:
                        waiting.appendleft((parcel, attempt + 1))
                    else:
                        said += parcel.failed(f"given up after {attempt} workers died over it ({death}); where "
                                              "memory ran out, use fewer processes")
            yield from said
            if any(message.kind == "stopped" for message in said):
                raise KeyboardInterrupt
    finally:
        try:
            workers.stop()
            wait(pending, PATIENCE_S)
        finally:   # a second Ctrl-C does not wait
            workers.close()


# ---- processes of this machine -----------------------------------------------------------------------------
# joblib's loky starts them, each in an executor of its own. `joblib.Parallel` has one for all: a killed process takes
# the others with it and up to a minute of their steps, Ctrl-C leaves no time for a checkpoint, and a worker that is
# alone is no process at all.
LOGS = "lowrank-teach-sweep-"
IDLE_S = 60.0   # after which a process with nothing to do ends, as where the one that started it was killed
_pipe: Connection   # of a worker, to the process that started it


class Worker:
    """One process, the pipe to it, and a file for what it prints, which would run through the display."""

    def __init__(self, logs: str) -> None:
        self.log = tempfile.mkstemp(dir=logs, suffix=".log")[1]
        self.pipe, self.theirs = multiprocessing.Pipe()
        self.process = ProcessPoolExecutor(1, timeout=IDLE_S, initializer=_set_up,
                                           initargs=(self.theirs, self.log))
        self.started = self.loaded = False

    def submit(self, parcel: Parcel, folder: Path) -> Future:
        self.loaded = False
        future = self.process.submit(_work, parcel, folder)
        future.add_done_callback(self._close_if_dead)
        return future

    def _close_if_dead(self, future: Future) -> None:
        """So that `heard` does not wait for the rest of what it was saying."""
        if isinstance(future.exception(), BrokenProcessPool):
            self.theirs.close()

    def heard(self) -> list[Message]:
        """What it said since the last look."""
        said: list[Message] = []
        with suppress(EOFError, OSError):
            while self.pipe.poll():
                if isinstance(message := self.pipe.recv(), Message):
                    said.append(message)
                self.started = True
        self.loaded |= bool(said)
        return said

    def how_it_ended(self, error: BaseException) -> str:
        """Words on a process that died, with the last that it printed."""
        code = re.search(r"\{(.+)\}", str(error))
        printed = Path(self.log).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"its process ended with {code[1] if code else 'no word'}" + (f": {printed[-1]}" if printed else "")

    def end(self) -> None:
        """It trains nothing any more, or has had its time."""
        self.pipe.close()
        self.process.shutdown(kill_workers=True)
        self.theirs.close()


class Processes:
    """So many workers of one thread each, started as they are needed; `Cluster` has the same methods.

    Args: store: where they put records and checkpoints.  size: how many.
    """

    def __init__(self, store: Store, size: int) -> None:
        packaged.remove_leftovers(Path(tempfile.gettempdir()), LOGS)   # of killed processes
        self.logs = tempfile.TemporaryDirectory(prefix=packaged.of_this_process(LOGS))
        self.store, self.size = store, size
        self.idle: list[Worker] = []
        self.busy: dict[Future, Worker] = {}

    def submit(self, parcel: Parcel) -> Future:
        with _deaf_to_hangup():
            worker = self.idle.pop() if self.idle else Worker(self.logs.name)
            future = worker.submit(parcel, self.store.folder)
        self.busy[future] = worker
        return future

    def heard(self) -> list[Message]:
        """What they said since the last look."""
        return [message for worker in self.busy.values() for message in worker.heard()]

    def result(self, future: Future, parcel: Parcel) -> list[Message]:
        """What is left to say of a group that ended: its messages came by the pipe.

        Raises:
            DeadWorkerError: its process did.  WorkerError: as it began.
        """
        worker, error = self.busy.pop(future), future.exception()
        if not isinstance(error, BrokenProcessPool):
            self.idle.append(worker)
            return parcel.failed(words_of(error)) if error else []   # as where a method calls sys.exit
        how = worker.how_it_ended(error)
        worker.end()
        if not worker.started:
            raise WorkerError(f"a worker could not start ({how}); train in this process with processes=0")
        if worker.loaded or "SIGKILL" in how:
            raise DeadWorkerError(how)
        return parcel.failed(f"a worker died as it loaded the method and the task of these runs ({how}); repair what "
                             "their modules do when they are imported, or use processes=0")   # it would again

    def stop(self) -> None:
        """Let each run end its step: a worker that nobody hears any more stops."""
        for worker in self.busy.values():
            worker.pipe.close()

    def close(self) -> None:
        for worker in [*self.busy.values(), *self.idle]:
            worker.end()
        self.logs.cleanup()


@contextmanager
def _deaf_to_hangup() -> Iterator[None]:
    """What is started here does not end with the terminal: this process hears of it and stops all."""
    if not hasattr(signal, "pthread_sigmask"):   # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _set_up(pipe: Connection, log: str) -> None:
    """One thread, what is printed into a file, and Ctrl-C left to the process that started this one."""
    global _pipe
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    sys.stdout.flush()
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    _pipe = pipe
    pipe.send("started")


def _work(parcel: Parcel, folder: Path) -> None:
    def say(message: Message) -> None:
        with suppress(OSError):   # nobody hears it: the run stops after this step
            _pipe.send(message)

    train_parcel(parcel, Store(folder), say, asked=_pipe.poll)   # nothing is sent here: it is the pipe's end
    if _pipe.poll():
        os._exit(0)

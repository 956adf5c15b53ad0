"""Groups of runs on the processes of one machine: each worker trains one group at a time, on threads of its own.

A worker is started anew (spawn). One that dies is replaced and its group is taken up again: finished runs of it are
found in the store, the one in progress goes on from its checkpoint. Workers end with the process that started them.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
from collections import deque
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path

from .. import cache
from ..runs import Store
from .work import Message, Parcel, WorkerError, train_group, unpacked, words_of

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
    cache.sweep(Path(tempfile.gettempdir()), LOGS)
    return tempfile.TemporaryDirectory(prefix=cache.of_this_process(LOGS))


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

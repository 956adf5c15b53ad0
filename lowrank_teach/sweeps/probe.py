"""Steps of some runs, timed on so many processes at once; nothing of them is scored, written down or kept.

Every worker holds the same runs over one frozen network and takes the same steps of them, on the same rows, whatever
the mix: each alone, or several in a pass. So times differ by how the runs are trained and by nothing else.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from operator import methodcaller
from pathlib import Path
from statistics import fmean

import torch

from ..errors import Refusal
from ..experiment import Job
from ..many_runs import Kept
from ..replicas import Lane, Passes
from ..run_config import RunConfig
from ..runs import Store
from ..stacked import why_not
from ..train import Trainer
from .mix import Mix
from .processes import Worker, logs_folder, set_up
from .work import words_of

PATIENCE_S = 300.0   # for one answer of a worker
Make = Callable[[Path], Sequence[Trainer]]   # given a folder that ends with the block


class ProbeError(Refusal, RuntimeError):
    """A worker died, fell silent, or could not train the runs; the message says why."""


class Probe:
    """Workers, each with the same runs.

    steps: that a run has in all, on average over these.
    """

    def __init__(self, workers: Sequence[Worker], make: Make) -> None:
        self.workers = workers
        for worker in workers:
            self._tell(worker, make)
        self.steps = max(map(self._heard, workers))

    def seconds(self, mix: Mix, number: int) -> float:
        """Of one step of one run, where every process of the mix takes step `number` of each of its runs at once.

        Raises:
            ProbeError: a worker could not.
        """
        at_work = self.workers[:mix.processes]
        for worker in at_work:
            self._tell(worker, (mix.threads, mix.replicas, number))
        return max(map(self._heard, at_work)) / mix.processes

    @staticmethod
    def _tell(worker: Worker, what: object) -> None:
        with suppress(BrokenPipeError):   # it died: how, is told by what is heard of it
            worker.pipe.send(what)

    @staticmethod
    def _heard(worker: Worker) -> float:
        try:
            said = worker.pipe.recv() if worker.pipe.poll(PATIENCE_S) else f"silent for {PATIENCE_S:.0f} s"
        except (EOFError, OSError):
            said = worker.how_it_ended()
        if isinstance(said, str):
            raise ProbeError(said)
        return said


@contextmanager
def probing(make: Make, size: int) -> Iterator[Probe]:
    """So many workers, ended with the block, whatever they are at.

    Args: make: makes the trainers, in each worker.

    Raises:
        ProbeError: a worker could not start, or could not make them.
    """
    workers: list[Worker] = []
    with logs_folder() as folder:
        try:
            for _ in range(size):
                workers.append(Worker(Path(folder), Path(folder), life=_live))
            yield Probe(workers, make)
        finally:
            for worker in workers:
                worker.end(0)


# ---- in a worker -------------------------------------------------------------------------------------------


class Sample:
    """Runs that can take a step alone or together, as often as one likes.

    Args: trainers: ready for their first step; those that can share a pass over one frozen network.
    """

    def __init__(self, trainers: Sequence[Trainer]) -> None:
        self.lanes = sorted(map(Lane, trainers), key=lambda lane: bool(why_not(lane.trainer.adapters)))
        self.sharing = sum(not why_not(lane.trainer.adapters) for lane in self.lanes)
        self.passes: dict[tuple[int, int], Passes] = defaultdict(Passes)

    def step(self, replicas: int, number: int) -> float:
        """Seconds of step `number`, for one run; up to so many in a pass.

        Raises:
            Exception: what goes wrong in one of them.
        """
        start = time.perf_counter()
        for first in range(0, self.sharing, replicas):
            self._step(self.lanes[first:min(first + replicas, self.sharing)], number, self.passes[replicas, first])
        for lane in self.lanes[self.sharing:]:
            self._step([lane], number, self.passes[1, 0])
        return (time.perf_counter() - start) / len(self.lanes)

    @staticmethod
    def _step(lanes: list[Lane], number: int, passes: Passes) -> None:
        for lane in lanes:
            lane.trainer.outcome.step = min(number, lane.trainer.total) - 1
        if len(lanes) == 1:
            trainer = lanes[0].trainer
            trainer.conclude_step(trainer.step(trainer.outcome.step + 1))
            return
        passes.step(lanes)
        for lane in lanes:
            if lane.error is not None:
                raise lane.error


def trainers_of(configs: Sequence[RunConfig], folder: Path) -> list[Trainer]:
    """The runs' trainers over one frozen network, ready for the first step; they score and write nothing."""
    materials, made = Kept(), []
    for config in configs:
        job = Job(config, Store(folder), materials=materials, form=methodcaller("beside"), alone=False)
        trainer = next(job.stages())
        trainer.checkpoint = trainer.evaluate = None
        trainer.prepare()
        made.append(trainer)
    return made


def _live(pipe: Connection, folder: str, log: str, threads: int) -> None:
    """A worker's life: the runs, then one step of each as often as it is asked to."""
    set_up(log, threads)
    try:
        trainers = pipe.recv()(Path(folder))
        sample = Sample(trainers)
        pipe.send(fmean(trainer.total for trainer in trainers))
        while True:
            threads, replicas, number = pipe.recv()
            torch.set_num_threads(threads)
            pipe.send(sample.step(replicas, number))
    except Exception as error:
        with suppress(OSError):
            pipe.send(words_of(error))

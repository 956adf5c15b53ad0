"""`sweep`: a list of runs, trained where there is room, each once; what is stored is found, what fails is told."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from typing import Protocol

import torch

from ..errors import Refusal
from ..methods.checks import require
from ..models import require_config
from ..run_config import RunConfig
from ..runs import Run, Store
from ..steps import ended_like_ctrl_c
from .labels import labels
from .view import View
from .work import Group, Message, Parcel, groups, packed, train_group

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
    tally = Tally(configs, store, on_run, view)
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


def _train(work: list[Group], tally: Tally, workers: int, processes: int | None, ray: str | None) -> None:
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
        from .cluster import Cluster

        return Cluster(work, store, ray, processes)
    from .processes import Pool

    return Pool(work, store, workers)


def usable_processes() -> int:
    """Workers of one thread that this machine has room for: one a core, or one in all where there is a GPU."""
    if torch.cuda.is_available():
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Tally:
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

    def keys_of(self, group: Group) -> list[str]:
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

"""Which mix of processes and replicas trains a sweep fastest on a CPU: measured on steps of its own runs.

A CPU gains little from larger batches, but how little, what a pass saves beside its products, and what threads lose
by waiting for each other depend on the model, the rows and the machine. So a few mixes are timed, in turn, before the
sweep starts; one run after another on all threads is among them, and so is what is taken where nothing is measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

import torch

from ..run_config import RunConfig
from .work import words_of

if TYPE_CHECKING:
    from .probe import Probe

PASSES = (1, 2, 4)     # runs in one pass that are tried
TURNS = 3              # timed steps of each mix, after one that is not
NOISE = 0.03           # a mix less than this much faster is not worth being less simple
FEWEST_RUNS = 8        # of one kind that are missing; below, nothing is measured
WORTH = 10             # measuring may take this part of the sweep at most: a tenth
START_S = 10.0         # what starting the workers takes, before it is known: imports, weights, rows
SPEED = 1e11           # FLOPs a second of one core, before it is known
ROWS = 1000            # rows of a task, before it is known


@dataclass(frozen=True)
class Mix:
    """How the runs of a sweep are spread: so many workers of so many threads, so many runs in a pass at most."""

    processes: int
    threads: int
    replicas: int

    def __str__(self) -> str:
        workers = "1 process" if self.processes == 1 else f"{self.processes} processes"
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{workers} of {threads}, {'one run' if self.replicas == 1 else f'{self.replicas} runs'} a pass"


def planned(missing: Sequence[RunConfig], cores: int, processes: int | None, replicas: int | None,
            say: Callable[[str], None]) -> Mix:
    """The mix that measures fastest for these runs; nothing is stored by measuring.

    Where there is too little to train for the time that measuring takes, or where it fails: one run a pass, on one
    process a core.

    Args:
        cores: workers of one thread that the machine has room for.
        processes, replicas: what was asked for; None leaves it open.  say: takes the sentence on what was measured.
    """
    workers = max(1, min(cores if processes is None else processes, len(missing)))
    default = Mix(workers, 1, replicas or 1)
    try:
        return _measured(missing, default, processes is None, replicas, say) or default
    except Exception as error:  # whatever it is, the runs can be trained
        say(f"how to train these runs fastest could not be measured ({words_of(error)}); they are trained on "
            f"{default}")
        return default


def _measured(missing: Sequence[RunConfig], default: Mix, spread: bool, replicas: int | None,
              say: Callable[[str], None]) -> Mix | None:
    """The fastest of several mixes; None where measuring would not pay, or there is nothing to choose."""
    from ..many_runs import groups

    began = time.perf_counter()
    group = max(groups(missing), key=len, default=[])
    mixes = candidates(len(group), default.processes, torch.get_num_threads() if spread else None, replicas)
    if len(group) < FEWEST_RUNS or len(mixes) < 2 or not _may_pay(group, mixes):
        return None
    mixes = _that_fit(group, mixes)
    if len(mixes) < 2:
        return None

    from .probe import probing, trainers_of

    runs = spread_over(group, max(mix.replicas for mix in mixes))
    with probing(partial(trainers_of, runs), max(mix.processes for mix in mixes)) as probe:
        seconds = measure(probe, mixes, lambda first: pays(
            len(group) * probe.steps, first, time.perf_counter() - began, len(runs)))
    if seconds is None:
        say(f"to measure how these runs train fastest would take too much of their time; they are trained on "
            f"{default}")
        return None
    chosen = choose(seconds)
    say(f"{table(seconds, len(runs))}; chosen: {chosen}")
    return chosen


# ---- what is tried, and what is chosen ---------------------------------------------------------------------


def candidates(runs: int, processes: int, threads: int | None, replicas: int | None) -> list[Mix]:
    """What may be chosen for so many runs, from simple to intricate; the first is what the others are compared with.

    Args:
        processes: workers of one thread.  threads: of one worker that trains alone, all there are; None where the
            number of processes is settled.  replicas: runs in one pass at most; None leaves it open.
    """
    found = [Mix(processes, 1, many) for many in PASSES]
    if threads is not None:
        found = [Mix(1, threads, 1), *found, Mix(1, threads, PASSES[-1])]
    share = {mix: max(1, -(-runs // mix.processes)) for mix in found}   # no worker trains more at once
    if replicas is None:
        found = [mix for mix in found if mix.replicas <= share[mix]]
    else:
        found = [replace(mix, replicas=min(replicas, share[mix])) for mix in found]
    return list(dict.fromkeys(found))


def choose(seconds: Mapping[Mix, float]) -> Mix:
    """The first that is the fastest or within noise of it; so it is never slower than the first of all.

    Args: seconds: of one step of one run, by mix, from simple to intricate.
    """
    fastest = min(seconds.values())
    return next(mix for mix, taken in seconds.items() if taken <= (1 + NOISE) * fastest)


def table(seconds: Mapping[Mix, float], runs: int) -> str:
    """All mixes with their speed, the first one's being 1."""
    first = next(iter(seconds.values()))
    speeds = "; ".join(f"{mix} {first / taken:.2f}" for mix, taken in seconds.items())
    return f"measured on {TURNS} steps of {'one run' if runs == 1 else f'{runs} runs'} a process, as speed: {speeds}"


def spread_over(group: Sequence[RunConfig], many: int) -> list[RunConfig]:
    """So many of the runs, taken evenly over the list: methods and values that are far apart in it take part."""
    return [group[i * len(group) // many] for i in range(many)]


def _that_fit(group: Sequence[RunConfig], mixes: Iterable[Mix]) -> list[Mix]:
    """Without those whose replicas the memory has no room for."""
    from ..many_runs import room_for

    room = room_for(group)
    return [mix for mix in mixes if mix.replicas == 1 or mix.processes * mix.replicas <= room]


# ---- measuring, and whether it pays ------------------------------------------------------------------------


def measure(probe: Probe, mixes: Sequence[Mix], worth: Callable[[Mapping[Mix, float]], bool] = lambda first: True
            ) -> dict[Mix, float] | None:
    """Seconds of one step of one run, by mix: the median over turns, in each of which every mix steps once.

    Args: worth: is shown the seconds of a first turn, which is not counted; None is returned where it says no.
    """
    if not worth({mix: probe.seconds(mix, 1) for mix in mixes}):
        return None
    taken: dict[Mix, list[float]] = {mix: [] for mix in mixes}
    for turn in range(TURNS):
        first = turn % len(mixes)
        for mix in [*mixes[first:], *mixes[:first]]:
            taken[mix].append(probe.seconds(mix, 2 + turn))
    return {mix: median(taken[mix]) for mix in mixes}


def pays(steps: float, first: Mapping[Mix, float], spent: float, runs: int) -> bool:
    """Whether the whole sweep takes long enough, on the fastest mix, for measuring to be a small part of it.

    Args:
        steps: of all runs together.  first: seconds of one step of one run, by mix.  spent: seconds until here.
        runs: that each process steps.
    """
    turn = sum(taken * mix.processes * runs for mix, taken in first.items())
    return steps * min(first.values()) >= WORTH * (spent + TURNS * turn)


def _may_pay(group: Sequence[RunConfig], mixes: Sequence[Mix]) -> bool:
    """The same before anything is started: by operations, right within a factor of two or three."""
    step = _rough_seconds(group[0])
    steps = sum(c.total_steps(c.n_train or ROWS) for c in (config.train for config in group))
    first = {mix: step / (mix.processes * mix.threads) for mix in mixes}
    return pays(steps, first, START_S, max(mix.replicas for mix in mixes))


def _rough_seconds(config: RunConfig) -> float:
    """Of one step on one core: the operations on rows of full length, with a branch on every matrix."""
    from .. import measure as operations
    from ..dimensions import meta_model
    from ..sites import find_sites

    c = config.train
    shapes = {site.name: (site.d, site.k) for site in find_sites(meta_model(config.backbone))}
    flops = operations.model_flops(shapes, dict.fromkeys(shapes, 8), c.batch_size * c.max_length)
    return flops.total / SPEED

"""Train studies and read them back: one runner for all of them, one table for what they leave.

    found = studies.load("chain")
    found.values("accuracy")             # configuration -> one number a seed
    studies.train("chain", seeds=[0])    # again, here; `lowrank-teach study chain` does it in out/studies

    found = studies.load_across("side_by_side")   # over tasks, each at the rate chosen on validation rows
    found.table()
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..analysis.statistics import Curve, smooth
from ..errors import DivergedError
from ..experiments.fit import RunConfig
from ..experiments.runs import Run, Store, machine
from ..methods import Method
from .arms import KEPT, STUDIES, TASK_STUDIES, Study
from .results import Results, SideBySide, read, references_folder, write

# ---- the runner ----------------------------------------------------------------------------------------------
# task, configuration, seed, learning rate (None where none is chosen), the run or the scores of what it wrote
OnRun = Callable[[str, str, int, float | None, Any], None]
Records = list[dict[str, Any]]
WIDEST = 6      # times that a grid of rates is widened


@dataclass
class Runner:
    """Train what is lacking of a study, choose learning rates on validation examples, and keep the records.

    What the study's own file has already is taken from there, if its key is that of the run that would be trained now
    (the same configuration, examples, weights and version); what the store has, from the store.

    A study that keeps something of its own says so in a subclass: `records_of` a run, `validation` scores to choose
    by, and `shown`, what `on_run` is told.

    study: with all that differs from the stored one.  path: of the file.
    about: what stands in the file of this study alone.
    store, keep_model: as in `fit`.  on_run: called as each run is done.
    """

    study: Study
    path: Path
    about: dict[str, Any]
    store: Store | None = None
    on_run: OnRun | None = None
    keep_model: bool = False
    records: Records = field(default_factory=list)
    grid: Records = field(default_factory=list)          # runs that chose a rate, with validation scores alone
    commits: set[str] = field(default_factory=set)       # of the code that trained; the file may be younger
    taken_up: Records = field(default_factory=list)      # of `records`, those of an earlier call

    def __post_init__(self) -> None:
        self.take_up()

    # -- what a study may say for itself

    def records_of(self, arm: str, seed: int, run: Run) -> Records:
        """Return what is kept of a run: numbers, no factors."""
        return [record(self.study, arm, seed, run)]

    def validation(self, run: Run) -> Mapping[str, float]:
        """Return the scores on validation examples: the first decides, where runs tie the lower loss."""
        return run.metrics["validation"]

    def shown(self, run: Run, kept: Mapping[str, Any]) -> Any:
        """Return what `on_run` is told of a run; kept: its last record, or its entry in the grid."""
        return run

    # -- the loop

    def run(self, arms: Iterable[str] | None = None, seeds: int | Iterable[int] | None = None) -> None:
        """Train task by task: first what chooses the rates, then seed by seed over all configurations.

        The file is written anew after each run, so the same call goes on where one was interrupted.
        """
        chosen = list(self.study.arms if arms is None else arms)
        for task in self.study.tasks:
            rates = self.rates(task, chosen)
            self.records = [one for one in self.records if one.get("task") != task
                            or one.get("lr") == rates.get(one["arm"], one.get("lr"))]
            for seed in range(seeds or self.study.seeds) if isinstance(seeds, int | None) else seeds:
                for arm in chosen:
                    self.keep(task, arm, seed, rates[arm])
        self.save()

    def keep(self, task: str, arm: str, seed: int, lr: float | None) -> None:
        """Train one run, or find it, and keep its records."""
        where = {"task": task, "arm": arm, "seed": seed, **({} if lr is None else {"lr": lr})}
        if any(where.items() <= one.items() for one in self.taken_up):
            return
        run = self.fit(task, arm, seed, lr)
        made = [{**where, **one} for one in self.records_of(arm, seed, run)]
        self.records += made
        self.save()
        self.tell(task, arm, seed, lr, self.shown(run, made[-1]))

    def config(self, task: str, arm: str, seed: int, lr: float | None, steps: int = 0) -> RunConfig:
        """Return one run; steps: of a first round, 0 for a whole run."""
        return (self.study.first_round if steps else self.study.config)(task, arm, seed, lr)

    def fit(self, task: str, arm: str, seed: int, lr: float | None, steps: int = 0) -> Run:
        config = self.config(task, arm, seed, lr, steps)
        run = config.fit(store=self.store, progress=False, keep_model=self.keep_model)
        self.commits.add(str(run.machine.get("commit")))
        return run

    def tell(self, task: str, arm: str, seed: int, lr: float | None, found: Any) -> None:
        if self.on_run is not None:
            self.on_run(task, arm, seed, lr, found)

    def save(self) -> None:
        write(self.path, self.described(), self.records)

    def take_up(self) -> None:
        """Read what an earlier call left in the file, as far as it is what would be trained now."""
        if not self.path.exists():
            return
        about, records = read(self.path, "")
        self.taken_up = [one for one in records if self.is_current(one)]
        self.records, self.grid = [*self.taken_up], [one for one in about.get("grid", ()) if self.is_current(one)]
        if self.records or self.grid:
            self.commits |= set(about.get("commits", ()))

    def is_current(self, record: Mapping[str, Any]) -> bool:
        """Return whether a record has the key of the run that the study would train at its place."""
        known = record.get("key") and record.get("task") in self.study.tasks and record["arm"] in self.study.arms
        return bool(known) and record["key"] == self.config(record["task"], record["arm"], record["seed"],
                                                            record.get("lr"), record.get("steps", 0)).key

    def described(self) -> dict[str, Any]:
        """Return what stands in the file beside the records."""
        study, tasks = self.study, list(self.study.tasks)
        own = study.tasks[tasks[0]] if len(tasks) == 1 else {}
        found: dict[str, Any] = {
            "name": self.path.stem, "question": study.question, "varies": study.varies, "backbone": study.backbone,
            "profile": study.profile, "training": {**study.training, **own}, "machine": machine(),
            "commits": sorted(self.commits)}
        found |= {"task": tasks[0]} if len(tasks) == 1 else {
            "tasks": tasks, "of_task": {task: dict(values) for task, values in study.tasks.items()}}
        if study.rates:
            found |= {"rates": [*study.rates], "rate_of": dict(study.rate_of), "chosen_with": [*study.chosen_with],
                      "grid": self.grid}
        return {**found, **self.about}

    # -- learning rates

    def rates(self, task: str, arms: Sequence[str]) -> dict[str, float | None]:
        """Return configuration -> its learning rate on a task; None where the study has no choice of them."""
        chosen = {arm: self.choose(task, arm) for arm in self.study.choosing(arms)}
        return {arm: chosen.get(self.study.rate_of.get(arm, arm)) for arm in arms}

    def choose(self, task: str, arm: str) -> float:
        """Return the rate with the best mean validation score; where scores tie, the one with the lower loss.

        Raises:
            DivergedError: at every rate of the grid.
        """
        study, rates = self.study, sorted(self.study.rates)
        for _ in range(WIDEST):
            kept = self.best(task, arm, rates, steps=study.rung)[:KEPT] if study.rung else rates
            best = self.best(task, arm, kept)[0]
            if not study.widen or rates[0] < best < rates[-1]:
                return best
            rates = [rates[0] / 2, *rates] if best == rates[0] else [*rates, rates[-1] * 2]
        raise DivergedError(f"the best rate of {arm} on {task} lies at the edge of {rates[0]:g} to {rates[-1]:g}, "
                            f"widened {WIDEST} times: look at the configuration")

    def best(self, task: str, arm: str, rates: Sequence[float], steps: int = 0) -> list[float]:
        """Return the rates that did not diverge, best first; steps: shorter runs, 0 for whole ones.

        Raises:
            DivergedError: all did.
        """
        means: dict[float, tuple[float, float]] = {}
        for rate in rates:
            tried = [self.attempt(task, arm, seed, rate, steps) for seed in self.study.chosen_with]
            if None not in tried:
                found = [one for one in tried if one is not None]
                means[rate] = (statistics.fmean(next(iter(one.values())) for one in found),
                               -statistics.fmean(one["loss"] for one in found))
        if not means:
            raise DivergedError(f"{arm} on {task} diverges at every rate of the grid; lower the rates")
        return sorted(means, key=means.__getitem__, reverse=True)

    def attempt(self, task: str, arm: str, seed: int, rate: float, steps: int = 0) -> Mapping[str, float] | None:
        """Return the validation scores of one run of the grid, kept in it once; None where it diverged."""
        tried: dict[str, Any] = {"task": task, "arm": arm, "seed": seed, "lr": rate,
                                 **({"steps": steps} if steps else {})}
        for known in self.grid:
            if tried.items() <= known.items() and ("steps" in tried) == ("steps" in known):
                return known["validation"]
        tried |= {"key": self.config(task, arm, seed, rate, steps).key, "validation": None}
        run = None
        with suppress(DivergedError):
            run = self.fit(task, arm, seed, rate, steps)
            tried["validation"] = self.validation(run)
        self.grid.append(tried)
        self.save()
        if run is not None:
            self.tell(task, arm, seed, rate, self.shown(run, tried))
        return tried["validation"]


def record(study: Study, arm: str, seed: int, run: Run) -> dict[str, Any]:
    """Return what is kept of a run of a plain study: numbers, and the series and values by site that the study names.

    clipped: the share of steps whose gradient was longer than `max_grad_norm`, penalties included.
    """
    known = set(run.history["name"]) if study.series or study.sites else set()
    series = {name: short_curve(smooth(run.series(name)) if name == "loss" else run.series(name))
              for name in study.series if name in known}
    sites = {name: {site: round(value, 6) for site, value in run.by_site(name).items()}
             for name in study.sites if name in known}
    limit = run.config.get("training", {}).get("max_grad_norm")
    norms = run.series("grad_norm")[1] if limit and "grad_norm" in known else []
    clipped = {"clipped": round(statistics.fmean(norm > limit for norm in norms), 4)} if norms else {}
    return {"key": run.key, "identity": run.identity, "method": run.config["method"], "test": run.metrics["test"],
            "validation": run.metrics["validation"], "seconds": run.seconds, "memory": run.memory,
            "hits": run.hits.get("test"), "parameters": run.parameters, "flops": run.flops, "ranks": run.ranks,
            "series": series, "sites": sites, "notes": run.notes, **clipped,
            "machine": {name: run.machine.get(name) for name in ("processor", "threads", "commit")}}


def short_curve(curve: Curve) -> list[list[float]]:
    """Return the steps, and values to the digits that a picture shows."""
    return [list(curve[0]), [round(float(value), 5) for value in curve[1]]]


# ---- a rate to start from ------------------------------------------------------------------------------------

@dataclass(frozen=True)
class SuggestedRate:
    """A learning rate to start from.

    rate: geometric mean of the rates chosen over tasks.  low, high: of those that come within a point of the best.
    source: which stored runs say so.  differs: in what the configuration asked about differs from theirs.
    """

    rate: float
    low: float
    high: float
    source: str
    differs: tuple[str, ...] = ()


def suggest_rate(method: Method, backbone: str = "", folder: Path | str | None = None) -> SuggestedRate:
    """Return a learning rate to start from, from the stored grids of the tuned studies.

    The configuration of the same method is taken whose rank, scale and matrices are nearest; nothing is extrapolated.

    Args:
        method: what is to be trained.  backbone: on which model; another than the stored one is said.
        folder: of the studies; None takes the stored ones.

    Raises:
        ValueError: no tuned study has this method with a rate that was chosen.
    """
    found = []
    for name, study in TASK_STUDIES.items():
        if study.widen and path_of(name, folder).exists():
            kept = load_across(name, folder)
            own = [arm for arm in study.choosing(study.arms) if study.arms[arm].method.name == method.name]
            found += [(_apart(method, study.arms[arm].method), name, arm, kept) for arm in own if kept.grid_of(arm)]
    if not found:
        raise ValueError(f"no tuned study has a rate chosen for {method.name}: try some, a factor of 2 apart, as "
                         f"`lowrank-teach sweep --method {method.name} --set lr=5e-4,1e-3,2e-3` does")
    (_, differs), name, arm, kept = min(found, key=lambda one: one[0][0])
    grids = kept.grid_of(arm)
    ends = [kept.good_rates(arm, task) for task in grids]
    if backbone and backbone != kept.about["backbone"]:
        differs = (*differs, f"the model ({kept.about['backbone']} there)")
    return SuggestedRate(
        float(np.exp(np.mean(np.log(list(grids.values()))))), min(low for low, _ in ends),
        max(high for _, high in ends),
        f"{arm} of study {name!r}: {kept.about['backbone']} on {', '.join(grids)}, "
        f"{kept.about['training']['steps']} steps of {kept.about['training']['batch_size']}; chosen "
        f"{', '.join(f'{rate:g}' for rate in grids.values())}", differs)


def _apart(one: Method, other: Method) -> tuple[float, tuple[str, ...]]:
    """Return how far two configurations of a method are from each other, and in what they differ."""
    ranks, scales = math.log2(one.r / other.r), math.log2((one.lora_alpha / one.r) / (other.lora_alpha / other.r))
    own = {name: (getattr(one, name), getattr(other, name)) for name in vars(other)
           if name not in ("r", "lora_alpha", "sites")}
    rest = [name for name, (mine, theirs) in own.items() if mine != theirs]
    sites = one.sites != other.sites
    said = {f"rank ({other.r} there)": ranks, f"α/r ({other.lora_alpha / other.r:g} there)": scales,
            f"matrices ({other.sites!r} there)": sites, **{f"{name} ({own[name][1]} there)": 1 for name in rest}}
    distance = abs(ranks) + 2 * abs(scales) + sites + 0.1 * len(rest)
    return distance, tuple(words for words, holds in said.items() if holds)


# ---- studies by name -----------------------------------------------------------------------------------------

def path_of(name: str, folder: Path | str | None = None) -> Path:
    """Return the file of a study; None takes the folder of the stored ones."""
    return Path(folder or references_folder() / "studies") / f"{name}.json"


def train(name: str, folder: Path | str | None = None, *, seeds: int | Iterable[int] | None = None,
          arms: Iterable[str] | None = None, tasks: Iterable[str] | None = None, backbone: str | None = None,
          profile: str | None = None, store: Store | None = None, on_run: OnRun | None = None,
          **training: Any) -> Results | SideBySide:
    """Train a study, or find the runs that were.

    Args:
        seeds: how many, or which.  arms: some of the study's.  None takes the study's own.
        tasks, backbone, profile, training: another setting than the stored one.
        on_run: called as each run is done, with task, configuration, seed, learning rate and run.

    Raises:
        KeyError: there is no study of this name.
    """
    study = defined(name)
    chosen = None if tasks is None else {task: study.tasks.get(task, {}) for task in tasks}
    changed = study.changed(training=training, tasks=chosen, backbone=backbone, profile=profile)
    runner = Runner(changed, path_of(name, folder), {}, store, on_run)
    runner.run(arms, seeds)
    return _found(name)(runner.described(), runner.records)


def load(name: str, folder: Path | str | None = None) -> Results:
    """Return a stored study on one task.

    Raises:
        KeyError: there is no study of this name.  FileNotFoundError: it has not been trained here.
    """
    return Results(*_stored(name, folder, STUDIES))


def load_across(name: str, folder: Path | str | None = None) -> SideBySide:
    """Return a stored study over tasks. As `load`."""
    return SideBySide(*_stored(name, folder, TASK_STUDIES))


def defined(name: str, among: Mapping[str, Study] | None = None) -> Study:
    """Return the definition of a study.

    Raises:
        KeyError: there is none of this name.
    """
    known = {**STUDIES, **TASK_STUDIES} if among is None else among
    if name not in known:
        raise KeyError(f"no study {name!r}; there are {', '.join(known)}")
    return known[name]


def _found(name: str) -> type[Results] | type[SideBySide]:
    return SideBySide if name in TASK_STUDIES else Results


def _stored(name: str, folder: Path | str | None, among: Mapping[str, Study]) -> tuple[dict[str, Any], Records]:
    defined(name, among)
    where = folder or "figures/data/studies"   # the checkout's own, without the name of this machine's folder
    return read(path_of(name, folder), f"study {name!r} has no numbers yet; train it: lowrank-teach study {name} "
                                       f"--folder {where}")

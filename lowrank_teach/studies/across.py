"""A study over tasks: arms side by side, each at the rate that serves it best on validation rows.

Task by task: every arm is trained at each rate of a grid with the first seeds, its rate is chosen by the headline
metric on validation rows, and it is trained with the other seeds at that rate. Test rows decide nothing. The file is
written anew after each task, and holds the runs of the grid too, with their validation scores alone.

    found = studies.load_across("side_by_side")
    found.values("LoRA")              # task -> one test score a seed
    found.difference("COLA", "LoRA")  # one a seed: the mean over tasks, in points
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..comparison import write
from ..course import references_folder
from ..experiment import fit
from ..outcome import DivergedError
from ..runs import Run, Store, machine
from .definitions import Arm
from .side_by_side import SideBySide

OnRun = Callable[[str, str, int, float, Run], None]   # task, arm, seed, rate, run


@dataclass(frozen=True)
class TaskStudy:
    """Arms over tasks and seeds.

    question: what is asked.  tasks: name -> fields of `TrainConfig` that its rows ask for.
    rates: the grid of learning rates.  chosen_with: the seeds that a rate is chosen with.
    seeds: how many, from 0; those of `chosen_with` are among them.
    rate_of: arm -> the arm whose chosen rate it takes, for controls that must differ in one thing alone.
    """

    question: str
    arms: Mapping[str, Arm]
    tasks: Mapping[str, Mapping[str, Any]]
    rates: Sequence[float]
    backbone: str
    profile: str
    training: Mapping[str, Any]
    chosen_with: Sequence[int] = (0, 1)
    seeds: int = 5
    rate_of: Mapping[str, str] = field(default_factory=dict)

    def runs(self, seeds: int = 0) -> int:
        """How many that takes, with so many seeds (0 takes the study's own), those that choose a rate included."""
        choosing = {self.rate_of.get(arm, arm) for arm in self.arms}
        a_task = len(choosing) * len(self.rates) * len(self.chosen_with) + len(self.arms) * (seeds or self.seeds)
        return len(self.tasks) * a_task


def train_across(name: str, study: TaskStudy, folder: Path | str | None = None, *,
                 tasks: Iterable[str] | None = None, seeds: int | None = None, arms: Iterable[str] | None = None,
                 store: Store | None = None, on_run: OnRun | None = None, **training: Any) -> SideBySide:
    """Train a study over tasks, or find the runs that were.

    Args:
        name: of its file.  tasks, arms: some of the study's, None takes all.  seeds: how many, None takes its own.
        on_run: called as each run is done.  training: fields of `TrainConfig` other than the stored ones.
    """
    chosen = list(study.tasks) if tasks is None else list(tasks)
    training = {**study.training, **training}
    about = {"name": name, "question": study.question, "varies": "method", "tasks": chosen, "rates": [*study.rates],
             "backbone": study.backbone, "profile": study.profile, "training": training,
             "of_task": {task: dict(study.tasks[task]) for task in chosen}, "rate_of": dict(study.rate_of),
             "chosen_with": [*study.chosen_with], "machine": machine()}
    job = _Job(study, list(study.arms if arms is None else arms), store, on_run, training)
    for task in chosen:
        job.task(task, study.seeds if seeds is None else seeds)
        found = SideBySide({**about, "commits": sorted(job.commits), "grid": job.grid}, job.records)
        write(path_of(name, folder), found.about, found.records)
    return found


def path_of(name: str, folder: Path | str | None = None) -> Path:
    return Path(folder or references_folder() / "studies") / f"{name}.json"


@dataclass
class _Job:
    """A study over tasks in the making."""

    study: TaskStudy
    arms: Sequence[str]
    store: Store | None
    on_run: OnRun | None
    training: Mapping[str, Any]
    records: list[dict[str, Any]] = field(default_factory=list)
    grid: list[dict[str, Any]] = field(default_factory=list)
    commits: set[str] = field(default_factory=set)

    def task(self, task: str, seeds: int) -> None:
        """All runs of one task: first the rates, then the seeds."""
        chosen_by = {label: self.study.rate_of.get(label, label) for label in self.arms}
        rates = {label: self.choose(task, label) for label in dict.fromkeys(chosen_by.values())}
        for seed in range(seeds):
            for label in self.arms:
                rate = rates[chosen_by[label]]
                self.records.append(record(task, label, seed, rate, self.fit(task, label, seed, rate)))

    def choose(self, task: str, label: str) -> float:
        """The rate with the best mean validation score; where scores tie, the one with the lower loss.

        Raises:
            DivergedError: at every rate of the grid.
        """
        means: dict[float, tuple[float, float]] = {}
        for rate in self.study.rates:
            tried = [self.attempt(task, label, seed, rate) for seed in self.study.chosen_with]
            if None not in tried:
                scores = [(_headline(found), -found["loss"]) for found in tried if found is not None]
                means[rate] = tuple(statistics.fmean(x) for x in zip(*scores, strict=True))  # type: ignore[assignment]
        if not means:
            raise DivergedError(f"{label} on {task} diverges at every rate of the grid; lower the rates")
        return max(means, key=means.__getitem__)

    def attempt(self, task: str, label: str, seed: int, rate: float) -> dict[str, float] | None:
        """Validation scores of one run of the grid; None where it diverged."""
        try:
            found = self.fit(task, label, seed, rate).metrics["validation"]
        except DivergedError:
            found = None
        self.grid.append({"task": task, "arm": label, "seed": seed, "lr": rate, "validation": found})
        return found

    def fit(self, task: str, label: str, seed: int, rate: float) -> Run:
        arm = self.study.arms[label]
        values = {**self.training, **self.study.tasks[task], **arm.training, "lr": rate}
        run = fit(arm.method, task, self.study.backbone, self.study.profile, seed, progress=False, store=self.store,
                  **values)
        self.commits.add(str(run.machine.get("commit")))
        if self.on_run is not None:
            self.on_run(task, label, seed, rate, run)
        return run


def _headline(metrics: Mapping[str, float]) -> float:
    return next(iter(metrics.values()))


def record(task: str, label: str, seed: int, rate: float, run: Run) -> dict[str, Any]:
    """What is kept of a run: numbers, no factors and no history."""
    return {"task": task, "arm": label, "seed": seed, "lr": rate, "key": run.key,
            "identity": run.identity, "method": run.config["method"],
            "test": run.metrics["test"], "validation": run.metrics["validation"], "seconds": run.seconds,
            "parameters": run.parameters, "ranks": run.ranks}

"""Stored records, and what they say: scores by configuration and seed, on one task and over tasks."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from ..models.packaged import expanded

RECORDS = "LOWRANK_TEACH_RECORDS"   # names the folder of the stored records in the environment


# ---- scores by configuration and seed ----------------------------------------------------------------------
# What a comparison leaves: runs of several arms over seeds, in one file of numbers with its provenance.
@dataclass(frozen=True)
class Comparison:
    """Stored runs.

    about: what was compared, on what, by which code and machine.  records: one dict a run, with its arm and seed.
    """

    about: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]

    @property
    def arms(self) -> list[str]:
        return list(dict.fromkeys(record["arm"] for record in self.records))

    def of(self, arm: str) -> list[Mapping[str, Any]]:
        """The runs of an arm, by seed."""
        return sorted((r for r in self.records if r["arm"] == arm), key=lambda r: r["seed"])

    def record(self, arm: str, seed: int = 0) -> Mapping[str, Any]:
        """One run.

        Raises:
            KeyError: there is no such run.
        """
        for found in self.of(arm):
            if found["seed"] == seed:
                return found
        raise KeyError(f"no run of {arm!r} with seed {seed}; arms: {self.arms}")


class Scored(Comparison):
    """Runs whose records have metrics by split, such as record["test"]["accuracy"]."""

    metric: ClassVar[str]   # where none is named

    def values(self, name: str = "", split: str = "test") -> dict[str, list[float]]:
        """Arm -> one metric of each seed, in the order of the seeds."""
        return {arm: [r[split][name or self.metric] for r in self.of(arm)] for arm in self.arms}

    def differences(self, arm: str, other: str, name: str = "", split: str = "test") -> list[float]:
        """arm − other on each seed that both have: what pairing leaves."""
        a, b = ({r["seed"]: r[split][name or self.metric] for r in self.of(one)} for one in (arm, other))
        return [a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())]


def made_on(machine: Mapping[str, Any]) -> str:
    """The end of a sentence on where numbers come from."""
    return f"made on {machine['processor']} with torch {machine['torch']}, commit {machine['commit']}"


def write(path: Path, about: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> None:
    """Both in one file of JSON; what stood there is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**about, "records": records}, ensure_ascii=False) + "\n", encoding="utf-8")


def read(path: Path, missing: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(about, records) of what `write` wrote.

    Raises:
        FileNotFoundError: it is not there; `missing` is said, with how to make it.
    """
    if not path.exists():
        raise FileNotFoundError(missing)
    about = json.loads(path.read_text(encoding="utf-8"))
    return about, about.pop("records")


# ---- results over tasks ------------------------------------------------------------------------------------
# What a study over tasks found: scores by task and seed, differences paired by both, and how tasks are weighed.
POINTS = 100.0


class SideBySide(Comparison):
    """Runs with arm, task and seed. Scores are the headline metric of each task, of 1 at most.

    Every task weighs the same, whatever its rows and its metric: a difference over tasks is the mean of the tasks'.
    """

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(record["task"] for record in self.records))

    def metric(self, task: str) -> str:
        """The name of a task's headline metric."""
        return next(iter(self._of(task)[0]["test"]))

    def values(self, arm: str, split: str = "test") -> dict[str, list[float]]:
        """Task -> the headline metric of each seed, in the order of the seeds."""
        return {task: list(self.by_seed(arm, task, split).values()) for task in self.tasks}

    def by_seed(self, arm: str, task: str, split: str = "test") -> dict[int, float]:
        """Seed -> the headline metric."""
        runs = sorted((r for r in self._of(task) if r["arm"] == arm), key=lambda r: r["seed"])
        return {r["seed"]: float(next(iter(r[split].values()))) for r in runs}

    def differences(self, arm: str, other: str, task: str) -> list[float]:
        """arm − other on one task, one a seed that both have, in points (hundredths)."""
        a, b = self.by_seed(arm, task), self.by_seed(other, task)
        return [POINTS * (a[seed] - b[seed]) for seed in sorted(a.keys() & b.keys())]

    def difference(self, arm: str, other: str) -> list[float]:
        """arm − other, one a seed: the mean over tasks, in points."""
        return [statistics.fmean(of_tasks) for of_tasks in self._paired(arm, other)]

    def average(self, arm: str) -> list[float]:
        """The mean over tasks, in points, one a seed."""
        return [POINTS * statistics.fmean(of_tasks) for of_tasks in zip(*self.values(arm).values(), strict=True)]

    def ahead(self, arm: str, other: str, tasks: Sequence[str] | None = None) -> list[float]:
        """Tasks on which an arm is ahead of another, one count a seed; a tie counts one half.

        tasks: those counted, None for all.
        """
        return [sum(0.5 if d == 0 else float(d > 0) for d in of_tasks)
                for of_tasks in self._paired(arm, other, tasks)]

    def telling(self, arm: str, other: str, tasks: Sequence[str] = ()) -> list[str]:
        """The tasks, of these or of all, on which two arms do not tie at every seed (as at chance they may)."""
        return [task for task in self.tasks if (not tasks or task in tasks) and any(
            self.differences(arm, other, task))]

    def _paired(self, arm: str, other: str, tasks: Sequence[str] | None = None) -> list[tuple[float, ...]]:
        """By seed, the differences of these tasks, of all for None."""
        counted = self.tasks if tasks is None else tasks
        return list(zip(*(self.differences(arm, other, task) for task in counted), strict=True))

    def rate(self, arm: str, task: str) -> float:
        """The learning rate that was chosen on validation rows."""
        return float(next(r["lr"] for r in self._of(task) if r["arm"] == arm))

    def grid(self) -> pd.DataFrame:
        """Every run that chose a rate: task, arm, seed, lr, and its headline metric on validation rows."""
        rows = [{**{k: run[k] for k in ("task", "arm", "seed", "lr")},
                 "validation": next(iter(run["validation"].values())) if run["validation"] else float("nan")}
                for run in self.about["grid"]]
        return pd.DataFrame(rows)

    def frame(self, split: str = "test") -> pd.DataFrame:
        """Long form, one row a run: task, arm, seed, lr, score (of 1 at most), seconds."""
        return pd.DataFrame([{"task": r["task"], "arm": r["arm"], "seed": r["seed"], "lr": r["lr"],
                              "score": float(next(iter(r[split].values()))), "seconds": r["seconds"]["total"]}
                             for r in self.records])

    def table(self) -> pd.DataFrame:
        """One row an arm, one column a task ("71.3 ± 0.8", points), and the mean over tasks."""
        points = self.frame().assign(score=lambda frame: POINTS * frame["score"])
        cells = points.groupby(["arm", "task"])["score"].agg(["mean", "std"])
        words = cells.apply(lambda row: f"{row['mean']:.1f} ± {row['std']:.1f}", axis=1).unstack("task")
        mean = cells["mean"].unstack("task").mean(axis=1).map("{:.1f}".format)
        return words.loc[self.arms, self.tasks].assign(mean=mean)

    def line(self) -> str:
        """One sentence on where the numbers come from."""
        a = self.about
        seeds = len({r["seed"] for r in self.records})
        return (f"stored study {a['name']!r}: {len(self.arms)} arms, {len(self.tasks)} tasks, {seeds} seeds, "
                f"{a['backbone']}, {a['training']['steps']} steps; rates chosen on validation rows among "
                f"{', '.join(f'{rate:g}' for rate in a['rates'])}; {made_on(a['machine'])}")

    def _of(self, task: str) -> list[Mapping[str, Any]]:
        """The runs of a task.

        Raises:
            KeyError: there are none.
        """
        if not (found := [r for r in self.records if r["task"] == task]):
            raise KeyError(f"no runs on {task!r}; tasks: {self.tasks}")
        return found


def references_folder() -> Path:
    """Return the folder of the stored records: that of LOWRANK_TEACH_RECORDS, else figures/data of the checkout.

    Raises:
        FileNotFoundError: the package was installed without its repository, and the variable names no folder.
    """
    if named := os.environ.get(RECORDS):
        return expanded(named, RECORDS)
    folder = Path(__file__).resolve().parents[2] / "figures" / "data"
    if not folder.is_dir():
        raise FileNotFoundError("the stored records come with the repository and not with the installed package: "
                                f"clone the repository, and set {RECORDS} to its folder figures/data, or give "
                                "`folder=` one of your own")
    return folder

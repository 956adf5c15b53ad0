"""Stored records, and what they say: scores by configuration and seed, on one task and over tasks."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from ..analysis.statistics import Curve
from ..models.packaged import expanded

RECORDS = "LOWRANK_TEACH_RECORDS"   # names the folder of the stored records in the environment


# ---- a file of records -------------------------------------------------------------------------------------

def write(path: Path, about: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> None:
    """Write both in one file of JSON; what stood there is replaced, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps({**about, "records": records}, ensure_ascii=False) + "\n", encoding="utf-8")
    new.replace(path)


def read(path: Path, missing: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return (about, records) of what `write` wrote.

    Raises:
        FileNotFoundError: it is not there; `missing` is said, with how to make it.
    """
    if not path.exists():
        raise FileNotFoundError(missing)
    about = json.loads(path.read_text(encoding="utf-8"))
    return about, about.pop("records")


def made_on(machine: Mapping[str, Any]) -> str:
    """Return the end of a sentence on where numbers come from."""
    return f"made on {machine['processor']} with torch {machine['torch']}, commit {machine['commit']}"


# ---- the long table of a study -----------------------------------------------------------------------------
Record = Mapping[str, Any]
Value = Callable[[Record], float]   # what is read from a record


def headline(split: str = "test", name: str = "") -> Value:
    """Read one metric of a split; without a name the first, which is the task's own."""
    return lambda record: float(record[split][name] if name else next(iter(record[split].values())))


@dataclass(frozen=True)
class Comparison:
    """Stored runs: one record for each task, configuration ("arm") and seed.

    about: what was compared, on what, by which code and machine.  records: one dict a run.
    """

    about: Mapping[str, Any]
    records: Sequence[Record]

    task_key: ClassVar[str] = "task"   # of a record; older ones of a study on one task have none

    @property
    def arms(self) -> list[str]:
        return list(dict.fromkeys(record["arm"] for record in self.records))

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(record.get(self.task_key, "") for record in self.records))

    def of(self, arm: str) -> list[Record]:
        """Return the runs of an arm, by seed."""
        return sorted((r for r in self.records if r["arm"] == arm), key=lambda r: r["seed"])

    def record(self, arm: str, seed: int = 0) -> Record:
        """Return one run.

        Raises:
            KeyError: there is no such run.
        """
        for found in self.of(arm):
            if found["seed"] == seed:
                return found
        raise KeyError(f"no run of {arm!r} with seed {seed}; arms: {self.arms}")

    def long(self, value: Value | None = None, arms: Sequence[str] | None = None, **more: Value) -> pd.DataFrame:
        """Return the long table: one row a run, with its task, arm, seed, a value, and whatever else is read.

        value: the headline metric on the test rows where None.  arms: some of them, None for all.
        """
        columns = {"value": value or headline(), **more}
        return pd.DataFrame([{"task": r.get(self.task_key, ""), "arm": r["arm"], "seed": r["seed"],
                              **{name: of(r) for name, of in columns.items()}}
                             for r in self.records if arms is None or r["arm"] in arms],
                            columns=["task", "arm", "seed", *columns])

    def of_each(self, arm: str, value: Value | None = None, task: str = "") -> pd.Series:
        """Return seed -> a value of an arm, empty where it has no run; task: of a study over several."""
        runs = self.long(value, [arm])
        return runs[(runs["task"] == task) | (not task)].set_index("seed")["value"].sort_index()

    def by_arm(self, value: Value | None = None) -> dict[str, list[float]]:
        """Return arm -> a value of each seed, in the order of the seeds."""
        return {arm: self.of_each(arm, value).tolist() for arm in self.arms}


def pair(first: pd.Series, second: pd.Series) -> pd.DataFrame:
    """Return two arms' values side by side for each seed that both have: columns "first", "second"."""
    return pd.concat({"first": first, "second": second}, axis=1, join="inner").sort_index()


class Scored(Comparison):
    """Runs on one task, whose records have metrics by split, such as record["test"]["accuracy"]."""

    def values(self, name: str = "", split: str = "test") -> dict[str, list[float]]:
        """Return arm -> one metric of each seed, in the order of the seeds; without a name the task's headline."""
        return self.by_arm(headline(split, name))

    def differences(self, arm: str, other: str, name: str = "", split: str = "test") -> list[float]:
        """Return arm − other on each seed that both have: what pairing leaves."""
        both = pair(*(self.of_each(one, headline(split, name)) for one in (arm, other)))
        return (both["first"] - both["second"]).tolist()


# ---- results on one task -----------------------------------------------------------------------------------
class Results(Scored):
    """What a study found: of each run test, validation, seconds, ranks, series, sites beside its arm and seed."""

    def series(self, arm: str, name: str = "loss", seed: int = 0) -> Curve:
        """Return the steps and values of one name of a run's history (the loss: means of ten steps)."""
        steps, values = self.record(arm, seed)["series"][name]
        return steps, values

    def by_site(self, arm: str, name: str, seed: int = 0) -> dict[str, float]:
        """Return site -> last value of one name of a run."""
        return dict(self.record(arm, seed)["sites"][name])

    def frame(self, name: str = "accuracy") -> pd.DataFrame:
        """Return one row an arm: seeds, mean and standard deviation of the metric, validation loss, seconds a run."""
        runs = self.long(headline("test", name), loss=headline("validation", "loss"),
                         seconds=lambda record: record["seconds"]["total"]).groupby("arm", sort=False)
        return pd.DataFrame({"seeds": runs.size(), f"test {name}": runs["value"].mean(),
                             "± (seeds)": runs["value"].std(), "validation loss": runs["loss"].mean(),
                             "seconds": runs["seconds"].mean()})

    def line(self) -> str:
        """Return one sentence on where the numbers come from."""
        a = self.about
        return (f"stored study {a['name']!r}: {len(self.records)} runs, {a['backbone']} on {a['task']}, "
                f"{a['training']['steps']} steps; {made_on(a['machine'])}")


# ---- results over tasks ------------------------------------------------------------------------------------
# Scores by task and seed, differences paired by both, and how tasks are weighed.
POINTS = 100.0


class SideBySide(Comparison):
    """Runs with arm, task and seed. Scores are the headline metric of each task, of 1 at most.

    Every task weighs the same, whatever its rows and its metric: a difference over tasks is the mean of the tasks'.
    """

    def metric(self, task: str) -> str:
        """Return the name of a task's headline metric.

        Raises:
            KeyError: there are no runs on it.
        """
        for record in self.records:
            if record["task"] == task:
                return next(iter(record["test"]))
        raise KeyError(f"no runs on {task!r}; tasks: {self.tasks}")

    def scores(self, arm: str, split: str = "test") -> pd.DataFrame:
        """Return the headline metric of an arm: a row a seed, a column a task; nan where there is no run."""
        runs = self.long(headline(split), [arm])
        return runs.pivot(index="seed", columns="task", values="value").reindex(columns=self.tasks)

    def values(self, arm: str, split: str = "test") -> dict[str, list[float]]:
        """Return task -> the headline metric of each seed, in the order of the seeds."""
        scores = self.scores(arm, split)
        return {task: scores[task].dropna().tolist() for task in self.tasks}

    def by_seed(self, arm: str, task: str, split: str = "test") -> dict[int, float]:
        """Return seed -> the headline metric."""
        return self.scores(arm, split)[task].dropna().to_dict()

    def gaps(self, arm: str, other: str) -> pd.DataFrame:
        """Return arm − other in points (hundredths): a row a seed, a column a task; nan if one of them has no run."""
        return POINTS * (self.scores(arm) - self.scores(other))

    def differences(self, arm: str, other: str, task: str) -> list[float]:
        """Return arm − other on one task, one a seed that both have, in points."""
        return self.gaps(arm, other)[task].dropna().tolist()

    def difference(self, arm: str, other: str) -> list[float]:
        """Return arm − other, one a seed: the mean over tasks, in points."""
        return [statistics.fmean(of_tasks) for of_tasks in self.gaps(arm, other).dropna().to_numpy()]

    def average(self, arm: str) -> list[float]:
        """Return the mean over tasks, in points, one a seed."""
        return [POINTS * statistics.fmean(of_tasks) for of_tasks in zip(*self.values(arm).values(), strict=True)]

    def ahead(self, arm: str, other: str, tasks: Sequence[str] | None = None) -> list[float]:
        """Return the tasks on which an arm is ahead of another, one count a seed; a tie counts one half.

        tasks: those counted, None for all.
        """
        gaps = self.gaps(arm, other)[self.tasks if tasks is None else list(tasks)].dropna()
        return ((gaps > 0) + 0.5 * (gaps == 0)).sum(axis=1).tolist() if len(gaps.columns) else []

    def rate(self, arm: str, task: str) -> float:
        """Return the learning rate that was chosen on validation rows."""
        return float(next(r["lr"] for r in self.records if (r["arm"], r["task"]) == (arm, task)))

    def tried(self, arm: str, task: str) -> list[float]:
        """Return the learning rates tried for an arm on a task, lowest first; none if they were not kept."""
        grid = self.grid()
        return sorted(set(grid.loc[(grid["arm"] == self._chooser(arm)) & (grid["task"] == task), "lr"]))

    def _chooser(self, arm: str) -> str:
        return self.about.get("rate_of", {}).get(arm, arm)

    def _first_round(self, arm: str, task: str) -> pd.DataFrame:
        grid = self.grid()
        return grid[(grid["steps"] > 0) & (grid["arm"] == self._chooser(arm)) & (grid["task"] == task)]

    def good_rates(self, arm: str, task: str) -> tuple[float, float]:
        """Return the lowest and highest learning rate within a point of the best, in the first round of a grid.

        Raises:
            KeyError: there was no first round.
        """
        means = self._first_round(arm, task).groupby("lr")["validation"].mean()
        if means.empty:
            raise KeyError(f"no first round of rates for {arm!r} on {task!r}")
        good = means[means >= means.max() - 0.01].index
        return float(good.min()), float(good.max())

    def robustness(self, arm: str, task: str) -> str:
        """Return `good_rates` in words, with how many runs diverged; "" where there was no first round."""
        tried = self._first_round(arm, task)
        if tried.empty:
            return ""
        low, high = self.good_rates(arm, task)
        diverged = int(tried["validation"].isna().sum())
        return f"{low:g} to {high:g} within a point" + (f", {diverged} diverged" if diverged else "")

    def grid_of(self, arm: str) -> dict[str, float]:
        """Return task -> the learning rate chosen for an arm with a grid of its own, for tasks with reported runs."""
        return {r["task"]: float(r["lr"]) for r in self.records if r["arm"] == arm and "lr" in r}

    def grid(self) -> pd.DataFrame:
        """Return every run that chose a rate: task, arm, seed, lr, and its headline metric on validation rows.

        steps: of a run of the first round, 0 for a whole one.
        """
        rows = [{**{k: run[k] for k in ("task", "arm", "seed", "lr")}, "steps": run.get("steps", 0),
                 "validation": next(iter(run["validation"].values())) if run["validation"] else float("nan")}
                for run in self.about["grid"]]
        return pd.DataFrame(rows)

    def frame(self, split: str = "test") -> pd.DataFrame:
        """Return the long form, one row a run: task, arm, seed, lr, score (of 1 at most), seconds."""
        runs = self.long(lambda record: float(record["lr"]), score=headline(split),
                         seconds=lambda record: record["seconds"]["total"])
        return runs.rename(columns={"value": "lr"})

    def table(self) -> pd.DataFrame:
        """Return one row an arm, one column a task ("71.3 ± 0.8", points), and the mean over tasks."""
        points = self.frame().assign(score=lambda frame: POINTS * frame["score"])
        cells = points.groupby(["arm", "task"])["score"].agg(["mean", "std"])
        words = cells.apply(lambda row: f"{row['mean']:.1f} ± {row['std']:.1f}", axis=1).unstack("task")
        mean = cells["mean"].unstack("task").mean(axis=1).map("{:.1f}".format)
        return words.loc[self.arms, self.tasks].assign(mean=mean)

    def line(self) -> str:
        """Return one sentence on where the numbers come from."""
        a = self.about
        seeds = len({r["seed"] for r in self.records})
        return (f"stored study {a['name']!r}: {len(self.arms)} arms, {len(self.tasks)} tasks, {seeds} seeds, "
                f"{a['backbone']}, {a['training']['steps']} steps; rates chosen on validation rows among "
                f"{', '.join(f'{rate:g}' for rate in a['rates'])}; {made_on(a['machine'])}")


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

"""What a study over tasks found: scores by task and seed, differences paired by both, and how tasks are weighed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from ..comparison import Comparison, made_on

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

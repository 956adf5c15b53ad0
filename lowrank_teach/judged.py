"""A study over tasks, read in several ways: verdicts, the choice of rates once more, places, cost, ways to report.

    judge(found, "COLA", "LoRA").says    # "COLA behind LoRA: −1.2 points (−2.0 to −0.3)"

Nothing is trained here and no number is chosen by hand. Taught in 07.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from . import claims
from .claims.rows import number
from .studies import SideBySide
from .studies.side_by_side import POINTS

# S seeds, T tasks; differences in points
WORDS = {claims.HOLDS: "ahead of", claims.OPPOSITE: "behind", claims.OPEN: "not separable from",
         claims.NO_RUNS: "with too few seeds to be judged against"}
VALIDATED, TESTED = "best seed on validation", "best seed on test"


@dataclass(frozen=True)
class Judged:
    """One arm beside another: differences, one a seed; their interval, None for too few; the verdict on "ahead"."""

    arm: str
    other: str
    gaps: Sequence[float]
    interval: tuple[float, float] | None
    verdict: str

    @property
    def mean(self) -> float:
        return statistics.fmean(self.gaps)

    @property
    def clear(self) -> bool:
        """Whether the interval excludes zero."""
        return self.verdict in (claims.HOLDS, claims.OPPOSITE)

    @property
    def says(self) -> str:
        ends = "" if self.interval is None else " ({} to {})".format(*map(number, self.interval))
        return f"{self.arm} {WORDS[self.verdict]} {self.other}: {number(self.mean)} points{ends}"


def judge(found: SideBySide, arm: str, other: str, task: str | None = None) -> Judged:
    """arm against other on one task, or over all tasks for None, by the rule of the ledger."""
    gaps = found.difference(arm, other) if task is None else found.differences(arm, other, task)
    verdict, interval = claims.verdict(gaps, ">")
    return Judged(arm, other, gaps, interval, verdict)


def judge_tasks(found: SideBySide, arm: str, other: str) -> dict[str, Judged]:
    """Task -> arm against other."""
    return {task: judge(found, arm, other, task) for task in found.tasks}


def chosen_again(found: SideBySide) -> pd.Series:
    """The rate of each task and arm with a grid, from validation scores alone; the lower loss where they tie."""
    losses = [(run["validation"] or {"loss": float("nan")})["loss"] for run in found.about["grid"]]
    tried = found.grid().assign(loss=losses).groupby(["task", "arm", "lr"])[["validation", "loss"]]
    means = tried.agg(statistics.fmean).dropna()
    order = means.sort_values(["validation", "loss"], ascending=[True, False]).reset_index()
    return order.groupby(["task", "arm"])["lr"].last()


def luck(found: SideBySide) -> tuple[float, float]:
    """How far a run scatters (points, median over tasks and arms), and the correlation of its two scores.

    The correlation is that of test and validation scores around the mean of their arm and task, mean over tasks.
    """
    both = pd.concat([found.frame(split).set_index(["task", "arm", "seed"])["score"] for split in
                      ("test", "validation")], axis=1, keys=["test", "validation"])
    around = both - both.groupby(["task", "arm"]).transform("mean")
    shared = [runs["test"].corr(runs["validation"]) for _, runs in around.groupby("task")]
    return POINTS * float(both["test"].groupby(["task", "arm"]).std().median()), float(np.nanmean(shared))


def wins(found: SideBySide, arms: Sequence[str]) -> pd.DataFrame:
    """On how many tasks the row is ahead of the column: mean over seeds, a tie one half; NaN on the diagonal."""
    table = {other: {arm: statistics.fmean(found.ahead(arm, other)) if arm != other else float("nan")
                     for arm in arms} for other in arms}
    return pd.DataFrame(table).loc[list(arms)]


def places(found: SideBySide, arms: Sequence[str]) -> pd.DataFrame:
    """Place of each arm among these on each task, by the mean over seeds: 1 is best; (T, arms)."""
    score = found.frame().groupby(["task", "arm"])["score"].mean().unstack("arm")
    return score.loc[found.tasks, list(arms)].rank(axis=1, ascending=False)


def cost(found: SideBySide, base: str = "LoRA") -> pd.DataFrame:
    """One row an arm: time of a run beside the base's on the same task and seed (median, quartiles), the numbers that
    train in branches at the end, mean rank left, mean score in points and its deviation over seeds."""
    seconds = found.frame().pivot_table(index=["task", "seed"], columns="arm", values="seconds")
    times = seconds.div(seconds[base], axis=0)
    low, high = (times.quantile(q).map("{:.1f}".format) for q in (0.25, 0.75))
    rows = {}
    for arm in found.arms:
        runs, average = found.of(arm), found.average(arm)
        ranks = [float(np.mean([*run["ranks"].values()] or [0])) for run in runs]
        rows[arm] = {"time": float(times[arm].median()), "quartiles": f"{low[arm]}–{high[arm]}",
                     "numbers": statistics.fmean(run["parameters"]["adapter"] for run in runs),
                     "mean rank": statistics.fmean(ranks), "score": statistics.fmean(average),
                     "spread": statistics.stdev(average) if len(average) > 1 else 0.0}
    return pd.DataFrame.from_dict(rows, orient="index")


def without_each(found: SideBySide, arm: str, other: str) -> dict[str, float]:
    """Task -> the mean difference over the other tasks."""
    gap = {task: statistics.fmean(found.differences(arm, other, task)) for task in found.tasks}
    return {task: statistics.fmean([v for u, v in gap.items() if u != task] or [gap[task]]) for task in gap}


def by_reporting(found: SideBySide) -> dict[str, dict[str, list[float]]]:
    """Task -> way to report -> what each arm gains by it over the mean of its seeds, in points."""
    gains: dict[str, dict[str, list[float]]] = {}
    for task in found.tasks:
        rows: dict[str, list[float]] = {VALIDATED: [], TESTED: []}
        for arm in found.arms:
            validation, test = (np.array(list(found.by_seed(arm, task, split).values()))
                                for split in ("validation", "test"))
            for way, score in ((VALIDATED, test[validation.argmax()]), (TESTED, test.max())):
                rows[way].append(POINTS * float(score - test.mean()))
        gains[task] = rows
    return gains

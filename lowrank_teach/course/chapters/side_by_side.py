"""Notebook 07, side by side: a study over tasks read in several ways, its pictures, a slider and the exercises.

    compare_methods(found, "COLA", "LoRA").says    # "COLA behind LoRA: −1.2 points (−2.0 to −0.3)"

Nothing is trained here, and no number is chosen by hand. M methods, T tasks, S seeds, R comparisons, n runs to
choose from; differences are in points.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.stats import norm

from ...analysis import style, toy_problems
from ...analysis.plots import Numbers
from ...analysis.statistics import SEEDS
from ...analysis.toy_problems import WAYS, draw, expected, scores, ways
from ...reproduction import verdicts
from ...reproduction.results import POINTS, SideBySide
from ...reproduction.verdicts import number
from ..exercises import EXERCISES, Task
from ..explorer import Control, Picture
from .ledger import LOOKS, forest

# ---- what the study says ----------------------------------------------------------------------------------

WORDS = {verdicts.SUPPORTED: "ahead of", verdicts.CONTRADICTED: "behind", verdicts.OPEN: "not separable from",
         verdicts.NO_RUNS: "with too few seeds to be judged against"}
VALIDATED, TESTED = "best seed on validation", "best seed on test"


@dataclass(frozen=True)
class PairedDifference:
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
        return self.verdict in (verdicts.SUPPORTED, verdicts.CONTRADICTED)

    @property
    def says(self) -> str:
        ends = "" if self.interval is None else " ({} to {})".format(*map(number, self.interval))
        return f"{self.arm} {WORDS[self.verdict]} {self.other}: {number(self.mean)} points{ends}"


def compare_methods(found: SideBySide, arm: str, other: str, task: str | None = None) -> PairedDifference:
    """arm against other on one task, or over all tasks for None, by the rule of the ledger."""
    gaps = found.difference(arm, other) if task is None else found.differences(arm, other, task)
    if len(gaps) < SEEDS:
        return PairedDifference(arm, other, gaps, None, verdicts.NO_RUNS)
    estimate = verdicts.Evidence(gaps).estimate()
    return PairedDifference(arm, other, gaps, estimate.interval(), verdicts.verdict(estimate, ">"))


def compare_on_tasks(found: SideBySide, arm: str, other: str) -> dict[str, PairedDifference]:
    """Task -> arm against other."""
    return {task: compare_methods(found, arm, other, task) for task in found.tasks}


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


# ---- pictures ---------------------------------------------------------------------------------------------

NO_DISTANCE = 1e-9   # where nought stands on a log axis


def difference_table(means: np.ndarray, clear: np.ndarray, methods: Sequence[str], tasks: Sequence[str],
                     label: str, limit: float | None = None) -> Figure:
    """Differences by method and task, centred on zero; a framed number's interval excludes zero.

    Args: means (M, T); clear (M, T), booleans; label: of the colour bar; limit: of the colours, the largest for None.
    """
    top = limit or float(np.abs(means).max()) or 1.0
    fig, (ax,) = style.panels(1, 1, 0.8 + 0.36 * len(methods), None, width=3.4 + 0.7 * len(tasks))
    mesh = style.heatmap(ax, means, methods, tasks, annot=True, fmt="+.1f", cmap="RdBu_r", vmin=-top, vmax=top)
    for text, framed in zip(ax.texts, np.ravel(clear), strict=True):
        if framed:
            text.set_bbox({"boxstyle": "square,pad=0.25", "fill": False, "edgecolor": text.get_color()})
    style.dress(ax, "Task", "")
    fig.colorbar(mesh, ax=ax, pad=0.02, extend="both" if top < np.abs(means).max() else "neither", label=label)
    return fig


def over_all_tasks(rows: Mapping[str, PairedDifference], xlabel: str) -> Figure:
    """A row a comparison, as in the ledger's forest: seeds, interval, verdict."""
    found = list(rows.values())
    return forest(list(rows), [one.gaps for one in found], [one.interval for one in found],
                  [one.verdict for one in found], ">" * len(found), xlabel)


def intervals_by_task(panels: Mapping[str, Mapping[str, PairedDifference]], xlabel: str, columns: int = 2) -> Figure:
    """A panel a comparison, a row a task: small dots are seeds, the bar is the interval in its verdict's colour."""
    tasks = list(next(iter(panels.values())))
    fig, axes = style.panels(len(panels), columns, 0.8 + 0.3 * len(tasks), None, sharey=True)
    said = [one.verdict for rows in panels.values() for one in rows.values()]
    for ax, (name, rows) in zip(axes, panels.items(), strict=True):
        for y, one in enumerate(rows.values()):
            color, marker = LOOKS[one.verdict]
            ax.plot(one.gaps, np.full(len(one.gaps), y + 0.27), ".", color=style.GREY, markersize=4)
            if one.interval is not None:
                ax.plot(one.interval, [y, y], color=color, linewidth=2.5, solid_capstyle="butt")
            ax.plot(np.mean(one.gaps), y, marker, color=color, markersize=6)
        ax.axvline(0, color=style.BLACK, linewidth=1)
        ax.set_yticks(range(len(tasks)), tasks)
        ax.set_ylim(len(tasks) - 0.4, -0.6)
        style.dress(ax, xlabel, "", name)
    style.legend(fig, [Line2D([], [], color=color, marker=marker, linewidth=2, markersize=6, label=verdict)
                       for verdict, (color, marker) in LOOKS.items() if verdict in said])
    return fig


def dots_from_zero(values: Mapping[str, Mapping[str, Numbers]], xlabel: str) -> Figure:
    """Rows of dots around a line at zero, each series of one look.

    Args: name of a row -> name of a series -> its values.
    """
    fig, (ax,) = style.panels(1, 1, 0.6 + 0.42 * len(values), None, width=8.5)
    series = list(dict.fromkeys(name for row in values.values() for name in row))
    looks = dict(zip(series, ((style.BLUE, "o"), (style.ORANGE, "X"), (style.BLACK, "D")), strict=False))
    for y, row in enumerate(values.values()):
        for shift, (name, points) in zip(np.linspace(-0.14, 0.14, len(row)), row.items(), strict=True):
            color, marker = looks[name]
            ax.plot(points, np.full(len(points), y + shift), marker, color=color, alpha=0.75, label=name)
    ax.axvline(0, color=style.GREY, linewidth=1)
    ax.set_yticks(range(len(values)), list(values))
    ax.set_ylim(len(values) - 0.4, -0.6)
    ax.margins(x=0.08)
    style.dress(ax, xlabel, "")
    style.legend(fig)
    return fig


def on_top(alone: Mapping[str, Numbers], together: Mapping[str, Numbers]) -> Figure:
    """Losses of single runs, wide and pale, those of one pass thin over them; right their distance, on a log axis.

    Equal losses stand on the dotted line at its foot.

    Args: name -> loss of each step, in both.
    """
    fig, (left, right) = style.panels(2, 2, 3.2, None)
    for name, look in style.looks(together).items():
        steps = np.arange(1, len(together[name]) + 1)
        left.plot(steps, alone[name], color=style.PALE, linewidth=6, label="alone")
        left.plot(steps, together[name], **{**look, "label": f"{name}, in one pass", "marker": ""})
        apart = np.abs(np.asarray(alone[name]) - np.asarray(together[name]))
        right.plot(steps, np.maximum(apart, NO_DISTANCE), **{**look, "linestyle": "none", "label": ""})
    right.axhline(NO_DISTANCE, color=style.GREY, linestyle=":", linewidth=1)
    right.set_yscale("log")
    right.set_ylim(bottom=NO_DISTANCE / 3)
    style.dress(left, "Optimizer step", "Training loss")
    style.dress(right, "Optimizer step", "Distance of the two (log)")
    style.legend(fig)
    return fig


# ---- explorers: what the sliders move ---------------------------------------------------------------------

REPETITIONS, MOST_RATES, MOST_SEEDS = 1500, 20, 5
BINS = np.linspace(-4.2, 4.2, 43)   # in standard deviations of a run
LINES = dict(zip(WAYS, ((style.BLUE, "-", "o"), (style.ORANGE, "--", "s"), (style.GREEN, "-.", "D")), strict=True))


class BestOfGrid(Picture):
    """Left how the gap between the two is distributed, for each way of choosing; right its mean by rates tried.

    Args: spread: one standard deviation of a run's score.  unit: of it.
    """

    height = 2.9
    controls = (Control("rates", "learning rates tried", 1, MOST_RATES, 6),
                Control("seeds", "seeds of each rate", 1, MOST_SEEDS, 1),
                Control("shared", "share seen in both splits", 0.0, 1.0, 0.5, 0.05))

    def __init__(self, spread: float = 1.0, unit: str = "standard deviations of a run") -> None:
        self.spread, self.unit = spread, unit
        self.drawn = draw(REPETITIONS, MOST_RATES, MOST_SEEDS)
        other = np.random.default_rng(1)
        self.fresh = other.standard_normal((REPETITIONS, MOST_SEEDS))   # new seeds of the one with a grid
        self.plain = other.standard_normal((REPETITIONS, MOST_SEEDS))   # the one without
        super().__init__()

    def gaps(self, rates: int, seeds: int, shared: float) -> dict[str, np.ndarray]:
        """Way of choosing -> reported score of the one with a grid minus that of the other, (R,)."""
        validation, test = scores(self.drawn[:, :, :rates, :seeds], shared)
        plain = self.plain[:, :seeds].mean(1)
        found = ways(validation, test, self.fresh[:, :seeds].mean(1))
        return {way: self.spread * (score - plain) for way, score in found.items()}

    def build(self) -> list[Artist]:
        left, right = self.axes
        self.bars, self.curves, self.marks = {}, {}, {}
        for way, (color, line, marker) in LINES.items():
            self.bars[way], = left.plot([], [], color=color, linestyle=line, linewidth=1.8, drawstyle="steps-mid")
            self.curves[way], = right.plot([], [], color=color, linestyle=line, linewidth=1.8, label=way)
            self.marks[way], = right.plot([], [], marker, color=color, markersize=7)
        left.axvline(0, color=style.GREY, linewidth=1)
        left.set(xlim=(self.spread * BINS[0], self.spread * BINS[-1]), ylim=(0, 0.2))
        right.set(xlim=(0, MOST_RATES + 1), ylim=(-0.15 * self.spread, 2.05 * self.spread))
        style.dress(left, f"Gap between two equal methods, {self.unit}", "Share of comparisons", " ")
        style.dress(right, "Learning rates tried", "Mean gap", " ")
        right.set_xticks([1, *range(5, MOST_RATES + 1, 5)])
        style.legend(self.fig)
        return [*self.bars.values(), *self.curves.values(), *self.marks.values(), left.title, right.title]

    def arrays(self, **state: Any) -> dict[str, Any]:
        rates, seeds, shared = int(state["rates"]), int(state["seeds"]), float(state["shared"])
        gaps = self.gaps(rates, seeds, shared)
        counts = {way: np.histogram(gap, self.spread * BINS)[0] / REPETITIONS for way, gap in gaps.items()}
        axis = range(1, MOST_RATES + 1)
        means = [expected(n, seeds, shared) for n in axis]
        return {"counts": counts, "axis": np.array(axis), "rates": rates,
                "means": {way: self.spread * np.array([mean[way] for mean in means]) for way in WAYS},
                "left": f"{rates} rate{'s' * (rates > 1)} against one",
                "right": f"{seeds} seed{'s' * (seeds > 1)} a rate, share {shared:.2f}"}

    def update(self, arrays: dict[str, Any]) -> None:
        middles = self.spread * (BINS[1:] + BINS[:-1]) / 2
        for way in WAYS:
            self.bars[way].set_data(middles, arrays["counts"][way])
            self.curves[way].set_data(arrays["axis"], arrays["means"][way])
            self.marks[way].set_data([arrays["rates"]], [arrays["means"][way][arrays["rates"] - 1]])
        for ax, side in zip(self.axes, ("left", "right"), strict=True):
            ax.set_title(arrays[side], fontsize=10)

    def words(self, **state: Any) -> str:
        rates, seeds, shared = int(state["rates"]), int(state["seeds"]), float(state["shared"])
        mean = expected(rates, seeds, shared)
        gap, best = self.gaps(rates, seeds, shared)[WAYS[0]], self.spread * mean[WAYS[0]]
        return (f"Two equal methods, one with {rates} learning rate{'s' * (rates > 1)} of {seeds} "
                f"seed{'s' * (seeds > 1)} each: best on test it comes out {best:.2f} {self.unit} "
                f"ahead on average, and ahead in {(gap > 0).mean():.0%} of comparisons; chosen on validation rows "
                f"{self.spread * mean[WAYS[1]]:.2f}; chosen there and trained with new seeds {mean[WAYS[2]]:.2f}.")


# ---- exercises: the library's answers, and what usual mistakes would give ---------------------------------

Scores = Mapping[str, Mapping[int, float]]   # task -> seed -> score, of 1 at most


def reported_score(validation: np.ndarray, test: np.ndarray) -> np.ndarray:
    """The test score (R,) of the run that validates best, in each row of (R, n)."""
    return toy_problems.reported(validation, test)


def expected_best(n: int, z: np.ndarray, pdf: np.ndarray, cdf: np.ndarray) -> float:
    """Mean of the largest of n standard normal numbers; z, pdf, cdf are for those who compute it."""
    return toy_problems.expected_best(n)


def difference_over_tasks(first: Scores, second: Scores) -> np.ndarray:
    """first − second, one a seed: the mean over tasks, in points (the library's SideBySide)."""
    return np.array(_pair(first, second).difference("first", "second"))


def tasks_ahead(first: Scores, second: Scores) -> np.ndarray:
    """Tasks on which the first is ahead, one count a seed; a tie is one half."""
    return np.array(_pair(first, second).ahead("first", "second"))


def _pair(first: Scores, second: Scores) -> SideBySide:
    return SideBySide({}, [{"arm": arm, "task": task, "seed": seed, "test": {"score": score}}
                           for arm, tasks in (("first", first), ("second", second))
                           for task, seeds in tasks.items() for seed, score in seeds.items()])


def _by_place(first: Scores, second: Scores) -> np.ndarray:
    """The library's, where seeds are thrown away and scores stand by their place."""
    numbered = [{task: dict(enumerate(seeds.values())) for task, seeds in one.items()} for one in (first, second)]
    return difference_over_tasks(*numbered)


def _ties(first: Scores, second: Scores, push: float) -> np.ndarray:
    """The library's, with every tie broken."""
    return tasks_ahead({task: {seed: score + push for seed, score in seeds.items()}
                        for task, seeds in first.items()}, second)


_VALIDATION = np.random.default_rng(0).normal(size=(6, 4))
_TEST = 0.5 * _VALIDATION + np.random.default_rng(1).normal(size=(6, 4))
_Z = np.linspace(-8, 8, 1601)


def _normal(n: int) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    pdf = norm.pdf(_Z)
    return n, _Z, pdf, norm.cdf(_Z)


_FIRST = {"rt": {0: 0.71, 1: 0.74, 2: 0.70}, "trec": {2: 0.80, 0: 0.75, 1: 0.77}, "wic": {0: 0.52, 1: 0.5, 2: 0.5}}
_SECOND = {"rt": {0: 0.70, 1: 0.75, 2: 0.68}, "trec": {0: 0.81, 1: 0.76, 2: 0.80}, "wic": {0: 0.5, 1: 0.5, 2: 0.5}}

EXERCISES.update({
    "reported_score": Task(
        reported_score, lambda: [(_VALIDATION, _TEST)],
        "in each row find the run with the best validation score, and return that run's test score",
        [("that is the best on test: the test rows chose the run, and then judged it",
          lambda validation, test: toy_problems.reported(test, test)),
         ("that is the validation score: it chose the run, so it is too high; report its test score",
          lambda validation, test: toy_problems.reported(validation, validation)),
         ("that is the run that validates worst", lambda validation, test: toy_problems.reported(-validation, test)),
         ("one run was chosen for all rows: each row is a comparison of its own (axis 1)",
          lambda validation, test: test[:, validation.mean(0).argmax()])],
        (toy_problems.reported,)),
    "expected_best": Task(
        expected_best, lambda: [_normal(3), _normal(10)],
        "sum z · n · pdf · cdf^(n − 1) over the grid, times the distance of two grid points",
        [("the exponent is n − 1: one of the n is the largest, the other n − 1 lie below it",
          lambda n, *_: n / (n + 1) * toy_problems.expected_best(n + 1)),
         ("the factor n is missing: each of the n can be the largest",
          lambda n, *_: toy_problems.expected_best(n) / n),
         ("the distance of two grid points is missing: a sum is no integral yet",
          lambda n, z, *_: toy_problems.expected_best(n) / (z[1] - z[0])),
         ("z is missing: that is the density's whole mass, one", lambda n, *_: 1.0)],
        (toy_problems.expected_best,)),
    "difference_over_tasks": Task(
        difference_over_tasks, lambda: [(_FIRST, _SECOND)],
        "for each seed take first − second on every task, then the mean over tasks, times 100",
        [("scores are of 1: a point is a hundredth, so multiply by 100",
          lambda a, b: difference_over_tasks(a, b) / POINTS),
         ("that is second − first", lambda a, b: -difference_over_tasks(a, b)),
         ("that is the sum over tasks: take their mean", lambda a, b: len(a) * difference_over_tasks(a, b)),
         ("that pairs by place: the seeds stand in another order", _by_place)],
        (SideBySide.difference, SideBySide.differences)),
    "tasks_ahead": Task(
        tasks_ahead, lambda: [(_FIRST, _SECOND)],
        "for each seed count the tasks with first > second, and one half for each tie",
        [("a tie counts one half, not zero", lambda a, b: _ties(a, b, -1e-9)),
         ("a tie counts one half, not one", lambda a, b: _ties(a, b, 1e-9)),
         ("that counts the tasks on which the first is behind", lambda a, b: tasks_ahead(b, a)),
         ("that is a share: count tasks", lambda a, b: tasks_ahead(a, b) / len(a))],
        (SideBySide.ahead,)),
})

"""Notebook 07, side by side: tuned studies read by the protocol, their pictures and findings, a slider, exercises.

    studies = tuned()                 # what is stored of every study that keeps the protocol; the files may grow
    pairs = comparisons()             # the ledger's rows on scores, seeds by examples

Nothing is trained here, and no number is chosen by hand. S seeds, E test examples, R resamples, n runs to
choose from; differences are in points, hundredths of a score.
"""

from __future__ import annotations

import functools
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.stats import binom, norm, t

from ...analysis import style, toy_problems
from ...analysis.plots import Numbers
from ...analysis.statistics import SEEDS, PairedMean, middle, paired_mean
from ...analysis.toy_problems import WAYS, draw, expected, scores, ways
from ...experiments.fit import Rows
from ...experiments.runs import Run
from ...reproduction import ledger, verdicts
from ...reproduction import studies as stored_studies
from ...reproduction.arms import TASK_STUDIES
from ...reproduction.rank_cuts import cut_branches
from ...reproduction.results import POINTS, SideBySide, references_folder
from ...reproduction.studies import Runner
from ...reproduction.verdicts import EQUAL, OPEN, POINT, Row, number
from ...tasks.table import TASKS
from ...training.config import train_config
from ..by_hand import say_equal as say_equal
from ..contents import readable
from ..exercises import EXERCISES, Task, predict
from ..explorer import Control, Picture
from .ledger import LOOKS
from .ranks import scores_by_rank

# ---- what is stored ----------------------------------------------------------------------------------------

Studies = Mapping[str, SideBySide]
TUNED = tuple(name for name, study in TASK_STUDIES.items() if study.widen)
MARKS: dict[str, tuple[Any, str]] = {"sst2": ("-", "o"), "trec": ("--", "s"), "rt": (":", "^")}   # of tasks
FINE_TUNING = "FT‡ (W_q, W_v)"


def tuned() -> dict[str, SideBySide]:
    """Return what is stored of the studies that keep the protocol, and print one line on each."""
    found = {name: stored_studies.load_across(name) for name in TUNED if stored_studies.path_of(name).exists()}
    for name, one in found.items():
        a = one.about
        print(f"{name}: {len(a['grid'])} runs chose rates, {len(one.records)} runs are reported; {a['backbone']}, "
              f"{a['training']['steps']} steps of {a['training']['batch_size']}")
    return found


def missing(studies: Studies) -> Any:
    """A table of what each study will have, and what it has today."""
    rows = {}
    for name in TUNED:
        plan, found = TASK_STUDIES[name], studies.get(name)
        cells = [(task, arm) for task in plan.tasks for arm in plan.arms]
        done = [cell for cell in cells if found and len(_of(found, *cell)) >= SEEDS]
        lacks = [task for task in plan.tasks if sum(cell[0] == task for cell in done) < len(plan.arms)]
        rows[name] = [plan.question, f"{len(done)} of {len(cells)}", ", ".join(lacks) or "–"]
    columns = ["question", f"configurations × tasks with {SEEDS} seeds", "tasks that are not whole"]
    return readable(pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("study"), "missing")


def _of(found: SideBySide, task: str, arm: str) -> list[Any]:
    return [record for record in found.of(arm) if record["task"] == task]


def grid(found: SideBySide) -> pd.DataFrame:
    """Return the runs that chose rates: task, arm, seed, lr, steps (0: whole), score in points, loss.

    A run that diverged has the score −inf and the loss inf.
    """
    losses = [run["validation"]["loss"] if run["validation"] else math.inf for run in found.about["grid"]]
    frame = found.grid()
    return frame.assign(score=POINTS * frame["validation"].fillna(-math.inf), loss=losses)


def grids(studies: Studies) -> list[tuple[str, str, str]]:
    """Return (study, task, configuration) of every grid whose rate is chosen and was used."""
    return [(name, task, arm) for name, found in studies.items() for arm in found.arms for task in found.grid_of(arm)
            if found.about["rate_of"].get(arm, arm) == arm]


Scored = Callable[[float, int], tuple[np.ndarray, np.ndarray]]


def replay(found: SideBySide, task: str, arm: str) -> Scored:
    """Return a function (rate, steps) -> stored validation scores and losses of the tuning seeds; steps 0: whole."""
    frame = grid(found)
    own = frame[(frame["task"] == task) & (frame["arm"] == arm)]

    def score(rate: float, steps: int) -> tuple[np.ndarray, np.ndarray]:
        runs = own[(own["lr"] == rate) & (own["steps"] == steps)]
        return runs["score"].to_numpy(), runs["loss"].to_numpy()

    return score


def _look(study: str, arm: str) -> dict[str, Any]:
    """Return the look of a configuration: the colour of its method; line and marker by its place among them."""
    arms = TASK_STUDIES[study].arms
    name = arms[arm].method.name if arm in arms else "lora"
    family = [one for one in arms if arms[one].method.name == name]
    place = family.index(arm) if arm in family else 0
    color = style.METHOD_STYLE.get(name, ("", style.GREY, "-", "o"))[1]
    return {"color": color, "linestyle": style.STYLES[place % 6], "marker": style.MARKERS[place % 8]}


# ---- predictions: the answers stay out of the notebook's own cells -----------------------------------------


def predict_one_rate(found: SideBySide) -> None:
    one = _two_rates(found)
    predict(f"{one['first']} and {one['second']} are compared at one learning rate for both, the best one of "
            f"{one['first']}. Then at the best one of {one['second']}. Who is ahead each time?",
            f"At {one['rates'][0]:g}: {_ahead(one, 0)}. At {one['rates'][1]:g}: {_ahead(one, 1)}. So whoever picks "
            "the shared rate may pick the winner.")


def predict_coin(pairs: Sequence[Pair]) -> None:
    chance = _mean_right(pairs, 1.0, 2, 200)
    predict("Of two learning rates one is truly better by one point. You try both with two seeds and look at 200 "
            "validation examples. How often do you choose the better one? A coin does it in 50 % of cases.",
            f"In about {chance:.0%}, with the scatter of our own runs. Section 8 draws the whole curve.")


def predict_by_chance(pairs: Sequence[Pair]) -> None:
    n = len(pairs)
    predict(f"{n} comparisons get an interval at 95 %. If no method differed from its opponent, how many of the {n} "
            "intervals would exclude zero, and how likely is one or more?",
            f"About {0.05 * n:.1f}. One or more: {binom.sf(0, n, 0.05):.0%}, if they were independent. One clear row "
            "in a table proves little.")


def predict_clipping(studies: Studies) -> None:
    shares = _clipped(studies)["clipped"]
    predict("Training cuts a gradient back when its norm exceeds 1. On which share of the steps does that happen?",
            f"Between {shares.min():.0%} and {shares.max():.0%}, depending on the configuration. It is no rare "
            "safety measure here, it is a part of the optimizer.")


# ---- rates -------------------------------------------------------------------------------------------------


def _two_rates(found: SideBySide, first: str = "LoRA", second: str = FINE_TUNING) -> dict[str, Any]:
    """Read the first round of two configurations on the first task that has both: curves, best rates, gaps there."""
    frame = grid(found)
    frame = frame[frame["steps"] > 0]
    task = next(name for name in found.about["tasks"]
                if {first, second} <= set(frame.loc[frame["task"] == name, "arm"]))
    curves = {arm: frame[(frame["task"] == task) & (frame["arm"] == arm)].groupby("lr")["score"].mean()
              for arm in (first, second)}
    both = curves[first].index.intersection(curves[second].index)
    rates = [float(curves[arm].loc[both].idxmax()) for arm in (first, second)]
    gaps = [float(curves[second][rate] - curves[first][rate]) for rate in rates]
    heads = frame[(frame["task"] == task) & (frame["arm"] == "head only")].groupby("lr")["score"].mean()
    return {"first": first, "second": second, "task": task, "curves": curves, "rates": rates, "gaps": gaps,
            "best": float(curves[second].max() - curves[first].max()), "head": heads.max() if len(heads) else None}


def _ahead(one: Mapping[str, Any], which: int) -> str:
    gap = one["gaps"][which]
    return f"{one['second' if gap > 0 else 'first']} is ahead by {number(abs(gap))} points"


def two_rates(found: SideBySide) -> Figure:
    """Validation score over the rate of two configurations, with the gap at the best rate of each."""
    one = _two_rates(found)
    fig, (ax,) = style.panels(1, 1, 3.3, None, width=8.0)
    for arm, curve in one["curves"].items():
        ax.plot(curve.index, curve, **_look(found.about["name"], arm), linewidth=2, label=arm)
    for rate, arm in zip(one["rates"], one["curves"], strict=True):
        low, high = sorted(float(curve[rate]) for curve in one["curves"].values())
        ax.plot([rate, rate], [low, high], color=style.ORANGE, linewidth=4, alpha=0.6, solid_capstyle="butt",
                label="gap at a shared rate")
        ax.annotate(f"best rate of\n{arm}", (rate, low), xytext=(0, -8), textcoords="offset points", ha="center",
                    va="top", fontsize=9)
    if one["head"] is not None:
        ax.axhline(one["head"], color=style.GREY, linestyle=":", linewidth=1.5, label="head only, at its best rate")
    ax.set_xscale("log")
    ax.margins(y=0.25)
    style.dress(ax, "Learning rate (log)", "Validation score, points",
                f"{one['task']}, a first round of {TASK_STUDIES[found.about['name']].rung} steps")
    style.legend(fig)
    fig.set_label(f"Validation score against the learning rate for {one['first']} and {one['second']}: two curves "
                  f"whose best rates are {one['rates'][0]:g} and {one['rates'][1]:g}.")
    return fig


def finding_of_two_rates(found: SideBySide) -> str:
    """Say who is ahead at the best rate of each of the two, and with each at its own."""
    one = _two_rates(found)
    who = one["second"] if one["best"] > 0 else one["first"]
    own = "they are level" if not one["best"] else f"{who} is ahead by {number(abs(one['best']))} points"
    return (f"With {one['rates'][0]:g} for both, {_ahead(one, 0)}; with {one['rates'][1]:g} for both, "
            f"{_ahead(one, 1)}. Each at its own best rate: {own}. A constant answer lies far below the panel.")


def u_curves(studies: Studies) -> Figure:
    """Validation loss over the rate in the first round: a panel a configuration, a line a task, a dot a seed.

    Each line is shown less its own lowest mean, so that tasks share an axis. The ring is the rate that was chosen.
    """
    panels = [(name, arm) for name, found in studies.items() for arm in grid(found)["arm"].unique()]
    fig, axes = style.panels(len(panels), 4, 1.75, None, sharey=True)
    for i, (ax, (name, arm)) in enumerate(zip(axes, panels, strict=True)):
        look, found = _look(name, arm), studies[name]
        for task, curve in _losses(found, arm).items():
            line, marker = MARKS.get(task, ("-.", "D"))
            mean = curve.groupby("lr")["loss"].mean()
            ax.plot(curve["lr"], curve["loss"] - mean.min(), ".", color=look["color"], alpha=0.45, markersize=4)
            ax.plot(mean.index, mean - mean.min(), line, marker=marker, color=look["color"], markersize=4.5)
            if task in (chosen := found.grid_of(arm)):
                ax.plot(chosen[task], mean.get(chosen[task], np.nan) - mean.min(), "o", markersize=11,
                        fillstyle="none", color=style.BLACK)
        ax.set_xscale("log")
        below, left = i >= len(panels) - 4, not i % 4
        style.dress(ax, "Learning rate" * below, "Loss above\nits lowest" * left, arm)
    axes[0].set_ylim(-0.03, 0.42)
    keys = [Line2D([], [], color=style.BLACK, linestyle=line, marker=marker, label=task)
            for task, (line, marker) in MARKS.items()
            if any(task in _losses(studies[name], arm) for name, arm in panels)]
    style.legend(fig, [*keys, Line2D([], [], color=style.BLACK, marker="o", linestyle="", markersize=11,
                                     fillstyle="none", label="chosen, by whole runs")])
    fig.set_label(f"{len(panels)} panels, one a configuration, of validation loss above its lowest against the "
                  "learning rate: most lines fall, stay flat and rise again. " + finding_of_u_curves(studies))
    return fig


def _losses(found: SideBySide, arm: str) -> dict[str, pd.DataFrame]:
    """Return task -> first-round runs that did not diverge, where there are three rates or more."""
    frame = grid(found)
    own = frame[(frame["arm"] == arm) & (frame["steps"] > 0) & np.isfinite(frame["loss"])]
    return {task: runs for task, runs in own.groupby("task", sort=False) if runs["lr"].nunique() >= 3}


def finding_of_u_curves(studies: Studies) -> str:
    """Say where the lowest losses lie, how much the ends of a grid cost, and where the chosen rates are."""
    lowest, ends = {}, []
    for found in studies.values():
        for arm in grid(found)["arm"].unique():
            for task, runs in _losses(found, arm).items():
                mean = runs.groupby("lr")["loss"].mean()
                lowest[arm, task] = float(mean.idxmin())
                ends.append(max(float(mean.iloc[0]), float(mean.iloc[-1])) - float(mean.min()))
    low, high = min(lowest, key=lowest.__getitem__), max(lowest, key=lowest.__getitem__)
    chosen = [studies[name].grid_of(arm)[task] for name, task, arm in grids(studies)]
    return (f"The lowest losses lie between {lowest[low]:g} ({low[0]} on {low[1]}) and {lowest[high]:g} ({high[0]} "
            f"on {high[1]}). The worse end of a grid costs {statistics.median(ends):.2f} in loss (median of "
            f"{len(ends)} curves). The chosen rates span a factor of {max(chosen) / min(chosen):.0f}.")


def rate_table(studies: Studies) -> Any:
    """A table of the chosen rates, and of how wide the range within a point of the best is."""
    rows = []
    for name, task, arm in grids(studies):
        found = studies[name]
        low, high = found.good_rates(arm, task)
        frame = grid(found)
        own = frame[(frame["arm"] == arm) & (frame["task"] == task)]
        rows.append({"configuration": arm, "task": task, "rates tried": f"{own['lr'].nunique()}",
                     "chosen": f"{found.rate(arm, task):g}", "within a point of the best": f"{low:g} to {high:g}",
                     "that is a factor of": f"{high / low:.0f}", "diverged": f"{int(np.isinf(own['loss']).sum())}"})
    return readable(pd.DataFrame(rows).set_index(["configuration", "task"]), "rates")


# ---- pairs: differences by seed and example ----------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """A comparison of the ledger.  name: first − second, task.  table: points, seeds by examples (S, E)."""

    name: str
    row: Row
    table: np.ndarray

    @property
    def both(self) -> PairedMean:
        """The estimate where seeds and examples are both a sample."""
        return paired_mean(self.table)

    @property
    def seeds_only(self) -> PairedMean:
        """The estimate where the examples are taken for the whole world."""
        return paired_mean(self.table.mean(1)[:, None])


def _rows() -> list[Row]:
    """Return the ledger's rows that keep the protocol; read again when a file of a study has changed."""
    paths = [stored_studies.path_of(name) for name in TUNED]
    return _rows_at(tuple(path.stat().st_mtime if path.exists() else 0.0 for path in paths))


@functools.lru_cache(maxsize=1)
def _rows_at(times: tuple[float, ...]) -> list[Row]:
    return [row for row in ledger.ledger() if row.tuned]


def comparisons() -> list[Pair]:
    """Return the ledger's tuned comparisons of scores that have enough seeds, and print how many wait."""
    claims = {f"{paper} {i}": claim for paper, listed in ledger.CLAIMS.items() for i, claim in enumerate(listed, 1)}
    rows = [row for row in _rows() if row.unit == "points"]
    pairs = []
    for row in rows:
        if row.interval is not None:
            measure = claims[row.key].measure   # type: ignore[union-attr]
            (_, first), (_, second) = measure.arms   # type: ignore[union-attr]
            found = measure(None)   # type: ignore[operator]
            table = np.array(found.differences)[:, None] if found.examples is None else found.examples
            pairs.append(Pair(f"{first} − {second}, {row.task}", row, POINTS * table))
    print(f"{len(rows)} rows of the ledger compare scores by the protocol: {len(pairs)} have {SEEDS} seeds or more, "
          f"{len(rows) - len(pairs)} wait for runs")
    return pairs


def most_widened(pairs: Sequence[Pair]) -> Pair:
    """Return the pair whose interval grows most by the examples' share, and say which it is."""
    def growth(pair: Pair) -> float:
        return float(np.ptp(pair.both.interval()) / np.ptp(pair.seeds_only.interval()))

    found = max((pair for pair in pairs if pair.table.shape[1] > 1), key=growth)
    print(f"{found.name}: {found.table.shape[0]} seeds, {found.table.shape[1]} test examples")
    return found


def three_intervals(pair: Pair, means: np.ndarray) -> Figure:
    """A histogram of resampled means (R,), over it intervals over seeds alone, over both, and the bootstrap's."""
    import seaborn

    fig, (ax,) = style.panels(1, 1, 3.2, None, width=8.0)
    seaborn.histplot(means, bins=40, stat="density", color=style.PALE, linewidth=0, ax=ax)
    top = ax.get_ylim()[1]
    for place, (name, (ends, color)) in enumerate(_intervals(pair, means).items()):
        ax.plot(ends, [top * (1.08 + 0.13 * place)] * 2, color=color, linewidth=5, solid_capstyle="butt", label=name)
    ax.axvline(0, color=style.BLACK, linestyle=":", linewidth=1.2, label="no difference")
    style.dress(ax, "Mean difference, points", "Density of resampled means", pair.name)
    style.legend(fig)
    fig.set_label(f"A histogram of resampled mean differences, and three intervals above it. "
                  f"{finding_of_three(pair, means)}")
    return fig


def _intervals(pair: Pair, means: np.ndarray) -> dict[str, tuple[tuple[float, float], str]]:
    return {"over seeds alone": (pair.seeds_only.interval(), style.ORANGE),
            "over seeds and examples": (pair.both.interval(), style.BLUE),
            "your bootstrap over both": (middle(means), style.GREEN)}


def finding_of_three(pair: Pair, means: np.ndarray) -> str:
    """Say the three intervals and how much the first one is too narrow."""
    alone, both, boot = (ends for ends, _ in _intervals(pair, means).values())
    return (f"Over seeds alone the 95 % interval is {_ends(alone)}, over seeds and examples {_ends(both)}; your "
            f"bootstrap gives {_ends(boot)}. The examples make the interval {np.ptp(both) / np.ptp(alone):.1f} times "
            "as wide.")


def _ends(interval: Sequence[float]) -> str:
    return "[{}, {}]".format(*map(number, interval))


def compared(pairs: Sequence[Pair]) -> Figure:
    """A row a comparison: dots are seeds, the thin bar leaves examples out, the thick one has both."""
    fig, (ax,) = style.panels(1, 1, 1.0 + max(0.2, min(0.4, 11 / len(pairs))) * len(pairs), None)
    ax.axvspan(-POINT, POINT, color=style.PALE, alpha=0.35, linewidth=0, label="less than a point")
    for y, pair in enumerate(pairs):
        color, marker = LOOKS[pair.row.verdict]
        ax.plot(pair.table.mean(1), [y + 0.3] * len(pair.table), ".", color=style.GREY, markersize=4)
        ax.plot(pair.seeds_only.interval(), [y - 0.22] * 2, color=style.BLACK, linewidth=1.2,
                label="over seeds alone")
        ax.plot(pair.both.interval(), [y, y], color=color, linewidth=4, solid_capstyle="butt")
        ax.plot(pair.both.mean, y, marker, color=color, markersize=7)
    ax.axvline(0, color=style.BLACK, linewidth=1)
    ax.set_yticks(range(len(pairs)), [pair.name for pair in pairs])
    ax.set_ylim(len(pairs) - 0.4, -0.6)
    ax.tick_params(axis="y", labelsize=9)
    style.dress(ax, "Difference in test score, points (thick: 95 % over seeds and examples)", "")
    said = {pair.row.verdict for pair in pairs}
    style.legend(fig, [Line2D([], [], color=color, marker=marker, linewidth=3, markersize=7,
                              label=verdict)
                       for verdict, (color, marker) in LOOKS.items() if verdict in said])
    fig.set_label("A row a comparison with its seeds, an interval over seeds alone and a thicker one over seeds and "
                  f"examples, beside a band of one point around zero. {finding_of_compared(pairs)}")
    return fig


def finding_of_compared(pairs: Sequence[Pair]) -> str:
    """Say what is decided, what is equal within a point, what is open, and what examples changed."""
    def named(answer: str) -> str:
        able = {pair.name: f" (would show {number(pair.both.detectable())})" if answer == OPEN else ""
                for pair in pairs if _verdict(pair.both) == answer}
        return "; ".join(name + more for name, more in able.items()) or "none"

    alone = [pair for pair in pairs if np.prod(np.sign(pair.seeds_only.interval())) > 0]
    both = [pair for pair in pairs if np.prod(np.sign(pair.both.interval())) > 0]
    decided = [pair for pair in pairs if pair.row.survives is not None]
    return (f"The first named is ahead: {named('ahead')}. It is behind: {named('behind')}. Equal within a point: "
            f"{named(EQUAL)}. Open: {named(OPEN)}. Over seeds alone {len(alone)} of {len(pairs)} intervals exclude "
            f"zero, over seeds and examples {len(both)}. After the correction for all tests of the ledger "
            f"{sum(bool(pair.row.survives) for pair in decided)} of {len(decided)} decided rows stand.")


def counted() -> Any:
    """A table of the rows of the ledger that keep the protocol, by paper and verdict."""
    frame = ledger.counts(_rows())
    return readable(frame.loc[:, frame.any()], "counted")


# ---- how noisy a choice is ---------------------------------------------------------------------------------


def parts(table: np.ndarray) -> tuple[float, float, float]:
    """Return the variance of a difference that is due to the seed, to the example, and to the two together."""
    S, E = table.shape
    mean, of_seed, of_example = table.mean(), table.mean(1), table.mean(0)
    rest = float(((table - of_seed[:, None] - of_example + mean) ** 2).sum() / ((S - 1) * (E - 1)))
    seed, example = float(of_seed.var(ddof=1)) - rest / E, float(of_example.var(ddof=1)) - rest / S
    return max(seed, 0.0), max(example, 0.0), rest


def scatter_of(pair: Pair, seeds: int, examples: int) -> float:
    """Return the standard deviation of a mean difference over so many seeds and examples, in points."""
    seed, example, rest = parts(pair.table)
    return math.sqrt(seed / seeds + example / examples + rest / (seeds * examples))


def _mean_right(pairs: Sequence[Pair], effect: float, seeds: int, examples: int) -> float:
    """Return how often the better of two is chosen, mean over the scatter of all pairs with examples."""
    return statistics.fmean(float(norm.cdf(effect / scatter_of(pair, seeds, examples)))
                            for pair in pairs if pair.table.shape[1] > 1)


TRIALS = ((2, 200), (2, 400), (5, 400), (5, 2000))   # seeds, examples


def coin(pairs: Sequence[Pair]) -> Figure:
    """How often the truly better of two rates is chosen, over the true difference, for some numbers of trials."""
    fig, (ax,) = style.panels(1, 1, 3.2, None, width=8.0)
    effects = np.linspace(0, 4, 41)
    looks = style.looks([f"{s} seeds, {e:,} examples" for s, e in TRIALS]).values()
    for (seeds, examples), look in zip(TRIALS, looks, strict=True):
        ax.plot(effects, [100 * _mean_right(pairs, effect, seeds, examples) for effect in effects],
                **{**look, "marker": "", "color": style.BLACK if seeds > 2 else style.GREY}, linewidth=2)
    ax.axhline(50, color=style.ORANGE, linewidth=1.2, label="a coin")
    ax.axvline(1, color=style.PALE, linewidth=1.2)
    style.dress(ax, "True difference of two learning rates, points", "Better one chosen, % of cases",
                "How far a choice of rate can be trusted")
    style.legend(fig)
    fig.set_label(f"Share of right choices against the true difference, from 50 % at zero upwards, four lines. "
                  f"{_of_coin(pairs)}")
    return fig


def _of_coin(pairs: Sequence[Pair]) -> str:
    shares = ", ".join(f"{_mean_right(pairs, 1.0, s, e):.0%} with {s} seeds and {e:,} examples" for s, e in TRIALS)
    return f"A true difference of one point is found in {shares}."


def finding_of_coin(studies: Studies, pairs: Sequence[Pair]) -> str:
    """Say how large the noise of a choice is, and how often the two tuning seeds disagree."""
    noise = statistics.median(scatter_of(pair, 2, 200) for pair in pairs if pair.table.shape[1] > 1)
    apart, total = 0, 0
    for found in studies.values():
        frame = grid(found)
        for _, runs in frame[frame["steps"] > 0].groupby(["task", "arm"]):
            best = [one.sort_values("score")["lr"].iloc[-1] for _, one in runs.groupby("seed") if len(one) > 2]
            total, apart = total + (len(best) > 1), apart + (len(set(best)) > 1)
    gaps = []
    for name, task, arm in grids(studies):
        frame = grid(studies[name])
        whole = frame[(frame["task"] == task) & (frame["arm"] == arm) & (frame["steps"] == 0)]
        first, second, *_ = sorted(whole.groupby("lr")["score"].mean(), reverse=True)
        gaps.append(first - second)
    gap = statistics.median(gaps)
    return (f"{_of_coin(pairs)} With 2 seeds and 200 examples the noise of a difference is {number(noise)} points "
            f"(one standard deviation). The best two rates of our grids are {number(gap)} points apart (median); a "
            f"true difference of this size would be found in {_mean_right(pairs, gap, 2, 200):.0%}. "
            f"In {apart} of {total} stored grids the two tuning seeds would have "
            "chosen different rates in the first round.")


# ---- tasks at chance ---------------------------------------------------------------------------------------

# score of one and the same answer for all: the share of the largest class among the test examples of the study, as
# `lora.guessing` counts them; a correlation of a constant counts as zero
CONSTANT = {"sst2": 0.5025, "trec": 0.24, "rt": 0.605, "stsb": 0.0, "wic": 0.5075, "mrpc": 0.685, "rte": 0.5271,
            "cola": 0.0}
EXAMPLES = {"rte": 277}   # test examples, where there are fewer than the study asks for


def _band(found: SideBySide, task: str) -> float:
    """Return two standard errors of a score at chance, in points: what so few examples leave open."""
    n, level = EXAMPLES.get(task, found.about["training"]["n_test"]), CONSTANT[task]
    return 2 * POINTS * math.sqrt((level * (1 - level) if found.metric(task) == "accuracy" else 1.0) / n)


def above_constant(found: SideBySide) -> Figure:
    """Score above one and the same answer for all, by task: LoRA, the head alone, two standard errors."""
    fig, (ax,) = style.panels(1, 1, 0.8 + 0.42 * len(found.tasks), None, width=8.5)
    for y, task in enumerate(found.tasks):
        band = _band(found, task)
        ax.plot([-band, band], [y, y], color=style.PALE, linewidth=13, solid_capstyle="butt",
                label="what the test examples leave open")
        for shift, arm, color, marker in ((-0.13, "LoRA", style.BLUE, "s"), (0.13, "head only", style.GREY, "h")):
            values = POINTS * (np.array(found.values(arm)[task]) - CONSTANT[task])
            ax.plot(values, [y + shift] * len(values), linestyle="", markersize=5, label=arm,
                    color=color, marker=marker)
    ax.axvline(0, color=style.BLACK, linewidth=1)
    ax.set_yticks(range(len(found.tasks)), [f"{task} ({found.metric(task)})" for task in found.tasks])
    ax.set_ylim(len(found.tasks) - 0.4, -0.6)
    style.dress(ax, "Points above one and the same answer for all; a dot a seed", "")
    style.legend(fig)
    fig.set_label(f"A row a task: scores of LoRA and of the head alone above a constant answer. "
                  f"{finding_of_constant(found)}")
    return fig


def at_chance(found: SideBySide) -> list[str]:
    """Return the tasks on which LoRA's mean is within the examples' noise of a constant answer."""
    return [task for task in found.tasks
            if POINTS * (statistics.fmean(found.values("LoRA")[task]) - CONSTANT[task]) < _band(found, task)]


def finding_of_constant(found: SideBySide) -> str:
    """Say on which tasks LoRA is not above a constant answer, and on which it is not above the head alone."""
    chance = at_chance(found)
    heads = [task for task in found.tasks if task not in chance
             and paired_mean(np.array(found.differences("LoRA", "head only", task))[:, None]).interval()[0] <= 0]
    return (f"LoRA is at chance on {', '.join(chance) or 'no task'}: its mean is within two standard errors of a "
            f"constant answer. Above chance, but not ahead of the head alone over seeds: "
            f"{', '.join(heads) or 'none'}.")


# ---- budgets -----------------------------------------------------------------------------------------------

# (study, method, opponent, what is equal, whom it favours)
OPPONENTS = (
    ("tuned_salora", "SaLoRA", "LoRA, all six", "data, starting rank",
     "LoRA keeps twice the directions"),
    ("tuned_salora", "SaLoRA", "LoRA, all six, r = 4", "data, numbers kept",
     "SaLoRA may choose among twice as many"),
    ("tuned_delta", "Delta-LoRA, λ = 2", "LoRA", "data, numbers", "Delta-LoRA has the larger scale"),
    ("tuned_delta", "Delta-LoRA, λ = 2", "LoRA, α × 3", "data, numbers, scale", "neither"),
    ("tuned_delta", "LoRA", FINE_TUNING, "data, matrices", "fine-tuning has more numbers"),
    ("tuned_cola", "COLA 2", "LoRA", "data, rank of a link", "COLA ends with twice the rank"),
    ("tuned_cola", "COLA 2", "LoRA, r = 16", "data, whole rank", "LoRA has all of it from the start"),
    ("tuned_autolora", "AutoLoRA", "LoRA, r = 4", "data, numbers kept", "AutoLoRA has a search on top"),
)


def held_fixed(studies: Studies) -> Any:
    """A table of what is held fixed within a study, read from its records: a row a study."""
    rows = {}
    for name, found in studies.items():
        about = found.about
        config = train_config(about["profile"], **about["training"])
        rows[name] = {
            "network": about["backbone"], "steps × examples": f"{config.steps} × {config.batch_size}",
            "training examples": f"{config.n_train:,}", "validation examples": f"{config.n_validation:,}",
            "sets of examples a task": _kinds(found, lambda r: r["identity"]["data"], by_task=True),
            "pretrained weights": _kinds(found, lambda r: r["identity"]["weights"]),
            "start of A": _kinds(found, lambda r: r["method"].get("init", "–"), say=True),
            "clipping at": f"{config.max_grad_norm:g}", "seeds that tune": ", ".join(map(str, about["chosen_with"])),
            "seeds that are reported": ", ".join(map(str, sorted({r["seed"] for r in found.records}))),
            "differs: rate": "{:g} to {:g}".format(*_ends_of(r["lr"] for r in found.records)),
            "differs: numbers beside the head": "{:,} to {:,}".format(*_ends_of(map(_beside_head(found),
                                                                                    found.records)))}
    return readable(pd.DataFrame(rows).rename_axis("held fixed within a study"), "fixed")


def _kinds(found: SideBySide, read: Callable[[Any], str], *, by_task: bool = False, say: bool = False) -> str:
    kinds = {(r["task"] if by_task else "", read(r)) for r in found.records}
    count = max(sum(task == one for one, _ in kinds) for task, _ in kinds)
    return ", ".join(sorted({kind for _, kind in kinds})) if say else f"{count}"


def _ends_of(values: Any) -> tuple[float, float]:
    values = list(values)
    return min(values), max(values)


def _beside_head(found: SideBySide) -> Callable[[Any], int]:
    head = min(r["parameters"]["head"] for r in found.records)
    return lambda record: int(record["parameters"]["trainable"]) - head


def budget_table(studies: Studies) -> Any:
    """A table of opponents: what is equal, numbers and time beside the opponent's, the difference."""
    rows, waits = [], []
    for name, method, other, equal, favours in OPPONENTS:
        found, tasks = studies.get(name), _with_seeds(studies.get(name), method, other)
        if found is None or not tasks:
            waits.append(f"{method} − {other}")
            continue
        for task in tasks:
            one = verdicts.on_task(name, task, method, other)(None).estimate(POINTS)   # type: ignore[arg-type]
            counts = [statistics.fmean(map(_beside_head(found), _of(found, task, arm))) for arm in (method, other)]
            steps = found.about["training"]["steps"]
            one_time, other_time = (time_of(name, arm, steps) for arm in (method, other))
            work = [sum(_of(found, task, arm)[0]["flops"].values()) for arm in (method, other)]
            rows.append({"comparison": f"{method} − {other}", "task": task, "equal": equal, "favours": favours,
                         "numbers kept": f"× {counts[0] / counts[1]:.2f}",
                         "work a step": f"× {work[0] / work[1]:.2f}",
                         "time": f"× {one_time / other_time:.2f}" if one_time and other_time else "–",
                         "points [95 %]": f"{number(one.mean)} {_ends(one.interval())}", "": _verdict(one)})
    if waits:
        print("no runs yet:", "; ".join(waits))
    return readable(pd.DataFrame(rows).set_index(["comparison", "task"]), "budgets")


def _with_seeds(found: SideBySide | None, *arms: str) -> list[str]:
    """Return the tasks on which all of these have enough seeds."""
    return [task for task in found.tasks if min(len(_of(found, task, arm)) for arm in arms) >= SEEDS] if found else []


def _verdict(one: PairedMean) -> str:
    low, high = one.interval()
    if one.p_unequal(POINT) < verdicts.CHANCE:
        return EQUAL
    return "ahead" if low > 0 else "behind" if high < 0 else OPEN


def time_of(study: str, arm: str, steps: int) -> float | None:
    """Return the time of a training in steps of LoRA on W_q and W_v; None where a step of its method was not timed.

    From figures/data/bench_steps.json, where all were timed in turns; seconds of the studies' runs are no measure, as
    the machine had other work. Rank 4 is taken to cost as much as rank 8.
    """
    method: Any = TASK_STUDIES[study].arms[arm].method
    costs = json.loads((references_folder() / "bench_steps.json").read_text(encoding="utf-8"))["to_reference"]
    step = {name: found["median"] for name, found in costs.items()}
    base, sites = step["loop: LoRA qv"], "all" if method.sites == "all" else "qv"
    plain = step[f"loop: LoRA {sites}"] / base
    if method.name == "salora":
        share = method.t_end - method.t_start if method.after_window == "fold" else 1 - method.t_start
        return steps * (share * step[f"loop: SaLoRA {sites}"] / base + (1 - share) * plain)
    if method.name == "autolora":
        return method.search_steps * step[f"loop: AutoLoRA qv, {method.hypergradient}"] / base + steps * plain
    named = {"lora": f"loop: LoRA {sites}", "delta_lora": "loop: Delta-LoRA qv, in place", "cola": "loop: COLA qv"}
    return steps * step[named[method.name]] / base if method.name in named else None


def over_time(studies: Studies) -> Figure:
    """Validation score over time, a panel a study and task: short runs and whole ones, joined."""
    shown = _over_time(studies)
    fig, axes = style.panels(len(shown), min(len(shown), 3), 3.3, None)
    for ax, ((name, task), lines) in zip(axes, shown.items(), strict=True):
        for arm, (times, points) in lines.items():
            ax.plot(times, points, **_look(name, arm), markersize=6, label=arm)
        ax.set_xscale("log")
        ticks = [s for s in (100, 200, 400, 800, 1600) if ax.get_xlim()[0] <= s <= ax.get_xlim()[1]]
        ax.set_xticks(ticks, [f"{s}" for s in ticks])
        ax.minorticks_off()
        style.dress(ax, "Time, in steps of LoRA on qv (log)", "Validation score, points", f"{name}, {task}")
    style.legend(fig)
    fig.set_label("Validation score against time, a line a configuration from its short runs to its whole ones. "
                  f"{finding_of_time(studies)}")
    return fig


def _over_time(studies: Studies) -> dict[tuple[str, str], dict[str, tuple[list[float], list[float]]]]:
    """Return (study, task) -> configuration -> times and validation scores, of short runs and of whole ones."""
    shown: dict[tuple[str, str], dict[str, tuple[list[float], list[float]]]] = {}
    for name, task, arm in grids(studies):
        if time_of(name, arm, 1) is None:
            continue
        found, frame = studies[name], grid(studies[name])
        own = frame[(frame["task"] == task) & (frame["arm"] == arm)]
        means = own.groupby(["steps", "lr"])["score"].mean()
        rung, whole = TASK_STUDIES[name].rung, found.about["training"]["steps"]
        points = [float(means.loc[rung].max()), float(means.loc[0].max())]
        times = [float(time_of(name, arm, steps) or 0) for steps in (rung, whole)]
        shown.setdefault((name, task), {})[arm] = (times, points)
    return shown


def finding_of_time(studies: Studies) -> str:
    """Say what more time brings to LoRA, and what equal time would be worth beside the dearest method."""
    said = []
    for (name, task), lines in _over_time(studies).items():
        base = next((arm for arm in lines if arm.startswith("LoRA")), None)
        methods = {method for study, method, *_ in OPPONENTS if study == name}
        others = [arm for arm in lines if arm in methods and not arm.startswith("LoRA")]
        if base is None or not others:
            continue
        (early, late), (low, high) = lines[base]
        slope = (high - low) / math.log2(late / early)
        dear = max(others, key=lambda arm: lines[arm][0][1])
        times = lines[dear][0][1] / late
        said.append(f"{name}, {task}: a doubling of the time brings {base} {number(slope)} points; {dear} takes "
                    f"{times:.2f} times as long, so equal time is worth {number(slope * math.log2(times))} points to "
                    f"{base}")
    return "; ".join(said) + ". The last numbers are estimates along the line, no trainings."


# ---- the best of a grid ------------------------------------------------------------------------------------

BEST_RUN, BEST_RATE, BEST_SEED = ("best run of the grid (validation)", "tuning seeds at the chosen rate (validation)",
                                  "best reported seed (test)")


def luck(found: SideBySide) -> tuple[float, float]:
    """How far a run scatters (points, median over tasks and arms), and the correlation of its two scores.

    The correlation is that of test and validation scores around the mean of their arm and task, mean over tasks.
    """
    both = pd.concat([found.frame(split).set_index(["task", "arm", "seed"])["score"] for split in
                      ("test", "validation")], axis=1, keys=["test", "validation"])
    around = both - both.groupby(["task", "arm"]).transform("mean")
    shared = [runs["test"].corr(runs["validation"]) for _, runs in around.groupby("task")]
    return POINTS * float(both["test"].groupby(["task", "arm"]).std().median()), float(np.nanmean(shared))


def optimism(studies: Studies) -> dict[str, dict[str, list[float]]]:
    """Return study and task -> way of reporting -> points above the protocol's mean, one a configuration.

    On validation examples the tuning seeds stand beside the reported ones at the same rate; test scores are those of
    the reported seeds alone, since a grid's runs keep none.
    """
    rows: dict[str, dict[str, list[float]]] = {}
    for name, task, arm in grids(studies):
        found, frame = studies[name], grid(studies[name])
        seeds = found.by_seed(arm, task, "validation")
        if len(seeds) < SEEDS:
            continue
        whole = frame[(frame["task"] == task) & (frame["arm"] == arm) & (frame["steps"] == 0)]
        fair = POINTS * statistics.fmean(seeds.values())
        test = np.array(list(found.by_seed(arm, task).values()))
        row = rows.setdefault(f"{name}, {task}", {BEST_RUN: [], BEST_RATE: [], BEST_SEED: []})
        row[BEST_RUN].append(float(whole["score"].max()) - fair)
        row[BEST_RATE].append(float(whole.groupby("lr")["score"].mean().max()) - fair)
        row[BEST_SEED].append(POINTS * float(test.max() - test.mean()))
    return rows


def finding_of_optimism(rows: Mapping[str, Mapping[str, Sequence[float]]], pairs: Sequence[Pair]) -> str:
    """Say what each way of reporting adds on average, beside how far methods differ."""
    added = {way: statistics.fmean(v for row in rows.values() for v in row[way]) for way in
             (BEST_RUN, BEST_RATE, BEST_SEED)}
    apart = statistics.fmean(abs(pair.both.mean) for pair in pairs)
    words = ", ".join(f"{way} {number(value)}" for way, value in added.items())
    return (f"Points above the protocol's mean: {words}. Two methods differ by {number(apart)} points on average "
            f"(mean size over {len(pairs)} comparisons).")


def claim_table(studies: Studies) -> Any:
    """A table of what one would claim of the same runs: best against best, best against a mean, and the protocol."""
    rows = []
    for name, method, other, _, _ in OPPONENTS:
        found = studies.get(name)
        for task in _with_seeds(found, method, other):
            assert found is not None
            one, two = ([POINTS * v for v in found.by_seed(arm, task).values()] for arm in (method, other))
            fair = verdicts.on_task(name, task, method, other)(None).estimate(POINTS)
            rows.append({"claim": f"{method} − {other}", "task": task,
                         "best seed − mean": number(max(one) - statistics.fmean(two)),
                         "best − best": number(max(one) - max(two)),
                         "mean − best": number(statistics.fmean(one) - max(two)),
                         "protocol [95 %]": f"{number(fair.mean)} {_ends(fair.interval())}"})
    frame = pd.DataFrame(rows).set_index(["claim", "task"])
    turned = sum(row["best seed − mean"][0] != "−" and row["mean − best"][0] == "−" for row in rows)
    print(f"in {turned} of {len(rows)} comparisons the choice of what to report turns the sign")
    return readable(frame, "claims")


def dots_from_zero(values: Mapping[str, Mapping[str, Numbers]], xlabel: str) -> Figure:
    """Rows of dots around a line at zero, each series of one look.

    Args: name of a row -> name of a series -> its values.
    """
    fig, (ax,) = style.panels(1, 1, 0.6 + 0.55 * len(values), None, width=8.5)
    series = list(dict.fromkeys(name for row in values.values() for name in row))
    looks = dict(zip(series, ((style.BLUE, "o"), (style.ORANGE, "X"), (style.BLACK, "D")), strict=False))
    for y, row in enumerate(values.values()):
        for shift, (name, points) in zip(np.linspace(-0.2, 0.2, len(row)), row.items(), strict=True):
            color, marker = looks[name]
            ax.plot(points, np.full(len(points), y + shift), marker, color=color, alpha=0.75, label=name)
    ax.axvline(0, color=style.GREY, linewidth=1)
    ax.set_yticks(range(len(values)), list(values))
    ax.set_ylim(len(values) - 0.4, -0.6)
    ax.margins(x=0.08)
    style.dress(ax, xlabel, "")
    style.legend(fig)
    means = "; ".join(f"{name} {statistics.fmean(v for row in values.values() for v in row.get(name, [0.0])):+.2f}"
                      for name in series if any(len(row.get(name, ())) for row in values.values()))
    fig.set_label(f"Rows of dots beside a vertical line at zero, one look a series; means: {means}.")
    return fig


# ---- clipping ----------------------------------------------------------------------------------------------


def _clipped(studies: Studies) -> pd.DataFrame:
    """Return study, arm, task and the share of clipped steps of every reported run that has it."""
    return pd.DataFrame([{"study": name, "arm": r["arm"], "task": r["task"], "clipped": r["clipped"]}
                         for name, found in studies.items() for r in found.records if "clipped" in r])


def clipping(studies: Studies) -> Figure:
    """The share of steps whose gradient was cut back: a row a configuration, small dots are seeds."""
    frame = _clipped(studies)
    rows = list(dict.fromkeys(zip(frame["study"], frame["arm"], strict=True)))
    fig, (ax,) = style.panels(1, 1, 0.8 + 0.3 * len(rows), None, width=8.5)
    for y, (name, arm) in enumerate(rows):
        for task, runs in frame[(frame["study"] == name) & (frame["arm"] == arm)].groupby("task", sort=False):
            color = _look(name, arm)["color"]
            ax.plot(100 * runs["clipped"], [y] * len(runs), ".", color=color, alpha=0.5, markersize=4)
            ax.plot(100 * runs["clipped"].mean(), y, MARKS.get(str(task), ("", "D"))[1], color=color, markersize=7)
    ax.set_yticks(range(len(rows)), [arm for _, arm in rows])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xlim(-2, 104)
    style.dress(ax, "Steps on which the gradient was cut back, % (small dots: seeds)", "")
    style.legend(fig, [Line2D([], [], color=style.BLACK, linestyle="", marker=marker, label=task)
                       for task, (_, marker) in MARKS.items() if task in set(frame["task"])])
    fig.set_label(f"A row a configuration with its share of clipped steps. {finding_of_clipping(studies)}")
    return fig


def finding_of_clipping(studies: Studies) -> str:
    """Say the ends of the shares, and those of the two configurations that are one function at every step."""
    frame = _clipped(studies)
    means = frame.groupby(["arm", "task"])["clipped"].mean()
    low, high = means.idxmin(), means.idxmax()
    said = (f"From {means[low]:.0%} of the steps ({low[0]} on {low[1]}) to {means[high]:.0%} ({high[0]} on "
            f"{high[1]}); in {(means > 0.5).sum()} of {len(means)} cases more than every second step is cut.")
    twins = "Delta-LoRA, λ = 2, K = 0", "LoRA, α × 3"
    for task in dict.fromkeys(frame["task"]):
        if {(arm, task) for arm in twins} <= set(means.index):
            said += (f" On {task} Delta-LoRA with K = 0 is cut on {means[twins[0], task]:.0%} of the steps, its twin "
                     f"LoRA at α × 3 on {means[twins[1], task]:.0%}.")
    return said


# ---- a small study of one's own ----------------------------------------------------------------------------

# sizes of the live study: a first round, whole runs, seeds that tune and that are reported
LIVE: dict[str, dict[str, Any]] = {
    "tiny": {"rates": (1e-3, 4e-3, 1.6e-2), "rung": 3, "steps": 6, "tune": (100,), "report": (0, 1), "widest": 0},
    "laptop": {"rates": (1e-3, 2e-3, 4e-3, 8e-3), "rung": 25, "steps": 75, "tune": (100, 101), "report": range(5),
               "widest": 2},
    "gpu": {"rates": (5e-4, 1e-3, 2e-3, 4e-3, 8e-3), "rung": 150, "steps": 600, "tune": (100, 101),
            "report": range(5), "widest": 4}}
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"n_train": 96, "n_validation": 64, "n_test": 100, "max_length": 32},
    "laptop": {"n_train": 1200, "n_validation": 200, "n_test": 400, "max_length": 48},
    "gpu": {"n_train": 9600, "n_validation": 400, "n_test": None, "max_length": 64}}


def own_study(profile: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the plan of the live study (rates, steps, seeds) and the sizes of its data, and print the plan."""
    plan = LIVE[profile]
    print(f"rates {', '.join(f'{rate:g}' for rate in plan['rates'])}; {plan['rung']} steps to begin with, "
          f"{plan['steps']} in full; seeds {', '.join(map(str, plan['tune']))} tune, "
          f"{', '.join(map(str, plan['report']))} are reported")
    return plan, SIZES[profile]


def say_replayed(found: Sequence[tuple[str, float, float]]) -> None:
    """Say that the loop chose what the library chose: (name, ours, the study's) of each grid.

    Raises:
        AssertionError: it did not.
    """
    wrong = [f"{name}: {ours:g} and {theirs:g}" for name, ours, theirs in found if ours != theirs]
    assert not wrong, f"the loop chooses another rate than the stored study ({'; '.join(wrong)}): look at tune again"
    print(f"{len(found)} grids replayed: the loop chooses the rate of the stored study in each")


def say_protocol(studies: Studies) -> None:
    """Check what the protocol promises on the stored files, and print it.

    Raises:
        AssertionError: a promise is not kept.
    """
    for name, found in studies.items():
        edges = [f"{arm} on {task}" for one, task, arm in grids({name: found})
                 if not min(found.tried(arm, task)) < found.rate(arm, task) < max(found.tried(arm, task))]
        assert not edges, f"the best rate lies at the edge of the grid: {', '.join(edges)}"
        few = [arm for _, task, arm in grids({name: found}) if len(found.tried(arm, task)) < 6]
        assert not few, f"fewer than six rates were tried for {', '.join(few)}"
        seeds = {r["seed"] for r in found.records}
        assert not seeds & set(found.about["chosen_with"]), "a seed that tuned is reported, too"
        data = {(r["task"], r["identity"]["data"]) for r in found.records}
        assert len(data) == len(found.tasks), "the runs of a task were trained on different examples"
        print(f"{name}: {len(grids({name: found}))} best rates inside their grids of six or more; no seed both tunes "
              "and is reported; one set of examples a task")


def own_curves(tried: Mapping[str, Mapping[tuple[float, int], Any]], chosen: Mapping[str, float]) -> Figure:
    """Validation loss over the rate of one's own runs: pale the first round, dark the whole runs."""
    fig, (ax,) = style.panels(1, 1, 3.2, None, width=8.0)
    for name, runs in tried.items():
        color = style.PINK if name.startswith("Delta") else style.BLUE
        for whole, line, alpha in ((False, ":", 0.6), (True, "-", 1.0)):
            points = sorted((rate, float(np.mean(losses))) for (rate, steps), (_, losses) in runs.items()
                            if (steps == 0) == whole)
            ax.plot(*zip(*points, strict=True), line, marker="o", color=color, alpha=alpha,
                    label=f"{name}, {'whole runs' if whole else 'first round'}")
            if whole:
                ax.plot(chosen[name], dict(points)[chosen[name]], "o", markersize=13, fillstyle="none",
                        color=style.BLACK, label="chosen by score")
    ax.set_xscale("log")
    style.dress(ax, "Learning rate (log)", "Validation loss", "Your own grids")
    style.legend(fig)
    fig.set_label(f"Validation loss against the learning rate, for {' and '.join(tried)}, short runs dotted and "
                  f"whole ones solid; chosen: {', '.join(f'{rate:g} for {name}' for name, rate in chosen.items())}.")
    return fig


def finding_of_own_curves(tried: Mapping[str, Mapping[tuple[float, int], Any]], chosen: Mapping[str, float],
                          task: str) -> str:
    """Say what was chosen, whether it lies inside, and how many trainings that took."""
    said = []
    for name, runs in tried.items():
        rates = sorted({rate for rate, steps in runs if steps})
        inside = rates[0] < chosen[name] < rates[-1]
        where = "inside its grid" if inside else "at the edge of its grid: widen it"
        said.append(f"{name}: {chosen[name]:g}, {where}")
    classes = len(TASKS[task].labels)
    count = sum(len(losses) for runs in tried.values() for _, losses in runs.values())
    return (f"Chosen: {'; '.join(said)}. The two choices took {count} trainings. Chance, ln {classes}, is "
            f"{math.log(classes):.3f}.")


def hits(runs: Mapping[str, Sequence[Run]]) -> np.ndarray:
    """Return first − second of two lists of runs, paired by seed and test example: (S, E), in points."""
    first, second = ([run.right("test") for run in one] for one in runs.values())
    return POINTS * (np.array(first, dtype=float) - np.array(second, dtype=float))


def say_own(name: str, table: np.ndarray) -> None:
    """Print the means of a table by seed, its interval over both, and what it could have shown."""
    one = paired_mean(table)
    print(f"{name}, points by seed: {', '.join(number(v) for v in table.mean(1))}")
    print(f"mean {number(one.mean)} {_ends(one.interval())} over {table.shape[0]} seeds and {table.shape[1]} "
          f"examples: {_verdict(one)}; a difference of {number(one.detectable())} would be shown in 4 of 5 cases")


# ---- one training, every rank ------------------------------------------------------------------------------


class Cuts:
    """DyLoRA and LoRA trained once each on a packaged task, to be cut to any rank."""

    def __init__(self, backbone: str, profile: str, task: str = "trec") -> None:
        import lowrank_teach as lt

        n_test = 60 if profile == "tiny" else 200
        self.settings = train_config(profile, n_validation=16, n_test=n_test)
        self.data = lt.load_task(task, n_train=self.settings.n_train, n_validation=16, n_test=n_test)
        self.backbone, self.trained = backbone, {}
        for name, method in (("DyLoRA", lt.DyLoRA()), ("LoRA", lt.LoRA())):
            model, tokenizer = lt.load_backbone(backbone, num_labels=len(self.data.task.labels),
                                                kind=self.data.task.kind, seed=0)
            rows = Rows(self.data, tokenizer, self.settings, False)
            adapters = lt.adapt(model, method, seed=0)
            lt.Trainer(adapters, rows.train, rows.collate, self.settings, seed=0).run()
            self.trained[name] = adapters, rows, model

    def loss(self, name: str, b: int, by_svd: bool = False) -> float:
        """Return the test loss with every branch cut to b directions."""
        adapters, rows, model = self.trained[name]
        if name == "DyLoRA":
            adapters.rule.truncate(b)
            return float(rows.score(model.eval(), "test")["loss"])
        with cut_branches(adapters, b, by_svd=by_svd):
            return float(rows.score(model.eval(), "test")["loss"])

    def figure(self, by_rank: Mapping[str, Mapping[str, float]]) -> Figure:
        """The test loss over the rank that is left, beside chance."""
        fig = scores_by_rank(by_rank, ylabel="Test loss", xlabel="Rank b that is left in every branch")
        chance = math.log(len(self.data.task.labels))
        fig.axes[0].axhline(chance, color=style.GREY, linestyle=":", linewidth=1.3)
        fig.axes[0].text(0, chance, f"chance, ln {len(self.data.task.labels)}", va="bottom", fontsize=9)
        fig.set_label(f"Test loss against the rank that is left, three lines. {finding_of_cuts(by_rank)}")
        return fig


def finding_of_cuts(by_rank: Mapping[str, Mapping[str, float]]) -> str:
    """Say what a cut to the smallest rank adds, and which line is lowest there and uncut."""
    low, *_, high = next(iter(by_rank.values()))
    added = ", ".join(f"{name} {cut[low] - cut[high]:+.2f}" for name, cut in by_rank.items())
    least = [min(by_rank, key=lambda name: by_rank[name][b]) for b in (low, high)]
    return (f"Loss added by the cut to rank {low}: {added}. Lowest at rank {low}: {least[0]}; at rank {high}: "
            f"{least[1]}. One seed on one task.")


# ---- explorers: what the sliders move ----------------------------------------------------------------------

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


# ---- exercises: the reference, and what usual mistakes would give ------------------------------------------


def order_rates(rates: np.ndarray, scores: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """The rates (n,), best mean score first; where means tie, the lower mean loss: as the library's `Runner.best`."""
    means = [(round(float(one.mean()), 9), -float(of.mean())) for one, of in zip(scores, losses, strict=True)]
    return np.array(rates)[sorted(range(len(means)), key=means.__getitem__, reverse=True)]


def bootstrap_means(table: np.ndarray, seed_draws: np.ndarray, example_draws: np.ndarray) -> np.ndarray:
    """Means (R,) of a table (S, E) whose rows and columns are drawn anew, by numbers (R, S) and (R, E)."""
    return np.array([table[rows][:, columns].mean() for rows, columns in zip(seed_draws, example_draws, strict=True)])


def p_unequal(mean: float, error: float, df: float, margin: float) -> float:
    """The p-value of equality within ± margin by the library: the larger of two one-sided ones."""
    return PairedMean(mean, error, df).p_unequal(margin)


def reported_score(validation: np.ndarray, test: np.ndarray) -> np.ndarray:
    """The test score (R,) of the run that validates best, in each row of (R, n)."""
    return toy_problems.reported(validation, test)


# what is tried

_RATES = np.array([1e-3, 2e-3, 4e-3, 8e-3])
_SCORES = np.array([[78.0, 81.0], [82.0, 80.0], [79.0, 83.0], [84.0, 70.0]])   # means 79.5, 81, 81, 77
_LOSSES = np.array([[0.30, 0.38], [0.44, 0.42], [0.40, 0.43], [0.45, 0.47]])
_VALIDATION = np.random.default_rng(0).normal(size=(6, 4))
_TEST = 0.5 * _VALIDATION + np.random.default_rng(1).normal(size=(6, 4))


def _tables() -> list[tuple]:
    made = []
    for S, E, R in ((3, 5, 4), (4, 6, 3)):
        g = np.random.default_rng(S)
        made.append((g.integers(-1, 2, (S, E)).astype(float) + g.normal(size=(S, 1)), g.integers(0, S, (R, S)),
                     g.integers(0, E, (R, E))))
    return made


# ---- answers, written for a reader -------------------------------------------------------------------------


def answer_order_rates(rates: np.ndarray, scores: np.ndarray, losses: np.ndarray) -> np.ndarray:
    # lexsort sorts by its last key first; minus turns "highest first" into "lowest first"
    order = np.lexsort([losses.mean(axis=1), -scores.mean(axis=1).round(9)])
    return rates[order]


def answer_bootstrap_means(table: np.ndarray, seed_draws: np.ndarray, example_draws: np.ndarray) -> np.ndarray:
    means = []
    for seeds, examples in zip(seed_draws, example_draws, strict=True):
        drawn = table[seeds]            # some seeds twice, some not at all
        drawn = drawn[:, examples]      # the same examples for every seed: they stay paired
        means.append(drawn.mean())
    return np.array(means)


def answer_p_unequal(mean: float, error: float, df: float, margin: float) -> float:
    too_high = t.cdf((mean - margin) / error, df)   # that the true difference is + margin or more
    too_low = t.sf((mean + margin) / error, df)     # that it is − margin or less
    return float(max(too_high, too_low))


def answer_reported_score(validation: np.ndarray, test: np.ndarray) -> np.ndarray:
    chosen = validation.argmax(axis=1)
    return test[np.arange(len(test)), chosen]


EXERCISES.update({
    "order_rates": Task(
        order_rates, lambda: [(_RATES, _SCORES, _LOSSES), (_RATES[::-1], _SCORES, _LOSSES)],
        "take the mean over the tuning seeds (axis 1), sort by score downwards, and by loss where scores tie",
        [("that begins with the worst rate: the best one comes first", lambda r, s, c: order_rates(r, s, c)[::-1]),
         ("that ranks by the best seed of each rate: take the mean over seeds",
          lambda r, s, c: order_rates(r, s.max(1, keepdims=True), c)),
         ("two rates tie in their mean score: the lower mean loss decides", lambda r, s, c: order_rates(r, s, -c)),
         ("that ranks by loss alone: the score decides, the loss only where scores tie",
          lambda r, s, c: order_rates(r, 0 * s, c)),
         ("these are places in the list: return the rates", lambda r, s, c: np.array(
             [list(r).index(rate) for rate in order_rates(r, s, c)], dtype=float))],
        (Runner.best,), shapes="scores and losses are (rates, seeds)", answer=answer_order_rates),
    "bootstrap_means": Task(
        bootstrap_means, _tables,
        "for each resample pick the rows by seed_draws and the columns by example_draws, and take the mean of what "
        "is left",
        [("only the seeds are drawn anew: draw the examples, too",
          lambda d, s, e: d[s].mean((1, 2))),
         ("only the examples are drawn anew: draw the seeds, too",
          lambda d, s, e: d[:, e].mean((0, 2))),
         ("that is the sum of each resample: take its mean", lambda d, s, e: d.size * bootstrap_means(d, s, e)),
         ("every resample gave the mean of the whole table: pick rows and columns by the draws",
          lambda d, s, e: np.full(len(s), d.mean()))],
        (paired_mean,), shapes="table is (S, E), seed_draws (R, S), example_draws (R, E)",
        answer=answer_bootstrap_means),
    "p_unequal": Task(
        p_unequal, lambda: [(-0.2, 0.3, 5.0, 1.0), (-0.6, 0.4, 8.0, 1.0)],
        "two one-sided tests: the chance of such a mean if the truth were + margin, and if it were − margin; return "
        "the larger",
        [("that asks whether there is a difference at all; a large answer does not show that there is none",
          lambda m, e, df, margin: PairedMean(m, e, df).p_value() / 2),
         ("that asks whether there is a difference at all, on both sides; equality needs the margin",
          lambda m, e, df, margin: PairedMean(m, e, df).p_value()),
         ("the larger of the two p-values counts: both tests must reject",
          lambda m, e, df, margin: float(t.sf((margin + abs(m)) / e, df))),
         ("the two p-values are added or doubled: the larger one alone counts",
          lambda m, e, df, margin: 2 * p_unequal(m, e, df, margin)),
         ("that is the chance on the other side: 1 minus what is asked",
          lambda m, e, df, margin: 1 - p_unequal(m, e, df, margin))],
        (PairedMean.p_unequal,), shapes="all four are numbers", answer=answer_p_unequal),
    "reported_score": Task(
        reported_score, lambda: [(_VALIDATION, _TEST)],
        "in each row find the run with the best validation score, and return that run's test score",
        [("that is the best on test: the test examples chose the run, and then judged it",
          lambda validation, test: toy_problems.reported(test, test)),
         ("that is the validation score: it chose the run, so it is too high; report its test score",
          lambda validation, test: toy_problems.reported(validation, validation)),
         ("that is the run that validates worst", lambda validation, test: toy_problems.reported(-validation, test)),
         ("one run was chosen for all rows: each row is a comparison of its own (axis 1)",
          lambda validation, test: test[:, validation.mean(0).argmax()])],
        (toy_problems.reported,), shapes="validation and test are (R, n)", answer=answer_reported_score),
})

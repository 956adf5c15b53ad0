"""Notebook 11, the ledger of claims: pictures from scores to verdicts, and the exercises; 07, 08 and 10 use some."""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ...analysis import statistics, style
from ...analysis.plots import Numbers
from ...analysis.statistics import percentile_interval
from ...reproduction import arms, studies, texts
from ...reproduction.ledger import BESIDE, standing
from ...reproduction.results import Results
from ...reproduction.verdicts import CONTRADICTED, DECIDED, OPEN, SUPPORTED, Row, judge
from ..exercises import EXERCISES, Task, predict
from ..html_page import PLAIN_TEXT, Page

# ---- pictures ---------------------------------------------------------------------------------------------

Interval = tuple[float, float]
# verdict -> colour, marker: two channels
LOOKS = {"supported": (style.BLUE, "o"), "contradicted": (style.ORANGE, "X"),
         "equal within the margin": (style.GREEN, "P"), "open": (style.GREY, "D"),
         "holds exactly": (style.SKY, "s"), "fails exactly": (style.PINK, "v"), "no runs yet": (style.PALE, "_"),
         "not comparable": (style.YELLOW, "x"), "not testable here": (style.BLACK, "|")}


def verdict_in_steps(first: Numbers, second: Numbers, means: Numbers, plain: Interval, student: Interval,
                     names: tuple[str, str], unit: str = "points") -> Figure:
    """Scores paired by seed, their differences, and the resampled means (R,) with two intervals."""
    import seaborn

    fig, (pairs, dots, hist) = style.panels(3, 3, 3.3, None)
    for i, (a, b) in enumerate(zip(first, second, strict=True)):
        pairs.plot([0, 1], [b, a], color=style.GREY, marker="o", markersize=5, linewidth=1)
        pairs.annotate(f"seed {i}", (1, a), xytext=(6, 0), textcoords="offset points", fontsize=8, va="center")
    pairs.set_xticks([0, 1], [names[1], names[0]])
    pairs.set_xlim(-0.2, 1.5)
    style.dress(pairs, "", f"score, {unit}", "1 · a line a seed")
    d = np.asarray(first) - np.asarray(second)
    dots.plot(d, range(len(d)), "o", color=style.BLUE)
    dots.axvline(d.mean(), color=style.BLUE, linestyle="-", label="mean difference")
    dots.set_yticks(range(len(d)))
    seaborn.histplot(means, bins=40, color=style.PALE, linewidth=0, ax=hist)
    top = hist.get_ylim()[1]
    for height, (low, high), color, name in ((0.3, plain, style.ORANGE, "bootstrap"),
                                             (0.6, student, style.BLUE, "Student, used here")):
        hist.plot([low, high], [height * top] * 2, color=color, linewidth=4, solid_capstyle="butt", label=name)
    for ax in (dots, hist):
        ax.axvline(0, color=style.BLACK, linestyle=":", label="zero")
    style.dress(dots, f"difference, {unit}", "seed", "2 · differences")
    style.dress(hist, f"mean difference, {unit}", "resamples", "3 · means of resamples")
    style.legend(fig)
    return fig


def repeated_intervals(intervals: Sequence[Interval], truth: float, xlabel: str) -> Figure:
    """One line a repetition: orange and thick where the interval misses the truth."""
    fig, (ax,) = style.panels(1, 1, 3.6, None, width=8.0)
    for i, (low, high) in enumerate(intervals):
        missed = not low <= truth <= high
        ax.plot([low, high], [i, i], color=style.ORANGE if missed else style.GREY, linewidth=3 if missed else 1)
    ax.axvline(truth, color=style.BLACK, linestyle=":")
    style.dress(ax, xlabel, "repetition")
    lines = [Line2D([], [], color=style.GREY, linewidth=1, label="holds the truth"),
             Line2D([], [], color=style.ORANGE, linewidth=3, label="misses it: a verdict by chance")]
    style.legend(fig, lines)
    return fig


def forest(labels: Sequence[str], differences: Sequence[Numbers], intervals: Sequence[Interval | None],
           verdicts: Sequence[str], sides: Sequence[str], xlabel: str) -> Figure:
    """A row a claim: small dots are seeds, the bar the interval; an arrow points to the claimed side.

    Args: all of one length; intervals None where there is none; sides ">", "<" or "≈".
    """
    fig, (ax,) = style.panels(1, 1, 0.9 + 0.38 * len(labels), None)
    for y, (d, interval, verdict) in enumerate(zip(differences, intervals, verdicts, strict=True)):
        color, marker = LOOKS[verdict]
        ax.plot(d, [y + 0.25 * (interval is not None)] * len(d), ".", color=style.GREY, markersize=4)
        if interval is not None:
            ax.plot(interval, [y, y], color=color, linewidth=2.5, solid_capstyle="butt")
            ax.plot(np.mean(d), y, marker, color=color, markersize=7)
    ax.axvline(0, color=style.BLACK, linewidth=1)
    arrows = {">": "→", "<": "←", "≈": "↔"}
    names = ["\n".join(textwrap.wrap(f"{label}\u00a0{arrows[side]}", 50, max_lines=2, placeholder=" …"))
             for label, side in zip(labels, sides, strict=True)]
    ax.set_yticks(range(len(labels)), names)
    ax.set_ylim(len(labels) - 0.4, -0.6)
    style.dress(ax, xlabel, "")
    ax.tick_params(axis="y", labelsize=8)
    style.legend(fig, _keys(verdicts))
    return fig


def _keys(verdicts: Sequence[str]) -> list[Line2D]:
    shown = [name for name in LOOKS if name in set(verdicts)]
    return [Line2D([], [], color=LOOKS[name][0], marker=LOOKS[name][1], linewidth=2, markersize=7, label=name)
            for name in shown]


def verdict_counts(counts: Mapping[str, Mapping[str, int]]) -> Figure:
    """paper -> verdict -> how many: one bar a paper, its parts with their numbers."""
    papers = list(counts)
    fig, (ax,) = style.panels(1, 1, 0.8 + 0.45 * len(papers), None)
    left = np.zeros(len(papers))
    for verdict, (color, _) in LOOKS.items():
        width = np.array([counts[paper].get(verdict, 0) for paper in papers], dtype=float)
        if width.any():
            ax.barh(papers, width, left=left, color=color, label=verdict, edgecolor="white", height=0.7)
            _numbers(ax, left, width, color)
        left += width
    ax.invert_yaxis()
    style.dress(ax, "claims", "")
    ax.grid(axis="y", visible=False)
    style.legend(fig)
    return fig


def _numbers(ax: Axes, left: np.ndarray, width: np.ndarray, color: str) -> None:
    ink = style.text_color(to_rgb(color))
    for y, (x, w) in enumerate(zip(left, width, strict=True)):
        if w:
            ax.text(x + w / 2, y, f"{w:.0f}", ha="center", va="center", fontsize=9, color=ink)


def power_curves(seeds: Sequence[int], chance: Mapping[str, Numbers], now: int) -> Figure:
    """Chance of a verdict against the number of seeds, a curve an effect; `now` is how many seeds there are."""
    fig, (ax,) = style.panels(1, 1, 3.3, None, width=8.0)
    for name, look in style.looks(chance).items():
        ax.plot(seeds, chance[name], color=look["color"], linestyle=look["linestyle"], label=look["label"])
    ax.axvline(now, color=style.GREY, linewidth=1)
    ax.annotate(f"{now} seeds", (now, 0.02), xytext=(5, 0), textcoords="offset points", fontsize=9, color=style.GREY)
    ax.axhline(0.8, color=style.GREY, linestyle=":", linewidth=1)
    ax.set(ylim=(0, 1.02), xlim=(min(seeds), max(seeds)))
    style.dress(ax, "seeds", "chance of a verdict")
    style.legend(fig)
    return fig


# ---- what the notebook says of its own numbers --------------------------------------------------------------


def stored_studies() -> pd.DataFrame:
    """Make a table with a row a stored study: its question, and how many configurations, tasks and seeds it has."""
    rows = {}
    for defined, load in ((arms.STUDIES, studies.load), (arms.TASK_STUDIES, studies.load_across)):
        for name, study in defined.items():
            try:
                records = load(name).records
            except FileNotFoundError:
                records = []
            tasks, seeds = (len({record.get(of) for record in records}) for of in ("task", "seed"))
            rows[name] = {"question": study.question, "configurations": len(study.arms), "tasks": tasks,
                          "seeds": seeds}
    e2e = texts.load_texts("e2e")   # of what models wrote, notebook 08
    rows["e2e"] = {"question": "Which method writes the better texts?", "configurations": len(e2e.arms) - 1,
                   "tasks": 1, "seeds": len(e2e.seeds("LoRA"))}
    return pd.DataFrame(rows).T.astype(dict.fromkeys(["configurations", "tasks", "seeds"], int))


def predict_all_above() -> None:
    small = [0.1, 0.2, 0.9, 1.6, 0.05]
    low, high = statistics.t_interval(small)
    predict(f"All five differences are above zero: {small}. Does the 95 % interval of their mean exclude zero?",
            f"It does not: it runs from {low:.2f} to {high:.2f}. Two large differences make the mean, and five other "
            "seeds might not have held them.")


def predict_same_sign() -> None:
    predict("Two methods are equal. How often do all five differences have the same sign?",
            f"In {100 * 2 * 0.5**5:.1f} % of studies: one half to the fifth, for each of the two signs.")


def predict_by_chance(rows: Sequence[Row]) -> None:
    n = sum(row.interval is not None for row in rows)
    predict(f"{n} claims have a 95 % interval. If no method did anything, how many intervals would miss zero?",
            f"One in twenty, about {0.05 * n:.0f}. So the ledger says of each verdict whether it still stands when "
            "all tests are counted.")


def finding_of_coverage(held: pd.DataFrame) -> str:
    """held: share of intervals that held the true mean, a row an interval and a column a distribution."""
    parts = [f"{kind} {', '.join(f'{100 * held.loc[kind, name]:.0f} % ({name})' for name in held)}"
             for kind in held.index]
    return f"Of intervals that are called 95 %, this share held the true mean: {'; '.join(parts)}."


def finding_of_repeats(intervals: Sequence[Interval]) -> str:
    missed = sum(not low <= 0 <= high for low, high in intervals)
    return (f"{len(intervals)} simulated studies of two equal methods, five seeds each. {missed} of them would have "
            "given a verdict, by chance alone.")


def forest_of(rows: Sequence[Row], xlabel: str, *, scaled: bool = False) -> Figure:
    """Draw ledger rows that have intervals; scaled: each divided by the larger end of its interval."""
    def unit(row: Row) -> float:
        return max(map(abs, row.interval)) if scaled and row.interval else 1.0

    fig = forest([f"{row.key}: {row.statement}{row.task and f' ({row.task})'}" for row in rows],
                 [np.divide(row.differences, unit(row)) for row in rows],
                 [None if row.interval is None else (row.interval[0] / unit(row), row.interval[1] / unit(row))
                  for row in rows],
                 [row.verdict for row in rows], [row.side for row in rows], xlabel)
    fig.set_label(f"A forest plot of {len(rows)} claims: dots of the seeds' differences, a bar for each interval, "
                  "and a vertical line at zero.")
    return fig


def finding_of_forest(rows: Sequence[Row]) -> str:
    """Say how many of the rows are decided, and which way."""
    counts = {name: sum(row.verdict == name for row in rows) for name in (*DECIDED, OPEN)}
    said = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    return (f"Of {len(rows)} claims: {said}. The arrow points to the claimed side (both ways: equality), small dots "
            "are seeds, the bar is the 95 % interval; grey rows are open.")


def counts_figure(counts: pd.DataFrame) -> Figure:
    """counts: a row a paper, a column a verdict."""
    fig = verdict_counts({str(paper): {str(name): int(n) for name, n in row.items()}
                          for paper, row in counts.iterrows()})
    fig.set_label("Stacked bars, one a paper, with the number of claims of each verdict: "
                  + "; ".join(f"{paper} {int(row.sum())} claims" for paper, row in counts.iterrows()) + ".")
    return fig


def finding_of_counts(counts: pd.DataFrame) -> str:
    total = int(counts.to_numpy().sum())
    largest = counts.sum().sort_values(ascending=False)
    return (f"{total} claims. Most frequent is \"{largest.index[0]}\" with {int(largest.iloc[0])}, then "
            f"\"{largest.index[1]}\" with {int(largest.iloc[1])}.")


def power_figure(sd: float, effects: Sequence[float]) -> Figure:
    """Draw the chance of a verdict over 3 to 40 seeds for true differences; sd: scatter of a paired difference."""
    many = range(3, 41)
    fig = power_curves(many, {f"difference {effect:g}": [statistics.power(effect, sd, n) for n in many]
                              for effect in effects}, statistics.SEEDS)
    fig.set_label("Rising curves of the chance of a verdict over the number of seeds; larger differences rise "
                  "sooner. A vertical line marks five seeds, a dotted one four times in five.")
    return fig


def finding_of_power(sd: float, effects: Sequence[float]) -> str:
    at = ", ".join(f"{100 * statistics.power(effect, sd, statistics.SEEDS):.0f} % for "
                   f"{effect:g}" for effect in effects)
    need = [(effect, statistics.seeds_needed(effect, sd)) for effect in effects]
    seeds = ", ".join(f"{n or 'more than 1000'} for {effect:g}" for effect, n in need)
    return (f"With {statistics.SEEDS} seeds, a true difference in points is seen with this chance: {at}. To see it "
            f"four times in five takes this many seeds: {seeds}.")


# ---- the ledger as a table that can be filtered -------------------------------------------------------------
# One piece of HTML for the notebook and for the site: nothing is loaded, and without its script all rows are there.
# No line of it may be empty, which would end a block of HTML inside a page of Markdown.
_STYLE = """
.ledger-rows {max-height: 36em; overflow: auto; border: 1px solid #8886}
.ledger table {border-collapse: collapse; font-size: .85em; line-height: 1.35; width: 100%; margin: 0}
.ledger td, .ledger th {text-align: left; vertical-align: top; padding: .35em .6em; border-bottom: 1px solid #8884}
.ledger td:first-child {white-space: nowrap}
.ledger small {opacity: .8}
.ledger label {display: inline-block; margin: 0 1em .5em 0}
.ledger .chip {border-left: .6em solid; padding-left: .4em; white-space: nowrap}
"""
_SCRIPT = """
(() => {
  const root = document.currentScript.closest(".ledger");
  const choices = [...root.querySelectorAll("select")], rows = [...root.querySelectorAll("tbody tr")];
  const count = root.querySelector("output");
  const filter = () => {
    let shown = 0;
    for (const row of rows) {
      row.hidden = choices.some(one => one.value && row.dataset[one.name] !== one.value);
      shown += !row.hidden;
    }
    count.textContent = `${shown} of ${rows.length} claims`;
  };
  choices.forEach(one => one.addEventListener("change", filter));
  root.querySelector("form").hidden = false;
  filter();
})();
"""
TUNED, SHORT, ELSE = "tuned runs", "short runs and measurements", "no runs"
_WIDE, _HIGH = 150, 34   # of a row's picture, pixels


def filterable(rows: Iterable[Row]) -> Page:
    """Return the ledger's rows as a table with a filter for paper, verdict, task and evidence; a picture a row."""
    rows = list(rows)
    lines = [_filtered_row(row) for row in rows]
    choices = {name: dict.fromkeys(line[0][name] for line in lines) for name in ("paper", "verdict", "task", "basis")}
    names = {"paper": "Paper", "verdict": "Verdict", "task": "Task", "basis": "Evidence"}
    boxes = "".join(f'<label>{names[name]} <select name="{name}"><option value="">all</option>'
                    + "".join(f"<option>{html.escape(value)}</option>" for value in values if value)
                    + "</select></label>" for name, values in choices.items())
    body = "\n".join("<tr {}>{}</tr>".format(
        " ".join(f'data-{name}="{html.escape(value)}"' for name, value in data.items()), cells)
        for data, cells in lines)
    columns = ("claim", "statement", "difference", "verdict", "setting, or reason")
    head = "".join(f"<th>{name}</th>" for name in columns)
    page = (f'<div class="ledger {PLAIN_TEXT}"><style>{_STYLE}</style>\n'
            f"<form hidden>{boxes}<output></output></form>\n"
            f'<div class="ledger-rows" tabindex="0"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody>'
            f"</table></div>\n<script>{_SCRIPT}</script></div>")
    plain = "\n".join(f"{row.key} ({row.where}{row.task and f', {row.task}'}): {row.statement}: {row.verdict}, "
                      f"{row.interval_words()}" for row in rows)
    return Page(page.replace("\n\n", "\n"), plain)


def _filtered_row(row: Row) -> tuple[dict[str, str], str]:
    """Return what a row is filtered by, and its cells."""
    basis = TUNED if row.tuned else SHORT if row.interval is not None else ELSE
    about = {"paper": row.paper, "verdict": row.verdict, "task": row.task, "basis": basis}
    says = "" if row.says == "–" else f"<br><small>paper: {html.escape(row.says)}</small>"
    ours = f"<br><small>{html.escape(row.ours)}</small>" if row.interval is not None and row.ours != "–" else ""
    stands = "" if standing(row) == "–" else f"<br><small>{html.escape(standing(row))}</small>"
    beside = "; ".join(f"{name}: {row.beside[name]}" for name in BESIDE if row.beside.get(name))
    cells = (f"{html.escape(row.key)}<br><small>{html.escape(row.where)}{row.task and f', {row.task}'}</small>",
             f"{html.escape(row.statement)}{says}{ours}",
             f"{difference_picture(row)}<br>{html.escape(row.interval_words())}" if row.interval is not None else "–",
             f'<span class="chip" style="border-color:{LOOKS[row.verdict][0]}">{html.escape(row.verdict)}</span>'
             f"{stands}",
             html.escape(row.why) + (f"<br><small>{html.escape(beside)}</small>" if beside else ""))
    return about, "".join(f"<td>{cell}</td>" for cell in cells)


def difference_picture(row: Row) -> str:
    """Draw a row's paired differences as SVG: a dot a seed, the interval, zero, and the margin as a band.

    Rows in points share one scale, −5 to 5; what lies beyond is drawn at its end. Others are scaled to fit.
    """
    low, high = row.interval or (0.0, 0.0)
    values = [*map(float, row.differences)]
    reach = 5.0 if row.unit == "points" else max(map(abs, (low, high, row.margin, *values))) or 1.0

    def x(value: float) -> str:
        return f"{_WIDE / 2 + (_WIDE / 2 - 4) * max(-1.0, min(1.0, value / reach)):.1f}"

    color, middle = LOOKS[row.verdict][0], _HIGH - 10
    band = (f'<rect x="{x(-row.margin)}" width="{float(x(row.margin)) - float(x(-row.margin)):.1f}" y="0" '
            f'height="{_HIGH}" fill="#888" opacity=".18"/>' if row.margin else "")
    dots = "".join(f'<circle cx="{x(value)}" cy="8" r="2" fill="#888"/>' for value in values)
    return (f'<svg width="{_WIDE}" height="{_HIGH}" role="img" aria-label="{html.escape(row.interval_words())}">'
            f'{band}<path d="M{_WIDE / 2} 0V{_HIGH}" stroke="#888"/>{dots}'
            f'<path d="M{x(low)} {middle}H{x(high)}" stroke="{color}" stroke-width="4"/>'
            f'<circle cx="{x(row.difference or 0.0)}" cy="{middle}" r="4.5" fill="{color}"/></svg>')


# ---- exercises: the library's answers, and what usual mistakes would give ---------------------------------

Scores = Mapping[int, float]


def paired_differences(first: Scores, second: Scores) -> np.ndarray:
    """first − second on each seed that both have, in the order of the seeds (the library's Results)."""
    records = [{"arm": arm, "seed": seed, "test": {"score": score}}
               for arm, scores in (("first", first), ("second", second)) for seed, score in scores.items()]
    return np.array(Results({}, records).differences("first", "second", "score"))


def bootstrap_interval(differences: Sequence[float], draws: np.ndarray) -> np.ndarray:
    """Low and high end: the middle 95 % of the means of resampled differences."""
    return np.array(percentile_interval(differences, draws))


def judge_intervals(intervals: Sequence[tuple[float, float]], sides: Sequence[str]) -> np.ndarray:
    """For each interval and its claimed side: 1 for supported, −1 for contradicted, 0 for neither."""
    numbers = {SUPPORTED: 1.0, CONTRADICTED: -1.0}
    return np.array([numbers.get(judge(*pair), 0.0) for pair in zip(intervals, sides, strict=True)])


def _by_place(first: Scores, second: Scores) -> np.ndarray:
    return np.array([a - b for a, b in zip(first.values(), second.values(), strict=False)])


def _sorted_scores(first: Scores, second: Scores) -> np.ndarray:
    """The library's, on scores that were sorted on both sides first."""
    return paired_differences(dict(zip(sorted(first), sorted(first.values()), strict=True)),
                              dict(zip(sorted(second), sorted(second.values()), strict=True)))


def _spread(differences: Sequence[float], root: bool) -> np.ndarray:
    """mean ± 1.96 sd, or ± 1.96 sd / √n."""
    d = np.asarray(differences, dtype=float)
    half = 1.96 * d.std(ddof=1) / (math.sqrt(len(d)) if root else 1.0)
    return np.array([d.mean() - half, d.mean() + half])


def _level(level: float) -> object:
    return lambda d, draws: np.array(percentile_interval(d, draws, level))


_A = {0: 0.71, 1: 0.74, 2: 0.70, 3: 0.73, 4: 0.75}
_B = {3: 0.72, 0: 0.72, 4: 0.71, 1: 0.70, 2: 0.705}
_INTERVALS = [(0.2, 1.0), (-1.0, -0.2), (-0.1, 1.0), (-1.0, 0.1)] * 2
_D = [1.0, 2.5, -0.5, 3.0, 0.2]


def _draws(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(n, size=(500, n))


EXERCISES.update({
    "paired_differences": Task(
        paired_differences, lambda: [(_A, _B), ({7: 0.5, 1: 0.75, 3: 0.5}, {1: 0.25, 7: 0.625, 9: 1.0})],
        "keep the seeds that both have, in rising order, and take first − second on each",
        [("that pairs by place: the seeds stand in another order in the second", _by_place),
         ("that is second − first: the claim is about first − second", lambda a, b: -paired_differences(a, b)),
         ("the sign is gone: a difference against the claim must stay negative",
          lambda a, b: np.abs(paired_differences(a, b))),
         ("sorting the scores breaks the pairs: a seed's two runs belong together", _sorted_scores),
         ("that is unpaired: one difference of two means, so nothing is left to resample",
          lambda a, b: np.array([np.mean(list(a.values())) - np.mean(list(b.values()))]))],
        (Results.differences,)),
    "bootstrap_interval": Task(
        bootstrap_interval, lambda: [(_D, _draws(5)), ([0.1, 0.4, 0.2, 0.9, 0.3, 0.35], _draws(6))],
        "take the differences that each row of draws names, one mean a row, then the 2.5 % and 97.5 % points",
        [("that leaves 5 % on each side, or out on one side only: 95 % "
          "leaves 2.5 % on each", _level(0.9)),  # type: ignore[list-item]
         ("that is the spread of single differences: the interval is of their mean, √n times narrower",
          lambda d, draws: _spread(d, root=False)),
         ("that assumes a normal mean: use the draws", lambda d, draws: _spread(d, root=True)),
         ("those are points of single differences: take a mean of each row first",
          lambda d, draws: np.quantile(np.asarray(d)[draws], [0.025, 0.975])),
         ("those are all of the means, from the least to the largest", _level(1.0)),  # type: ignore[list-item]
         ("that is centred on zero: the interval lies around the mean of the differences",
          lambda d, draws: bootstrap_interval(d, draws) - np.mean(d))],
        (percentile_interval,)),
    "judge_intervals": Task(
        judge_intervals, lambda: [(_INTERVALS, list(">>>><<<<"))],
        "1 if the whole interval is on the claimed side, −1 if the whole of it is on the other, else 0",
        [("for the side \"<\" the verdicts are the other way round",
          lambda intervals, sides: judge_intervals(intervals, [">"] * len(sides))),
         ("an interval that holds zero decides nothing, wherever its middle is",
          lambda intervals, sides: judge_intervals([((a + b) / 2,) * 2 for a, b in intervals], sides)),
         ("an interval wholly on the other side is evidence too: −1",
          lambda intervals, sides: judge_intervals(intervals, sides).clip(min=0)),
         ("that is upside down: 1 is for the claimed side",
          lambda intervals, sides: -judge_intervals(intervals, sides))],
        (judge,)),
})

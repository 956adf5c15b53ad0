"""From runs to verdicts: paired scores, intervals, the forest of all claims, power. Used by 11."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .. import style

Numbers = Sequence[float] | np.ndarray
Interval = tuple[float, float]
# verdict -> colour, marker: two channels
LOOKS = {"holds": (style.BLUE, "o"), "opposite": (style.ORANGE, "X"), "not separable here": (style.GREY, "D"),
         "holds exactly": (style.SKY, "s"), "fails exactly": (style.PINK, "v"), "no runs yet": (style.PALE, "_"),
         "not testable here": (style.BLACK, "|")}


def verdict_in_steps(first: Numbers, second: Numbers, means: Numbers, plain: Interval, stretched: Interval,
                     names: tuple[str, str], unit: str = "points") -> Figure:
    """Scores paired by seed, their differences, and the resampled means (R,) with two intervals."""
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
    hist.hist(means, bins=40, color=style.PALE)
    top = hist.get_ylim()[1]
    for height, (low, high), color, name in ((0.3, plain, style.ORANGE, "percentile"),
                                             (0.6, stretched, style.BLUE, "stretched, used here")):
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

    Args: all of one length; intervals None where there is none; sides ">" or "<".
    """
    fig, (ax,) = style.panels(1, 1, 0.9 + 0.38 * len(labels), None)
    for y, (d, interval, verdict) in enumerate(zip(differences, intervals, verdicts, strict=True)):
        color, marker = LOOKS[verdict]
        ax.plot(d, [y + 0.25 * (interval is not None)] * len(d), ".", color=style.GREY, markersize=4)
        if interval is not None:
            ax.plot(interval, [y, y], color=color, linewidth=2.5, solid_capstyle="butt")
            ax.plot(np.mean(d), y, marker, color=color, markersize=7)
    ax.axvline(0, color=style.BLACK, linewidth=1)
    arrows = {">": "→", "<": "←"}
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
    rgb = tuple(int(color[i:i + 2], 16) / 255 for i in (1, 3, 5))
    for y, (x, w) in enumerate(zip(left, width, strict=True)):
        if w:
            ax.text(x + w / 2, y, f"{w:.0f}", ha="center", va="center", fontsize=9, color=style.text_color(rgb))


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

"""Delta-LoRA's pictures: the update, the rank of what it adds up to, paired differences, curves. Used by 05."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

from .. import style


def delta_idea() -> Figure:
    """One step past K: the product before, the product after, and their difference, scaled, into W."""
    fig = Figure(figsize=(9.0, 2.9), dpi=style.DPI, layout="constrained")
    ax = fig.add_subplot()
    ax.set(xlim=(0, 9), ylim=(0.0, 2.8))
    ax.set_axis_off()
    _product(ax, 0.2, style.PALE, "B", "A", "before the step")
    _product(ax, 2.8, style.BLUE, "B′", "A′", "after AdamW's step")
    ax.text(2.45, 1.75, "→", fontsize=22, ha="center", va="center")
    _arrow(ax, (5.15, 1.75), (6.55, 1.75), style.PINK)
    ax.text(5.85, 2.0, "λ s (B′A′ − BA)", fontsize=11, ha="center", color=style.PINK)
    ax.text(5.85, 1.35, "no gradient of W,\nno moments of W", fontsize=9, ha="center", va="top")
    ax.add_patch(Rectangle((6.65, 0.9), 1.7, 1.7, facecolor=style.PINK, edgecolor=style.BLACK, alpha=0.45))
    ax.text(7.5, 1.75, "W", ha="center", va="center", fontsize=15, fontweight="bold")
    ax.text(7.5, 0.8, "d × k, moves past step K", ha="center", va="top", fontsize=9)
    ax.text(4.5, 0.2, "the branch stays beside it: h = W x + s B′A′x", ha="center", fontsize=11)
    return fig


def _product(ax: Axes, x: float, color: str, left: str, right: str, words: str) -> None:
    """A tall thin matrix times a flat thin one, with a line of words under both."""
    for (at_x, at_y, width, height), name in (((x, 0.9, 0.3, 1.7), left), ((x + 0.4, 2.3, 1.5, 0.3), right)):
        ax.add_patch(Rectangle((at_x, at_y), width, height, facecolor=color, edgecolor=style.BLACK, alpha=0.55))
        ax.text(at_x + width / 2, at_y + height / 2, name, ha="center", va="center", fontsize=12,
                fontweight="bold")
    ax.text(x + 0.95, 0.8, words, ha="center", va="top", fontsize=9)


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], color: str) -> None:
    ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=18, color=color, linewidth=2))


def rank_cliff(spectra: Mapping[str, np.ndarray], marks: Mapping[str, int], *, first: int = 40) -> Figure:
    """Singular values of whole changes, found from the dense matrices, with a line at each expected rank.

    Args: name -> s (n,), descending; label -> rank; first: how many are drawn.
    """
    fig, (ax,) = style.panels(1, 1, 3.4, None, width=8.0)
    for name, look in style.looks(spectra).items():
        s = np.asarray(spectra[name])[:first]
        ax.semilogy(np.arange(1, len(s) + 1), s, **{**look, "markersize": 3.5})
    for (label, rank), line in zip(marks.items(), ("--", ":", "-."), strict=False):
        ax.axvline(rank + 0.5, color=style.GREY, linestyle=line, linewidth=1.3, label=label)
    style.dress(ax, "Index i", "Singular value (log)")
    style.legend(fig)
    return fig


def paired_differences(values: Mapping[str, Sequence[float]], *, xlabel: str) -> Figure:
    """One row a comparison: a dot a seed, a diamond for the mean, a dashed line where nothing differs.

    Args: name -> one difference a seed.
    """
    fig, (ax,) = style.panels(1, 1, 0.7 + 0.42 * len(values), None, width=8.5)
    names = list(values)[::-1]
    for row, name in enumerate(names):
        ax.plot(values[name], np.full(len(values[name]), row), "o", color=style.BLUE, alpha=0.55, markersize=6,
                label="one seed")
        ax.plot(np.mean(values[name]), row, "D", color=style.ORANGE, markersize=8, markeredgecolor=style.BLACK,
                label="mean")
    ax.axvline(0.0, color=style.GREY, linestyle="--", linewidth=1.3)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(-0.6, len(names) - 0.4)
    style.dress(ax, xlabel, "")
    style.legend(fig)
    return fig


def trajectories(curves: Mapping[str, np.ndarray], *, ylabel: str, start: int = 0) -> Figure:
    """A number after each step, a line a run; a dotted line at K, where W starts to move.

    Args: name -> (T+1,); start: K, 0 draws none.
    """
    fig, (ax,) = style.panels(1, 1, 3.2, None, width=8.0)
    for name, look in style.looks(curves).items():
        ax.plot(curves[name], **{**look, "marker": ""}, linewidth=2)
    if start:
        ax.axvline(start, color=style.GREY, linestyle=":", linewidth=1.3, label="K")
    style.dress(ax, "Optimizer step", ylabel)
    style.legend(fig)
    return fig

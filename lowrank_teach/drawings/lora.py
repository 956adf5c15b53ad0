"""The layer in one picture, a grid of scores, bars of ratios. Used by 00 and 02."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

from .. import style

Numbers = Sequence[float] | np.ndarray


def idea(*, gate: bool = True) -> Figure:
    """h = W x + s · B diag(g) A x: the frozen path above, the narrow trainable one below."""
    fig = Figure(figsize=(9.0, 3.7), dpi=style.DPI, layout="constrained")
    ax = fig.add_subplot()
    ax.set(xlim=(0, 9), ylim=(0, 3.7))
    ax.set_axis_off()
    _box(ax, 0.35, 0.9, 0.22, 1.9, style.GREY, "x", "k numbers in")
    _box(ax, 3.1, 1.95, 1.5, 1.5, style.GREY, "W", "d × k, frozen")
    _box(ax, 1.9, 0.62, 1.5, 0.24, style.BLUE, "A", "r × k, trains")
    if gate:
        _box(ax, 4.0, 0.62, 0.24, 0.24, style.ORANGE, "g", "r gates")
    _box(ax, 4.95, 0.3, 0.24, 1.5, style.BLUE, "B", "d × r, trains", below=False)
    _box(ax, 8.3, 0.9, 0.22, 1.9, style.GREY, "h", "d numbers out")
    ax.text(6.25, 0.74, "× s = α / r", fontsize=12, ha="center", va="center", color=style.BLUE)
    ax.text(7.3, 1.85, "+", fontsize=20, ha="center", va="center")
    for start, end in _paths(gate):
        ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=13, color=style.BLACK,
                                     linewidth=1.2, shrinkA=0, shrinkB=0))
    return fig


def _paths(gate: bool) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    inner = [((3.45, 0.74), (3.95, 0.74)), ((4.29, 0.74), (4.9, 0.74))] if gate else [((3.45, 0.74), (4.9, 0.74))]
    return [((0.65, 2.1), (3.05, 2.7)), ((0.65, 1.6), (1.85, 0.74)), *inner, ((5.25, 0.74), (5.55, 0.74)),
            ((4.65, 2.7), (7.12, 1.95)), ((6.95, 0.74), (7.2, 1.62)), ((7.5, 1.85), (8.25, 1.85))]


def _box(ax: Axes, x: float, y: float, width: float, height: float, color: str, name: str, words: str,
         below: bool = True) -> None:
    ax.add_patch(Rectangle((x, y), width, height, facecolor=color, edgecolor=style.BLACK, alpha=0.55))
    middle = x + width / 2
    ax.text(middle, y + height / 2, name, ha="center", va="center", fontsize=13, fontweight="bold")
    if below:
        ax.text(middle, y - 0.1, words, ha="center", va="top", fontsize=9)
    else:
        ax.text(x + width + 0.1, y + height - 0.1, words, ha="left", va="top", fontsize=9)


def score_grid(table: np.ndarray, rows: Sequence[float], columns: Sequence[float], *, label: str,
               ylabel: str = "Rank r", xlabel: str = "α") -> Figure:
    """One number a cell: table (rows, columns); label names the number."""
    fig, (ax,) = style.panels(1, 1, 2.6, None, width=5.6)
    image = ax.imshow(table, cmap="cividis", aspect="auto")
    style.dress(ax, xlabel, ylabel)
    ax.grid(False)
    ax.set_xticks(range(len(columns)), [f"{c:g}" for c in columns])
    ax.set_yticks(range(len(rows)), [f"{r:g}" for r in rows])
    for (i, j), value in np.ndenumerate(table):
        ax.text(j, i, f"{value:.3f}", ha="center", va="center", fontsize=10,
                color=style.text_color(tuple(image.to_rgba(value))))
    fig.colorbar(image, ax=ax, pad=0.02).set_label(label, fontsize=10)
    return fig


def ratio_bars(values: Mapping[str, float], *, xlabel: str) -> Figure:
    """Horizontal bars of ratios to a baseline that is 1, each with its number."""
    fig, (ax,) = style.panels(1, 1, 0.5 + 0.42 * len(values), None, width=8.0)
    names = list(values)[::-1]
    bars = ax.barh(names, [values[name] for name in names], color=style.BLUE, height=0.6)
    ax.bar_label(bars, fmt="%.3f", fontsize=9, padding=4)
    ax.axvline(1.0, color=style.ORANGE, linestyle="--", linewidth=1.5)
    ax.set_xlim(0, 1.15 * max(1.0, *values.values()))
    style.dress(ax, xlabel, "")
    ax.grid(axis="y", visible=False)
    return fig

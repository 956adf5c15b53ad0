"""Style transfer in one picture: how much of the style changed, how much of the sentence stayed. Used by 09."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from .. import style

Point = tuple[float, float]


def trade_off(panels: Mapping[str, Mapping[str, Sequence[Point]]], xlabel: str, ylabel: str) -> Figure:
    """One panel a direction; name -> points (x, y), one a seed, both from 0 to 1. Up and to the right is good."""
    fig, axes = style.panels(len(panels), len(panels), 3.5, None, width=9.5, sharey=True)
    looks = style.looks(dict.fromkeys(name for points in panels.values() for name in points))
    for ax, (title, points) in zip(axes, panels.items(), strict=True):
        for name, found in points.items():
            xs, ys = np.array(found, dtype=float).T
            look = {**looks[name], "linestyle": "none", "markersize": 9}
            ax.plot(xs, ys, alpha=0.9, **look)
        ax.set_xlim(-0.05, 1.05)
        ax.set_ylim(-0.05, 1.05)
        style.dress(ax, xlabel, ylabel if ax is axes[0] else "", title)
    style.legend(fig)
    return fig


def idea() -> Figure:
    """The route of a sentence: instruction, model, rewrite, and the three judges."""
    fig = Figure(figsize=(9.0, 2.5), dpi=style.DPI, layout="constrained")
    ax = fig.add_subplot()
    ax.set(xlim=(0, 9), ylim=(0, 2.5))
    ax.set_axis_off()
    for x, width, color, words in ((0.05, 2.3, style.PALE, "“Rewrite … so that it is\npositive” + sentence"),
                                   (2.95, 1.9, style.BLUE, "causal model\n(frozen W + BA)"),
                                   (5.45, 1.1, style.PALE, "rewrite")):
        _box(ax, x, 0.85, width, color, words)
    judges = (("classifier: the wanted style?", 1.75), ("BLEU: to a human rewrite,\nand to the source", 0.95),
              ("perplexity: is it fluent?", 0.15))
    for words, y in judges:
        _box(ax, 7.1, y, 1.85, style.GREEN, words, 0.62)
        _arrow(ax, 6.6, 1.2, 7.05, y + 0.31)
    _arrow(ax, 2.4, 1.2, 2.9, 1.2)
    _arrow(ax, 4.9, 1.2, 5.4, 1.2)
    return fig


def _box(ax: Axes, x: float, y: float, width: float, color: str, words: str, height: float = 0.7) -> None:
    ax.add_patch(FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0.02,rounding_size=0.08",
                                facecolor=color, edgecolor=style.BLACK, alpha=0.4))
    ax.text(x + width / 2, y + height / 2, words, ha="center", va="center", fontsize=9)


def _arrow(ax: Axes, x: float, y: float, to_x: float, to_y: float) -> None:
    ax.annotate("", xy=(to_x, to_y), xytext=(x, y), arrowprops={"arrowstyle": "-|>", "color": style.BLACK,
                                                              "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0})

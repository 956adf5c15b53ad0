"""Tune, tie, extend in one picture; numbers that fall by powers, with bounds; the parts of a cost. Used by 03."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

from .. import style

Numbers = Sequence[float] | np.ndarray


def chain_idea() -> Figure:
    """Three panels, one a verb: a link trains beside W, is written into W, and a new one starts at zero."""
    fig = Figure(figsize=(9.0, 2.9), dpi=style.DPI, layout="constrained")
    ax = fig.add_subplot()
    ax.set(xlim=(0, 9), ylim=(0, 2.75))
    ax.set_axis_off()
    verbs = (("1 tune", r"$W + s\,B_1 A_1$"), ("2 tie a knot", r"$W' = W + s\,B_1 A_1$"),
             ("3 extend", r"$W' + s\,B_2 A_2$, with $B_2 = 0$"))
    for i, (verb, formula) in enumerate(verbs):
        x = 3.05 * i
        ax.text(x + 1.25, 2.55, verb, ha="center", va="center", fontsize=12, fontweight="bold")
        ax.text(x + 1.25, 0.12, formula, ha="center", va="center", fontsize=11)
        _frozen(ax, x + 0.1, "W" if i == 0 else "W'")
    _link(ax, 0.0, style.BLUE, "1", trained=True)
    ax.add_patch(FancyArrowPatch((5.35, 1.55), (4.6, 1.55), arrowstyle="-|>", mutation_scale=14, linewidth=1.4))
    ax.text(5.02, 1.66, r"$s\,B_1 A_1$", ha="center", va="bottom", fontsize=10, color=style.BLUE)
    ax.text(5.02, 1.42, "added, then\nforgotten", ha="center", va="top", fontsize=9)
    _link(ax, 6.1, style.ORANGE, "2", trained=False)
    for x in (2.9, 5.95):
        ax.axvline(x, color=style.PALE, linewidth=1)
    return fig


def _frozen(ax: Axes, x: float, name: str) -> None:
    """W, grey; after the knot with a blue band in it, which is the link."""
    ax.add_patch(Rectangle((x, 0.9), 1.3, 1.3, facecolor=style.GREY, edgecolor=style.BLACK, alpha=0.55))
    if name != "W":
        ax.add_patch(Rectangle((x, 0.9), 1.3, 1.3, facecolor=style.BLUE, edgecolor=style.BLACK, alpha=0.35,
                               hatch="//"))
    ax.text(x + 0.65, 1.55, name, ha="center", va="center", fontsize=13, fontweight="bold")
    ax.text(x + 0.65, 0.8, "frozen", ha="center", va="top", fontsize=9)


def _link(ax: Axes, x: float, color: str, number: str, *, trained: bool) -> None:
    """A pair of strips right of W; a hollow B is zero."""
    ax.text(x + 1.58, 1.55, "+", ha="center", va="center", fontsize=16)
    for box, letter, filled in (((1.8, 0.9, 0.18, 1.3), "B", trained), ((2.08, 2.02, 0.72, 0.18), "A", True)):
        left, bottom, width, height = box
        ax.add_patch(Rectangle((x + left, bottom), width, height, facecolor=color if filled else "none",
                               edgecolor=style.BLACK, alpha=0.6 if filled else 1.0))
        ax.text(x + left + width / 2, 0.8 if letter == "B" else bottom - 0.1, f"${letter}_{number}$", ha="center",
                va="top", fontsize=11)
    ax.text(x + 2.46, 1.32, "both train" if trained else "B zero,\nA random,\nnew Adam",
            ha="center", va="center", fontsize=9)


def powers(curves: Mapping[str, tuple[Numbers, Numbers]], *, xlabel: str, ylabel: str,
           bounds: Mapping[str, tuple[Numbers, Numbers]] | None = None) -> Figure:
    """Curves on two log axes, where a power law is a straight line; bounds dashed and without markers.

    Args: name -> (x, y), each (n,), all above zero.
    """
    fig, (ax,) = style.panels(1, 1, 3.8, None, width=8.0)
    bounds = bounds or {}
    for name, look in style.looks([*curves, *bounds]).items():
        x, y = curves[name] if name in curves else bounds[name]
        line = {"marker": look["marker"] if len(x) <= 24 else "", "linestyle": "-"} if name in curves else \
            {"marker": "", "linestyle": look["linestyle"] if look["linestyle"] != "-" else "--"}
        ax.loglog(x, y, **{**look, **line, "linewidth": 1.6})
    style.dress(ax, f"{xlabel} (log)", f"{ylabel} (log)")
    style.legend(fig)
    return fig


def saving_bars(shares: Mapping[str, Mapping[int, float]], *, xlabel: str) -> Figure:
    """What a smaller second link saves, in per cent of a run's operations; a group of bars a network.

    Args: network -> rank of the second link -> share of the whole in [0, 1].
    """
    ranks = list(next(iter(shares.values())))
    fig, (ax,) = style.panels(1, 1, 2.8, None, width=8.0)
    height = 0.8 / len(shares)
    for i, (name, look) in enumerate(style.looks(shares).items()):
        at = np.arange(len(ranks)) + (i - (len(shares) - 1) / 2) * height
        values = [100 * shares[name][rank] for rank in ranks]
        bars = ax.barh(at, values, height=0.9 * height, color=look["color"], label=name,
                       hatch=("", "//", "..")[i % 3], edgecolor="white")
        ax.bar_label(bars, fmt="%.3f %%", fontsize=9, padding=4)
    ax.set_yticks(range(len(ranks)), [str(rank) for rank in ranks])
    ax.margins(x=0.15)
    style.dress(ax, xlabel, "Rank of the second link")
    ax.grid(axis="y", visible=False)
    style.legend(fig)
    return fig

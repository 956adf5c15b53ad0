"""Gated directions in one picture, three readings of a gate, the budget's pull, dots by arm. Used by 04."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, FancyArrowPatch, Rectangle
from matplotlib.ticker import MaxNLocator

from .. import style

Numbers = Sequence[float] | np.ndarray


def gated_directions(gates: Numbers) -> Figure:
    """The branch of one matrix as r lanes, row of A, gate, column of B; a lane whose gate is zero is crossed out.

    Args: gates (r,), each in [0, 1]; six can be read.
    """
    fig = Figure(figsize=(9.0, 0.5 * len(gates) + 1.2), dpi=style.DPI, layout="constrained")
    ax = fig.add_subplot()
    top = float(len(gates))
    ax.set(xlim=(0, 9), ylim=(-1.1, top + 0.5))
    ax.set_axis_off()
    for lane, gate in enumerate(gates):
        _lane(ax, top - 0.5 - lane, lane + 1, float(gate))
    for x, name in ((0.45, "x"), (7.6, "")):   # one vector each lane reads from, one sum that each writes to
        ax.add_patch(Rectangle((x - 0.08, 0.1), 0.16, top - 0.2, facecolor=style.GREY, edgecolor=style.BLACK,
                               alpha=0.55))
        ax.text(x - 0.2, top / 2, name, fontsize=15, ha="right", va="center", fontweight="bold")
    ax.add_patch(FancyArrowPatch((7.72, top / 2), (8.5, top / 2), arrowstyle="-|>", mutation_scale=12,
                                 color=style.BLACK, linewidth=1.2, shrinkA=0, shrinkB=0))
    ax.text(8.1, top / 2 + 0.1, "× s,\n+ W x", fontsize=10, ha="center", va="bottom")
    ax.text(8.65, top / 2, "h", fontsize=15, ha="left", va="center", fontweight="bold")
    for x, words in ((2.4, "rows of A\nread x"), (4.6, "gates g\none a direction"), (6.2, "columns of B\nwrite h")):
        ax.text(x, -0.15, words, fontsize=9, ha="center", va="top")
    return fig


def _lane(ax: Axes, y: float, j: int, gate: float) -> None:
    is_open, alpha = gate > 0, 0.65 if gate > 0 else 0.15
    ax.add_patch(Rectangle((1.5, y - 0.13), 1.8, 0.26, facecolor=style.BLUE, edgecolor=style.BLACK, alpha=alpha))
    ax.add_patch(Rectangle((5.7, y - 0.13), 1.0, 0.26, facecolor=style.BLUE, edgecolor=style.BLACK, alpha=alpha))
    ax.add_patch(Ellipse((4.6, y), 0.56, 0.66, facecolor=style.ORANGE, alpha=0.15 + 0.6 * gate, linewidth=0))
    ax.text(4.6, y, f"{gate:.1f}" if is_open else "×", fontsize=10 if is_open else 14, ha="center", va="center")
    ax.text(3.55, y + 0.08, f"j = {j}", fontsize=8, ha="left", va="bottom", color=style.GREY)
    ink, line = (style.BLACK, "-") if is_open else (style.PALE, ":")
    for left, right in ((0.55, 1.45), (3.35, 4.28), (4.92, 5.65), (6.75, 7.5)):
        ax.add_patch(FancyArrowPatch((left, y), (right, y), arrowstyle="-|>" if is_open else "-", mutation_scale=9,
                                     color=ink, linestyle=line, linewidth=1.0, shrinkA=0, shrinkB=0))


def gate_readings(log_theta: Numbers, values: Mapping[str, Numbers], *, edge: float) -> Figure:
    """Numbers that sum up a gate against log θ, on a log axis, where zero has no place.

    Args: log_theta (n,); name -> (n,); edge: the log θ at which the deterministic gate closes.
    """
    fig, (ax,) = style.panels(1, 1, 3.0, None, width=7.5)
    for name, look in style.looks(values).items():
        y = np.asarray(values[name], dtype=float)
        ax.plot(log_theta, np.where(y > 0, y, np.nan), **{**look, "marker": ""})
    ax.axvline(edge, color=style.GREY, linestyle=":", label=f"log θ = {edge:.3f}")
    ax.axhline(0.5, color=style.GREY, linewidth=0.8, label="one half")
    style.dress(ax, "log θ", "Value (log)")
    ax.set_yscale("log")
    style.legend(fig)
    return fig


def gate_histogram(log_theta: Numbers, *, edge: float) -> Figure:
    """How many gates closed the window at which log θ.

    Args: log_theta (n,); edge: the deterministic gate is zero up to it.
    """
    fig, (ax,) = style.panels(1, 1, 2.9, None, width=7.5)
    values, width = np.asarray(log_theta, dtype=float), 0.2
    below, above = (int(np.ceil(reach / width)) for reach in (edge - values.min(), values.max() - edge))
    counts, edges = np.histogram(values, edge + width * np.arange(-max(below, 1), max(above, 1) + 1))
    middle = (edges[1:] + edges[:-1]) / 2
    for side, label, color, hatch in ((middle < edge, "dropped", style.ORANGE, "///"),
                                      (middle > edge, "kept", style.BLUE, "")):
        ax.bar(middle[side], counts[side], width, edgecolor="white", label=label, color=color, hatch=hatch)
    ax.axvline(edge, color=style.BLACK, linestyle="--", label=f"log θ = {edge:.3f}")
    ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    style.dress(ax, "log θ when the window closed", "Gates")
    style.legend(fig)
    return fig


def two_ascents(falling: Mapping[str, Numbers], rising: Mapping[str, Numbers], *, target: float) -> Figure:
    """Density of some gates on the left, λ of others on the right, by setting of Adam.

    Args: setting -> C of each step; setting -> λ of each step; target: b of the left panel.
    """
    fig, axes = style.panels(2, 2, 2.7, None)
    for ax, curves, name in zip(axes, (falling, rising), ("Expected density C", "Multiplier λ"), strict=True):
        for setting, look in style.looks(curves).items():
            ax.plot(np.arange(1, len(curves[setting]) + 1), curves[setting], **{**look, "marker": ""})
        style.dress(ax, "Step", name)
    axes[0].axhline(target, color=style.GREY, linestyle=":", label=f"target b = {target:g}")
    style.legend(fig)
    return fig


def density_sweep(scores: Mapping[float, Numbers], reached: Mapping[str, Mapping[float, Numbers]], *,
                  score: str) -> Figure:
    """What a target density costs, and what becomes of it.

    Args: target b -> one score a seed, LoRA's at 1; name -> b -> one density a seed; score: the score's name.
    """
    fig, (left, right) = style.panels(2, 2, 2.9, None)
    for b, values in scores.items():
        name, color = ("LoRA", style.BLUE) if b == 1 else ("SaLoRA", style.GREEN)
        left.plot(np.full(len(values), b), values, "o", color=color, alpha=0.6, markersize=5, label=name)
        left.plot([b], [np.mean(values)], "_", color=style.BLACK, markersize=16, markeredgewidth=2, label="mean")
    for name, look in style.looks(reached).items():
        right.plot(list(reached[name]), [np.mean(values) for values in reached[name].values()], **look)
    style.dress(left, "Target density b (LoRA: 1)", score)
    style.dress(right, "Target density b", "Density at the end")
    style.legend(fig)
    return fig


def dots_by_arm(columns: Mapping[str, Mapping[str, Numbers]], *, lines: Mapping[str, float] | None = None) -> Figure:
    """One panel a measure, one row an arm: a dot a seed, a bar at their mean.

    Args: measure -> arm -> one value a seed; all with the same arms; lines: measure -> a dashed reference.
    """
    arms = list(next(iter(columns.values())))
    fig, axes = style.panels(len(columns), len(columns), 0.9 + 0.34 * len(arms), None, sharey=True)
    for ax, (name, values) in zip(axes, columns.items(), strict=True):
        for row, arm in enumerate(arms):
            ax.plot(values[arm], np.full(len(values[arm]), row), "o", color=style.BLUE, alpha=0.6, markersize=5,
                    label="one seed")
            ax.plot([np.mean(values[arm])], [row], "|", color=style.BLACK, markersize=16, markeredgewidth=2,
                    label="mean")
        if lines and name in lines:
            ax.axvline(lines[name], color=style.ORANGE, linestyle="--", label=f"target {lines[name]:g}")
        ax.margins(x=0.12)
        style.dress(ax, name, "")
    axes[0].set_yticks(range(len(arms)), arms, fontsize=10)
    axes[0].set_ylim(len(arms) - 0.5, -0.5)
    style.legend(fig)
    return fig

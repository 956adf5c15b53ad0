"""A matrix as a sum of directions, and scores against the rank that every ΔW was cut to. Used by 01."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from .. import style

# d rows, k columns, i directions; S seeds


def sum_of_directions(U: np.ndarray, s: np.ndarray, Vh: np.ndarray, count: int = 3) -> Figure:
    """The first directions of a matrix one by one, and their sum so far below. U (d, n), s (n,), Vh (n, k)."""
    fig, axes = style.panels(2 * count, count, 2.1, None, width=8.0)
    size = float(np.abs((U * s) @ Vh).max()) or 1.0
    for j in range(count):
        one, total = s[j] * np.outer(U[:, j], Vh[j]), (U[:, :j + 1] * s[:j + 1]) @ Vh[:j + 1]
        sign = "" if j == 0 else "+ "
        for ax, values, name in ((axes[j], one, f"{sign}direction {j + 1}, σ = {s[j]:.1f}"),
                                 (axes[count + j], total, f"sum so far: rank {j + 1}")):
            image = ax.imshow(values, cmap="RdBu_r", vmin=-size, vmax=size)
            ax.set_title(name, fontsize=10)
            ax.set(xticks=[], yticks=[])
    fig.colorbar(image, ax=axes, pad=0.02).set_label("Value of a cell", fontsize=10)
    return fig


def scores_by_rank(scores: Mapping[str, Mapping[str, float | Sequence[float]]], *, ylabel: str,
                   half: Mapping[str, float] | None = None, xlabel: str = "Directions kept of every ΔW") -> Figure:
    """A score against the rank that every ΔW was cut to, one line a way of choosing what is kept.

    Args:
        scores: name -> rank as it is to be read ("0", "8", "all") -> a score, or one a seed (S,). Ranks stand
            evenly spaced, in the order of the longest. Three seeds or more: every seed a dot, and a band of one
            standard deviation.
        half: rank -> half an error bar, such as what the number of test rows leaves open.
    """
    fig, (ax,) = style.panels(1, 1, 3.6, None, width=8.0)
    order = max((list(one) for one in scores.values()), key=len)
    for (name, look), marker in zip(style.looks(scores).items(), "os^D", strict=False):
        at = [order.index(rank) for rank in scores[name]]
        seeds = [np.atleast_1d(np.asarray(values, dtype=float)) for values in scores[name].values()]
        means = np.array([values.mean() for values in seeds])
        ax.plot(at, means, **{**look, "marker": marker})
        if len(seeds[0]) >= 3:
            spread = np.array([values.std(ddof=1) for values in seeds])
            ax.fill_between(at, means - spread, means + spread, color=look["color"], alpha=0.15, linewidth=0)
            for x, values in zip(at, seeds, strict=True):
                ax.plot(np.full(len(values), x), values, ".", color=look["color"], alpha=0.6, markersize=5)
        if half:
            ax.errorbar(at, means, [half[rank] for rank in scores[name]], fmt="none", ecolor=look["color"],
                        alpha=0.6, capsize=4)
    ax.set_xticks(range(len(order)), order)
    style.dress(ax, xlabel, ylabel)
    style.legend(fig)
    return fig

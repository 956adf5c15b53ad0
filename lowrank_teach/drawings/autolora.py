"""Pictures of 06: the alternation, the two-level surface, hypergradients, ranks dealt by chance, arms over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from .. import style

Numbers = Sequence[float] | np.ndarray
# kind of hypergradient -> what the legend calls it, colour, line style, marker
KINDS = {"first_order": ("first order (η = 0)", style.ORANGE, "--", "s"),
         "unrolled": ("unrolled: weight η", style.BLUE, "-", "o"),
         "finite_difference": ("finite difference: weight η", style.SKY, ":", "D"),
         "betty": ("finite difference: weight 1", style.GREEN, "-.", "^")}


def two_levels() -> Figure:
    """The search as a loop between two halves of the rows, and what comes out of it."""
    fig = Figure(figsize=(9.0, 3.4), dpi=style.DPI, layout="constrained")
    ax = fig.add_subplot()
    ax.set(xlim=(0, 9), ylim=(0, 3.4))
    ax.set_axis_off()
    _node(ax, 0.1, 2.35, 1.9, 0.8, style.GREY, "rows, half 1", "training rows")
    _node(ax, 0.1, 0.35, 1.9, 0.8, style.GREY, "rows, half 2", "held-out rows")
    _node(ax, 2.8, 2.35, 2.5, 0.8, style.BLUE, "A, B, head", "inner level: one step down")
    _node(ax, 2.8, 0.35, 2.5, 0.8, style.ORANGE, "β → α = softmax β", "outer level: one step down")
    _node(ax, 6.3, 1.35, 2.5, 0.8, style.GREEN, "rank = #{α ≥ 1/k}", "then plain LoRA, all rows")
    for start, end in (((2.05, 2.75), (2.75, 2.75)), ((2.05, 0.75), (2.75, 0.75)), ((5.35, 0.75), (6.25, 1.6))):
        _arrow(ax, start, end, "arc3")
    _arrow(ax, (3.6, 2.3), (3.6, 1.2), "arc3,rad=0.25")
    _arrow(ax, (4.5, 1.2), (4.5, 2.3), "arc3,rad=0.25")
    ax.text(3.25, 1.75, "virtual step Ŵ", ha="right", va="center", fontsize=10)
    ax.text(4.85, 1.75, "new α", ha="left", va="center", fontsize=10)
    return fig


def _node(ax: Axes, x: float, y: float, width: float, height: float, color: str, name: str, words: str) -> None:
    ax.add_patch(FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0.02,rounding_size=0.1",
                                facecolor=color, edgecolor=style.BLACK, alpha=0.35))
    ax.text(x + width / 2, y + 0.62 * height, name, ha="center", va="center", fontsize=11, fontweight="bold")
    ax.text(x + width / 2, y + 0.25 * height, words, ha="center", va="center", fontsize=9)


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], bend: str) -> None:
    ax.add_patch(FancyArrowPatch(start, end, connectionstyle=bend, arrowstyle="-|>", mutation_scale=14,
                                 color=style.BLACK, linewidth=1.3, shrinkA=0, shrinkB=0))


def two_level_surface(beta: np.ndarray, w: np.ndarray, held_out: np.ndarray, inner: np.ndarray,
                      paths: Mapping[str, tuple[np.ndarray, np.ndarray]], best: tuple[float, float]) -> Figure:
    """Contours of the held-out loss over (β, w), the line of inner solutions, and where each kind walks.

    Args: beta (m,), w (n,), held_out (n, m); inner (m,): w that the training rows ask for; kind -> (β, w), each
    (S,); best: (β, w) with the lowest held-out loss on the inner line.
    """
    fig, (ax,) = style.panels(1, 1, 4.0, None, width=8.0)
    contours = ax.contour(beta, w, held_out, levels=np.quantile(held_out, np.linspace(0.01, 0.95, 10)),
                          cmap="cividis", linewidths=1.0)
    fig.colorbar(contours, ax=ax, pad=0.02, format="%.2f").set_label("Held-out loss", fontsize=10)
    ax.plot(beta, inner, color=style.GREY, linewidth=5, alpha=0.35, label="w that the training rows ask for")
    for kind, (path_beta, path_w) in paths.items():
        label, color, line, marker = KINDS[kind]
        ax.plot(path_beta, path_w, color=color, linestyle=line, linewidth=2, label=label)
        ax.plot(path_beta[-1], path_w[-1], marker, color=color, markersize=8)
    ax.plot(*best, "*", color=style.BLACK, markersize=15, label="lowest held-out loss on that line")
    ax.set_xlim(beta.min(), beta.max())
    ax.set_ylim(w.min(), w.max())
    style.dress(ax, "Outer number β", "Inner number w")
    style.legend(fig)
    return fig


def push_arrows(beta: np.ndarray, held_out: np.ndarray, at: np.ndarray,
                slopes: Mapping[str, np.ndarray], height: np.ndarray) -> Figure:
    """The held-out loss along the inner line, and from points on it an arrow down each hypergradient.

    Args: beta, held_out (m,): the curve; at, height (P,): the points; kind -> hypergradient at them (P,).
    """
    fig, (ax,) = style.panels(1, 1, 3.4, None, width=8.5)
    ax.plot(beta, held_out, color=style.GREY, linewidth=5, alpha=0.35, label="held-out loss once w has followed β")
    longest = max(float(np.abs(slope).max()) for slope in slopes.values())
    room = 0.07 * float(np.ptp(held_out))
    for i, (kind, slope) in enumerate(slopes.items()):
        label, color, line, marker = KINDS[kind]
        ax.plot([], [], color=color, linestyle=line, marker=marker, label=label)
        for x, y, push in zip(at, height + (i + 1) * room, -slope / longest, strict=True):
            ax.plot(x, y, marker, color=color, markersize=4)
            if abs(push) > 0.01:
                ax.annotate("", xy=(x + push, y), xytext=(x, y),
                            arrowprops={"arrowstyle": "-|>", "color": color, "linewidth": 1.8, "shrinkA": 0,
                                        "shrinkB": 0, "linestyle": line})
    style.dress(ax, "Outer number β", "Held-out loss")
    style.legend(fig)
    return fig


def cost_and_cosine(cost: Mapping[str, float], cosine: Mapping[str, float]) -> Figure:
    """Left what each hypergradient costs, in gradients of the training loss; right its cosine to the exact one."""
    fig, axes = style.panels(2, 2, 0.7 + 0.4 * len(cost), None, width=9.0, sharey=True)
    names = list(cost)[::-1]
    for ax, values, xlabel, form in zip(axes, (cost, cosine), ("Cost (1: a gradient of the training loss)",
                                                               "Cosine to the exact one"),
                                        ("%.1f", "%.4f"), strict=True):
        bars = ax.barh([KINDS[name][0] for name in names], [values[name] for name in names],
                       color=[KINDS[name][1] for name in names], height=0.6)
        ax.bar_label(bars, fmt=form, fontsize=9, padding=4)
        ax.margins(x=0.3)
        style.dress(ax, xlabel, "")
        ax.grid(axis="y", visible=False)
    axes[0].axvline(1.0, color=style.BLACK, linestyle=":", linewidth=1.2)
    return fig


def implicit_share(etas: Numbers, ratios: Numbers, marked: Mapping[str, float]) -> Figure:
    """‖implicit part‖ / ‖direct part‖ of the hypergradient against the weight of the implicit part; both log.

    Args: etas (n,), ratios (n,); marked: words -> a weight to draw an upright line at.
    """
    fig, (ax,) = style.panels(1, 1, 3.2, None, width=8.0)
    ax.loglog(etas, ratios, "o-", color=style.BLUE, label="measured here")
    ax.axhline(1.0, color=style.GREY, linestyle=":", label="as large as the direct part")
    lines = (":", "--", "-.", "-")
    for (words, weight), line in zip(marked.items(), lines, strict=False):
        ax.axvline(weight, color=style.ORANGE, linestyle=line, linewidth=1.4, label=words)
    style.dress(ax, "Weight of the implicit part (log)", "‖implicit‖ / ‖direct‖ (log)")
    style.legend(fig)
    return fig


def rank_histogram(shares: Mapping[str, Numbers], bars: str) -> Figure:
    """How often each rank 0 … k occurs: one name as bars, the others as lines over them.

    Args: name -> share of the matrices at each rank (k + 1,); bars: the name that is drawn as bars.
    """
    fig, (ax,) = style.panels(1, 1, 3.2, None, width=8.0)
    ax.bar(range(len(shares[bars])), shares[bars], color=style.PALE, width=0.75, label=bars)
    others = [name for name in shares if name != bars]
    for name, look in style.looks(others).items():
        ax.plot(range(len(shares[name])), shares[name], **look)
    ax.set_xticks(range(len(shares[bars])))
    style.dress(ax, "Rank", "Share of the matrices")
    style.legend(fig)
    return fig


def arms(values: Mapping[str, Numbers], *, xlabel: str, first: str = "") -> Figure:
    """One row an arm: a dot a seed, the mean, and one standard deviation where there are three seeds or more.

    first: an arm whose mean is drawn through all rows.
    """
    fig, (ax,) = style.panels(1, 1, 0.6 + 0.42 * len(values), None, width=8.0)
    names = list(values)[::-1]
    for y, name in enumerate(names):
        runs = np.asarray(values[name], dtype=float)
        if len(runs) >= 3:
            ax.errorbar(runs.mean(), y, xerr=runs.std(ddof=1), color=style.BLUE, capsize=4, linewidth=1.5)
        ax.plot(runs, np.full(len(runs), y - 0.22), ".", color=style.GREY, markersize=7)
        ax.plot(runs.mean(), y, "s", color=style.BLUE, markersize=7)
    if first:
        ax.axvline(float(np.mean(values[first])), color=style.ORANGE, linestyle="--", linewidth=1.5)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(-0.6, len(names) - 0.4)
    ax.margins(x=0.1)
    style.dress(ax, xlabel, "")
    return fig


def correlations(table: np.ndarray, names: Sequence[str]) -> Figure:
    """Correlations (n, n) between rank lists, centred at 0; the diagonal is left out."""
    fig, (ax,) = style.panels(1, 1, 0.9 + 0.3 * len(names), None, width=2.8 + 0.58 * len(names))
    shown = np.where(np.eye(len(names), dtype=bool), np.nan, table)
    image = ax.imshow(shown, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    for (i, j), value in np.ndenumerate(shown):
        if not np.isnan(value):
            ax.text(j, i, f"{value:+.2f}", ha="center", va="center", fontsize=8,
                    color=style.text_color(tuple(image.to_rgba(value))))
    ax.set_xticks(range(len(names)), names, rotation=45 if max(map(len, names)) > 3 else 0)
    ax.set_yticks(range(len(names)), names)
    style.dress(ax, "", "")
    ax.grid(False)
    fig.colorbar(image, ax=ax, pad=0.02).set_label("Correlation", fontsize=10)
    return fig

"""Arrays in, Figure out: every picture of the course, with no model in sight (no torch is imported).

Each function returns a new `matplotlib.figure.Figure`, made of what `style.py` holds; `show` puts it in a
notebook, `save` in a file. `title` (None: no title) stands above the picture. The numbers come from
`measures.py` and from the histories of runs. Used by every notebook.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from . import style

# S stored steps, r rank of an adapter, k columns of AutoLoRA's gate, n singular values; a site is "3.q"
Numbers = Sequence[float] | np.ndarray
Curves = Mapping[str, tuple[Numbers, Numbers]]


def rank_heatmaps(ranks: Mapping[str, Mapping[str, float]], *, max_rank: float, title: str | None = None,
                  label: str = "Rank") -> Figure:
    """Draw ranks by matrix and layer, one panel a name, one scale for all (SaLoRA Fig. 7, AutoLoRA Fig. 3).

    Args: name -> site -> rank (a mean over seeds may be a fraction); max_rank: top of the colour scale.
    A site without a value is hatched: not adapted is not rank 0. ValueError for a rank above.
    """
    rows, layers = style.site_grid(ranks.values())
    columns = 2 if len(ranks) > 1 and len(layers) <= 12 else 1
    fig, axes = style.panels(len(ranks), columns, 0.75 + 0.36 * len(rows), title,
                       width=min(style.WIDTH, max(5.5, columns * (1.2 + 0.45 * len(layers)))))
    tables = {name: style.site_table(one, rows, layers) for name, one in ranks.items()}
    for ax, (name, table) in zip(axes, tables.items(), strict=True):
        if np.nanmax(table) > max_rank:
            raise ValueError(f"{name or 'here'}: rank {np.nanmax(table):g} is above max_rank {max_rank:g}")
        mesh = _rank_table(ax, table, rows, layers, max_rank)
        style.dress(ax, "Layer", "Matrix", name)
    fig.colorbar(mesh, ax=axes, ticks=MaxNLocator(5, integer=True), pad=0.02, label=label)
    if any(np.isnan(table).any() for table in tables.values()):
        style.legend(fig, [Patch(label="not adapted", **MISSING)])
    return fig


MISSING: dict[str, Any] = {"fc": "#E0E0E0", "ec": style.GREY, "hatch": "////", "linewidth": 0}


def _rank_table(ax: Axes, table: np.ndarray, rows: Sequence[str], layers: Sequence[str], top: float) -> QuadMesh:
    digits = int((table[~np.isnan(table)] % 1 != 0).any())   # 4 for a run, 4.2 for a mean over seeds
    ax.patch.set(**MISSING)   # is seen where a cell is empty
    mesh = style.heatmap(ax, table, [style.site_label(m) for m in rows], annot=True, fmt=f".{digits}f",
                         size=9 - digits, cmap="cividis", vmin=0, vmax=top)
    style.layer_ticks(ax, layers, 0.5)
    return mesh


def rank_heatmap(ranks: Mapping[str, float], *, max_rank: float, title: str | None = None,
                 label: str = "Rank") -> Figure:
    """Draw one panel of `rank_heatmaps`; ranks: site -> rank."""
    return rank_heatmaps({"": ranks}, max_rank=max_rank, title=title, label=label)


def density_and_lambda(steps: Numbers, density: Numbers, lam: Numbers, orth_A: Numbers, orth_B: Numbers, *,
                       target: float, window: tuple[float, float], penalty: Numbers | None = None,
                       title: str | None = None) -> Figure:
    """Draw how SaLoRA's gates close (its Fig. 6): expected density C, λ, both orthogonality penalties, λ(C − b)².

    Args: steps and four histories (S,); target b; window (T_start, T_end) in steps; penalty (S,) or computed.
    """
    penalty = np.asarray(lam) * (np.asarray(density) - target) ** 2 if penalty is None else penalty
    fig, (top, multiplier, orth, cost) = style.panels(4, 2, 2.4, title)
    top.plot(steps, density, color=style.BLUE)
    top.axhline(target, color=style.ORANGE, linestyle="--", label=f"target density b = {target:g}")
    top.set_ylim(0, 1.02)
    multiplier.plot(steps, lam, color=style.BLUE)
    orth.semilogy(steps, orth_A, color=style.GREEN, label=r"$\|A A^\top - I\|_F^2$")
    orth.semilogy(steps, orth_B, color=style.PINK, linestyle="-.", label=r"$\|B^\top B - I\|_F^2$")
    cost.plot(steps, penalty, color=style.BLUE)
    names = ("Expected density C", "Multiplier λ", "Orthogonality (log)", r"Penalty $\lambda (C - b)^2$")
    for ax, name in zip((top, multiplier, orth, cost), names, strict=True):
        ax.axvspan(*window, color=style.PALE, alpha=0.3, linewidth=0, label="gates train")
        style.dress(ax, "Optimizer step", name)
    style.legend(fig)
    return fig


def gates_closing(steps: Numbers, kept: Mapping[str, Numbers], density: Numbers, lam: Numbers, *, r: int,
                  target: float, window: tuple[float, float]) -> style.Animation:
    """Return SaLoRA's training as an animation: density and λ, and how many gates of each matrix are open.

    Args: steps, density, lam: (S,); kept: site -> (S,) gates above 0 without noise; r: starting rank; target: b;
    window: steps between which gates train.
    """
    rows, layers = style.site_grid([dict.fromkeys(kept, 0.0)])
    total = np.sum([np.asarray(values) for values in kept.values()], axis=0)
    with style.themed():
        fig = Figure(figsize=(7.6, 3.7), dpi=style.DPI, layout="constrained")
        panels = fig.subplot_mosaic("CG;λG", width_ratios=(1, 1.15))
    lines = []
    for row, (values, name, color) in enumerate(((density, "Density C", style.GREEN), (lam, "λ", style.ORANGE))):
        ax = panels["Cλ"[row]]
        style.dress(ax, "Step" if row else "", name)
        ax.axvspan(*window, color=style.PALE, alpha=0.35, linewidth=0)
        ax.set_xlim(0, steps[-1])
        ax.set_ylim(0, 1.1 * max(values))
        lines += ax.plot([], [], color=color, linewidth=2)
        if not row:
            ax.axhline(target, color=style.BLACK, linestyle=":", linewidth=1)
            ax.text(steps[-1], target, f"target {target:g} ", ha="right", va="top", fontsize=9)

    def update(i: int) -> None:
        for line, values in zip(lines, (density, lam), strict=True):
            line.set_data(steps[:i + 1], values[:i + 1])
        ax = panels["G"]
        for artist in (*ax.collections, *ax.texts):
            artist.remove()
        _rank_table(ax, style.site_table({site: values[i] for site, values in kept.items()}, rows, layers), rows,
                    layers, r)
        style.dress(ax, "Layer", "", "Open gates, by matrix and layer")
        fig.suptitle(f"SaLoRA, step {steps[i]:>3} of {steps[-1]}: {total[i]:.0f} of {r * len(kept)} gates open",
                     fontsize=12)

    return style.Animation(fig, update, len(steps))


def cosine_by_layer(values: Mapping[str, Mapping[str, float]], *, one_minus: bool = False,
                    title: str | None = None) -> Figure:
    """Draw the cosine of W before and after training by layer, a panel a matrix (Delta-LoRA Fig. 3).

    Args: method -> site -> cosine; one_minus: 1 − cosine on a log axis instead, the honest view of small
    changes (what did not move has no place there: the legend says so of a method).
    """
    rows, layers = style.site_grid(values.values())
    fig, axes = style.panels(len(rows), min(len(rows), 2 if len(rows) < 5 else 3), 2.8, title, sharey=True)
    name = "1 − cosine (log)" if one_minus else "Cosine (axis zoomed)"
    for i, (ax, matrix) in enumerate(zip(axes, rows, strict=True)):
        for method, look in style.looks(values).items():
            y = style.site_table(values[method], rows, layers)[i]
            if one_minus and min(values[method].values()) >= 1:
                look = {**look, "label": f"{look['label']} (did not move)"}
            ax.plot(range(len(layers)), np.where(y < 1, 1 - y, np.nan) if one_minus else y, **look)
        style.dress(ax, "Layer", name, style.site_label(matrix))
        style.layer_ticks(ax, layers)
    if one_minus:
        axes[0].set_yscale("log")   # the axes share y
    else:
        axes[0].ticklabel_format(axis="y", useOffset=False)   # 0.998, not 1e-3 + 9.97e-1
    style.legend(fig)
    return fig


def chain_length(series: Mapping[str, Mapping[int, Numbers]], *, ylabel: str, title: str | None = None,
                 xlabel: str = "Chain length (number of LoRA links)", band: str = "std",
                 half: Mapping[str, Mapping[int, float]] | None = None) -> Figure:
    """Draw a score against chain length, or against the second link's rank with that xlabel (COLA Figs. 2 and 3).

    Args: task or method -> length -> one value a seed; band: "std" (one standard deviation) or "range", drawn
    where there are three seeds or more; every seed is a dot; half: name -> length -> half an error bar, such as
    what the number of test rows leaves open of a single seed. Raises ValueError for another band.
    """
    if band not in (bands := {"std": style.spread, "range": _range}):
        raise ValueError(f'band is "std" or "range", not {band!r}')
    fig, (ax,) = style.panels(1, 1, 3.6, title, width=7.5)
    for i, (name, look) in enumerate(style.looks(series).items()):
        runs = series[name]
        shift = 0.012 * (i - (len(series) - 1) / 2) * (np.ptp(list(runs)) or 1)   # two names must not hide each other
        style.seed_curve(ax, runs, look, errorbar=bands[band], shift=shift)
        if half:
            ax.errorbar(list(runs), [np.mean(run) for run in runs.values()], [half[name][length] for length in runs],
                        fmt="none", ecolor=look["color"], alpha=0.6, capsize=4)
    ax.set_xticks(sorted({length for one in series.values() for length in one}))
    style.dress(ax, xlabel, ylabel)
    style.legend(fig)
    return fig


def _range(run: Numbers) -> tuple[float, float]:
    return (min(run), max(run)) if len(run) > 2 else (np.nan, np.nan)


def spectra(values: Mapping[str, Numbers], *, energy: Mapping[str, Numbers] | None = None,
            title: str | None = None) -> Figure:
    """Draw singular values in order, on a log axis, and beside them the share of energy that the first i hold.

    Args: name -> s (n,), descending (zeros have no place on a log axis); energy: name -> `measure.energy(s)`.
    """
    fig, axes = style.panels(2 if energy else 1, 2 if energy else 1, 3.3, title, width=9.0 if energy else 6.5)
    positive = {name: np.where(np.asarray(s) > 0, s, np.nan) for name, s in values.items()}
    views = {"Singular value of ΔW (log)": positive, r"Share of $\|\Delta W\|_F^2$ up to i": energy or {}}
    for ax, (ylabel, curves) in zip(axes, views.items(), strict=False):
        for name, look in style.looks(curves).items():
            length, marker = len(curves[name]), look["marker"] if len(curves[name]) <= 40 else ""
            ax.plot(np.arange(1, length + 1), curves[name], **{**look, "markersize": 3.5, "marker": marker})
        style.dress(ax, "Index i", ylabel)
        style.index_axis(ax, max(map(len, curves.values())))
    axes[-1].set_ylim(bottom=0 if energy else None)
    axes[0].set_yscale("log")
    style.legend(fig)
    return fig


def learning_curves(curves: Curves, *, knots: Numbers = (), reference: Curves | None = None,
                    xlabel: str = "Optimizer step", ylabel: str = "Training loss",
                    title: str | None = None) -> Figure:
    """Draw curves over training, a dashed line at each knot, and the stored reference runs thin and grey behind.

    Args: name -> (steps, values), each (S,); knots in steps; reference: as curves.
    """
    fig, (ax,) = style.panels(1, 1, 3.6, title, width=8.0)
    for x, y in (reference or {}).values():
        ax.plot(x, y, color=style.PALE, linewidth=1.0, zorder=1, label="stored reference run")
    for knot in knots:
        ax.axvline(float(knot), color=style.GREY, linestyle="--", linewidth=1.0, zorder=1.5, label="knot")
    for name, look in style.looks(curves).items():
        x, y = curves[name]
        ax.plot(x, y, **{**look, "marker": look["marker"] if len(x) <= 30 else ""})
    style.dress(ax, xlabel, ylabel)
    style.legend(fig)
    return fig


def alpha_over_time(steps: Numbers, alphas: Mapping[str, np.ndarray], threshold: float, *,
                    title: str | None = None) -> Figure:
    """Draw AutoLoRA's selection variables during the search, a panel a site; those kept at the end solid.

    Args: steps (S,); site -> α (S, k); threshold: a column is kept if its last α is at least this, 1/k.
    """
    fig, axes = style.panels(len(alphas), min(len(alphas), 4), 2.1, title, sharey=True)
    for ax, (site, alpha) in zip(axes, alphas.items(), strict=True):
        kept = alpha[-1] >= threshold * (1 - 1e-6)   # all equal 1/k counts as kept, whatever the round-off
        for column, keep in zip(np.asarray(alpha).T, kept, strict=True):
            color, line, label = (style.BLUE, "-", "kept") if keep else (style.ORANGE, "--", "dropped")
            ax.plot(steps, column, color=color, linestyle=line, linewidth=1.4, label=label)
        ax.axhline(threshold, color=style.GREY, linestyle=":", label=f"threshold {threshold:g}")
        style.dress(ax, "Search step", "α", f"{style.site_label(site)}: rank {kept.sum()}")
    style.legend(fig)
    return fig


def gate_bars(gates: Mapping[str, Numbers], *, title: str | None = None) -> Figure:
    """Draw SaLoRA's deterministic gates g_j by direction, a panel a site; a cross marks one that is exactly zero.

    Args: site -> g (r,), each in [0, 1].
    """
    fig, axes = style.panels(len(gates), min(len(gates), 4), 2.0, title, sharey=True)
    for ax, (site, gate) in zip(axes, gates.items(), strict=True):
        g = np.asarray(gate, dtype=float)
        j = np.arange(1, len(g) + 1)
        ax.bar(j, g, color=style.BLUE)
        ax.plot(j[g == 0], 0.04 + g[g == 0], "x", color=style.ORANGE, markersize=6, label="pruned (zero)")
        ax.set_ylim(0, 1.05)
        ax.set_xticks(j)
        rank = f"{np.count_nonzero(g)} of {len(g)} open"
        style.dress(ax, "Direction j", r"Gate $g_j$", f"{style.site_label(site)}: {rank}")
    style.legend(fig)
    return fig


def pareto(points: Mapping[str, tuple[float, float, float]], *, xlabel: str, ylabel: str, log_x: bool = False,
           title: str | None = None) -> Figure:
    """Draw cost against score; the grey line joins those that no other beats in both (less cost, higher score).

    Args: name -> (x, y, half-length of the error bar in y, 0 for none); xlabel, ylabel with units.
    """
    fig, (ax,) = style.panels(1, 1, 4.0, title, width=7.5)
    front, best = [], -np.inf
    for x, y, _ in sorted(points.values(), key=lambda point: (point[0], -point[1])):
        if y > best:
            front.append((x, y))
            best = y
    ax.plot(*zip(*front, strict=True), color=style.PALE, linewidth=2.5, zorder=1, label="not beaten in both")
    for name, look in style.looks(points).items():
        x, y, error = points[name]
        hollow = {"linestyle": "none", "markersize": 9, "markerfacecolor": "none", "markeredgewidth": 1.8}
        ax.errorbar(x, y, yerr=error or None, capsize=3, **{**look, **hollow})   # equal points show through
    ax.set_xscale("log" if log_x else "linear")
    ax.margins(0.1)
    style.dress(ax, xlabel, ylabel)
    style.legend(fig)
    return fig

"""Methods over tasks: tables of differences, intervals by task, ways to report, runs that lie on each other.

Used by 07.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .. import style
from .ledger import LOOKS, forest

# M methods, T tasks, S seeds
Numbers = Sequence[float] | np.ndarray
NO_DISTANCE = 1e-9   # where nought stands on a log axis


class Judged(Protocol):
    """One arm against another, as `judged.Judged`."""

    @property
    def gaps(self) -> Sequence[float]: ...

    @property
    def interval(self) -> tuple[float, float] | None: ...

    @property
    def verdict(self) -> str: ...


def difference_table(means: np.ndarray, clear: np.ndarray, methods: Sequence[str], tasks: Sequence[str],
                     label: str, limit: float | None = None) -> Figure:
    """Differences by method and task, centred on zero; a framed number's interval excludes zero.

    Args: means (M, T); clear (M, T), booleans; label: of the colour bar; limit: of the colours, the largest for None.
    """
    top = limit or float(np.abs(means).max()) or 1.0
    fig, (ax,) = style.panels(1, 1, 0.8 + 0.36 * len(methods), None, width=3.4 + 0.7 * len(tasks))
    image = ax.imshow(means, cmap="RdBu_r", vmin=-top, vmax=top, aspect="auto")
    for (i, j), value in np.ndenumerate(means):
        color = style.text_color(tuple(image.to_rgba(value)))
        frame = {"bbox": {"boxstyle": "square,pad=0.25", "fill": False, "edgecolor": color}} if clear[i, j] else {}
        ax.text(j, i, f"{value:+.1f}", ha="center", va="center", fontsize=9, color=color, **frame)
    ax.set_xticks(range(len(tasks)), tasks)
    ax.set_yticks(range(len(methods)), methods)
    style.dress(ax, "Task", "")
    ax.grid(False)
    fig.colorbar(image, ax=ax, pad=0.02, extend="both" if top < np.abs(means).max() else "neither").set_label(
        label, fontsize=10)
    return fig


def over_all_tasks(rows: Mapping[str, Judged], xlabel: str) -> Figure:
    """A row a comparison, as in the ledger's forest: seeds, interval, verdict."""
    found = list(rows.values())
    return forest(list(rows), [one.gaps for one in found], [one.interval for one in found],
                  [one.verdict for one in found], ">" * len(found), xlabel)


def intervals_by_task(panels: Mapping[str, Mapping[str, Judged]], xlabel: str, columns: int = 2) -> Figure:
    """A panel a comparison, a row a task: small dots are seeds, the bar is the interval in its verdict's colour."""
    tasks = list(next(iter(panels.values())))
    fig, axes = style.panels(len(panels), columns, 0.8 + 0.3 * len(tasks), None, sharey=True)
    said = [one.verdict for rows in panels.values() for one in rows.values()]
    for ax, (name, rows) in zip(axes, panels.items(), strict=True):
        for y, one in enumerate(rows.values()):
            color, marker = LOOKS[one.verdict]
            ax.plot(one.gaps, np.full(len(one.gaps), y + 0.27), ".", color=style.GREY, markersize=4)
            if one.interval is not None:
                ax.plot(one.interval, [y, y], color=color, linewidth=2.5, solid_capstyle="butt")
            ax.plot(np.mean(one.gaps), y, marker, color=color, markersize=6)
        ax.axvline(0, color=style.BLACK, linewidth=1)
        ax.set_yticks(range(len(tasks)), tasks)
        ax.set_ylim(len(tasks) - 0.4, -0.6)
        style.dress(ax, xlabel, "", name)
    style.legend(fig, [Line2D([], [], color=color, marker=marker, linewidth=2, markersize=6, label=verdict)
                       for verdict, (color, marker) in LOOKS.items() if verdict in said])
    return fig


def dots_from_zero(values: Mapping[str, Mapping[str, Numbers]], xlabel: str) -> Figure:
    """Rows of dots around a line at zero, each series of one look.

    Args: name of a row -> name of a series -> its values.
    """
    fig, (ax,) = style.panels(1, 1, 0.6 + 0.42 * len(values), None, width=8.5)
    series = list(dict.fromkeys(name for row in values.values() for name in row))
    looks = dict(zip(series, ((style.BLUE, "o"), (style.ORANGE, "X"), (style.BLACK, "D")), strict=False))
    for y, row in enumerate(values.values()):
        for shift, (name, points) in zip(np.linspace(-0.14, 0.14, len(row)), row.items(), strict=True):
            color, marker = looks[name]
            ax.plot(points, np.full(len(points), y + shift), marker, color=color, alpha=0.75, label=name)
    ax.axvline(0, color=style.GREY, linewidth=1)
    ax.set_yticks(range(len(values)), list(values))
    ax.set_ylim(len(values) - 0.4, -0.6)
    ax.margins(x=0.08)
    style.dress(ax, xlabel, "")
    style.legend(fig)
    return fig


def on_top(alone: Mapping[str, Numbers], together: Mapping[str, Numbers]) -> Figure:
    """Losses of single runs, wide and pale, those of one pass thin over them; right their distance, on a log axis.

    Equal losses stand on the dotted line at its foot.

    Args: name -> loss of each step, in both.
    """
    fig, (left, right) = style.panels(2, 2, 3.2, None)
    for name, look in style.looks(together).items():
        steps = np.arange(1, len(together[name]) + 1)
        left.plot(steps, alone[name], color=style.PALE, linewidth=6, label="alone")
        left.plot(steps, together[name], **{**look, "label": f"{name}, in one pass", "marker": ""})
        apart = np.abs(np.asarray(alone[name]) - np.asarray(together[name]))
        right.plot(steps, np.maximum(apart, NO_DISTANCE), **{**look, "linestyle": "none", "label": ""})
    right.axhline(NO_DISTANCE, color=style.GREY, linestyle=":", linewidth=1)
    right.set_yscale("log")
    right.set_ylim(bottom=NO_DISTANCE / 3)
    style.dress(left, "Optimizer step", "Training loss")
    style.dress(right, "Optimizer step", "Distance of the two (log)")
    style.legend(fig)
    return fig

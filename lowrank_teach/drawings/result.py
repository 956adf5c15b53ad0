"""The picture of a learner's own result beside the library's. Used by the exercises."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from .. import style


def own_result(yours: np.ndarray | None, wanted: np.ndarray) -> Figure:
    """Your result, the library's, and the difference on a scale centred at zero; None: nothing returned.

    Args: two arrays of one shape, (n,) or (rows, columns); another shape of yours is drawn as it is.
    """
    if wanted.size == 1 and (yours is None or yours.size == 1):
        return _own_number(None if yours is None else yours.item(), wanted.item())
    wanted = np.atleast_2d(wanted)
    mine = None if yours is None else np.atleast_2d(yours)
    gap = mine - wanted if mine is not None and mine.shape == wanted.shape else None
    fig, axes = style.panels(3, 3, 2.3, None, width=8.5)
    size = float(np.abs(wanted).max()) or 1.0
    titles = ("yours", "wanted", "yours − wanted")
    for ax, title, values in zip(axes, titles, (mine, wanted, gap), strict=True):
        if values is None:
            ax.text(0.5, 0.5, "nothing yet" if mine is None else "shapes differ", ha="center", va="center",
                    transform=ax.transAxes, fontsize=10, color=style.GREY)
            ax.set(xticks=[], yticks=[])
        else:
            image = ax.imshow(values, cmap="RdBu_r", vmin=-size, vmax=size, aspect="auto")
            ax.set(xticks=range(0, values.shape[1], -(-values.shape[1] // 8)),
                   yticks=range(0, values.shape[0], -(-values.shape[0] // 8)))
        ax.set_title(title if values is None else f"{title}  ({values.shape[0]} × {values.shape[1]})", fontsize=10)
        ax.tick_params(labelsize=8)
    fig.colorbar(image, ax=axes, pad=0.02, extend="both")
    return fig


def _own_number(yours: float | None, wanted: float) -> Figure:
    fig, (ax,) = style.panels(1, 1, 1.3, None, width=8.5)
    bars = ax.barh(["wanted", "yours"], [wanted, yours or 0], color=[style.BLUE, style.ORANGE], height=0.6)
    ax.bar_label(bars, [f"{wanted:,g}", "nothing yet" if yours is None else f"{yours:,g}"], fontsize=10, padding=4)
    ax.margins(x=0.2)
    style.dress(ax, "", "")
    return fig

"""The picture behind the slider of 06: a threshold on selection weights, and the ranks that it leaves.

Exact and computed live, from the weights α of any search. Used by 06 and 10.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.artist import Artist

from .. import style
from ..widgets import Control, Picture

# M matrices (sites), k directions each
TOLERANCE = 1e-6   # as in gates.Selection.rank: weights that all equal 1/k count as kept, whatever the rounding


class RankThreshold(Picture):
    """Left the ranks by matrix and layer; right all selection weights in order, with the threshold's line.

    Args: alphas: site -> α (k,), all of one k; AutoLoRA keeps a direction if its α is at least 1/k.
    """

    def __init__(self, alphas: Mapping[str, np.ndarray]) -> None:
        self.alphas = {site: np.asarray(alpha, dtype=float) for site, alpha in alphas.items()}
        self.matrices, self.layers = style.site_grid([dict.fromkeys(self.alphas, 0.0)])
        self.sorted = np.sort(np.concatenate(list(self.alphas.values())))[::-1]      # (M·k,)
        self.k = len(next(iter(self.alphas.values())))
        spread = max(float(np.abs(self.sorted - 1 / self.k).max()), 0.02 / self.k)
        step = 10.0 ** math.floor(math.log10(spread / 8))
        reach = math.ceil(1.1 * spread / step)                                       # moves to either side of 1/k
        low, high = 1 / self.k - reach * step, 1 / self.k + reach * step
        self.controls = (Control("threshold", "threshold on α", max(low, 0.0), high, 1 / self.k, step),)
        super().__init__()

    def ranks(self, threshold: float) -> dict[str, int]:
        """Site -> number of directions whose weight is at least the threshold."""
        return {site: int((alpha >= threshold - TOLERANCE).sum()) for site, alpha in self.alphas.items()}

    def build(self) -> list[Artist]:
        left, right = self.axes
        table = np.zeros((len(self.matrices), len(self.layers)))
        self.image = left.imshow(table, cmap="cividis", vmin=0, vmax=self.k, aspect="auto")
        self.fig.colorbar(self.image, ax=left, pad=0.02).set_label("Rank", fontsize=9)
        style.dress(left, "Layer", "Matrix", " ")
        left.grid(False)
        style.layer_ticks(left, self.layers)
        left.set_yticks(range(len(self.matrices)), [style.site_label(m) for m in self.matrices])
        self.numbers = {at: left.text(at[1], at[0], "", ha="center", va="center", fontsize=9)
                        for at in np.ndindex(table.shape)}
        self.kept, = right.plot([], [], "o", color=style.BLUE, markersize=4, label="kept")
        self.dropped, = right.plot([], [], "x", color=style.ORANGE, markersize=4, label="dropped")
        self.line = right.axhline(1 / self.k, color=style.BLACK, linestyle="--", linewidth=1.5)
        right.axhline(1 / self.k, color=style.GREY, linestyle=":", linewidth=1.2)
        right.text(0.99, 1 / self.k, f"1/{self.k}", transform=right.get_yaxis_transform(), ha="right", va="bottom",
                   fontsize=9, color=style.GREY)
        right.set_xlim(-1, len(self.sorted))
        right.set_ylim(self.controls[0].low, self.controls[0].high)
        style.dress(right, "Weights of all matrices, sorted", "Selection weight α", " ")
        return [self.image, *self.numbers.values(), self.kept, self.dropped, self.line, left.title, right.title]

    def arrays(self, **state: Any) -> dict[str, Any]:
        threshold = state["threshold"]
        ranks = self.ranks(threshold)
        kept = int((self.sorted >= threshold - TOLERANCE).sum())
        return {"table": style.site_table(ranks, self.matrices, self.layers), "kept": kept, "threshold": threshold,
                "left": f"ranks: {sum(ranks.values())} in all",
                "right": f"α ≥ {threshold:.4g}: {kept} of {len(self.sorted)} kept (blue)"}

    def update(self, arrays: dict[str, Any]) -> None:
        table, kept = arrays["table"], arrays["kept"]
        self.image.set_data(table)
        for at, number in self.numbers.items():
            rank = table[at]
            number.set_text("" if np.isnan(rank) else f"{rank:.0f}")
            number.set_color(style.text_color(tuple(self.image.to_rgba(rank))))
        x = np.arange(len(self.sorted))
        self.kept.set_data(x[:kept], self.sorted[:kept])
        self.dropped.set_data(x[kept:], self.sorted[kept:])
        self.line.set_ydata([arrays["threshold"]] * 2)
        self.axes[0].set_title(arrays["left"], fontsize=10)
        self.axes[1].set_title(arrays["right"], fontsize=10)

    def words(self, **state: Any) -> str:
        threshold = state["threshold"]
        ranks = list(self.ranks(threshold).values())
        none = sum(rank == 0 for rank in ranks)
        where = ("At 1/k every matrix keeps at least one direction: its largest weight is never below the mean."
                 if abs(threshold - 1 / self.k) <= TOLERANCE else
                 f"{none} of {len(ranks)} matrices would get no update at all." if none else
                 "Every matrix still keeps a direction.")
        return (f"Threshold {threshold:.4g}: ranks from {min(ranks)} to {max(ranks)}, {sum(ranks)} in all, "
                f"{sum(ranks) / len(ranks):.1f} a matrix. {where}")

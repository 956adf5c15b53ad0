"""The picture behind the sliders of 07: two identical methods, of which one takes the best of a grid.

Computed live from random numbers that are drawn once. Used by 07 and 10.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.artist import Artist

from .. import style
from ..toys.best_of import WAYS, draw, expected, scores, ways
from ..widgets import Control, Picture

REPETITIONS, MOST_RATES, MOST_SEEDS = 1500, 20, 5
BINS = np.linspace(-4.2, 4.2, 43)   # in standard deviations of a run
LOOKS = dict(zip(WAYS, ((style.BLUE, "-", "o"), (style.ORANGE, "--", "s"), (style.GREEN, "-.", "D")), strict=True))


class BestOfGrid(Picture):
    """Left how the gap between the two is distributed, for each way of choosing; right its mean by rates tried.

    Args: spread: one standard deviation of a run's score.  unit: of it.
    """

    height = 2.9
    controls = (Control("rates", "learning rates tried", 1, MOST_RATES, 6),
                Control("seeds", "seeds of each rate", 1, MOST_SEEDS, 1),
                Control("shared", "share seen in both splits", 0.0, 1.0, 0.5, 0.05))

    def __init__(self, spread: float = 1.0, unit: str = "standard deviations of a run") -> None:
        self.spread, self.unit = spread, unit
        self.drawn = draw(REPETITIONS, MOST_RATES, MOST_SEEDS)
        other = np.random.default_rng(1)
        self.fresh = other.standard_normal((REPETITIONS, MOST_SEEDS))   # new seeds of the one with a grid
        self.plain = other.standard_normal((REPETITIONS, MOST_SEEDS))   # the one without
        super().__init__()

    def gaps(self, rates: int, seeds: int, shared: float) -> dict[str, np.ndarray]:
        """Way of choosing -> reported score of the one with a grid minus that of the other, (R,)."""
        validation, test = scores(self.drawn[:, :, :rates, :seeds], shared)
        plain = self.plain[:, :seeds].mean(1)
        found = ways(validation, test, self.fresh[:, :seeds].mean(1))
        return {way: self.spread * (score - plain) for way, score in found.items()}

    def build(self) -> list[Artist]:
        left, right = self.axes
        self.bars, self.curves, self.marks = {}, {}, {}
        for way, (color, line, marker) in LOOKS.items():
            self.bars[way], = left.plot([], [], color=color, linestyle=line, linewidth=1.8, drawstyle="steps-mid")
            self.curves[way], = right.plot([], [], color=color, linestyle=line, linewidth=1.8, label=way)
            self.marks[way], = right.plot([], [], marker, color=color, markersize=7)
        left.axvline(0, color=style.GREY, linewidth=1)
        left.set(xlim=(self.spread * BINS[0], self.spread * BINS[-1]), ylim=(0, 0.2))
        right.set(xlim=(0, MOST_RATES + 1), ylim=(-0.15 * self.spread, 2.05 * self.spread))
        style.dress(left, f"Gap between two equal methods, {self.unit}", "Share of comparisons", " ")
        style.dress(right, "Learning rates tried", "Mean gap", " ")
        right.set_xticks([1, *range(5, MOST_RATES + 1, 5)])
        style.legend(self.fig)
        return [*self.bars.values(), *self.curves.values(), *self.marks.values(), left.title, right.title]

    def arrays(self, **state: Any) -> dict[str, Any]:
        rates, seeds, shared = int(state["rates"]), int(state["seeds"]), float(state["shared"])
        gaps = self.gaps(rates, seeds, shared)
        counts = {way: np.histogram(gap, self.spread * BINS)[0] / REPETITIONS for way, gap in gaps.items()}
        axis = range(1, MOST_RATES + 1)
        means = [expected(n, seeds, shared) for n in axis]
        return {"counts": counts, "axis": np.array(axis), "rates": rates,
                "means": {way: self.spread * np.array([mean[way] for mean in means]) for way in WAYS},
                "left": f"{rates} rate{'s' * (rates > 1)} against one",
                "right": f"{seeds} seed{'s' * (seeds > 1)} a rate, share {shared:.2f}"}

    def update(self, arrays: dict[str, Any]) -> None:
        middles = self.spread * (BINS[1:] + BINS[:-1]) / 2
        for way in WAYS:
            self.bars[way].set_data(middles, arrays["counts"][way])
            self.curves[way].set_data(arrays["axis"], arrays["means"][way])
            self.marks[way].set_data([arrays["rates"]], [arrays["means"][way][arrays["rates"] - 1]])
        for ax, side in zip(self.axes, ("left", "right"), strict=True):
            ax.set_title(arrays[side], fontsize=10)

    def words(self, **state: Any) -> str:
        rates, seeds, shared = int(state["rates"]), int(state["seeds"]), float(state["shared"])
        mean = expected(rates, seeds, shared)
        gap, best = self.gaps(rates, seeds, shared)[WAYS[0]], self.spread * mean[WAYS[0]]
        return (f"Two equal methods, one with {rates} learning rate{'s' * (rates > 1)} of {seeds} "
                f"seed{'s' * (seeds > 1)} each: best on test it comes out {best:.2f} {self.unit} "
                f"ahead on average, and ahead in {(gap > 0).mean():.0%} of comparisons; chosen on validation rows "
                f"{self.spread * mean[WAYS[1]]:.2f}; chosen there and trained with new seeds {mean[WAYS[2]]:.2f}.")

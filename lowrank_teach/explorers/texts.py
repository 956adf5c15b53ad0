"""How many test inputs: what is left open of a score, and of a difference, when fewer texts are written.

From stored texts; the inputs are drawn anew for each n. Used by 08 and 10.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.ticker import MaxNLocator

from .. import style, texts
from ..drawings.text import arm_looks
from ..widgets import Control, Picture

RESAMPLES, LEVEL = 500, 0.95   # as many as `Texts.interval` draws: at the right end the two agree


class HowManyInputs(Picture):
    """Scores of some arms over n test inputs, and their differences to the first arm, with 95 % intervals.

    stored: from `texts.load`.  arms: which, the first is what the others are compared with.  score: its name.
    """

    height = 2.9

    def __init__(self, stored: texts.Texts, arms: Sequence[str], score: str = "bleu") -> None:
        self.arms, self.score = list(arms), score
        self.rows = {arm: stored.rows(arm, score) for arm in self.arms}
        self.count_of_inputs = len(self.rows[self.arms[0]])
        self.known: dict[int, dict[str, Any]] = {}   # n -> arrays: picture and sentence ask for the same
        self.controls = (Control("n", "test inputs", 10, self.count_of_inputs, min(30, self.count_of_inputs), 5),)
        super().__init__()

    def build(self) -> list[Artist]:
        self.bars, self.dots = [], []
        for ax, arms in zip(self.axes, (self.arms, self.arms[1:]), strict=True):
            for y, (color, marker) in enumerate(arm_looks(arms).values()):
                self.bars += ax.plot([0, 0], [y, y], color=color, linewidth=3, solid_capstyle="butt")
                self.dots += ax.plot([0], [y], marker, color=color, markersize=9, markeredgecolor="white")
            ax.set_ylim(len(arms) - 0.5, -0.5)
        score = self.score.upper()
        self.axes[0].set_yticks(range(len(self.arms)), self.arms)
        self.axes[1].set_yticks(range(len(self.arms) - 1), [f"{arm} − {self.arms[0]}" for arm in self.arms[1:]])
        self.axes[1].axvline(0, color=style.GREY, linestyle="--", linewidth=1.2)
        n = self.controls[0]
        everywhere = [self.arrays(n=at) for at in {*range(int(n.low), int(n.high), int(n.step)), int(n.high)}]
        for ax, name in zip(self.axes, ("scores", "differences"), strict=True):
            ends = np.concatenate([found[name][:, 1:] for found in everywhere])
            low, high = ends.min(), ends.max()
            ax.set_xlim(low - 0.1 * (high - low), high + 0.1 * (high - low))
        style.dress(self.axes[0], f"{score} of the first n inputs", "")
        style.dress(self.axes[1], f"difference in {score}", "")
        for ax in self.axes:
            ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))   # more would touch
        return [*self.bars, *self.dots]

    def arrays(self, **state: Any) -> dict[str, Any]:
        """scores (arms, 3) and differences (arms − 1, 3): over the first n inputs, low end, high end."""
        n = min(int(state["n"]), self.count_of_inputs)
        if n not in self.known:
            self.known[n] = self._drawn(n)
        return self.known[n]

    def _drawn(self, n: int) -> dict[str, Any]:
        draws = texts.draws_of(n, RESAMPLES)
        tail = (1 - LEVEL) / 2
        drawn = {arm: texts.resampled(self.score, rows[:n], draws) for arm, rows in self.rows.items()}
        whole = {arm: texts.combined(self.score, rows[:n]) for arm, rows in self.rows.items()}
        first = self.arms[0]
        return {"n": n, "scores": np.array([[whole[arm], *np.quantile(drawn[arm], [tail, 1 - tail])]
                                            for arm in self.arms]),
                "differences": np.array([[whole[arm] - whole[first],
                                          *np.quantile(drawn[arm] - drawn[first], [tail, 1 - tail])]
                                         for arm in self.arms[1:]])}

    def update(self, arrays: dict[str, Any]) -> None:
        found = np.concatenate([arrays["scores"], arrays["differences"]])
        for (score, low, high), bar, dot in zip(found, self.bars, self.dots, strict=True):
            bar.set_xdata([low, high])
            dot.set_xdata([score])

    def words(self, **state: Any) -> str:
        found = self.arrays(**state)
        apart = [arm for arm, (_, low, high) in zip(self.arms[1:], found["differences"], strict=True)
                 if low > 0 or high < 0]
        width = float(np.mean(found["scores"][:, 2] - found["scores"][:, 1]))
        said = f"apart from {self.arms[0]}: {', '.join(apart)}" if apart else f"none is apart from {self.arms[0]}"
        return (f"With the first {found['n']} of {self.count_of_inputs} inputs an interval of {self.score.upper()} "
                f"is {width:.3f} wide in the mean; {said}.")

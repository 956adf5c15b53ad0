"""λ and K on a toy that is solved anew at every move: the loss, the rank of the whole change, the cosine.

Solved live by `toys.least_squares`, three runs in some milliseconds. Used by 05 and 10.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.artist import Artist

from .. import style
from ..toys import least_squares
from ..widgets import Control, Picture

STEPS, R, ALPHA = 120, 2, 4.0
FLOOR = 1e-9   # of the largest singular value: under it, rounding


class DeltaTrajectory(Picture):
    """Delta-LoRA beside LoRA and beside LoRA at α (1 + λ), on a 12 × 10 least-squares problem, r = 2, AdamW.

    Left the loss after each step; in the middle the singular values of the whole change W* − W₀ with a line at 2r;
    right the cosine of W* and W₀. Values under FLOOR are drawn on one line at the bottom.
    """

    count, height = 3, 2.9
    controls = (Control("lam", "λ", 0.0, 5.0, 2.0, 0.1), Control("K", "K: steps before W moves", 0, STEPS, 30))

    def __init__(self) -> None:
        self.problem = least_squares.problem()
        self.plain = self._solve()
        super().__init__()

    def _solve(self, **values: Any) -> least_squares.Path:
        return least_squares.solve(self.problem, r=R, steps=STEPS, **{"alpha": ALPHA, **values})

    def build(self) -> list[Artist]:
        loss, spectrum, angle = self.axes
        names = (("LoRA", style.BLUE, "-", 1.5), ("LoRA, α(1+λ)", style.BLACK, ":", 2.5),
                 ("Delta-LoRA", style.PINK, style.LONG, 2.0))
        self.lines = {(ax, name): ax.plot(np.zeros(STEPS + 1), color=color, linestyle=line, linewidth=width,
                                          label=name)[0]
                      for name, color, line, width in names for ax in (loss, angle)}
        self.start_lines = [ax.axvline(0, color=style.GREY, linewidth=1) for ax in (loss, angle)]
        self.dots, = spectrum.semilogy(range(1, 11), np.ones(10), "P", color=style.PINK, markersize=6)
        spectrum.axvline(2 * R + 0.5, color=style.GREY, linestyle="--", linewidth=1.3, label=f"2r = {2 * R}")
        loss.set_ylim(0, 1.05 * self.plain.loss[0])
        angle.set_ylim(0.75, 1.005)
        spectrum.set_ylim(FLOOR / 10, 10)
        style.dress(loss, "Step (grey: K)", "Loss")
        style.dress(spectrum, "Index i", "Singular value (bottom: 0)", " ")
        style.dress(angle, "Step (grey: K)", "Cosine of W* and W₀")
        spectrum.set_xticks(range(1, 11))
        style.legend(self.fig)
        return [*self.lines.values(), *self.start_lines, self.dots, spectrum.title]

    def arrays(self, **state: Any) -> dict[str, Any]:
        delta = self._solve(lam=state["lam"], K=int(state["K"]))
        larger = self._solve(alpha=ALPHA * (1 + state["lam"]))
        paths = {"LoRA": self.plain, "LoRA, α(1+λ)": larger, "Delta-LoRA": delta}
        s = np.linalg.svd(delta.total(), compute_uv=False)
        return {"loss": {name: path.loss for name, path in paths.items()},
                "cosine": {name: path.cosines() for name, path in paths.items()},
                "s": np.maximum(s, FLOOR / 5), "rank": int((s > FLOOR * s[0]).sum()), "K": state["K"]}

    def update(self, arrays: dict[str, Any]) -> None:
        for (ax, name), line in self.lines.items():
            line.set_ydata(arrays["loss" if ax is self.axes[0] else "cosine"][name])
        for line in self.start_lines:
            line.set_xdata([arrays["K"]] * 2)
        self.dots.set_ydata(arrays["s"])
        self.axes[1].set_title(f"W* − W₀: rank {arrays['rank']}", fontsize=10)

    def words(self, **state: Any) -> str:
        found = self.arrays(**state)
        loss, cosine = ({name: float(curve[-1]) for name, curve in found[what].items()}
                        for what in ("loss", "cosine"))
        gap = float(np.abs(found["loss"]["Delta-LoRA"] - found["loss"]["LoRA, α(1+λ)"]).max())
        return (f"λ = {state['lam']:g}, K = {state['K']}: the whole change has rank {found['rank']} (2r = {2 * R}). "
                f"Loss {loss['Delta-LoRA']:.2f}, LoRA {loss['LoRA']:.2f}; cosine {cosine['Delta-LoRA']:.3f}, LoRA "
                f"{cosine['LoRA']:.3f}. From LoRA at α (1 + λ) the loss is never further than {gap:.1g}.")

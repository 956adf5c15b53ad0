"""A whole ΔW cut to rank i: its spectrum and a corner of it live, and how the network cut so scored, where it was.

Used by 01 and 10.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.artist import Artist

from .. import style
from ..widgets import Control, Picture

# d out, k in, n = min(d, k), i directions kept


class CutNetwork(Picture):
    """One ΔW of full fine-tuning, cut to its first i directions, and the score of the network cut to i everywhere.

    Args:
        parts: site -> U (d, n), σ (n,), Vᵀ (n, k), as numpy arrays.
        scores: i -> score of the network whose every ΔW is cut to i; the largest i is the uncut one.
        half: half an error bar of each score.  label: the score's name.
        most: how far the slider goes.  block: rows and columns of ΔW that are shown.
    """

    kind = "spectrum and picture computed live; the score snapped to the nearest cut that was scored"
    count = 3

    def __init__(self, parts: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]], scores: Mapping[int, float],
                 half: Mapping[int, float], label: str, most: int = 64, block: int = 40) -> None:
        self.sites, self.most, self.label = list(parts), most, label
        self.spectra = {site: np.asarray(s) for site, (_, s, _) in parts.items()}
        self.corners = {site: (u[:block] * s, vh[:, :block]) for site, (u, s, vh) in parts.items()}
        self.shapes = {site: (u.shape[0], vh.shape[1]) for site, (u, _, vh) in parts.items()}
        self.block, self.scores, self.half = block, dict(sorted(scores.items())), half
        self.cuts = list(self.scores)
        self.controls = (Control("matrix", "matrix number", 0, len(self.sites) - 1, 0),
                         Control("i", "directions kept", 0, most, min(8, most)))
        super().__init__()

    def snap(self, i: float) -> int:
        """The scored cut nearest to i, in the logarithm of i + 1."""
        return min(self.cuts, key=lambda cut: abs(np.log((cut + 1) / (i + 1))))

    def build(self) -> list[Artist]:
        left, middle, right = self.axes
        longest = max(map(len, self.spectra.values()))
        self.all_, = left.plot([], [], color=style.PALE, linewidth=2)
        self.kept, = left.plot([], [], color=style.BLUE, linewidth=3, marker="o", markersize=3.5)
        left.set(xlim=(0.9, longest), ylim=(2e-3, 1.5), xscale="log", yscale="log")
        style.dress(left, "Direction (log)", "σ / largest (log)", " ")
        self.image = middle.imshow(np.zeros((self.block, self.block)), cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
        style.dress(middle, f"Column (of the first {self.block})", "Row", " ")
        middle.grid(False)
        at = np.arange(len(self.cuts))
        right.errorbar(at, list(self.scores.values()), [self.half[cut] for cut in self.cuts], color=style.GREY,
                       marker=".", capsize=3, linewidth=1)
        self.mark, = right.plot([], [], "o", color=style.ORANGE, markersize=10, markerfacecolor="none",
                                markeredgewidth=2.5)
        right.set_xticks(at, [*map(str, self.cuts[:-1]), "all"])
        style.dress(right, "Every ΔW cut to rank", self.label[:1].upper() + self.label[1:], " ")
        return [self.all_, self.kept, self.image, self.mark, left.title, middle.title, right.title]

    def arrays(self, **state: Any) -> dict[str, Any]:
        site, i = self.sites[state["matrix"]], int(state["i"])
        s, (left, right) = self.spectra[site], self.corners[site]
        cut = self.snap(i)
        return {"s": s / (s[0] or 1.0), "kept": (s / (s[0] or 1.0))[:i], "name": style.site_label(site),
                "matrix": left[:, :i] @ right[:i] / (float(np.abs(left @ right).max()) or 1.0),   # (block, block)
                "title": f"ΔW cut to rank {i}", "at": (self.cuts.index(cut), self.scores[cut]),
                "scored": "scored uncut" if cut == self.cuts[-1] else f"scored at rank {cut}"}

    def update(self, arrays: dict[str, Any]) -> None:
        left, middle, right = self.axes
        self.all_.set_data(np.arange(1, len(arrays["s"]) + 1), arrays["s"])
        self.kept.set_data(np.arange(1, len(arrays["kept"]) + 1), arrays["kept"])
        self.image.set_data(arrays["matrix"])
        self.mark.set_data([arrays["at"][0]], [arrays["at"][1]])
        for ax, title in ((left, arrays["name"]), (middle, arrays["title"]), (right, arrays["scored"])):
            ax.set_title(title, fontsize=10)

    def words(self, **state: Any) -> str:
        site, i = self.sites[state["matrix"]], int(state["i"])
        s, (d, k), cut = self.spectra[site], self.shapes[site], self.snap(i)
        held = float((s[:i] ** 2).sum() / ((s ** 2).sum() or 1.0))
        where = "no ΔW cut" if cut == self.cuts[-1] else f"every ΔW cut to rank {cut}"
        return (f"Site {site}: rank {i} of {len(s)} keeps {held:.1%} of the energy of ΔW in {i * (d + k):,} numbers "
                f"instead of {d * k:,}. With {where}, the network's {self.label} is {self.scores[cut]:.3f} ± "
                f"{self.half[cut]:.3f}.")

"""Notebook 01, why low rank: its pictures, the slider that cuts every ΔW to rank i, and its exercises.

d out (rows), k in (columns), n = min(d, k), i directions kept, S seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from torch import Tensor

from ...analysis import measures, style
from ..exercises import EXERCISES, Task
from ..explorer import Control, Picture
from .lora import count_parameters

# ---- pictures ---------------------------------------------------------------------------------------------


def sum_of_directions(U: np.ndarray, s: np.ndarray, Vh: np.ndarray, count: int = 3) -> Figure:
    """The first directions of a matrix one by one, and their sum so far below. U (d, n), s (n,), Vh (n, k)."""
    fig, axes = style.panels(2 * count, count, 2.1, None, width=8.0)
    size = float(np.abs((U * s) @ Vh).max()) or 1.0
    for j in range(count):
        one, total = s[j] * np.outer(U[:, j], Vh[j]), (U[:, :j + 1] * s[:j + 1]) @ Vh[:j + 1]
        sign = "" if j == 0 else "+ "
        for ax, values, name in ((axes[j], one, f"{sign}direction {j + 1}, σ = {s[j]:.1f}"),
                                 (axes[count + j], total, f"sum so far: rank {j + 1}")):
            mesh = style.heatmap(ax, values, square=True, cmap="RdBu_r", vmin=-size, vmax=size)
            style.dress(ax, "", "", name)
    fig.colorbar(mesh, ax=axes, pad=0.02, label="Value of a cell")
    return fig


def scores_by_rank(scores: Mapping[str, Mapping[str, float | Sequence[float]]], *, ylabel: str,
                   half: Mapping[str, float] | None = None, xlabel: str = "Directions kept of every ΔW") -> Figure:
    """A score against the rank that every ΔW was cut to, one line a way of choosing what is kept.

    Args:
        scores: name -> rank as it is to be read ("0", "8", "all") -> a score, or one a seed (S,). Ranks stand
            evenly spaced, in the order of the longest. Every seed is a dot; three or more have a band of one
            standard deviation.
        half: rank -> half an error bar, such as what the number of test rows leaves open.
    """
    fig, (ax,) = style.panels(1, 1, 3.6, None, width=8.0)
    order = max((list(one) for one in scores.values()), key=len)
    for (name, look), marker in zip(style.looks(scores).items(), "os^D", strict=False):
        seeds = {order.index(rank): np.atleast_1d(values) for rank, values in scores[name].items()}
        style.seed_curve(ax, seeds, {**look, "marker": marker})
        if half:
            ax.errorbar(list(seeds), [values.mean() for values in seeds.values()],
                        [half[rank] for rank in scores[name]], fmt="none", ecolor=look["color"], alpha=0.6, capsize=4)
    ax.set_xticks(range(len(order)), order)
    style.dress(ax, xlabel, ylabel)
    style.legend(fig)
    return fig


# ---- explorers: what the sliders move ---------------------------------------------------------------------


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


# ---- exercises: the library's answers, and what usual mistakes would give ---------------------------------


def energy_share(s: Tensor, i: int) -> float:
    """Share of the energy that the first i of the singular values s (n,) hold."""
    return float(measures.energy(s)[i - 1])


def share_of_dense(d: int, k: int, i: int) -> float:
    """Numbers in a pair of rank i over the numbers in a (d, k) matrix."""
    return count_parameters(d, k, i) / (d * k)


def _matrix(d: int, k: int) -> Tensor:
    """A matrix whose directions fall off, so that the first few matter."""
    g = torch.Generator().manual_seed(d)
    n = min(d, k)
    scale = torch.tensor([3.0 / (j + 1) ** 1.5 for j in range(n)])
    return (torch.randn(d, n, generator=g) * scale) @ torch.randn(n, k, generator=g)


def _spectrum(n: int) -> Tensor:
    return torch.tensor([4.0 / (j + 1) for j in range(n)], dtype=torch.float64)


def _kept(change: Callable[[measures.Directions, int], measures.Directions]) -> Callable[[Tensor, int], Tensor]:
    """A mistake in which directions are kept, or in what is done to them."""
    return lambda delta, i: change(measures.directions(delta), i).matrix()


_LAST = "these are the i smallest directions: σ is sorted, so the first i are the largest"
_NO_S = "σ is missing: every direction must get its weight back"
_TWICE = "σ stands in the product twice: U diag(σ) Vᵀ holds it once"
_MORE = "that is one direction too many: U[:, :i] holds the first i"
_FEWER = "one direction is missing: U[:, :i] holds the first i"
_REST = "that is what the cut leaves out: keep the first i, drop the rest"
_ALL = "nothing was cut: that is all of ΔW"
_NO_SQUARES = "energy is the sum of the squares σ², not of σ"
_ONE = "that is the energy of direction i alone: sum over the first i"
_SUM = "that is the energy itself: divide by that of all directions"
_SHORT = "one direction is missing: the first i are s[:i]"
_LEFT = "that is the share of what is left out"
_INDEX = "that is one too few: you count the ranks whose share is below the target, and the next one reaches it"
_SHAPES = "the first i columns of U are (d, i), of σ (i,), and the first i rows of Vᵀ (i, k)"

EXERCISES.update({
    "truncate": Task(
        measures.truncate, lambda: [(_matrix(9, 12), 3), (_matrix(12, 8), 2)],
        "keep the first i columns of U, the first i of σ and the first i rows of Vᵀ, and multiply them back",
        [(_LAST, _kept(lambda parts, i: parts.keep(slice(len(parts.s) - i, None)))),
         (_NO_S, _kept(lambda parts, i: parts._replace(s=torch.ones_like(parts.s)).keep(slice(i)))),
         (_TWICE, _kept(lambda parts, i: parts._replace(s=parts.s**2).keep(slice(i)))),
         (_MORE, lambda delta, i: measures.truncate(delta, i + 1)),
         (_FEWER, lambda delta, i: measures.truncate(delta, i - 1)),
         (_REST, lambda delta, i: delta - measures.truncate(delta, i)),
         (_ALL, lambda delta, i: delta)],
        (measures.directions, measures.Directions.keep, measures.Directions.matrix, measures.truncate), _SHAPES),
    "energy_share": Task(
        energy_share, lambda: [(_spectrum(10), 2), (_spectrum(6), 3)],
        "sum the squares of the first i singular values, and divide by the sum of all squares",
        [(_NO_SQUARES, lambda s, i: energy_share(s.sqrt(), i)),
         (_ONE, lambda s, i: energy_share(s, i) - energy_share(s, i - 1)),
         (_SUM, lambda s, i: energy_share(s, i) * float(s.square().sum())),
         (_SHORT, lambda s, i: energy_share(s, i - 1)),
         (_MORE, lambda s, i: energy_share(s, i + 1)),
         (_LEFT, lambda s, i: 1 - energy_share(s, i))],
        (measures.energy,)),
    "rank_for_share": Task(
        measures.energy_rank, lambda: [(_spectrum(40), 0.9), (_spectrum(12), 0.5), (_spectrum(12), 0.75)],
        "which is the first i whose share of the energy reaches the target?",
        [(_INDEX, lambda s, share: measures.energy_rank(s, share) - 1),
         ("energy is the sum of the squares σ², not of σ", lambda s, share: measures.energy_rank(s.sqrt(), share)),
         ("those are the directions that come after the target is reached; count those before it",
          lambda s, share: len(s) - measures.energy_rank(s, share) + 1)],
        (measures.energy, measures.energy_rank)),
    "share_of_dense": Task(
        share_of_dense, lambda: [(384, 384, 8), (1536, 384, 64)],
        "the pair is (d × i) and (i × k): how many numbers is that, and how many are in d × k?",
        [("that is the count: divide it by d · k", count_parameters),
         ("upside down: the pair's numbers over those of the whole", lambda d, k, i: 1 / share_of_dense(d, k, i)),
         ("a pair is two matrices: count (d × i) and (i × k)", lambda d, k, i: i / d),
         ("a pair is two matrices: count (d × i) and (i × k)", lambda d, k, i: i / k),
         ("that is one direction: there are i of them", lambda d, k, i: share_of_dense(d, k, 1))],
        (count_parameters,)),
})

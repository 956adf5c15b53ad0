"""The pictures behind the sliders: a matrix cut to rank i, a trained ΔW cut to rank i, a grid over rank and α.

Each is a `widgets.Picture`: `arrays` is a pure function of the sliders' state, `words` says the state in a
sentence. Cuts are exact and computed live; the grid snaps to stored runs and says so. Used by 00, 02, 10.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from .. import style
from ..widgets import SNAPPED, Control, Picture

# d out, k in, n singular values, i of them kept, S steps


class _Spectrum(Picture):
    """Left the singular values, those kept blue; right the matrix cut to them; both as shares of the largest."""

    def _build(self, n: int, shape: tuple[int, int]) -> list[Artist]:
        left, right = self.axes
        self.bars = left.bar(np.arange(1, n + 1), np.ones(n), color=style.PALE)
        left.set_ylim(0, 1.05)
        self.image = right.imshow(np.zeros(shape), cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
        self.fig.colorbar(self.image, ax=right, pad=0.02)
        style.dress(left, "Direction", "Singular value / largest", " ")
        left.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        style.dress(right, "Column", "Row", " ")
        right.grid(False)
        return [*self.bars, self.image, left.title, right.title]

    def update(self, arrays: dict[str, Any]) -> None:
        left, right = self.axes
        for bar, height, kept in zip(self.bars, arrays["s"], arrays["kept"], strict=True):
            bar.set_height(height)
            bar.set_color(style.BLUE if kept else style.PALE)
        self.image.set_data(arrays["matrix"])
        left.set_title(arrays["name"], fontsize=10)
        right.set_title(arrays["title"], fontsize=10)


class RankOfAPicture(_Spectrum):
    """A ring drawn as a matrix of size × size numbers, rebuilt from its first i directions."""

    def __init__(self, size: int = 40, most: int = 10) -> None:
        y, x = np.mgrid[-1:1:1j * size, -1:1:1j * size]
        self.ring = np.exp(-((np.hypot(x, y) - 0.6) / 0.18) ** 2)      # (size, size)
        self.u, self.s, self.vh = np.linalg.svd(self.ring)
        self.most = most
        self.controls = (Control("i", "directions kept", 0, most, 2),)
        super().__init__()

    def build(self) -> list[Artist]:
        return self._build(self.most, self.ring.shape)

    def arrays(self, **state: Any) -> dict[str, Any]:
        i = state["i"]
        return {"s": self.s[:self.most] / self.s[0], "kept": np.arange(self.most) < i, "name": "blue: kept",
                "matrix": (self.u[:, :i] * self.s[:i]) @ self.vh[:i], "title": f"rank {i}"}

    def words(self, **state: Any) -> str:
        i, side = state["i"], len(self.ring)
        kept = (self.s[:i] ** 2).sum() / (self.s ** 2).sum()
        return (f"Rank {i} holds {kept:.1%} of the picture's energy (the sum of its squared numbers) in "
                f"{i * 2 * side:,} numbers instead of {side * side:,}.")


class Truncation(_Spectrum):
    """A trained ΔW, given by its factors, cut down to its first i directions.

    Args: site -> (left (d, R), right (R, k)) as numpy; all sites of one R. block: rows and columns shown.
    """

    def __init__(self, factors: Mapping[str, tuple[np.ndarray, np.ndarray]], block: int = 48) -> None:
        self.sites, self.block = list(factors), block
        self.svd = {site: factor_svd(*pair) for site, pair in factors.items()}
        self.n = max(len(s) for _, s, _ in self.svd.values())
        self.controls = (Control("matrix", "matrix number", 0, len(self.sites) - 1, 0),
                         Control("i", "directions kept", 0, self.n, self.n))
        super().__init__()

    def build(self) -> list[Artist]:
        return self._build(self.n, (self.block, self.block))

    def arrays(self, **state: Any) -> dict[str, Any]:
        site, i = self.sites[state["matrix"]], state["i"]
        u, s, vh = self.svd[site]
        u, vh = u[:self.block], vh[:, :self.block]
        size = float(np.abs((u * s) @ vh).max()) or 1.0
        return {"s": np.pad(s, (0, self.n - len(s))) / (float(s.max()) or 1.0), "kept": np.arange(self.n) < i,
                "matrix": (u[:, :i] * s[:i]) @ vh[:i] / size,           # (block, block)
                "name": style.site_label(site), "title": f"ΔW cut to rank {i} (first {self.block} × {self.block})"}

    def words(self, **state: Any) -> str:
        site, i = self.sites[state["matrix"]], state["i"]
        u, s, vh = self.svd[site]
        total = float((s ** 2).sum()) or 1.0
        kept, d, k = float((s[:i] ** 2).sum()) / total, u.shape[0], vh.shape[1]
        return (f"Site {site}: rank {i} of {len(s)} keeps {kept:.1%} of the energy of ΔW and leaves an error of "
                f"{np.sqrt(max(0.0, 1 - kept)):.0%} of its size, in {i * (d + k):,} numbers instead of {d * k:,}.")


def factor_svd(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`measure.factor_svd` for arrays: U (d, n), s (n,), Vh (n, k)."""
    import torch

    from .. import measure

    u, s, vh = measure.factor_svd(torch.as_tensor(left), torch.as_tensor(right))
    return u.numpy(), s.numpy(), vh.numpy()


class RankAlpha(Picture):
    """A grid of stored runs over rank and α: its scores, and the loss curve of the one chosen.

    Args: (r, α) -> (steps (S,), loss (S,)); (r, α) -> score; label: the score's name.
    """

    kind = SNAPPED

    def __init__(self, curves: Mapping[tuple[int, float], tuple[Sequence[float], Sequence[float]]],
                 scores: Mapping[tuple[int, float], float], label: str) -> None:
        self.curves, self.scores, self.label = dict(curves), dict(scores), label
        self.ranks, self.alphas = sorted({r for r, _ in curves}), sorted({alpha for _, alpha in curves})
        self.controls = tuple(Control(name, name, int(values[0]), int(values[-1]), int(values[len(values) // 2]))
                              for name, values in (("rank", self.ranks), ("alpha", self.alphas)))
        super().__init__()

    def snap(self, rank: float, alpha: float) -> tuple[int, float]:
        """The stored run nearest in the logarithm of each."""
        return (min(self.ranks, key=lambda r: abs(np.log(r / rank))),
                min(self.alphas, key=lambda a: abs(np.log(a / alpha))))

    def build(self) -> list[Artist]:
        left, right = self.axes
        table = np.array([[self.scores[r, a] for a in self.alphas] for r in self.ranks])
        image = left.imshow(table, cmap="cividis", aspect="auto")
        self.fig.colorbar(image, ax=left, pad=0.02)
        style.dress(left, "α", "Rank r", self.label)
        left.grid(False)
        left.set_xticks(range(len(self.alphas)), [f"{a:g}" for a in self.alphas])
        left.set_yticks(range(len(self.ranks)), [f"{r:g}" for r in self.ranks])
        self.mark = Rectangle((0, 0), 0.92, 0.92, fill=False, edgecolor=style.ORANGE, linewidth=3)
        left.add_patch(self.mark)
        for steps, loss in self.curves.values():
            right.plot(steps, loss, color=style.PALE, linewidth=0.8)
        self.line, = right.plot([], [], color=style.BLUE, linewidth=2)
        style.dress(right, "Optimizer step", "Training loss", " ")
        return [self.mark, self.line, right.title]

    def arrays(self, **state: Any) -> dict[str, Any]:
        r, alpha = self.snap(state["rank"], state["alpha"])
        return {"at": (self.alphas.index(alpha) - 0.46, self.ranks.index(r) - 0.46),
                "curve": self.curves[r, alpha], "title": f"blue: r = {r}, α = {alpha:g}"}

    def update(self, arrays: dict[str, Any]) -> None:
        self.mark.set_xy(arrays["at"])
        self.line.set_data(*arrays["curve"])
        self.axes[1].set_title(arrays["title"], fontsize=10)

    def words(self, **state: Any) -> str:
        r, alpha = self.snap(state["rank"], state["alpha"])
        return (f"Asked r = {state['rank']}, α = {state['alpha']}; shown r = {r}, α = {alpha:g}, so s = α / r = "
                f"{alpha / r:g}: {self.label} {self.scores[r, alpha]:.3f}.")

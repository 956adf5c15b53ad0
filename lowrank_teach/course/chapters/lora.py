"""Notebook 02, LoRA: its pictures, sliders and exercises; 00, 01, 04–06 and 10 use some of them.

The sliders cut a picture or a trained ΔW to rank i, exactly and live, or choose a stored run by rank and α.
d out, k in, r rank, n singular values, i of them kept, S steps, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ...analysis import measures, style
from ...lowrank import Adapted, LowRank, initial_A
from ...methods import LoRA
from ...methods.base import Rule
from ..exercises import EXERCISES, Task, adapted_matrix
from ..explorer import SNAPPED, Control, Picture
from ..schematic import arrow, canvas, matrix

# ---- pictures ---------------------------------------------------------------------------------------------


def idea(*, gate: bool = True) -> Figure:
    """h = W x + s · B diag(g) A x: the frozen path above, the narrow trainable one below."""
    fig, ax = canvas(9.0, 3.7)
    matrix(ax, 0.35, 0.9, 0.22, 1.9, style.GREY, "x", "k numbers in")
    matrix(ax, 3.1, 1.95, 1.5, 1.5, style.GREY, "W", "d × k, frozen")
    matrix(ax, 1.9, 0.62, 1.5, 0.24, style.BLUE, "A", "r × k, trains")
    matrix(ax, 4.95, 0.3, 0.24, 1.5, style.BLUE, "B")
    matrix(ax, 8.3, 0.9, 0.22, 1.9, style.GREY, "h", "d numbers out")
    ax.text(5.29, 1.7, "d × r, trains", ha="left", va="top", fontsize=9)
    ax.text(6.25, 0.74, "× s = α / r", fontsize=12, ha="center", va="center", color=style.BLUE)
    ax.text(7.3, 1.85, "+", fontsize=20, ha="center", va="center")
    paths = [((0.65, 2.1), (3.05, 2.7)), ((0.65, 1.6), (1.85, 0.74)), ((5.25, 0.74), (5.55, 0.74)),
             ((4.65, 2.7), (7.12, 1.95)), ((6.95, 0.74), (7.2, 1.62)), ((7.5, 1.85), (8.25, 1.85))]
    if gate:
        matrix(ax, 4.0, 0.62, 0.24, 0.24, style.ORANGE, "g", "r gates")
        paths += [((3.45, 0.74), (3.95, 0.74)), ((4.29, 0.74), (4.9, 0.74))]
    else:
        paths += [((3.45, 0.74), (4.9, 0.74))]
    for start, end in paths:
        arrow(ax, start, end)
    return fig


def score_grid(table: np.ndarray, rows: Sequence[float], columns: Sequence[float], *, label: str,
               ylabel: str = "Rank r", xlabel: str = "α") -> Figure:
    """One number a cell: table (rows, columns); label names the number."""
    fig, (ax,) = style.panels(1, 1, 2.6, None, width=5.6)
    mesh = style.heatmap(ax, table, [f"{r:g}" for r in rows], [f"{c:g}" for c in columns], annot=True, fmt=".3f",
                         size=10, cmap="cividis")
    style.dress(ax, xlabel, ylabel)
    fig.colorbar(mesh, ax=ax, pad=0.02, label=label)
    return fig


def ratio_bars(values: Mapping[str, float], *, xlabel: str) -> Figure:
    """Horizontal bars of ratios to a baseline that is 1, each with its number."""
    fig, (ax,) = style.panels(1, 1, 0.5 + 0.42 * len(values), None, width=8.0)
    names = list(values)[::-1]
    bars = ax.barh(names, [values[name] for name in names], color=style.BLUE, height=0.6)
    ax.bar_label(bars, fmt="%.3f", fontsize=9, padding=4)
    ax.axvline(1.0, color=style.ORANGE, linestyle="--", linewidth=1.5)
    ax.set_xlim(0, 1.15 * max(1.0, *values.values()))
    style.dress(ax, xlabel, "")
    ax.grid(axis="y", visible=False)
    return fig


# ---- explorers: what the sliders move ---------------------------------------------------------------------


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
    """Call `measures.factor_svd` with arrays: U (d, n), s (n,), Vh (n, k)."""
    u, s, vh = measures.factor_svd(torch.as_tensor(left), torch.as_tensor(right))
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


# ---- exercises: the library's answers, and what usual mistakes would give ---------------------------------


def _layer(W: Tensor, lora_A: Tensor, lora_B: Tensor, lora_alpha: float) -> tuple[Any, Adapted]:
    adapters = adapted_matrix(W, LoRA(r=len(lora_A), lora_alpha=lora_alpha, sites=("0",)))
    adapters["0"].lora_A.data, adapters["0"].lora_B.data = lora_A.clone(), lora_B.clone()
    return adapters, adapters.owner("0")


def lora_forward(x: Tensor, W: Tensor, lora_A: Tensor, lora_B: Tensor, lora_alpha: float) -> Tensor:
    """h (T, d) of x (T, k) through the library's adapted layer."""
    return _layer(W, lora_A, lora_B, lora_alpha)[1](x).detach()


def lora_merge(W: Tensor, lora_A: Tensor, lora_B: Tensor, lora_alpha: float) -> Tensor:
    """The merged matrix (d, k) that the library writes into W."""
    adapters, owner = _layer(W, lora_A, lora_B, lora_alpha)
    adapters.merge()
    return owner.W.detach()


def count_parameters(d: int, k: int, r: int) -> int:
    """Parameters of the library's branch on a (d, k) matrix."""
    return sum(p.numel() for p in LowRank(k, d, r).parameters())


def lora_start(d: int, k: int, r: int, seed: int) -> Tensor:
    """A and Bᵀ side by side (r, k + d), as the library's branch has them before the first step."""
    branch = LowRank(k, d, r, generator=torch.Generator().manual_seed(seed))
    return torch.cat([branch.lora_A, branch.lora_B.T], dim=1).detach()


def keep_scale(lora_alpha: float, r: int, new_r: int) -> float:
    """The α at rank new_r whose library branch is scaled as that of rank r."""
    W, A, B = torch.zeros(r, r), torch.zeros(r, r), torch.zeros(r, r)
    return _layer(W, A, B, lora_alpha)[0]["0"].scaling * new_r


def _matrices(d: int, k: int, r: int, alpha: float) -> tuple[Tensor, Tensor, Tensor, float]:
    g = torch.Generator().manual_seed(d)
    return (torch.randn(d, k, generator=g), torch.randn(r, k, generator=g), torch.randn(d, r, generator=g), alpha)


_CASES = [_matrices(6, 9, 2, 8.0), _matrices(9, 6, 4, 2.0)]
_NO_SCALE = "the scale is missing: multiply the branch by s = α / r"
_ALPHA = "you scale by α, LoRA scales by α / r"
_UPSIDE_DOWN = "you scale by r / α, LoRA scales by α / r"
_NO_W = "that is the branch alone: W is missing"
_NO_BRANCH = "that is W alone: the branch s · B A is missing"
_MINUS = "the branch is subtracted: it is added"
_ALL_SCALED = "the scale belongs to the branch alone, not to W"


def _mistakes(f: Callable[..., Tensor]) -> list[tuple[str, Callable[..., Tensor]]]:
    """Each mistake as the library called with other arguments; x is empty for the merge."""
    def with_(change: Callable[[Tensor, Tensor, Tensor, float], tuple]) -> Callable[..., Tensor]:
        return lambda *arguments: f(*arguments[:-4], *change(*arguments[-4:]))

    return [(_NO_SCALE, with_(lambda W, A, B, a: (W, A, B, len(A)))),
            (_ALPHA, with_(lambda W, A, B, a: (W, A, B, a * len(A)))),
            (_UPSIDE_DOWN, with_(lambda W, A, B, a: (W, A, B, len(A) ** 2 / a))),
            (_NO_W, with_(lambda W, A, B, a: (0 * W, A, B, a))),
            (_NO_BRANCH, with_(lambda W, A, B, a: (W, A, 0 * B, a))),
            (_MINUS, with_(lambda W, A, B, a: (W, A, -B, a))),
            (_ALL_SCALED, with_(lambda W, A, B, a: (W * a / len(A), A, B, a)))]


def _started(change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Callable[..., Tensor]:
    """A mistake in how A (r, k) and Bᵀ (r, d) start."""
    return lambda d, k, r, seed: torch.cat(change(*lora_start(d, k, r, seed).split([k, d], dim=1)), dim=1)


EXERCISES.update({
    "lora_start": Task(
        lora_start, lambda: [(12, 12, 3, 0), (9, 16, 2, 1)],
        "A: spread u evenly over −1/√k to 1/√k; B: zeros, so that the product starts at zero",
        [("both start at zero: then no gradient reaches either of them, ever", _started(lambda A, B: (0 * A, B))),
         ("A and B are swapped: A is drawn and B is zero", _started(lambda A, B: (0 * A, A))),
         ("both are drawn: ΔW is not zero at the start, so the pretrained network is gone", _started(
             lambda A, B: (A, A))),
         ("B starts at ones: ΔW is not zero at the start", _started(lambda A, B: (A, B + 1))),
         ("u runs from 0 to 1, so all of A is positive: move it to −1 to 1 first", _started(
             lambda A, B: ((A + A.shape[1] ** -0.5) / 2, B))),
         ("the bound is missing: divide by √k", _started(lambda A, B: (A * A.shape[1] ** 0.5, B))),
         ("the bound is 1/√k, not 1/k", _started(lambda A, B: (A / A.shape[1] ** 0.5, B)))],
        (LowRank.__init__, initial_A), "A is (r, k), B is (d, r), so Bᵀ (r, d) stands beside A"),
    "lora_forward": Task(
        lora_forward, lambda: [(torch.randn(5, W.shape[1], generator=torch.Generator().manual_seed(1)), W, *rest)
                               for W, *rest in _CASES],
        "x meets A first (k → r), then B (r → d), then the scale; add it to W x", _mistakes(lora_forward),
        (Rule.branch, Adapted.forward, LowRank.add_to)),
    "lora_merge": Task(
        lora_merge, lambda: list(_CASES), "B (d, r) times A (r, k) has W's shape (d, k); scale it and add it to W",
        _mistakes(lora_merge), (LowRank.live_factors, LowRank.delta, Adapted.merge)),
    "count_parameters": Task(
        count_parameters, lambda: [(384, 384, 8), (1536, 384, 4)], "A holds r × k numbers; how many does B hold?",
        [("that is W's own number of parameters, and W is frozen", lambda d, k, r: d * k),
         ("that is A alone: B trains, too", lambda d, k, r: r * k),
         ("that is B alone: A trains, too", lambda d, k, r: r * d),
         ("that is one direction: there are r of them", lambda d, k, r: d + k),
         ("A and B are counted side by side: add their sizes, do not multiply them", lambda d, k, r: d * r * k),
         ("A and B are counted side by side: add their sizes, do not multiply them", lambda d, k, r: d * r * r * k),
         ("W is frozen and is not counted", lambda d, k, r: d * k + count_parameters(d, k, r))],
        (LowRank.__init__,)),
    "keep_scale": Task(
        keep_scale, lambda: [(16.0, 8, 2), (4.0, 4, 16)],
        "s = α / r is to stay: what must α be so that α / new_r equals it?",
        [("α is kept, so s = α / r moves with the rank: that is the bug", lambda a, r, new: a),
         ("that is s itself: the function is to return α", lambda a, r, new: keep_scale(a, r, 1)),
         ("the wrong way round: a larger rank needs a larger α", lambda a, r, new: keep_scale(a, new, r)),
         ("that scales α by the new rank alone: divide by the old one", lambda a, r, new: keep_scale(a, 1, new))],
        (Rule.branch,)),
})

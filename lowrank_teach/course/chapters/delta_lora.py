"""Notebook 05, Delta-LoRA: its pictures, its sliders for λ and K, and its exercises.

The sliders solve `toy_problems.solve` anew at each move, three runs in some milliseconds. d out, k in, r rank,
T steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ...adapters import Adapters
from ...analysis import measures, style, toy_problems
from ...methods import Clock, DeltaLoRA
from ...methods.delta_lora import DeltaLoRARule, step_factors
from ..exercises import EXERCISES, Task, adapted_matrix
from ..explorer import Control, Picture
from ..schematic import arrow, canvas, matrix

# ---- pictures ---------------------------------------------------------------------------------------------


def delta_idea() -> Figure:
    """One step past K: the product before, the product after, and their difference, scaled, into W."""
    fig, ax = canvas(9.0, 2.9, y=(0, 2.8))
    _product(ax, 0.2, style.PALE, "B", "A", "before the step")
    _product(ax, 2.8, style.BLUE, "B′", "A′", "after AdamW's step")
    ax.text(2.45, 1.75, "→", fontsize=22, ha="center", va="center")
    arrow(ax, (5.15, 1.75), (6.55, 1.75), color=style.PINK, width=2, head=18)
    ax.text(5.85, 2.0, "λ s (B′A′ − BA)", fontsize=11, ha="center", color=style.PINK)
    ax.text(5.85, 1.35, "no gradient of W,\nno moments of W", fontsize=9, ha="center", va="top")
    matrix(ax, 6.65, 0.9, 1.7, 1.7, style.PINK, "W", "d × k, moves past step K", alpha=0.45)
    ax.text(4.5, 0.2, "the branch stays beside it: h = W x + s B′A′x", ha="center", fontsize=11)
    return fig


def _product(ax: Axes, x: float, color: str, left: str, right: str, words: str) -> None:
    """A tall thin matrix times a flat thin one, with a line of words under both."""
    matrix(ax, x, 0.9, 0.3, 1.7, color, left)
    matrix(ax, x + 0.4, 2.3, 1.5, 0.3, color, right)
    ax.text(x + 0.95, 0.8, words, ha="center", va="top", fontsize=9)


def rank_cliff(spectra: Mapping[str, np.ndarray], marks: Mapping[str, int], *, first: int = 40) -> Figure:
    """Singular values of whole changes, found from the dense matrices, with a line at each expected rank.

    Args: name -> s (n,), descending; label -> rank; first: how many are drawn.
    """
    fig, (ax,) = style.panels(1, 1, 3.4, None, width=8.0)
    for name, look in style.looks(spectra).items():
        s = np.asarray(spectra[name])[:first]
        ax.semilogy(np.arange(1, len(s) + 1), s, **{**look, "markersize": 3.5})
    for (label, rank), line in zip(marks.items(), ("--", ":", "-."), strict=False):
        ax.axvline(rank + 0.5, color=style.GREY, linestyle=line, linewidth=1.3, label=label)
    style.dress(ax, "Index i", "Singular value (log)")
    style.legend(fig)
    return fig


def paired_differences(values: Mapping[str, Sequence[float]], *, xlabel: str) -> Figure:
    """One row a comparison: a dot a seed, a stroke at the mean, a dashed line where nothing differs.

    Args: name -> one difference a seed.
    """
    fig, (ax,) = style.panels(1, 1, 0.7 + 0.42 * len(values), None, width=8.5)
    style.seed_strip(ax, values)
    ax.axvline(0.0, color=style.GREY, linestyle="--", linewidth=1.3)
    style.dress(ax, xlabel, "")
    style.legend(fig)
    return fig


def trajectories(curves: Mapping[str, np.ndarray], *, ylabel: str, start: int = 0) -> Figure:
    """A number after each step, a line a run; a dotted line at K, where W starts to move.

    Args: name -> (T+1,); start: K, 0 draws none.
    """
    fig, (ax,) = style.panels(1, 1, 3.2, None, width=8.0)
    for name, look in style.looks(curves).items():
        ax.plot(curves[name], **{**look, "marker": ""}, linewidth=2)
    if start:
        ax.axvline(start, color=style.GREY, linestyle=":", linewidth=1.3, label="K")
    style.dress(ax, "Optimizer step", ylabel)
    style.legend(fig)
    return fig


# ---- explorers: what the sliders move ---------------------------------------------------------------------

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
        self.problem = toy_problems.problem()
        self.plain = self._solve()
        super().__init__()

    def _solve(self, **values: Any) -> toy_problems.Trajectory:
        return toy_problems.solve(self.problem, r=R, steps=STEPS, **{"alpha": ALPHA, **values})

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


# ---- exercises: the library's answers, and what usual mistakes would give ---------------------------------

Call = Callable[..., Any]


def _walk(W: Tensor, As: Tensor, Bs: Tensor, lora_alpha: float, lam: float, K: int) -> Adapters:
    """The library's rule along given factors As (T+1, r, k), Bs (T+1, d, r): no loss, no optimizer."""
    method = DeltaLoRA(r=As.shape[1], lora_alpha=lora_alpha, lam=lam, K=K, sites=("0",))
    adapters = adapted_matrix(W, method)
    total = len(As) - 1
    adapters.rule.start(Clock(0, total, total), None)  # type: ignore[arg-type]  # asks nothing of the loop
    _set(adapters, As[0], Bs[0])
    for step in range(1, total + 1):
        adapters.rule.before_step(Clock(step, total, total))
        _set(adapters, As[step], Bs[step])   # in the place of the optimizer's step
        adapters.rule.after_step(Clock(step, total, total))
    return adapters


def _set(adapters: Adapters, A: Tensor, B: Tensor) -> None:
    adapters["0"].lora_A.data, adapters["0"].lora_B.data = A.clone(), B.clone()


def delta_step(W: Tensor, lora_A: Tensor, lora_B: Tensor, new_A: Tensor, new_B: Tensor, lora_alpha: float,
               lam: float) -> Tensor:
    """The library's W (d, k) after one step past K."""
    As, Bs = torch.stack([lora_A, new_A]), torch.stack([lora_B, new_B])
    return _walk(W, As, Bs, lora_alpha, lam, 0).owner("0").W.detach()


def left_factor(lora_A: Tensor, lora_B: Tensor, new_A: Tensor, new_B: Tensor) -> Tensor:
    """The library's left factor (d, 2r) of one step, beside [A'; A' − A]."""
    return step_factors(lora_B, lora_A, new_B, new_A)[0]


def delta_run(W: Tensor, As: Tensor, Bs: Tensor, lora_alpha: float, lam: float, K: int) -> Tensor:
    """The library's W (d, k) after the whole path of factors."""
    return _walk(W, As, Bs, lora_alpha, lam, K).owner("0").W.detach()


def whole_change(lora_A: Tensor, lora_B: Tensor, A_K: Tensor, B_K: Tensor, lora_alpha: float, lam: float) -> Tensor:
    """The library's W* − W₀ (d, k): what W holds and the branch beside it."""
    W = torch.zeros(len(lora_B), lora_A.shape[1], dtype=lora_A.dtype)
    return _walk(W, torch.stack([A_K, lora_A]), torch.stack([B_K, lora_B]), lora_alpha, lam, 0)["0"].delta()


def highest_ranks(d: int, k: int, r: int, T: int) -> list[int]:
    """Rank of the library's W* − W₀ after T steps, for K = 0, T // 2 and T."""
    return [_rank_after_random_steps(d, k, r, K, T) for K in (0, T // 2, T)]


def _rank_after_random_steps(d: int, k: int, r: int, K: int, T: int) -> int:
    """From B = 0, as a training starts."""
    g = torch.Generator().manual_seed(T)
    As = torch.randn(T + 1, r, k, generator=g, dtype=torch.float64)
    Bs = torch.randn(T + 1, d, r, generator=g, dtype=torch.float64)
    Bs[0] = 0
    branch = _walk(torch.zeros(d, k, dtype=torch.float64), As, Bs, 2.0 * r, 2.0, K)["0"]
    return measures.numerical_rank(torch.linalg.svdvals(branch.delta()), 1e-9)


def same_alpha(lora_alpha: float, lam: float, r: int) -> float:
    """α of the LoRA whose change the library's Delta-LoRA with K = 0 has: its change over that of α = 1."""
    A, B = (torch.eye(r, dtype=torch.float64).expand(2, r, r).clone() for _ in "AB")
    B[0] = 0
    change = _walk(torch.zeros(r, r, dtype=torch.float64), A, B, lora_alpha, lam, 0)["0"].delta()
    return float(change[0, 0] * r)


# what is tried


def _path(d: int, k: int, r: int, T: int) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(d + T)
    return (torch.randn(d, k, generator=g), torch.randn(T + 1, r, k, generator=g),
            torch.randn(T + 1, d, r, generator=g))


def _steps() -> list[tuple]:
    made = []
    for (d, k, r), alpha, lam in (((6, 9, 2), 8.0, 0.7), ((9, 7, 3), 4.5, 2.0)):
        W, As, Bs = _path(d, k, r, 1)
        made.append((W, As[0], Bs[0], As[1], Bs[1], alpha, lam))
    return made


def _runs() -> list[tuple]:
    return [(*_path(6, 9, 2, 7), 8.0, 0.7, 2), (*_path(9, 7, 3, 6), 4.5, 2.0, 3)]


# each mistake as the library called with other arguments, where that can be


def _of_a_step(change: Callable[..., tuple]) -> Call:
    return lambda *arguments: delta_step(*change(*arguments))


_STEP: list[tuple[str, Call]] = [
    ("the scale is missing: the difference is multiplied by λ · s with s = α / r",
     _of_a_step(lambda W, A, B, A2, B2, a, lam: (W, A, B, A2, B2, len(A), lam))),
    ("the scale stands there twice: λ · s, once, outside the difference",
     _of_a_step(lambda W, A, B, A2, B2, a, lam: (W, A, B, A2, B2, a * a / len(A), lam))),
    ("you scale by α; s is α / r",
     _of_a_step(lambda W, A, B, A2, B2, a, lam: (W, A, B, A2, B2, a * len(A), lam))),
    ("that adds the whole new product at once: only what this step changed goes into W, B′A′ − B A",
     _of_a_step(lambda W, A, B, A2, B2, a, lam: (W, A, 0 * B, A2, B2, a, lam))),
    ("that adds the product as it was before the step: take the difference B′A′ − B A",
     _of_a_step(lambda W, A, B, A2, B2, a, lam: (W, A, 0 * B, A, B, a, lam))),
    ("the sign is turned round: the new product less the old one",
     _of_a_step(lambda W, A, B, A2, B2, a, lam: (W, A2, B2, A, B, a, lam))),
    ("λ is missing", _of_a_step(lambda W, A, B, A2, B2, a, lam: (W, A, B, A2, B2, a, 1.0))),
    ("that is the product of the differences; wanted is the difference of the products",
     _of_a_step(lambda W, A, B, A2, B2, a, lam: (W, A, 0 * B, A2 - A, B2 - B, a, lam))),
    ("that is the deployed matrix W + s B′A′; here only W moves, and the branch stays beside it",
     lambda W, A, B, A2, B2, a, lam: delta_step(W, A, 0 * B, A2, B2, a, 1.0))]

_LEFT: list[tuple[str, Call]] = [
    ("B′ beside A′ − A counts ΔB ΔA twice: the second block is the B before the step",
     lambda A, B, A2, B2: torch.cat([B2 - B, B2], 1)),
    ("these blocks belong to the right factor [A′; A]; here it is [A′; A′ − A]",
     lambda A, B, A2, B2: torch.cat([B2, -B], 1)),
    ("the blocks are in the other order: the first r columns meet A′, the last r meet A′ − A",
     lambda A, B, A2, B2: torch.cat([B, B2 - B], 1)),
    ("the sign of ΔB: the new B less the old one", lambda A, B, A2, B2: torch.cat([B - B2, B], 1))]

_RUN: list[tuple[str, Call]] = [
    ("the first change is a jump: what the product had become by step K goes into W at once; follow the product "
     "from step 0 on, and add only differences of consecutive steps",
     lambda W, As, Bs, a, lam, K: delta_run(W, As, torch.cat([0 * Bs[:1], Bs[1:]]), a, lam, 0)),
    ("W moves one step early: the first change comes at step K + 1, not at K",
     lambda W, As, Bs, a, lam, K: delta_run(W, As, Bs, a, lam, K - 1)),
    ("W moves one step late: the step K + 1 changes it already",
     lambda W, As, Bs, a, lam, K: delta_run(W, As, Bs, a, lam, K + 1)),
    ("K is not looked at: the first K steps leave W alone",
     lambda W, As, Bs, a, lam, K: delta_run(W, As, Bs, a, lam, 0)),
    ("λ is missing", lambda W, As, Bs, a, lam, K: delta_run(W, As, Bs, a, 1.0, K)),
    ("W no longer moves at all", lambda W, As, Bs, a, lam, K: W)]


def _changed(change: Callable[..., tuple]) -> Call:
    return lambda *arguments: whole_change(*change(*arguments))


_WHOLE: list[tuple[str, Call]] = [
    ("that is what W holds; the deployed matrix has the branch s B A beside it, too",
     lambda A, B, A_K, B_K, a, lam: delta_step(torch.zeros(len(B), A.shape[1]), A_K, B_K, A, B, a, lam)),
    ("that is the branch alone: W moved, too", _changed(lambda A, B, A_K, B_K, a, lam: (A, B, A, B, a, 0.0))),
    ("what was there at step K never went into W: subtract λ s B_K A_K",
     _changed(lambda A, B, A_K, B_K, a, lam: (A, B, A_K, 0 * B_K, a, lam))),
    ("the whole product of step K is subtracted: only λ times it never went into W",
     lambda A, B, A_K, B_K, a, lam: whole_change(A, B, A_K, 0 * B_K, a, lam)
     - whole_change(A_K, B_K, A_K, B_K, a, 0.0)),
    ("the scale is missing: s = α / r", _changed(lambda A, B, A_K, B_K, a, lam: (A, B, A_K, B_K, len(A), lam))),
    ("what was there at step K is added: it is subtracted",
     _changed(lambda A, B, A_K, B_K, a, lam: (A, B, A_K, -B_K, a, lam)))]

_RANKS: list[tuple[str, Call]] = [
    ("that would be so if every step brought directions of its own; but the sum telescopes",
     lambda d, k, r, T: [min(2 * r * T, d, k), min(2 * r * (T - T // 2), d, k), r]),
    ("with K = 0 the product at step K is zero, so one product is left; and with K = T only the branch is",
     lambda d, k, r, T: [min(2 * r, d, k)] * 3),
    ("with K = T // 2 two different products are left: that of the last step and that of step K",
     lambda d, k, r, T: [r] * 3),
    ("W is d × k, but what was added to it need not be of full rank", lambda d, k, r, T: [min(d, k)] * 3),
    ("with K = T W never moves, but the branch is there", lambda d, k, r, T: [r, min(2 * r, d, k), 0])]

_ALPHA: list[tuple[str, Call]] = [
    ("that is what W holds; the branch stays beside it and counts once more", lambda a, lam, r: a * lam),
    ("λ multiplies the product; it is not added to α", lambda a, lam, r: a + lam),
    ("the wrong way: W moves along, so the equal LoRA is the larger one", lambda a, lam, r: a / (1 + lam)),
    ("that is the scale s; asked is α, which LoRA divides by r itself",
     lambda a, lam, r: same_alpha(a, lam, r) / r),
    ("then W would not move at all", lambda a, lam, r: a)]

EXERCISES.update({
    "delta_step": Task(delta_step, _steps, "W plus λ · s · (new_B new_A − lora_B lora_A), with s = α / r", _STEP,
                       (DeltaLoRARule._add_step, step_factors)),
    "left_factor": Task(left_factor, lambda: [arguments[1:5] for arguments in _steps()],
                        "write B′A′ − B A as X A′ + Y (A′ − A), and put X and Y side by side", _LEFT,
                        (step_factors,)),
    "delta_run": Task(delta_run, _runs, "two things are wrong: when it begins, and what it subtracts", _RUN,
                      (DeltaLoRARule.before_step, DeltaLoRARule.after_step, DeltaLoRARule._add_step)),
    "whole_change": Task(whole_change, lambda: [(A[1], B[1], A[0], B[0], alpha, lam) for A, B, alpha, lam in
                                                ((As, Bs, alpha, lam) for _, As, Bs, alpha, lam, _ in _runs())],
                         "add up what W holds, λ s (B A − B_K A_K), and the branch, s B A", _WHOLE,
                         (DeltaLoRARule._anchor,)),
    "highest_ranks": Task(highest_ranks, lambda: [(40, 30, 3, 8), (6, 9, 4, 6)],
                          "count the products that are left in the closed form, each of rank r; and no rank is above "
                          "min(d, k)", _RANKS, (DeltaLoRARule._anchor,)),
    "same_alpha": Task(same_alpha, lambda: [(16.0, 0.5, 8), (4.0, 2.0, 2)],
                       "set B_K = 0 in the closed form and compare it with s B A", _ALPHA, (DeltaLoRARule._anchor,)),
})

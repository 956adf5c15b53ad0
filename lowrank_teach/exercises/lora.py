"""The exercises of 02: how A and B start, forward pass, merge, parameter count, α at another rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters import adapt
from ..lowrank import Adapted, LowRank, initial_A
from ..methods import LoRA
from ..methods.base import Rule
from .engine import Task

# T rows of x, k in, d out, r rank


def _layer(W: Tensor, lora_A: Tensor, lora_B: Tensor, lora_alpha: float) -> tuple[Any, Adapted]:
    linear = nn.utils.skip_init(nn.Linear, W.shape[1], W.shape[0], bias=False)
    linear.weight.data = W.clone()
    adapters = adapt(nn.Sequential(linear), LoRA(r=len(lora_A), lora_alpha=lora_alpha, sites=("0",)), seed=0)
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


TASKS: dict[str, Task] = {
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
}

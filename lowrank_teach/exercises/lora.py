"""The exercises of 02: forward pass, merge, parameter count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters import adapt
from ..lowrank import Adapted, LowRank
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


TASKS: dict[str, Task] = {
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
}

"""Clipping and AdamW for many runs at once: torch's formulae over the tensors of all, in a dozen calls.

Each run keeps its own optimizer, with its groups, rates and moments; only the loop over tensors is shared. On a GPU a
call is a few kernels instead of one for each tensor, and the norms come back in one transfer instead of one a run.
The results are those of `clip_grad_norm_` and of the optimizer's own step, bit for bit on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import AdamW


class Moving(NamedTuple):
    """A parameter that an optimizer is about to step."""

    parameter: Tensor
    gradient: Tensor
    state: dict[str, Tensor]
    rate: float
    decay: float


def _gradients(optimizer: AdamW) -> list[Tensor]:
    """Of all that it steps."""
    return [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


@torch.no_grad()
def gradient_norms(optimizers: Sequence[AdamW]) -> Tensor:
    """(R,) Euclidean norm of the gradients of all that each optimizer steps."""
    of_each = [_gradients(optimizer) for optimizer in optimizers]
    if not (every := [gradient for gradients in of_each for gradient in gradients]):
        return torch.zeros(len(optimizers), device="cpu")
    norms, none = iter(torch._foreach_norm(every)), every[0].new_zeros(())
    return torch.stack([torch.linalg.vector_norm(torch.stack([next(norms) for _ in gradients])) if gradients else none
                        for gradients in of_each])


@torch.no_grad()
def clip(optimizers: Sequence[AdamW], norms: Tensor, limits: Sequence[float]) -> None:
    """Scale each optimizer's gradients to a norm of `limits` where their norm (R,) is above it, as torch does."""
    factors = (norms.new_tensor(limits) / (norms + 1e-6)).tolist()
    pairs = [(gradient, factor) for optimizer, factor in zip(optimizers, factors, strict=True) if factor < 1.0
             for gradient in _gradients(optimizer)]
    if pairs:
        torch._foreach_mul_([gradient for gradient, _ in pairs], [factor for _, factor in pairs])


@torch.no_grad()
def step(optimizers: Sequence[AdamW]) -> None:
    """The next step of every optimizer (Loshchilov and Hutter 2019, algorithm 2, in the order of torch's own).

    One without moments yet, or with settings of its own beside rate, decay, betas and ε, makes its step alone.
    """
    alike: dict[tuple[float, float, float], list[Moving]] = {}
    for optimizer in optimizers:
        if not _plain(optimizer):
            optimizer.step()
            continue
        for group in optimizer.param_groups:
            alike.setdefault((*group["betas"], group["eps"]), []).extend(
                Moving(p, p.grad, optimizer.state[p], group["lr"], group["weight_decay"])
                for p in group["params"] if p.grad is not None)
    for (beta1, beta2, eps), moving in alike.items():
        if moving:
            _adamw(moving, beta1, beta2, eps)


def _plain(optimizer: AdamW) -> bool:
    """Whether its step is the one below."""
    special = ("amsgrad", "maximize", "capturable", "differentiable", "fused")
    return (not any(group[name] for group in optimizer.param_groups for name in special)
            and all(optimizer.state.get(p) for group in optimizer.param_groups for p in group["params"]
                    if p.grad is not None))


def _adamw(moving: list[Moving], beta1: float, beta2: float, eps: float) -> None:
    parameters, gradients = [m.parameter for m in moving], [m.gradient for m in moving]
    counts, first, second = ([m.state[name] for m in moving] for name in ("step", "exp_avg", "exp_avg_sq"))
    torch._foreach_add_(counts, 1)
    if any(m.decay for m in moving):
        torch._foreach_mul_(parameters, [1 - m.rate * m.decay for m in moving])
    torch._foreach_lerp_(first, gradients, 1 - beta1)
    torch._foreach_mul_(second, beta2)
    torch._foreach_addcmul_(second, gradients, gradients, 1 - beta2)
    steps = torch.stack(counts).tolist()
    below = torch._foreach_sqrt(second)
    torch._foreach_div_(below, [(1 - beta2 ** t) ** 0.5 for t in steps])
    torch._foreach_add_(below, eps)
    torch._foreach_addcdiv_(parameters, first, below,
                            [-m.rate / (1 - beta1 ** t) for m, t in zip(moving, steps, strict=True)])

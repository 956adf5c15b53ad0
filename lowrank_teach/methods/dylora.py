"""DyLoRA: one training, usable at every rank up to r (Valipour et al. 2023, EACL, arXiv 2210.07558).

    before each step  b ~ p(r_min … r)
    h  =  W x  +  (α / b) · B[:, :b] A[:b] x

The first directions are in every draw and the last ones in few, so what matters most gathers in front: the trained
branch may be cut to any b afterwards, without training again (`truncate`). The cut is a gate, (r / b) on the first b
directions and 0 on the others, since the branch is already scaled by α / r. A baseline; taught in 07.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import require, shown
from ..lowrank import LowRank
from ..precision import Wide
from ..sites import Site
from .base import Clock, Loop, Method, Rule, require_rank


@dataclass(frozen=True, kw_only=True)
class DyLoRA(Method):
    """LoRA trained at a rank that is drawn anew before each step, one for all matrices.

    Trained again, all directions go on, also those that `truncate` has cut off; the cut stays as it is.

    The scale is α / b, as in the authors' code (√(r / b) on each factor, and α / r); so a small b is not a weak one.

    Args:
        r: the largest rank.  r_min: the smallest that is drawn, and that can be cut to.
        frozen: a step moves row b of A and column b of B alone (the paper's cheaper variant); the others keep
            their values to the last bit. Otherwise a step trains the first b, and the rest get no gradient (Adam's
            momentum may still carry them, as in the authors' code).
        distribution: of b: "uniform", or "geometric" (p (1 − p)^(b − r_min), cut off at r), which favours small b.
        p: of the geometric one.
    """

    r_min: int = 1
    frozen: bool = False
    distribution: str = "uniform"
    p: float = 0.15

    name: ClassVar[str] = "dylora"
    paper: ClassVar[str] = "Valipour et al. 2023, EACL, arXiv 2210.07558"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1 <= self.r_min <= self.r, f"r_min = {self.r_min} must lie in 1 .. r = {self.r}")
        require(self.distribution in ("uniform", "geometric"), f"distribution {shown(self.distribution)} must be "
                                                               "'uniform' or 'geometric'")
        require(0 < self.p < 1, f"p = {self.p} must lie between 0 and 1")

    def rule(self) -> DyLoRARule:
        return DyLoRARule(self)

    def probabilities(self) -> Tensor:
        """Return p(b) for b = r_min … r: (r − r_min + 1,), summing to one."""
        steps = torch.arange(self.r - self.r_min + 1, dtype=torch.float64, device="cpu")
        weights = (1 - self.p) ** steps if self.distribution == "geometric" else torch.ones_like(steps)
        return weights / weights.sum()


class Nested(Wide):
    """The gate of one site: r / b on the first b directions, 0 on the others.

    b is `drawn` while a training draws ranks, and `rank` (r, or what it was cut to) in eval mode and afterwards.
    Both are buffers, so a checkpoint holds them.
    """

    rank: Tensor   # ()
    drawn: Tensor  # (); 0: nothing is drawn
    like: Tensor

    def __init__(self, r: int) -> None:
        super().__init__()
        self.r = r
        self.register_buffer("rank", torch.tensor(r, device="cpu"))
        self.register_buffer("drawn", torch.tensor(0, device="cpu"))
        like = torch.ones((), dtype=torch.float32, device="cpu")  # takes the branch's dtype and device
        self.register_buffer("like", like, persistent=False)

    def forward(self) -> Tensor:
        """Return g (r,)."""
        return self._first(torch.where(self.drawn > 0, self.drawn, self.rank) if self.training else self.rank)

    def settled(self) -> Tensor:
        """Return g (r,) of what is deployed, whatever is drawn."""
        return self._first(self.rank)

    def _first(self, b: Tensor) -> Tensor:
        return (torch.arange(self.r, device=b.device) < b) * (self.r / b.to(self.like))


class DyLoRARule(Rule):
    """Draws b before each step."""

    method: DyLoRA

    def __init__(self, method: DyLoRA) -> None:
        super().__init__(method)
        self.b = method.r
        self._hooks: list[Any] = []
        self._kept: list[tuple[nn.Parameter, int, Tensor]] = []  # factor, the dimension of its directions, values

    def branch(self, site: Site) -> LowRank:
        m = self.method
        return self.low_rank(site, m.r, m.lora_alpha / m.r, Nested(require_rank(site, m.r)))

    def gates(self) -> dict[str, Nested]:
        return {name: branch.gate_module for name, branch in self.adapters.items()}  # type: ignore[misc]

    def _factors(self) -> list[tuple[nn.Parameter, int]]:
        return [pair for branch in self.adapters.values() for pair in ((branch.lora_A, 0), (branch.lora_B, 1))]

    def start(self, clock: Clock, loop: Loop) -> None:
        super().start(clock, loop)
        for hook in self._hooks:  # of an earlier training of the same branches
            hook.remove()
        self._hooks = [factor.register_hook(lambda g, dim=dim: self._only_b(g, dim))  # type: ignore[no-untyped-call]
                       for factor, dim in self._factors()] if self.method.frozen else []

    def _only_b(self, gradient: Tensor, dim: int) -> Tensor:
        """Return the gradient of direction b, and zero for the others."""
        kept = torch.zeros_like(gradient)
        kept.select(dim, self.b - 1).copy_(gradient.select(dim, self.b - 1))
        return kept

    @torch.no_grad()
    def before_step(self, clock: Clock) -> None:
        m = self.method
        self.b = m.r_min + int(torch.multinomial(m.probabilities(), 1, generator=self.generator))
        for gate in self.gates().values():
            gate.drawn.fill_(self.b)
        if m.frozen:
            self._kept = [(factor, dim, factor.clone()) for factor, dim in self._factors()]

    @torch.no_grad()
    def after_step(self, clock: Clock) -> None:
        for factor, dim, before in self._kept:  # momentum and weight decay have moved the others too
            before.select(dim, self.b - 1).copy_(factor.select(dim, self.b - 1))
            factor.copy_(before)
        self._kept = []

    def finish(self) -> None:
        """Stop drawing: the branches run at rank r, or at what they were cut to."""
        for gate in self.gates().values():
            gate.drawn.zero_()

    def truncate(self, b: int) -> None:
        """Use the first b directions of every branch, scaled by α / b; `truncate(r)` opens all again.

        Raises:
            ValueError: b is outside r_min … r, the ranks that were drawn.
        """
        m = self.method
        require(m.r_min <= b <= m.r, f"rank {b} was never drawn in training; choose one of {m.r_min} .. {m.r}")
        for gate in self.gates().values():
            gate.rank.fill_(b)

    def site_ranks(self) -> dict[str, int]:
        return {name: int(gate.rank) for name, gate in self.gates().items()}

    def log(self) -> dict[str, float | dict[str, float]]:
        return {"drawn_rank": float(self.b)}

"""How a gate g is made: hard-concrete (SaLoRA) and the selection weights α of AutoLoRA.

A gate is a module without input that returns g (r,). Its formulae are plain functions of tensors, so that a
plot or a slider can call them too. Taught in 04 and 06.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .precision import Wide


@dataclass(frozen=True)
class Stretch:
    """The constants of a hard-concrete variable (Louizos et al. 2018): temperature τ and the interval (γ, ζ)."""

    tau: float = 1.0
    gamma: float = -0.1
    zeta: float = 1.1

    @property
    def shift(self) -> float:
        """The logit of P(g > 0) at log θ = 0: τ log(−ζ/γ), log 11 with the usual constants."""
        return self.tau * math.log(-self.zeta / self.gamma)

    def open_probability(self, log_theta: Tensor) -> Tensor:
        """P(g > 0) = σ(log θ − τ log(−γ/ζ)), of any shape."""
        return torch.sigmoid(log_theta + self.shift)

    def full_probability(self, log_theta: Tensor) -> Tensor:
        """P(g = 1) = σ(log θ − τ log((1 − γ)/(ζ − 1))), of any shape."""
        return torch.sigmoid(log_theta - self.tau * math.log((1 - self.gamma) / (self.zeta - 1)))

    def pdf(self, log_theta: Tensor, g: Tensor) -> Tensor:
        """Density of the gate at g in (0, 1), shapes broadcast; it integrates to P(g > 0) − P(g = 1).

        With x = (g − γ)/(ζ − γ), P(s̄ ≤ g) = F = σ(τ logit x − log θ); its derivative is τ F(1 − F)/(x(1 − x)(ζ − γ)).
        """
        width = self.zeta - self.gamma
        x = (g - self.gamma) / width
        F = torch.sigmoid(self.tau * torch.logit(x) - log_theta)
        return self.tau * F * (1 - F) / (x * (1 - x) * width)

    def sample(self, log_theta: Tensor, u: Tensor) -> Tensor:
        """A gate in [0, 1] from uniform noise u of log θ's shape; exactly 0 and exactly 1 have mass.

        s̄ = σ((logit u + log θ)/τ)(ζ − γ) + γ,  g = clip(s̄, 0, 1)
        """
        s = torch.sigmoid((torch.logit(u) + log_theta) / self.tau) * (self.zeta - self.gamma) + self.gamma
        return s.clamp(0, 1)

    def deterministic(self, log_theta: Tensor) -> Tensor:
        """clip(σ(log θ/τ)(ζ − γ) + γ, 0, 1): zero where log θ ≤ −τ log(−ζ/γ), P(g > 0) ≤ 1/2 if τ = 1."""
        return (torch.sigmoid(log_theta / self.tau) * (self.zeta - self.gamma) + self.gamma).clamp(0, 1)

    def mean(self, log_theta: Tensor, points: int = 4001) -> Tensor:
        """E[g], by the midpoint rule over u. Never zero: "keep if E[g] > 0", read literally, keeps everything."""
        u = (torch.arange(points, dtype=log_theta.dtype, device=log_theta.device) + 0.5) / points
        return self.sample(log_theta.unsqueeze(-1), u).mean(-1)


class HardConcrete(Wide):
    """The gates of one site: log θ (r,), this step's noise, and the phase that says what g is now.

    phase: "open" (g = 1), "sampled" (in training; deterministic in eval mode), "deterministic", "folded" (g = 1).
    """

    u: Tensor  # (r,)

    def __init__(self, stretch: Stretch, r: int) -> None:
        super().__init__()
        self.stretch, self.phase = stretch, "open"
        self.log_theta = nn.Parameter(torch.zeros(r, dtype=torch.float32, device="cpu"))  # P(g > 0) = σ(log 11)
        self.register_buffer("u", torch.full_like(self.log_theta, 0.5))  # anew each step, shared by the whole batch

    def forward(self) -> Tensor:
        """g (r,)."""
        if self.phase == "sampled" and self.training:
            return self.stretch.sample(self.log_theta, self.u)
        return self.settled()

    def settled(self) -> Tensor:
        """g (r,) without noise: what is deployed."""
        if self.phase in ("open", "folded"):
            return torch.ones_like(self.log_theta)
        return self.stretch.deterministic(self.log_theta)


def draw(gates: Sequence[HardConcrete], generator: torch.Generator) -> None:
    """Noise of one step for all gates, which are sampled from now on: each takes the generator's next r numbers."""
    counts = [len(gate.u) for gate in gates]
    noise = torch.rand(sum(counts), generator=generator, dtype=torch.float32, device="cpu")
    noise = noise.clamp(1e-6, 1 - 1e-6).to(gates[0].u)
    for gate, u in zip(gates, noise.split(counts), strict=True):
        gate.phase, gate.u = "sampled", u.clone()


class Selection(Wide):
    """AutoLoRA's selection weights of one site: β (r,) -> α (r,).

    constraint: "softmax" (α sums to one; the paper), "sigmoid" (element-wise), "none" (α = β, raw).
    """

    def __init__(self, r: int, constraint: str = "softmax") -> None:
        super().__init__()
        self.constraint = constraint
        # each variant starts at its own threshold, so that no direction is ahead of another
        start = {"softmax": 0.0, "sigmoid": 0.0, "none": 1 / r}[constraint]
        self.beta = nn.Parameter(torch.full((r,), start, dtype=torch.float32, device="cpu"))

    def forward(self) -> Tensor:
        """α (r,)."""
        if self.constraint == "softmax":
            return torch.softmax(self.beta, 0)
        return torch.sigmoid(self.beta) if self.constraint == "sigmoid" else self.beta

    settled = forward  # no noise to leave out

    @torch.no_grad()
    def rank(self, tolerance: float = 1e-6) -> int:
        """How many directions are kept (AutoLoRA §3.3): α ≥ 1/r; at least one, since the largest is.

        The tolerance counts the all-equal start as rank r, whatever the rounding. Ablations: sigmoids are kept
        at α ≥ 0.5 (which can leave none), raw weights at α ≥ their mean.
        """
        alpha = self().double()
        limit = {"softmax": 1 / len(alpha), "sigmoid": 0.5, "none": float(alpha.mean())}[self.constraint]
        return int((alpha >= limit - tolerance).sum())

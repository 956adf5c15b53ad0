"""Gates g on the directions of a branch: hard-concrete gates (SaLoRA) and selection weights α (AutoLoRA).

A gate is a module without input that returns g (r,). Its formulas are plain functions of tensors, so that plots and
sliders can call them too. Taught in 04 and 06.
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
    """The constants of a hard-concrete variable (Louizos et al. 2018): temperature τ and interval γ < 0, ζ > 1."""

    tau: float = 1.0
    gamma: float = -0.1
    zeta: float = 1.1

    @property
    def shift(self) -> float:
        """The logit of P(g > 0) at log θ = 0, which is τ log(−ζ/γ): log 11 with the default constants."""
        return self.tau * math.log(-self.zeta / self.gamma)

    def open_probability(self, log_theta: Tensor) -> Tensor:
        """Return P(g > 0) = σ(log θ − τ log(−γ/ζ)) in the shape of log θ."""
        return torch.sigmoid(log_theta + self.shift)

    def full_probability(self, log_theta: Tensor) -> Tensor:
        """Return P(g = 1) = σ(log θ − τ log((1 − γ)/(ζ − 1))) in the shape of log θ."""
        return torch.sigmoid(log_theta - self.tau * math.log((1 - self.gamma) / (self.zeta - 1)))

    def pdf(self, log_theta: Tensor, g: Tensor) -> Tensor:
        """Return the density of the gate at g in (0, 1), which integrates to P(g > 0) − P(g = 1). Shapes broadcast.

        With x = (g − γ)/(ζ − γ), P(s̄ ≤ g) = F = σ(τ logit x − log θ); its derivative is τ F(1 − F)/(x(1 − x)(ζ − γ)).
        """
        width = self.zeta - self.gamma
        x = (g - self.gamma) / width
        F = torch.sigmoid(self.tau * torch.logit(x) - log_theta)
        return self.tau * F * (1 - F) / (x * (1 - x) * width)

    def sample(self, log_theta: Tensor, u: Tensor) -> Tensor:
        """Return a gate in [0, 1] from uniform noise u in the shape of log θ; 0 and 1 have positive probability.

        s̄ = σ((logit u + log θ)/τ)(ζ − γ) + γ,  g = clip(s̄, 0, 1)
        """
        s = torch.sigmoid((torch.logit(u) + log_theta) / self.tau) * (self.zeta - self.gamma) + self.gamma
        return s.clamp(0, 1)

    def deterministic(self, log_theta: Tensor) -> Tensor:
        """Return clip(σ(log θ/τ)(ζ − γ) + γ, 0, 1), which is zero where P(g > 0) ≤ 1/2, if τ = 1."""
        return (torch.sigmoid(log_theta / self.tau) * (self.zeta - self.gamma) + self.gamma).clamp(0, 1)

    def mean(self, log_theta: Tensor, points: int = 4001) -> Tensor:
        """Return E[g] by the midpoint rule over u. It is never zero, so "keep if E[g] > 0" would keep everything."""
        u = (torch.arange(points, dtype=log_theta.dtype, device=log_theta.device) + 0.5) / points
        return self.sample(log_theta.unsqueeze(-1), u).mean(-1)


class HardConcrete(Wide):
    """The gates of one site: the trainable log θ (r,), the noise u (r,) of this step, and a phase.

    phase: "open" (g = 1), "sampled" (deterministic in eval mode), "deterministic", or "folded" into B (g = 1).
    """

    u: Tensor  # (r,)

    def __init__(self, stretch: Stretch, r: int) -> None:
        super().__init__()
        self.stretch, self.phase = stretch, "open"
        self.log_theta = nn.Parameter(torch.zeros(r, dtype=torch.float32, device="cpu"))  # P(g > 0) = σ(log 11)
        self.register_buffer("u", torch.full_like(self.log_theta, 0.5))  # one draw a step for the whole batch

    def forward(self) -> Tensor:
        """Return g (r,)."""
        if self.phase == "sampled" and self.training:
            return self.stretch.sample(self.log_theta, self.u)
        return self.settled()

    def settled(self) -> Tensor:
        """Return g (r,) without noise, as it is deployed."""
        if self.phase in ("open", "folded"):
            return torch.ones_like(self.log_theta)
        return self.stretch.deterministic(self.log_theta)


def draw(gates: Sequence[HardConcrete], generator: torch.Generator) -> None:
    """Draw the noise of one step for all gates, r numbers each, and set their phase to "sampled"."""
    counts = [len(gate.u) for gate in gates]
    noise = torch.rand(sum(counts), generator=generator, dtype=torch.float32, device="cpu")
    noise = noise.clamp(1e-6, 1 - 1e-6).to(gates[0].u)
    for gate, u in zip(gates, noise.split(counts), strict=True):
        gate.phase, gate.u = "sampled", u.clone()


class Selection(Wide):
    """AutoLoRA's selection weights α (r,) of one site, computed from the trainable β (r,).

    constraint: "softmax" (α sums to one, as in the paper), "sigmoid" (element-wise), or "none" (α = β).
    """

    def __init__(self, r: int, constraint: str = "softmax") -> None:
        super().__init__()
        self.constraint = constraint
        # α starts at the threshold of `rank`, so that no direction is preferred
        start = {"softmax": 0.0, "sigmoid": 0.0, "none": 1 / r}[constraint]
        self.beta = nn.Parameter(torch.full((r,), start, dtype=torch.float32, device="cpu"))

    def forward(self) -> Tensor:
        """Return α (r,)."""
        if self.constraint == "softmax":
            return torch.softmax(self.beta, 0)
        return torch.sigmoid(self.beta) if self.constraint == "sigmoid" else self.beta

    settled = forward  # α has no noise

    @torch.no_grad()
    def rank(self, tolerance: float = 1e-6, raw: bool = False) -> int:
        """Return the number of directions with α ≥ 1/r (AutoLoRA, section 4.4), which is at least one.

        The ablations keep sigmoids with α ≥ 0.5 (possibly none) and raw weights at or above their mean.
        tolerance: allowed below the threshold, so that equal weights count as rank r in spite of rounding.
        raw: count β at or above its mean instead, as the authors' search script does (β/Σβ ≥ 1/r, for β around 1).
        """
        alpha = (self.beta if raw else self()).double()
        mean = float(alpha.mean())
        limit = mean if raw else {"softmax": 1 / len(alpha), "sigmoid": 0.5, "none": mean}[self.constraint]
        return int((alpha >= limit - tolerance).sum())

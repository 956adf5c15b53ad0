"""SaLoRA: after LoRA, let each direction have a gate and the budget close some (Hu et al. 2023,
Mathematics 11(20), 4317).

    s̄ = σ((logit u + log θ)/τ)(ζ − γ) + γ,  g = clip(s̄, 0, 1),  u ~ U(0, 1)        hard-concrete gate
    C = Σ P(g > 0)(d + k) / Σ r (d + k)                                             expected density
    loss = task + β R + λ (C − b)²,   R = mean of ‖A Aᵀ − I‖² + ‖Bᵀ B − I‖²         descent, but λ ascends

Gates are all one before T_start, sampled anew at each step inside the window, deterministic and pruned after
T_end; what is left of a gate is folded into B at the end. Taught in 04.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ..gates import Stretch
from .base import Method, require
from .checks import require_shares, shown
from .salora_rule import SaLoRARule


@dataclass(frozen=True, kw_only=True)
class SaLoRA(Method):
    """Gated LoRA on all matrices, driven to a density of b.

    Trained again after its window has closed, it goes on as LoRA at the ranks that were kept: without gates, window
    or penalty. Stopped before that, it opens a new window on the gates as they are, with λ from zero. In a chain the
    gates are each link's own, and a second training starts with new ones.

    Args:
        b: target density in (0, 1].  beta: weight of the orthogonality penalty R.
        eta_c: rate of log θ and of λ (the paper: 0.01).  t_start, t_end: the gate window, as shares of the
            training (floats) or steps (ints); the paper gives its length, 30 %, not its place.
        tau, gamma, zeta: temperature and stretch of the hard-concrete gate.
        gate_betas, lambda_betas: Adam's β₁, β₂ for log θ and for λ. With the usual 0.9 on the gates momentum carries
            the density past b, and with the usual 0.999 on λ the ascent stalls before a small b is reached.
        ascent: "adam" or "sgd" for λ. With "sgd" λ gains at most eta_c·(C − b)² a step and hardly moves.
        lambda_max: 0 switches the budget off (the paper's ablation λ = 0), None leaves λ free.
        orthogonality: average R over the sites ("mean") or add it up ("sum").
    """

    sites: str | tuple[str, ...] = "all"
    init: str = "unit_rows"
    b: float = 0.5
    beta: float = 0.1
    eta_c: float = 0.01
    t_start: int | float = 0.0
    t_end: int | float = 0.3
    tau: float = 1.0
    gamma: float = -0.1
    zeta: float = 1.1
    gate_betas: tuple[float, ...] = (0.0, 0.999)
    lambda_betas: tuple[float, ...] = (0.9, 0.9)
    ascent: str = "adam"
    lambda_max: float | None = None
    orthogonality: str = "mean"

    name: ClassVar[str] = "salora"
    paper: ClassVar[str] = "Hu et al. 2023, Mathematics 11(20), 4317"
    owns: ClassVar[frozenset[str]] = frozenset({"form"})

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.b <= 1, f"b = {self.b} must lie in (0, 1]: it is the share of directions to keep")
        require(self.beta >= 0 and self.eta_c > 0, "beta must be 0 or more and eta_c above 0")
        require(self.tau > 0 and self.gamma < 0 and self.zeta > 1, "a hard-concrete gate needs tau > 0, gamma < 0 "
                                                                  "and zeta > 1: else 0 and 1 have no mass")
        require(max(-self.gamma, self.zeta) <= WIDEST, f"gamma = {self.gamma:g} and zeta = {self.zeta:g} must lie "
                f"from -{WIDEST} to {WIDEST}: with a wider stretch hardly any gate is between 0 and 1")
        for betas in (self.gate_betas, self.lambda_betas):
            require(len(betas) == 2 and all(0 <= beta < 1 for beta in betas),
                    f"gate_betas and lambda_betas must be two numbers in [0, 1) each, not {betas}")
        require(self.ascent in ("adam", "sgd"), f"ascent {shown(self.ascent)} must be 'adam' or 'sgd'")
        require(self.orthogonality in ("mean", "sum"), "orthogonality must be 'mean' or 'sum'")
        require(self.lambda_max is None or self.lambda_max >= 0, "lambda_max must be 0 or more, or None")
        require_shares(self, "t_start", "t_end")
        if type(self.t_start) is type(self.t_end):
            require(self.t_end > self.t_start, f"t_end = {self.t_end} must come after t_start = {self.t_start}")

    def rule(self) -> SaLoRARule:
        return SaLoRARule(self)

    @property
    def stretch(self) -> Stretch:
        """The gate's constants, with its formulae."""
        return Stretch(self.tau, self.gamma, self.zeta)

    def shortest_window(self) -> int:
        """Steps from the start's density to b if all gates moved alike, eta_c a step; hardly ever fewer will do."""
        return math.ceil(self._way() / self.eta_c)

    def estimated_window(self) -> int:
        """Steps that are likely to be enough: λ must first outgrow the task's gradient noise on the gates.

        The budget pulls log θ with 2 λ (C − b) p (1 − p): the fewer gates are to stay open, the weaker the pull.
        """
        return math.ceil(self._way() / self.eta_c * (1 + PATIENCE / self.b))

    def _way(self) -> float:
        """How far log θ must fall if all gates were alike."""
        target = math.log(self.b / (1 - self.b)) if self.b < 1 else math.inf
        return max(0.0, self.stretch.shift - target)


WIDEST = 100     # |gamma| and zeta
PATIENCE = 0.4  # measured at b from 0.125 to 0.5 and eta_c up to 0.1: tests/benchmarks/gate_window.py

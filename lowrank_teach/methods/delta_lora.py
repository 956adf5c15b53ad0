"""Delta-LoRA: after LoRA, let W itself follow the change of the product (Zi et al. 2023, arXiv 2309.02411).

After each optimizer step past K:  W ← W + λ · s · (B' A' − B A), the change of that one step; no dropout.

With a constant λ the steps telescope: W_T − W_K = λ s (B_T A_T − B_K A_K). So the whole change has rank ≤ 2r,
and need not be written into W at all (`form="lazy"`): two low-rank terms in the forward pass are the same
function. Taught in 05.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import require, shown
from ..lowrank import LowRank
from .base import Clock, Invariant, Loop, Method, Rule, require_shares


@dataclass(frozen=True, kw_only=True)
class DeltaLoRA(Method):
    """LoRA whose frozen W moves with the difference of consecutive products.

    Trained again, W keeps what it holds: K steps of plain LoRA follow, and W moves on from there. So each training
    telescopes by itself, W_T − W_K = λ s (B_T A_T − B_K A_K).

    Args:
        lam: λ, 0 or more; the paper takes 0.5 on GLUE and XSum, 2 on E2E and WebNLG.
        K: the first K steps are plain LoRA, as a step count (int) or a share of the training (float). The
            paper takes 500 for generation and the warm-up steps on GLUE (6 %).
        form: "in_place" writes W at every step; "lazy" leaves W's bytes alone and adds the terms in the
            forward pass. The same function.
        lam_end: λ runs linearly from lam to lam_end over the steps past K; None keeps it constant. Under a
            schedule the steps no longer telescope: the change is summed in float32, and only "in_place" works.
        allow_dropout: let the branch have dropout all the same: the paper's ablation (table 5), nothing to use.
    """

    lam: float = 0.5
    K: int | float = 0.06
    form: str = "in_place"
    lam_end: float | None = None
    allow_dropout: bool = False

    name: ClassVar[str] = "delta_lora"
    paper: ClassVar[str] = "Zi et al. 2023, arXiv 2309.02411"
    owns: ClassVar[frozenset[str]] = frozenset()

    @property
    def writes_base(self) -> bool:  # type: ignore[override]
        return self.form == "in_place"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.lam >= 0 and (self.lam_end is None or self.lam_end >= 0), f"λ = {self.lam} must be 0 or more")
        require(self.lora_dropout == 0 or self.allow_dropout,
                "Delta-LoRA takes no dropout on the branch (lora_dropout = 0): with it the gradient of B A is not "
                "the gradient of W; use LoRA, or drop it")
        require_shares(self, "K")
        require(self.form in ("in_place", "lazy"), f"form {shown(self.form)} must be 'in_place' or 'lazy'")
        require(self.lam_end is None or self.form == "in_place",
                "a λ schedule has no lazy form: its steps do not telescope; use form='in_place'")

    def with_frozen_base(self) -> DeltaLoRA:
        return self if self.lam_end is not None else self.changed(form="lazy")

    def rule(self) -> DeltaLoRARule:
        return DeltaLoRARule(self)


class DeltaLoRARule(Rule):
    """Writes the change of each step past K into W, or keeps its closed form beside W."""

    method: DeltaLoRA
    nesting = 0

    def __init__(self, method: DeltaLoRA) -> None:
        super().__init__(method)
        # the product that W follows, as it was after the last step, where a partner gates the branch
        self.held: dict[str, tuple[Tensor, Tensor]] = {}

    def start(self, clock: Clock, loop: Loop) -> None:
        super().start(clock, loop)
        self.K = clock.resolve(self.method.K)
        # updates of an earlier training
        self.updated = {name for name, branch in self.adapters.items() if branch.accumulated_update is not None}

    @torch.no_grad()
    def again(self) -> None:
        if not self.K:  # W goes on following the product, from where it is
            self.held = {name: product(self.adapters[name]) for name in self.held}
            return
        self.held = {}
        for branch in self.adapters.values():
            self._follow_product(branch, 0.0)

    def lam(self, clock: Clock) -> float:
        """Return λ of the step in progress."""
        m = self.method
        if m.lam_end is None:
            return m.lam
        past = (clock.step - self.K - 1) / max(clock.total - self.K - 1, 1)
        return m.lam + (m.lam_end - m.lam) * past

    @torch.no_grad()
    def before_step(self, clock: Clock) -> None:
        if clock.step <= self.K:
            return
        if clock.step == self.K + 1 and self.method.lam_end is None and self.method.lam:
            for name, branch in self.adapters.items():
                self._anchor(name, branch)
        self._follow_partner(clock)
        self.before = {name: product(b) for name, b in self.adapters.items()} if self._stepwise() else {}

    def _follow_partner(self, clock: Clock) -> None:
        """Follow what a partner made of the product since the last step, such as gates that opened."""
        for name, held in self.held.items():
            branch = self.adapters[name]
            B, A = product(branch)
            old_B, old_A = (factor.to(B) for factor in held)   # they may come from a checkpoint
            used = old_B.any(0)                                # of directions that were closed nothing is left
            if len(A) < len(old_A) and int(used.sum()) == len(A):
                old_B, old_A = old_B[:, used], old_A[used]
            if A.shape != old_A.shape or not (torch.equal(B, old_B) and torch.equal(A, old_A)):
                self.before = {name: (old_B, old_A)}
                self._follow(name, branch, clock)

    def open_link(self, clock: Clock) -> None:
        self.held = {}   # W holds nothing of the new link

    def _anchor(self, name: str, branch: LowRank) -> None:
        """Start at W* − W = (1 + λ) s B A − λ s B_K A_K: what is there at step K never enters W."""
        if self.method.form == "in_place" and not branch.in_base:
            self.adapters.owner(name).write_in_base(name)  # what is fixed, if anything; else W's own bytes
        self._follow_product(branch, self.method.lam)

    @staticmethod
    def _follow_product(branch: LowRank, merged_share: float) -> None:
        """Let W hold this share of the product from here on; what it holds now becomes fixed, and so W stays."""
        left, right = branch.live_factors()
        left = (branch.merged_share - merged_share) * left
        if left.any():
            branch.fixed_left = torch.cat([branch.fixed_left, left], 1)                  # (d, m + r)
            branch.fixed_right = torch.cat([branch.fixed_right, right], 0)               # (m + r, k)
        branch.merged_share = merged_share

    def _stepwise(self) -> bool:
        """Return whether W is added to step by step; in a short float it is cast from the closed form instead."""
        wide = self.adapters.dtype in (torch.float32, torch.float64)
        return self.method.form == "in_place" and (wide or self.method.lam_end is not None)

    @torch.no_grad()
    def after_step(self, clock: Clock) -> None:
        if clock.step <= self.K or self.method.form == "lazy" or not (self.method.lam or self.method.lam_end):
            return
        for name, branch in self.adapters.items():
            self._follow(name, branch, clock)
            if branch.gate_module is not None:
                self.held[name] = product(branch)

    def _follow(self, name: str, branch: LowRank, clock: Clock) -> None:
        if self._stepwise():
            self._add_step(name, branch, self.lam(clock))
        else:
            self.adapters.owner(name).write_in_base(name)

    def _add_step(self, name: str, branch: LowRank, lam: float) -> None:
        """Add λ s (B' A' − B A) to W, one product of rank r + r'."""
        owner = self.adapters.owner(name)
        left, right = step_factors(*self.before[name], *product(branch))
        scale = lam * branch.scaling
        if self.method.lam_end is None and not branch.in_base:  # W was restored since the last step
            owner.write_in_base(name)
        elif self.method.lam_end is None:
            owner.slice_of(name).addmm_(left.to(owner.W), right.to(owner.W), alpha=scale)
        else:
            branch.accumulated_update = torch.addmm(_zeros_like_site(branch), left, right, alpha=scale) \
                if branch.accumulated_update is None else branch.accumulated_update.addmm_(left, right, alpha=scale)
            owner.write_in_base(name)

    def log(self) -> dict[str, float | dict[str, float]]:
        moved = torch.stack([self._moved(name, branch) for name, branch in self.adapters.items()])
        return {"moved": dict(zip(self.adapters, moved.tolist(), strict=True))}   # one wait for a GPU

    def _moved(self, name: str, branch: LowRank) -> Tensor:
        """Return how far W has moved, ‖W_t − W‖; in the lazy form, how far it would have."""
        if self.method.form == "lazy":
            return product_norm(*branch.factors_in_base())
        owner = self.adapters.owner(name)
        return (owner.slice_of(name).float() - owner.pretrained_of(name).float()).norm()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), **{f"held.{side}.{name}": factor for name, pair in self.held.items()
                                           for side, factor in zip("BA", pair, strict=True)}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        names = [key.removeprefix("held.B.") for key in state if key.startswith("held.B.")]
        self.held = {name: (state[f"held.B.{name}"], state[f"held.A.{name}"]) for name in names}

    def invariants(self, clock: Clock) -> list[Invariant]:
        checks = super().invariants(clock)
        if clock.step == self.K and self.method.form == "in_place":
            early = [n for n, b in self.adapters.items()
                     if b.merged_share or (b.accumulated_update is not None and n not in self.updated)]
            checks.append(Invariant(not early, "W moved before step K + 1"))
        if clock.step == clock.total > self.K and self.method.lam > 0:
            still = [n for n, b in self.adapters.items() if not (b.merged_share or b.accumulated_update is not None)]
            checks.append(Invariant(not still, f"W never moved at {', '.join(still[:4])}, though K = {self.K} is "
                                               f"below the {clock.total} steps"))
        return checks


def product(branch: LowRank) -> tuple[Tensor, Tensor]:
    """Return B diag(g) (d, r) and A (r, k) as they are now, g without noise: W follows what is deployed."""
    B = branch.lora_B.detach()
    return B.clone() if branch.gate_module is None else B * branch.settled_gate(), branch.lora_A.detach().clone()


def product_norm(left: Tensor, right: Tensor) -> Tensor:
    """Return ‖left right‖ for left (d, R), right (R, k), from products of R columns: nothing d × k is formed."""
    return ((left.t() @ left) * (right @ right.t())).sum().clamp_min(0).sqrt()


def step_factors(B: Tensor, A: Tensor, new_B: Tensor, new_A: Tensor) -> tuple[Tensor, Tensor]:
    """Return B' A' − B A as two factors: [ΔB, B] and [A'; ΔA] for equal ranks, so that nothing large cancels.

    Args: B (d, r), A (r, k), new_B (d, r'), new_A (r', k). Returns (d, r + r') and (r + r', k).
    """
    if new_A.shape != A.shape:
        return torch.cat([new_B, -B], 1), torch.cat([new_A, A], 0)
    return torch.cat([new_B - B, B], 1), torch.cat([new_A, new_A - A], 0)


def _zeros_like_site(branch: LowRank) -> Tensor:
    return torch.zeros(branch.lora_B.shape[0], branch.lora_A.shape[1], dtype=branch.lora_A.dtype,
                       device=branch.lora_A.device)

"""COLA, chain of LoRA: after LoRA, now tie a knot (Xia, Qin and Hazan 2024, arXiv 2401.04151).

At a knot the link is added to W, W ← W + s·B A; a new link starts from a Gaussian A and B = 0, and the Adam
moments of A and B start from zero. The function is the same before and after a knot. Taught in 03.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from ..lowrank import LowRank, initial_A
from .base import Clock, Invariant, Loop, Method, Rule, replace_parameter, require, reset_moments, unchanged


@dataclass(frozen=True, kw_only=True)
class COLA(Method):
    """A chain of low-rank links, each trained on what the links before it left.

    Args:
        chain: how many links; 1 is LoRA. Whole epochs go to the links, the first ones taking what is over
            (five epochs: 3 + 2, or 2 + 2 + 1); with fewer epochs than links the steps are split evenly.
        knots: where the knots are instead, as steps (ints) or shares of the training (floats).
        unit: "steps", or "epochs" for whole-epoch knots.
        ranks: rank per link, for a step-down such as (8, 2); empty keeps r.
        keep_scaling: under a step-down keep s = lora_alpha / r (default), or keep α and divide by each rank.
        merge_knots: write each link into W (as the paper), or keep the links as stacked factors beside it:
            the same function, with W's bytes untouched.
        reset_head_moments: also reset the moments of the classifier head at a knot.
        restart_schedule: restart the learning-rate schedule with each link; the paper's text has one schedule.
    """

    init: str = "gaussian"
    chain: int = 2
    knots: tuple[int | float, ...] = ()
    unit: str = "steps"
    ranks: tuple[int, ...] = ()
    keep_scaling: bool = True
    merge_knots: bool = True
    reset_head_moments: bool = False
    restart_schedule: bool = False

    name: ClassVar[str] = "cola"
    paper: ClassVar[str] = "Xia, Qin and Hazan 2024, arXiv 2401.04151"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "knots", tuple(self.knots))
        object.__setattr__(self, "ranks", tuple(self.ranks))
        if self.knots:
            object.__setattr__(self, "chain", len(self.knots) + 1)
        elif self.ranks and self.chain == type(self).chain:  # left at its default: the ranks say how many
            object.__setattr__(self, "chain", len(self.ranks))
        require(self.chain >= 1, f"chain = {self.chain} must be 1 or more")
        require(self.unit in ("steps", "epochs"), f"unit {self.unit!r} must be 'steps' or 'epochs'")
        require(all(k > 0 for k in self.knots), f"knots {self.knots} must be above 0")
        require(list(self.knots) == sorted(set(self.knots)), f"knots {self.knots} must increase")
        require(all(isinstance(r, int) and r > 0 for r in self.ranks), f"ranks {self.ranks} must be above 0")
        require(len(self.ranks) in (0, self.chain), f"ranks {self.ranks} must name one rank for each of the "
                                                    f"{self.chain} links")
        if self.ranks:
            object.__setattr__(self, "r", self.ranks[0])

    def rule(self) -> COLARule:
        return COLARule(self)

    def knot_steps(self, clock: Clock) -> list[int]:
        """The steps after which a knot is tied.

        Raises:
            ValueError: a knot falls on or past the last step.
        """
        if self.knots:
            times = clock.per_epoch if self.unit == "epochs" else 1
            steps = [times * clock.resolve(k) if isinstance(k, int) else clock.resolve(k) for k in self.knots]
        else:
            epochs = clock.total // clock.per_epoch
            unit, amount = (clock.per_epoch, epochs) if epochs >= self.chain else (1, clock.total)
            parts = [amount // self.chain + (i < amount % self.chain) for i in range(self.chain)]
            steps = [unit * sum(parts[:i + 1]) for i in range(self.chain - 1)]
        late = [s for s in steps if not 0 < s < clock.total]
        require(not late and steps == sorted(set(steps)),
                f"knots at steps {steps} do not fit: the training has {clock.total} steps, so knots must "
                f"increase and lie in 1 .. {clock.total - 1}")
        return steps


class COLARule(Rule):
    """Ties a knot after the steps in `knots`."""

    method: COLA

    def __init__(self, method: COLA) -> None:
        super().__init__(method)
        self.link = 0
        self.knots: list[int] = []

    def start(self, clock: Clock, loop: Loop) -> None:
        super().start(clock, loop)
        self.knots = self.method.knot_steps(clock)

    def after_step(self, clock: Clock) -> None:
        if clock.step not in self.knots:
            return
        probe = self.loop.micro_batches[0]
        before = self.loop.logits(probe)
        self.tie()
        self.same = unchanged(before, self.loop.logits(probe), self.loop.dtype, "tying the knot")

    def tie(self) -> None:
        """Tie a knot: freeze this link, start the next one, forget its moments."""
        self.link += 1
        for name, branch in self.adapters.items():
            left, right = branch.live_factors()                                          # (d, r), (r, k)
            branch.fixed_left = torch.cat([branch.fixed_left, left], 1)                  # (d, Σ r)
            branch.fixed_right = torch.cat([branch.fixed_right, right], 0)               # (Σ r, k)
            self._extend(branch)
            if self.method.merge_knots:
                self.adapters.owner(name).write_held(name)
        if self.method.reset_head_moments:
            reset_moments(self.loop.optimizer, self.adapters.head_parameters())

    @torch.no_grad()
    def _extend(self, branch: LowRank) -> None:
        """A new link on one site: A Gaussian, B zero, moments and step counts zero."""
        m, (r, k), d = self.method, branch.lora_A.shape, branch.lora_B.shape[0]
        new = m.ranks[self.link] if m.ranks else r
        A = initial_A(new, k, m.init, self.generator).to(branch.lora_A)                  # (r', k)
        if new == r:
            branch.lora_A.copy_(A)
            branch.lora_B.zero_()
            reset_moments(self.loop.optimizer, (branch.lora_A, branch.lora_B))
            return
        fresh = nn.Parameter(A), nn.Parameter(torch.zeros(d, new).to(branch.lora_B))
        for old, parameter in zip((branch.lora_A, branch.lora_B), fresh, strict=True):
            replace_parameter(self.loop.optimizer, old, parameter, None, 0)
        branch.lora_A, branch.lora_B = fresh
        branch.scaling = m.lora_alpha / (m.ranks[0] if m.keep_scaling else new)

    def stretch(self, step: int, total: int) -> tuple[int, int]:
        if not self.method.restart_schedule:
            return step, total
        start = max((k for k in self.knots if k <= step), default=0)
        return step - start, min((k for k in self.knots if k > step), default=total) - start

    def log(self) -> dict[str, float | dict[str, float]]:
        return {"link": float(self.link)}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "link": self.link}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.link = state["link"]

    def invariants(self, clock: Clock) -> list[Invariant]:
        if clock.step not in self.knots:
            return super().invariants(clock)
        state = self.loop.optimizer.state
        live = [p for b in self.adapters.values() for p in (b.lora_A, b.lora_B)]
        moved = [v for p in live for v in state.get(p, {}).values() if v.any()]
        return [
            self.same,
            Invariant(not moved, "after a knot the Adam moments of A and B are not zero: the optimizer kept them"),
            Invariant(not any(b.lora_B.any() for b in self.adapters.values()),
                      "after a knot lora_B is not zero, so the function changed"),
        ]

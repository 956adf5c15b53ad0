"""COLA, chain of LoRA: after LoRA, now tie a knot (Xia, Qin and Hazan 2024, arXiv 2401.04151).

At a knot the link is added to W, W ← W + s·B A; a new link starts from a random A and B = 0, and the Adam
moments of A and B start from zero. The function is the same before and after a knot. Taught in 03.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..errors import require, shown
from ..lowrank import LowRank
from ..sites import Site
from .base import Clock, Invariant, Loop, Method, Rule, replace_parameter, require_rank, reset_moments, unchanged


@dataclass(frozen=True, kw_only=True)
class COLA(Method):
    """A chain of low-rank links, each trained on what the links before it left.

    Trained again, the link in progress is frozen as at a knot, which leaves the function as it is, and a new chain
    follows: a chain of 2 trained twice is a chain of 4.

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
        if self.knots:
            object.__setattr__(self, "chain", len(self.knots) + 1)
        elif self.ranks and "chain" not in self.given:  # the ranks say how many
            object.__setattr__(self, "chain", len(self.ranks))
        require(self.chain >= 1, f"chain = {self.chain} must be 1 or more")
        require(self.unit in ("steps", "epochs"), f"unit {shown(self.unit)} must be 'steps' or 'epochs'")
        require(all(k > 0 for k in self.knots), f"knots {self.knots} must be above 0")
        require(list(self.knots) == sorted(set(self.knots)), f"knots {self.knots} must increase")
        require(all(isinstance(r, int) and r > 0 for r in self.ranks), f"ranks {self.ranks} must be above 0")
        require(len(self.ranks) in (0, self.chain), f"ranks {self.ranks} must name one rank for each of the "
                                                    f"{self.chain} links")
        if self.ranks:
            object.__setattr__(self, "r", self.ranks[0])

    @property
    def owns(self) -> frozenset[str]:  # type: ignore[override]
        """Links always; the branch's form and the schedule if a switch says so."""
        claimed = {"schedule": self.restart_schedule, "form": bool(self.ranks)}
        return frozenset({"links", *(name for name, holds in claimed.items() if holds)})

    @property
    def writes_base(self) -> bool:  # type: ignore[override]
        return self.merge_knots

    def with_frozen_base(self) -> COLA:
        return self.changed(merge_knots=False)

    def rule(self) -> COLARule:
        return COLARule(self)

    def knot_steps(self, clock: Clock) -> list[int]:
        """Return the steps after which a knot is tied.

        Raises:
            ValueError: a knot falls on or past the last step.
        """
        if self.knots:
            times = clock.per_epoch if self.unit == "epochs" else 1
            steps = [times * clock.resolve(k) if isinstance(k, int) else clock.resolve(k) for k in self.knots]
        else:
            epochs = clock.total // clock.per_epoch
            unit, amount = (clock.per_epoch, epochs) if epochs >= self.chain else (1, clock.total)
            require(self.chain <= amount, f"{self.chain - 1} knots at steps of their own do not fit: the "
                                          f"training has {clock.total} steps, so at most {clock.total} links")
            parts = [amount // self.chain + (i < amount % self.chain) for i in range(self.chain - 1)]
            steps = [unit * upto for upto in itertools.accumulate(parts)]
        late = [s for s in steps if not 0 < s < clock.total]
        require(not late and steps == sorted(set(steps)),
                f"knots at steps {steps} do not fit: the training has {clock.total} steps, so knots must "
                f"increase and lie in 1 .. {clock.total - 1}")
        return steps


class COLARule(Rule):
    """Ties a knot after the steps in `knots`."""

    method: COLA
    nesting = 2

    def __init__(self, method: COLA) -> None:
        super().__init__(method)
        self.link = 0
        self.knots: list[int] = []

    def branch(self, site: Site) -> LowRank | None:
        m = self.method
        r = m.ranks[self.link] if m.ranks else m.r
        return self.low_rank(site, r, m.lora_alpha / (m.r if m.keep_scaling else r))

    def check(self, sites: list[Site]) -> None:
        for site in sites:
            require_rank(site, max(self.method.ranks, default=self.method.r))  # now, not at the knot

    def start(self, clock: Clock, loop: Loop) -> None:
        super().start(clock, loop)
        self.knots = self.method.knot_steps(clock)

    def again(self) -> None:
        self.link = -1
        self.tie()

    def after_step(self, clock: Clock) -> None:
        if clock.step not in self.knots:
            return
        whole = self.adapters.rule  # this rule, or the composition that it is a member of
        whole.close_link(clock)
        probe = self.loop.micro_batches[0]
        before = self.loop.logits(probe)
        self.tie()
        self.same = unchanged(before, self.loop.logits(probe), self.loop.dtype, "tying the knot")
        whole.open_link(clock)

    def tie(self) -> None:
        """Tie a knot: freeze this link, start the next one, forget its moments."""
        self.link += 1
        for name, branch in self.adapters.items():
            left, right = branch.live_factors()                                          # (d, r), (r, k)
            left = (1 + branch.merged_share) * left           # what W holds of this link already is frozen with it
            branch.fixed_left = torch.cat([branch.fixed_left, left], 1)                  # (d, Σ r)
            branch.fixed_right = torch.cat([branch.fixed_right, right], 0)               # (Σ r, k)
            self._extend(branch, self.adapters.rule.branch(self.adapters.sites[name]))
            if self.method.merge_knots:
                self.adapters.owner(name).write_in_base(name)
        if self.method.reset_head_moments:
            reset_moments(self.loop.optimizer, self.adapters.head_parameters())

    @torch.no_grad()
    def _extend(self, branch: LowRank, fresh: LowRank | None) -> None:
        """Start a new link on one site: A drawn anew, B zero, moments and step counts zero."""
        assert fresh is not None  # a site that has a branch has one in every link
        optimizer = self.loop.optimizer
        fresh.to(branch.lora_B)
        self._renew_gate(branch, fresh)
        branch.scaling = fresh.scaling
        if fresh.r == branch.r:
            branch.lora_A.copy_(fresh.lora_A)
            branch.lora_B.zero_()
            reset_moments(optimizer, (branch.lora_A, branch.lora_B))
            return
        for old, new in ((branch.lora_A, fresh.lora_A), (branch.lora_B, fresh.lora_B)):
            replace_parameter(optimizer, old, new, None, 0)
        branch.lora_A, branch.lora_B = fresh.lora_A, fresh.lora_B

    def _renew_gate(self, branch: LowRank, fresh: LowRank) -> None:
        """Put the new link's gate in the place of the old one, if a partner gates the branch."""
        if branch.gate_module is None or fresh.gate_module is None:
            return
        for old, new in zip(branch.gate_module.parameters(), fresh.gate_module.parameters(), strict=True):
            replace_parameter(self.loop.optimizer, old, new, None, 0)
        branch.gate_module = fresh.gate_module.train(branch.training)

    def link_clock(self, clock: Clock) -> Clock:
        start = max((k for k in self.knots if k < clock.step), default=0)
        end = min((k for k in self.knots if k >= clock.step), default=clock.total)
        return Clock(clock.step - start, end - start, clock.per_epoch)

    def stretch(self, step: int, total: int) -> tuple[int, int]:
        if not self.method.restart_schedule:
            return step, total
        lap = self.link_clock(Clock(step + 1, total, 1))
        return lap.step - 1, lap.total

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

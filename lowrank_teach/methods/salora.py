"""SaLoRA: after LoRA, let each direction have a gate and the budget close some (Hu et al. 2023,
Mathematics 11(20), 4317).

    s̄ = σ((logit u + log θ)/τ)(ζ − γ) + γ,  g = clip(s̄, 0, 1),  u ~ U(0, 1)        hard-concrete gate
    C = Σ P(g > 0)(d + k) / Σ r (d + k)                                             expected density
    loss = task + β R + λ (C − b)²,   R = mean of ‖A Aᵀ − I‖² + ‖Bᵀ B − I‖²         descent, but λ ascends

Gates are all one before T_start and sampled anew at each step inside the window. At T_end closed directions are
removed and what is left of the gates is folded into B, which leaves the function as it is; the rest of the training
is LoRA's, at the ranks that were kept. Taught in 04.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import require, shown
from ..gates import HardConcrete, Stretch, draw
from ..lowrank import LowRank
from ..sites import Site
from .base import (
    Clock,
    Invariant,
    Loop,
    Method,
    Rule,
    replace_parameter,
    require_rank,
    require_shares,
    rescale_moments,
    unchanged,
)


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
        orthogonality: average R over the sites ("mean"), or add it up ("sum", equation 10 of the paper). The sum
            grows with the number of matrices; in a short training on many of them the steps then follow R and not
            the task.
        orthogonality_until: R ends with the window ("window"), or stays to the end of the training ("end"). After the
            fold it would pull the columns of B back to length one.
        prune: which directions stay: those whose gate is above 0 without its noise ("threshold"); the most probable
            ones, until they make up the share b of all d + k ("budget"); as many, drawn at random ("random", a
            control). With the last two, g is its mean E[g], and the function changes at T_end.
        after_window: what becomes of the gates that stay: "fold" multiplies B by them; "leave" keeps them at their
            value until the end, so that a direction learns at g times its rate; "one" sets them to one, which
            changes the function.
    """

    sites: str | tuple[str, ...] = "all"
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
    orthogonality_until: str = "window"
    prune: str = "threshold"
    after_window: str = "fold"

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
        for name, values in CHOICES.items():
            given = getattr(self, name)
            require(given in values, f"{name} {shown(given)} must be {' or '.join(map(repr, values))}")
        require(self.prune == "threshold" or self.after_window != "leave",
                f"prune = '{self.prune}' keeps directions whose gate may be 0 without its noise, and with "
                "after_window = 'leave' these would never train; choose 'fold' or 'one'")
        require(self.lambda_max is None or self.lambda_max >= 0, "lambda_max must be 0 or more, or None")
        require_shares(self, "t_start", "t_end")
        if type(self.t_start) is type(self.t_end):
            require(self.t_end > self.t_start, f"t_end = {self.t_end} must come after t_start = {self.t_start}")

    def rule(self) -> SaLoRARule:
        return SaLoRARule(self)

    @property
    def jumps(self) -> bool:
        """Whether the function changes where the window closes."""
        return self.prune != "threshold" or self.after_window == "one"

    @property
    def stretch(self) -> Stretch:
        """The gate's constants, with its formulae."""
        return Stretch(self.tau, self.gamma, self.zeta)

    def shortest_window(self) -> int:
        """Return the steps from the start's density to b if all gates moved alike, eta_c a step."""
        return math.ceil(self._way() / self.eta_c)

    def estimated_window(self) -> int:
        """Return the steps that are likely to be enough: λ must first outgrow the task's gradient noise on the gates.

        The budget pulls log θ with 2 λ (C − b) p (1 − p): the fewer gates are to stay open, the weaker the pull.
        """
        return math.ceil(self._way() / self.eta_c * (1 + PATIENCE / self.b))

    def _way(self) -> float:
        """Return how far log θ must fall if all gates were alike."""
        target = math.log(self.b / (1 - self.b)) if self.b < 1 else math.inf
        return max(0.0, self.stretch.shift - target)


CHOICES = {"ascent": ("adam", "sgd"), "orthogonality": ("mean", "sum"), "orthogonality_until": ("window", "end"),
           "prune": ("threshold", "budget", "random"), "after_window": ("fold", "leave", "one")}
WIDEST = 100     # |gamma| and zeta
PATIENCE = 0.4  # measured at b from 0.125 to 0.5 and eta_c up to 0.1: tests/benchmarks/gate_window.py


# ---- the rule ----------------------------------------------------------------------------------------------
# The running side of SaLoRA: the gate window, the ascent of λ, pruning, and what follows it. Taught in 04.
class SaLoRARule(Rule):
    """Open the gate window, sample, ascend λ, prune and fold."""

    method: SaLoRA
    by_link = True

    def __init__(self, method: SaLoRA) -> None:
        super().__init__(method)
        self.lam = nn.Parameter(torch.zeros((), dtype=torch.float64, device="cpu"))
        adam = {"betas": tuple(method.lambda_betas)} if method.ascent == "adam" else {}
        self.ascent: torch.optim.Optimizer = (torch.optim.Adam if adam else torch.optim.SGD)(
            [self.lam], lr=method.eta_c, maximize=True, **adam)  # type: ignore[arg-type]
        self.warnings: list[str] = []
        self.t_start = self.t_end = 0
        self.over = False  # an earlier training closed the window: from its start this one is LoRA
        self.pruned: Invariant | None = None
        self.closed_at: float | None = None  # C when the window closed
        self.last_gates: dict[str, list[float]] = {}  # log θ of all directions then, until they are logged

    def branch(self, site: Site) -> LowRank:
        m = self.method
        return self.low_rank(site, m.r, m.lora_alpha / m.r, HardConcrete(m.stretch, require_rank(site, m.r)))

    def gates(self) -> dict[str, HardConcrete]:
        return {name: branch.gate_module for name, branch in self.adapters.items()}  # type: ignore[misc]

    def start(self, clock: Clock, loop: Loop) -> None:
        super().start(clock, loop)
        m = self.method
        self.sizes = {n: float(b.lora_A.shape[1] + b.lora_B.shape[0]) for n, b in self.adapters.items()}
        self.all_directions = sum(m.r * size for size in self.sizes.values())
        self.t_start, self.t_end = clock.resolve(m.t_start), clock.resolve(m.t_end)
        if clock.step:  # taken up: it was looked at when it began
            return
        self.over = self.closed_at is not None and "links" not in (self.adapters.method.owns or ())
        if self.over:
            self.t_start = self.t_end = 0
            require(self._anything_trains(), "an earlier training closed every direction, so nothing is left that "
                                             "trains: call remove(), and adapt() again with a larger b")
            return
        window = self.t_end - self.t_start
        require(window > 0 and self.t_end <= clock.total,
                f"the gate window, steps {self.t_start} to {self.t_end}, must be longer than 0 and end within the "
                f"{clock.total} steps of the training")
        require(window >= m.shortest_window() or m.lambda_max == 0,
                f"a gate window of {window} steps cannot bring the density to b = {m.b}: at eta_c = {m.eta_c} it "
                f"takes at least {m.shortest_window()} steps, and about {m.estimated_window()} with the task's "
                "gradient noise; lengthen the window (t_start, t_end), train longer, or raise eta_c")

    def again(self) -> None:
        if self.over:
            self.finish()  # where it was stopped after its window, and so not finished
            return
        for gate in self.gates().values():
            if gate.phase == "sampled":  # stopped inside its window; without noise until the next one opens
                gate.phase = "deterministic"
        self._price_from_zero()

    def parameter_groups(self) -> list[dict[str, Any]]:
        m, gates = self.method, [gate.log_theta for gate in self.gates().values()]
        return [*super().parameter_groups(), {"params": gates, "lr": m.eta_c, "betas": tuple(m.gate_betas),
                                              "weight_decay": 0.0, "schedule": "constant"}]

    def before_step(self, clock: Clock) -> None:
        inside, gates = self.t_start < clock.step <= self.t_end, self.gates().values()
        for gate in gates:
            gate.log_theta.requires_grad_(inside)
        if inside:
            draw(list(gates), self.generator)

    def log_theta(self) -> tuple[Tensor, list[int]]:
        """Return log θ of all directions, site after site (Σ r,), and how many each site has."""
        gates = self.gates().values()
        return torch.cat([gate.log_theta for gate in gates]), [len(gate.log_theta) for gate in gates]

    def density(self) -> Tensor:
        """Return C, the expected share of directions kept, weighted by their size d + k."""
        log_theta, counts = self.log_theta()
        sizes = [size for size, r in zip(self.sizes.values(), counts, strict=True) for _ in range(r)]
        kept = self.method.stretch.open_probability(log_theta) * log_theta.new_tensor(sizes)
        return kept.sum() / self.all_directions

    def orthogonality(self) -> tuple[Tensor, Tensor]:
        """Return ‖A Aᵀ − I‖² and ‖Bᵀ B − I‖², each over all sites (sum or mean), as one batched product a shape."""
        reduce = torch.Tensor.mean if self.method.orthogonality == "mean" else torch.Tensor.sum
        branches = list(self.adapters.values())
        return (reduce(_off_identity([b.lora_A for b in branches])),
                reduce(_off_identity([b.lora_B.t() for b in branches])))

    def penalty(self) -> Tensor | None:
        m = self.method
        if self.over or (self.closed_at is not None and m.orthogonality_until == "window"):
            return None
        R_A, R_B = self.orthogonality() if m.beta else 2 * (self.log_theta()[0].new_zeros(()),)
        total = m.beta * (R_A + R_B)
        self.last_R = R_A.detach(), R_B.detach()
        if any(gate.phase == "sampled" for gate in self.gates().values()):
            total = total + self.lam.detach().to(total) * (self.density() - m.b) ** 2
        return total

    def after_step(self, clock: Clock) -> None:
        if self.t_start < clock.step <= self.t_end:
            self._ascend()
        if clock.step == self.t_end:
            self._close(clock)

    @torch.no_grad()
    def _ascend(self) -> None:
        """Step λ ← max(0, λ + η_c ∂/∂λ): projected gradient ascent, ∂/∂λ = (C − b)²."""
        self.lam.grad = ((self.density() - self.method.b) ** 2).to(self.lam)
        self.ascent.step()
        self.lam.clamp_(min=0.0, max=self.method.lambda_max)

    @torch.no_grad()
    def _close(self, clock: Clock) -> None:
        """Close the window: remove directions, and give the gates of the others the form that they keep."""
        m, gates = self.method, self.gates()
        self.closed_at = self.density().item()
        for name, gate in gates.items():
            gate.phase = "deterministic"
            self.last_gates[name] = gate.log_theta.tolist()
        probe = self.loop.micro_batches[0]
        before = self.loop.logits(probe)
        kept = self._kept()
        for name, branch in self.adapters.items():
            self._prune(branch, kept[name])
            if m.after_window == "fold":
                self._fold(branch)
            if m.after_window != "leave":
                gates[name].phase = "folded"
        if not m.jumps:
            self.pruned = unchanged(before, self.loop.logits(probe), self.loop.dtype, "pruning the closed gates")
        self._note_what_is_kept(clock)

    def _kept(self) -> dict[str, Tensor]:
        """Return site -> indices of the directions that stay."""
        m, gates = self.method, self.gates()
        if m.prune == "threshold":
            return {name: gate.settled().nonzero().flatten() for name, gate in gates.items()}
        log_theta, counts = self.log_theta()
        order = (log_theta.argsort(descending=True) if m.prune == "budget"
                 else torch.randperm(len(log_theta), generator=self.generator, device="cpu")).tolist()
        sizes = [size for size, r in zip(self.sizes.values(), counts, strict=True) for _ in range(r)]
        shares = itertools.accumulate(sizes[i] / self.all_directions for i in order)
        is_kept = torch.zeros(len(order), dtype=torch.bool, device="cpu")
        is_kept[[i for i, share in zip(order, shares, strict=True) if share <= m.b + 1e-9]] = True
        return {name: part.nonzero().flatten().to(log_theta.device)
                for name, part in zip(gates, is_kept.split(counts), strict=True)}

    @torch.no_grad()
    def _fold(self, branch: LowRank) -> None:
        """Set B ← B diag(g) and the moments that belong to it: its gradient is that of the old B divided by g."""
        gate: HardConcrete = branch.gate_module  # type: ignore[assignment]
        g = (gate.settled() if self.method.prune == "threshold" else
             gate.stretch.mean(gate.log_theta)).to(branch.lora_B)                         # (r,)
        branch.lora_B.mul_(g)
        rescale_moments(self.loop.optimizer, branch.lora_B, g)

    def _note_what_is_kept(self, clock: Clock) -> None:
        """Warn if that is far from b: in expectation, or (by a quarter and a direction) after pruning."""
        m, density, share = self.method, self.closed_at or 0.0, self._share(self.site_ranks())
        kept, allowed = f"pruning kept {share:.3f} of the directions", max(self.sizes.values()) / self.all_directions
        if abs(density - m.b) > 0.02 and m.lambda_max != 0:
            had, needs = self.t_end - self.t_start, m.estimated_window()
            advice = (f"it had {had} steps and is likely to need {needs}" if had < needs else
                      f"in its {had} steps the density still swings; lengthen the window, or lower eta_c")
            self.warnings.append(f"the gate window closed at a density of {density:.3f}, not {m.b}: {advice}; {kept}")
        elif m.prune == "threshold" and abs(share - m.b) > m.b / 4 + allowed and m.lambda_max != 0:
            self.warnings.append(f"the gate window closed at a density of {density:.3f}, but {kept}, not {m.b}: only "
                                 "a gate that is above 0 without its noise stays; choose b by what is kept, "
                                 "lengthen the window, or prune by 'budget'")
        if not share and clock.step < clock.total:
            self.warnings.append(f"the gate window closed every direction at step {clock.step}: in the "
                                 f"{clock.total - clock.step} steps after it no branch trains; raise b")

    def _share(self, kept: Mapping[str, float]) -> float:
        """Return the share of all directions, each weighted by its size d + k."""
        return sum(n * self.sizes[name] for name, n in kept.items()) / self.all_directions

    def _anything_trains(self) -> bool:
        """Return whether there is something to train: directions that are left, the head, a part of W."""
        adapters = self.adapters
        return any(self.site_ranks().values()) or bool(adapters.head_parameters() or adapters.base_parameters())

    def _prune(self, branch: LowRank, keep: Tensor) -> None:
        gate: HardConcrete = branch.gate_module  # type: ignore[assignment]
        for owner, name, dim in ((branch, "lora_A", 0), (branch, "lora_B", 1), (gate, "log_theta", 0)):
            old = getattr(owner, name)
            new = nn.Parameter(old.index_select(dim, keep), requires_grad=name != "log_theta")
            replace_parameter(self.loop.optimizer, old, new, keep, dim)
            setattr(owner, name, new)
        gate.u = gate.u[keep]

    def settled(self, clock: Clock) -> bool:
        return clock.step >= self.t_end

    @torch.no_grad()
    def finish(self) -> None:
        """Fold what is left of the gates into B: from here each site is a plain low-rank pair of its own rank."""
        for branch in self.adapters.values():
            gate: HardConcrete = branch.gate_module  # type: ignore[assignment]
            branch.lora_B.mul_(branch.settled_gate())
            gate.phase = "folded"

    @torch.no_grad()
    def open_link(self, clock: Clock) -> None:
        """Start λ from zero again: it is the price of one link's budget, and says nothing of fresh gates."""
        self.start(clock, self.loop)
        self._price_from_zero()

    @torch.no_grad()
    def _price_from_zero(self) -> None:
        self.lam.zero_()
        self.ascent.state.clear()
        self.closed_at, self.pruned, self.last_gates = None, None, {}

    @torch.no_grad()
    def log(self) -> dict[str, float | dict[str, float]]:
        log_theta, counts = self.log_theta()  # what pruning would keep now, whatever this step's noise
        is_kept = (self.method.stretch.deterministic(log_theta) > 0).cpu() | (self.closed_at is not None)
        kept = dict(zip(self.sizes, (float(part.sum()) for part in is_kept.split(counts)), strict=True))
        share = self._share(kept)
        if self.over:
            return {"kept_density": share, "kept": kept}
        ended = self.closed_at is not None and self.method.orthogonality_until == "window"
        lam, (R_A, R_B) = self.lam.item(), self.orthogonality() if ended else self.last_R
        C = self.density().item() if self.closed_at is None else self.closed_at
        closing = {f"log_theta.{j}": {name: values[j] for name, values in self.last_gates.items()}
                   for j in range(self.method.r) if self.last_gates}
        self.last_gates = {}
        return {"density": C, "lambda": lam, "budget_penalty": lam * (C - self.method.b) ** 2,
                "orth_A": float(R_A), "orth_B": float(R_B), "kept_density": share, "kept": kept, **closing}

    def notes(self) -> list[str]:
        over = "an earlier training closed the gate window: this one trained LoRA at the ranks that were kept"
        return [*self.warnings, over] if self.over else self.warnings

    def state_dict(self) -> dict[str, Any]:
        moments = {f"ascent.{k}": v for k, v in self.ascent.state.get(self.lam, {}).items() if v is not None}
        return {**super().state_dict(), "lambda": self.lam.detach().clone(), **moments, "warnings": self.warnings,
                "closed_at": self.closed_at, "over": self.over, "phase": next(iter(self.gates().values())).phase}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.lam.data.copy_(state["lambda"])
        moments = {k.removeprefix("ascent."): v for k, v in state.items() if k.startswith("ascent.")}
        self.ascent.state.clear()
        if moments:
            self.ascent.state[self.lam] = moments
        self.warnings, self.closed_at = list(state["warnings"]), state["closed_at"]
        for gate in self.gates().values():
            gate.phase = state["phase"]
            gate.log_theta.requires_grad_(False)  # until a step opens it
        self.over = state["over"]
        if self.over:
            self.t_start = self.t_end = 0

    def invariants(self, clock: Clock) -> list[Invariant]:
        checks = super().invariants(clock)
        checks.append(Invariant(self.lam.item() >= 0, "λ is negative: the projection on λ ≥ 0 was lost"))
        if clock.step == self.t_end:
            start = float(self.method.stretch.open_probability(self.lam.new_zeros(())))
            # gates that move apart may leave C nearly where it was; without a gradient it is equal but for rounding
            moved = abs((self.closed_at or 0.0) - start) > 1e-5 or self.method.b >= start
            checks.append(Invariant(moved, "the gate window closed and the density has not moved from its start: "
                                           "the gates got no gradient"))
            if self.pruned is not None:
                checks.append(self.pruned)
        if self.t_end <= clock.step < clock.total:
            checks.append(Invariant(self._anything_trains(), "the gate window closed every direction, and the model "
                                    "has no head: nothing is left that trains; raise b, or lengthen the window "
                                    "(t_start, t_end)"))
        return checks


def _off_identity(factors: list[Tensor]) -> Tensor:
    """Return ‖M Mᵀ − I‖² (sites,) of each (r, n) factor, as one batched product a shape."""
    by_shape: dict[tuple[int, ...], list[Tensor]] = {}
    for M in factors:
        by_shape.setdefault(tuple(M.shape), []).append(M)
    out = []
    for (r, _), group in by_shape.items():
        M = torch.stack(group)                                                           # (sites, r, n)
        out.append((M @ M.mT - torch.eye(r, dtype=M.dtype, device=M.device)).square().sum((1, 2)))
    return torch.cat(out)

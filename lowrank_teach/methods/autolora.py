"""AutoLoRA: after LoRA, learn on held-out data how many directions each matrix needs (Zhang et al. 2024,
NAACL, arXiv 2403.09113).

    Δ_l = s Σ_j α_lj u_lj v_ljᵀ,  α_l = softmax(β_l)
    β ← β − η_β ∇_β L_held-out(W − η ∇_W L_train(W, β), β);   W ← W − η ∇_W L_train(W, β)
    rank_l = #{ j : α_lj ≥ 1/k };  then plain LoRA is trained at these ranks

Taught in 06.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import require, shown
from ..gates import Selection
from ..lowrank import LowRank
from ..sites import Site
from .base import Clock, Invariant, Loop, Method, Noise, Rule, require_rank
from .lora import LoRA

Weights = dict[str, Tensor]
HYPERGRADIENTS = ("first_order", "finite_difference", "unrolled", "betty")
KINDS = (*HYPERGRADIENTS, "forward_difference")


@dataclass(frozen=True, kw_only=True)
class AutoLoRA(Method):
    """Search ranks by two-level optimisation, then train LoRA at them.

    Searched again, the search goes on from the selection weights and factors as they are.

    Args:
        r: k, the width that is searched; ranks lie in 1 .. k.
        search_steps: steps of the search, as a count (int) or a share of the training's own steps (float).
        eta_beta: rate of β under AdamW (the paper: 1e-3).
        hypergradient: "unrolled" differentiates through the virtual step exactly (double backward);
            "finite_difference" takes its second-order part from two more passes, weighted by η; "betty" weighs
            it by 1 instead, as the authors' code does; "first_order" drops it (the ablation η = 0).
            "forward_difference" is the finite one with one pass fewer: ∇_β at W itself comes free with ∇_W.
        radius: the finite difference's step is radius / ‖v‖.
        constraint: "softmax"; ablations "sigmoid" (element-wise) and "none".
        split: share of the training rows that β is learned on.
        fixed_alpha: retrain with s = lora_alpha / rank, which differs per matrix, instead of one s for all.
        count: which directions make up a rank: those with α ≥ 1/k ("softmax", the paper), or those with β at or above
            its mean at the site ("raw", as the authors' search script counts). The mean of β lies below the log of
            the mean of exp β, so "raw" never counts fewer.
        shuffle_ranks: deal the ranks found out to the sites at random: the control for the search.
        retrain: False stops after the search, and leaves the searched model.
    """

    search_steps: int | float = 1.0
    eta_beta: float = 1e-3
    hypergradient: str = "unrolled"
    radius: float = 0.01
    constraint: str = "softmax"
    split: float = 0.5
    fixed_alpha: bool = False
    count: str = "softmax"
    shuffle_ranks: bool = False
    retrain: bool = True

    name: ClassVar[str] = "autolora"
    paper: ClassVar[str] = "Zhang et al. 2024, NAACL, arXiv 2403.09113"
    owns: ClassVar[frozenset[str]] = frozenset({"form", "following"})

    @property
    def alone(self) -> str:  # type: ignore[override]
        return "" if self.retrain else ("its two-level search reads every step of the weights for itself, and with "
                                        "retrain=False no training follows in which another could begin")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.hypergradient in KINDS, f"hypergradient {shown(self.hypergradient)} must be one of "
                                             f"{', '.join(KINDS)}")
        require(self.constraint in ("softmax", "sigmoid", "none"), f"constraint {shown(self.constraint)} must be "
                                                                   "'softmax', 'sigmoid' or 'none'")
        require(self.count in ("softmax", "raw"), f"count {shown(self.count)} must be 'softmax' or 'raw'")
        require(self.search_steps > 0, f"search_steps = {self.search_steps} must be above 0")
        require(self.eta_beta > 0 and self.radius > 0, "eta_beta and radius must be above 0")
        require(0 < self.split < 1, f"split = {self.split} must lie between 0 and 1")

    @property
    def held_out(self) -> float:  # type: ignore[override]
        return self.split

    def steps(self, total: int) -> int:
        share = isinstance(self.search_steps, float)
        return max(1, round(self.search_steps * total)) if share else int(self.search_steps)

    def rule(self) -> AutoLoRARule:
        return AutoLoRARule(self)


class AutoLoRARule(Rule):
    """Moves β before each step of the weights."""

    method: AutoLoRA

    def branch(self, site: Site) -> LowRank:
        m = self.method
        return self.low_rank(site, m.r, m.lora_alpha / m.r, Selection(require_rank(site, m.r), m.constraint))

    def selections(self) -> dict[str, Selection]:
        return {name: branch.gate_module for name, branch in self.adapters.items()}  # type: ignore[misc]

    def own_parameters(self) -> list[nn.Parameter]:
        return [selection.beta for selection in self.selections().values()]

    def start(self, clock: Clock, loop: Loop) -> None:
        super().start(clock, loop)
        self.outer = torch.optim.AdamW(self.own_parameters(), lr=self.method.eta_beta, weight_decay=0.0)
        self.head_start = [p.detach().clone() for p in self.adapters.head_parameters()]

    def before_step(self, clock: Clock) -> None:
        """Step β at the weights that a virtual step of W would give."""
        betas = self.own_parameters()
        for beta in betas:
            beta.requires_grad_(True)
        weights: Weights = {n: p for n, p in self.adapters.model.named_parameters()
                            if p.requires_grad and not n.endswith(".beta")}
        for beta, gradient in zip(betas, self._hypergradient(weights, betas), strict=True):
            beta.grad = gradient
        self.outer.step()
        for beta in betas:  # the step of W that follows leaves β alone
            beta.grad = None
            beta.requires_grad_(False)

    def _hypergradient(self, weights: Weights, betas: list[nn.Parameter]) -> Sequence[Tensor]:
        m, loop, eta = self.method, self.loop, self.loop.optimizer.param_groups[0]["lr"]
        batches = {"train": loop.micro_batches, "held_out": loop.held_out()}
        if m.hypergradient == "unrolled":  # one graph through both losses; fused attention has no second derivative
            with sdpa_kernel(SDPBackend.MATH):
                return hypergradient(m.hypergradient, same_noise(lambda w: loop.mean_loss(batches["train"], w)),
                                     lambda w: loop.mean_loss(batches["held_out"], w), weights, betas, eta, m.radius)
        noise = Noise()
        return hypergradient_by_passes(m.hypergradient, lambda part, at, of: loop.gradient(
            batches[part], at, of, noise if part == "train" else None), weights, betas, eta, m.radius)

    def ranks(self) -> dict[str, int]:
        """Return site -> rank, from the selection weights as they are now."""
        raw = self.method.count == "raw"
        return {name: selection.rank(raw=raw) for name, selection in self.selections().items()}

    def settled(self, clock: Clock) -> bool:
        return not self.method.retrain

    def finish(self) -> Method | None:
        """Return LoRA at the ranks found, to be trained from the pretrained weights on all examples."""
        m, ranks = self.method, self.ranks()
        if not m.retrain:
            return None
        if m.shuffle_ranks:
            order = torch.randperm(len(ranks), generator=self.generator, device="cpu").tolist()
            ranks = dict(zip(ranks, [list(ranks.values())[i] for i in order], strict=True))
        return LoRA(r=m.r, lora_alpha=m.lora_alpha, lora_dropout=m.lora_dropout, init=m.init,
                    sites=tuple(ranks), rank_pattern=ranks, fixed_alpha=m.fixed_alpha)

    @torch.no_grad()
    def log(self) -> dict[str, float | dict[str, float]]:
        selections = self.selections()
        alphas = torch.stack([selection() for selection in selections.values()]).tolist()   # one wait for a GPU
        return {f"alpha.{j}": dict(zip(selections, of_sites, strict=True))
                for j, of_sites in enumerate(zip(*alphas, strict=True))}

    def notes(self) -> list[str]:
        losses = [value for _, site, name, value in self.loop.outcome.history if name == "loss" and not site]
        first, last = losses[:len(losses) // 4], losses[-(len(losses) // 4):]
        if len(first) < 2:
            return []
        noise = 2 * (statistics.variance(first) / len(first) + statistics.variance(last) / len(last)) ** 0.5
        begun, ended = statistics.fmean(first), statistics.fmean(last)
        if begun - ended > noise:
            return []
        return [f"the search's loss has not fallen ({begun:.3f} in its first quarter, {ended:.3f} in its last, "
                "within two standard errors): the ranks come from weights that have learned little; search longer, "
                "or raise lr"]

    def state_dict(self) -> dict[str, Any]:
        moments = {f"outer.{i}.{k}": v for i, beta in enumerate(self.own_parameters())
                   for k, v in self.outer.state.get(beta, {}).items()}
        return {**super().state_dict(), **moments,
                **{f"head_start.{i}": p for i, p in enumerate(self.head_start)}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.head_start = [state[f"head_start.{i}"] for i in range(len(self.head_start))]
        for i, beta in enumerate(self.own_parameters()):
            beta.requires_grad_(False)  # as after any step
            moments = {k.split(".", 2)[2]: v for k, v in state.items() if k.startswith(f"outer.{i}.")}
            if moments:
                self.outer.state[beta] = moments

    def invariants(self, clock: Clock) -> list[Invariant]:
        checks = super().invariants(clock)
        if clock.step != clock.total:
            return checks
        alphas = [selection().detach() for selection in self.selections().values()]
        head = zip(self.head_start, self.adapters.head_parameters(), strict=True)
        checks.append(Invariant(any(not torch.equal(old, new) for old, new in head) or not self.head_start,
                                "the search ended and the classifier head has not moved"))
        checks.append(Invariant(any(float(a.max() - a.min()) > 0 for a in alphas),
                                "the search ended and no selection weight has moved"))
        if self.method.constraint == "softmax":
            checks.append(Invariant(all(abs(float(a.sum()) - 1) < 1e-4 for a in alphas),
                                    "selection weights do not sum to one"))
            checks.append(Invariant(all(1 <= r <= self.method.r for r in self.ranks().values()),
                                    f"a rank lies outside 1 .. {self.method.r}"))
        return checks


def hypergradient(kind: str, train_loss: Callable[[Weights], Tensor], held_out_loss: Callable[[Weights], Tensor],
                  weights: Weights, betas: list[nn.Parameter], eta: float, radius: float = 0.01) -> list[Tensor]:
    """Return ∇_β L_held-out(W^(β), β) with W^ = W − η ∇_W L_train(W, β)  (AutoLoRA).

    Args:
        kind: one of KINDS.
        train_loss, held_out_loss: scalar losses as functions of the weights by name; both see β by themselves.
        weights: the inner parameters W, by name.  betas: the outer parameters.
        eta: rate of the virtual step.  radius: ε = radius / ‖∇L_held-out‖ of the finite difference.
    """
    if kind == "unrolled":
        inner = torch.autograd.grad(train_loss(weights), list(weights.values()), create_graph=True)
        return list(torch.autograd.grad(held_out_loss(virtual_step(weights, inner, eta)), betas))
    losses = {"train": train_loss, "held_out": held_out_loss}
    return list(hypergradient_by_passes(kind, lambda part, at, of: torch.autograd.grad(losses[part](at), list(of)),
                                        weights, betas, eta, radius))


def hypergradient_by_passes(kind: str, gradient: Callable[[str, Weights, Sequence[Tensor]], Sequence[Tensor]],
                            weights: Weights, betas: list[nn.Parameter], eta: float, radius: float
                            ) -> Sequence[Tensor]:
    """Return `hypergradient` of every kind but "unrolled": without a graph through two losses.

    gradient: of which loss ("train" or "held_out"), at which weights, by which tensors -> a gradient for each.
    """
    if kind == "first_order":
        return gradient("held_out", weights, betas)
    one_sided = kind == "forward_difference"
    inner = gradient("train", weights, [*weights.values(), *(betas if one_sided else ())])
    inner, here = inner[:len(weights)], inner[len(weights):]
    virtual = {n: w.detach().requires_grad_() for n, w in virtual_step(weights, inner, eta).items()}
    both = gradient("held_out", virtual, [*virtual.values(), *betas])
    v, direct = both[:len(virtual)], both[len(virtual):]
    norm = torch.stack([g.norm() for g in v]).norm().clamp_min(1e-12)
    epsilon = radius / norm.double()  # a tensor: where the norm is infinite, nan comes out and the loop refuses it

    def moved(sign: int) -> Weights:
        return {n: w.detach() + sign * epsilon * g for (n, w), g in zip(weights.items(), v, strict=True)}

    plus = gradient("train", moved(+1), betas)
    minus = here if one_sided else gradient("train", moved(-1), betas)
    factor = (1.0 if kind == "betty" else eta) / ((1 if one_sided else 2) * epsilon)
    return [d - factor * (p - m) for d, p, m in zip(direct, plus, minus, strict=True)]


def virtual_step(weights: Weights, gradients: Sequence[Tensor], eta: float) -> Weights:
    """Return W^ = W − η ∇_W L_train by name, in the same graph; gradients are in the order of the weights."""
    return {name: w - eta * g for (name, w), g in zip(weights.items(), gradients, strict=True)}


def same_noise(loss: Callable[[Weights], Tensor]) -> Callable[[Weights], Tensor]:
    """Return the loss with the same dropout masks at every call: else their difference drowns the finite one."""
    noise = Noise()

    def call(weights: Weights) -> Tensor:
        with noise.again():
            return loss(weights)

    return call

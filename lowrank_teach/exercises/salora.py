"""The exercises of 04: a gate's draw, P(g > 0), density, λ's step, orthogonality, pruning, noise drawn once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .. import measure
from ..gates import HardConcrete, Stretch
from ..lowrank import LowRank
from ..methods.salora import SaLoRA
from ..methods.salora_rule import SaLoRARule, _off_identity
from .engine import Task

# n sites, r rank, k in, d out, T steps

Noise = Callable[[int], Tensor]   # step -> u (r,)


def sample_gate(u: Tensor, log_theta: Tensor, tau: float, gamma: float, zeta: float) -> Tensor:
    """One draw of each gate, (r,), from the library's formula."""
    return Stretch(tau, gamma, zeta).sample(log_theta, u)


def open_probability(log_theta: Tensor, tau: float, gamma: float, zeta: float) -> Tensor:
    """P(g > 0) of each gate, (r,), from the library's formula."""
    return Stretch(tau, gamma, zeta).open_probability(log_theta)


def expected_density(p: Tensor, d: Tensor, k: Tensor) -> Tensor:
    """C of n sites from P(g > 0) (n, r) and their sizes d, k (n,)."""
    return measure.density(dict(enumerate(p)), {i: (float(d[i]), float(k[i])) for i in range(len(d))})  # type: ignore


def ascend_lambda(lam: Tensor, C: Tensor, b: float, eta_c: float) -> Tensor:
    """λ (n,) after one plain gradient step of the library's rule at each density C (n,)."""
    return torch.stack([_one_ascent(float(x), float(c), b, eta_c) for x, c in zip(lam, C, strict=True)])


def _one_ascent(lam: float, C: float, b: float, eta_c: float, maximize: bool = True) -> Tensor:
    rule = SaLoRA(ascent="sgd", b=b, eta_c=eta_c).rule()
    rule.density = lambda: torch.tensor(C, dtype=torch.float64)  # type: ignore[method-assign]
    rule.lam.data.fill_(lam)
    rule.ascent.param_groups[0]["maximize"] = maximize
    rule._ascend()
    return rule.lam.detach()


def orthogonality_penalty(lora_A: Tensor, lora_B: Tensor) -> Tensor:
    """‖A Aᵀ − I‖² + ‖Bᵀ B − I‖² of one site, as the library's rule adds them up."""
    rule = SaLoRA().rule()
    rule.adapters = {"0": SimpleNamespace(lora_A=lora_A, lora_B=lora_B)}  # type: ignore[assignment]
    return torch.stack(rule.orthogonality()).sum()


def prune_and_fold(lora_B: Tensor, log_theta: Tensor) -> Tensor:
    """The (d, r′) that is left of B (d, r) when the library has pruned the site and folded its gates."""
    d, r = lora_B.shape
    gate = HardConcrete(Stretch(), r)
    branch = LowRank(r, d, r, gate=gate)
    gate.log_theta.data, branch.lora_B.data, gate.phase = log_theta.clone(), lora_B.clone(), "deterministic"
    rule = SaLoRA().rule()
    rule.adapters = {"0": branch}  # type: ignore[assignment]
    rule.loop = SimpleNamespace(optimizer=torch.optim.SGD(branch.parameters()))  # type: ignore[assignment]
    rule._prune(branch)
    rule.finish()
    return branch.lora_B.detach()


def gates_of_a_run(log_theta: Tensor, noise: Noise) -> Tensor:
    """The library's sampled gates (T, r) at log θ (T, r), with the noise of each step."""
    gate = HardConcrete(Stretch(), log_theta.shape[1])
    gate.phase = "sampled"
    drawn = []
    for step, values in enumerate(log_theta):
        gate.log_theta.data, gate.u = values, noise(step)
        drawn.append(gate().detach())
    return torch.stack(drawn)


def _gate_cases() -> list[tuple]:
    u = torch.tensor([0.003, 0.2, 0.45, 0.7, 0.9, 0.995])
    return [(u, torch.tensor([0.5, -1.5, 0.8, -0.4, 1.2, 2.0]), 0.5, -0.1, 1.2),
            (u.flip(0), torch.tensor([1.0, -0.6, 0.4, -2.0, 0.7, -1.1]), 1.5, -0.2, 1.3)]


def _noise(seed: int) -> Noise:
    return lambda step: torch.rand(5, generator=torch.Generator().manual_seed(100 * seed + step))


def _path(seed: int) -> Tensor:
    start = torch.randn(5, generator=torch.Generator().manual_seed(seed))
    return start - 0.2 * torch.arange(6.0)[:, None]   # (6, 5)


def _all_sites(change: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]) -> Callable[..., Any]:
    return lambda p, d, k: expected_density(*change(p, d, k))


def _pruned(change: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """B with other factors on its columns: the deterministic gate's zeros decide which are left."""
    return lambda B, log_theta: (B * change(log_theta))[:, Stretch().deterministic(log_theta) > 0]


_SAMPLE: Sequence[tuple[str, Callable[..., Any]]] = (
    ("that is the noise alone: log θ is missing in the sigmoid", lambda u, t, *rest: sample_gate(u, 0 * t, *rest)),
    ("log θ is subtracted: a large log θ must open the gate", lambda u, t, *rest: sample_gate(u, -t, *rest)),
    ("u goes in raw: the formula has its logit, log(u / (1 − u))",
     lambda u, t, *rest: sample_gate(torch.sigmoid(u), t, *rest)),
    ("τ is missing: the sum in the sigmoid is divided by it", lambda u, t, tau, *ends: sample_gate(u, t, 1.0, *ends)),
    ("τ multiplies in your sigmoid: it divides", lambda u, t, tau, *ends: sample_gate(u, t, 1 / tau, *ends)),
    ("τ divides the whole sum, log θ as well", lambda u, t, tau, *ends: sample_gate(u, tau * t, tau, *ends)),
    ("not stretched to (γ, ζ): exactly 0 and exactly 1 never come up", lambda u, t, tau, *ends: _raw(u, t, tau)),
    ("not clipped: a gate lies in [0, 1]",
     lambda u, t, tau, gamma, zeta: _raw(u, t, tau) * (zeta - gamma) + gamma),
    ("that is the deterministic gate: the noise u is missing",
     lambda u, t, *rest: Stretch(*rest).deterministic(t)))


def _raw(u: Tensor, log_theta: Tensor, tau: float) -> Tensor:
    """The draw before it is stretched: the library's with the interval (0, 1)."""
    return Stretch(tau, 0.0, 1.0).sample(log_theta, u)


_OPEN: Sequence[tuple[str, Callable[..., Any]]] = (
    ("that is P(g = 0): you want its complement", lambda t, *rest: 1 - open_probability(t, *rest)),
    ("the shift has the wrong sign: log(−γ/ζ) is negative and is subtracted",
     lambda t, *rest: 1 - open_probability(-t, *rest)),
    ("the shift is missing: with the stretch, σ(log θ) is not the probability any more",
     lambda t, tau, gamma, zeta: open_probability(t, tau, -zeta, zeta)),
    ("τ is missing: it multiplies log(−γ/ζ)", lambda t, tau, *ends: open_probability(t, 1.0, *ends)),
    ("τ multiplies the shift, it does not divide log θ", lambda t, tau, *ends: open_probability(t / tau, 1.0, *ends)),
    ("that is the deterministic gate, a value; wanted is a probability",
     lambda t, *rest: Stretch(*rest).deterministic(t)),
    ("that is P(g = 1): you want everything above 0", lambda t, *rest: Stretch(*rest).full_probability(t)))

_DENSITY: Sequence[tuple[str, Callable[..., Any]]] = (
    ("that is the sum of each matrix's own share: it can exceed 1; add up above and below the bar first",
     lambda p, d, k: sum(expected_density(p[i:i + 1], d[i:i + 1], k[i:i + 1]) for i in range(len(p)))),
    ("all matrices weigh the same in yours: a direction of a large one costs more, d + k",
     _all_sites(lambda p, d, k: (p, torch.ones_like(d), torch.ones_like(k)))),
    ("weighed by d · k: a direction holds d + k numbers", _all_sites(lambda p, d, k: (p, d * k, 0 * k))),
    ("only d is counted: a direction has a row of A, too, k numbers", _all_sites(lambda p, d, k: (p, d, 0 * k))),
    ("only k is counted: a direction has a column of B, too, d numbers", _all_sites(lambda p, d, k: (p, 0 * d, k))),
    ("that is the expected number of parameters: divide by r Σ (d + k)",
     lambda p, d, k: expected_density(p, d, k) * p.shape[1] * (d + k).sum()),
    ("the r below the bar is missing", lambda p, d, k: expected_density(p, d, k) * p.shape[1]),
    ("a count of gates with p > 1/2 has no gradient: take p itself",
     _all_sites(lambda p, d, k: ((p > 0.5).to(p), d, k))))

_NO_SQUARE = "that is C − b, not its square: λ multiplies (C − b)²"
_ASCEND: Sequence[tuple[str, Callable[..., Any]]] = (
    ("that is descent: λ climbs, or it would never press",
     lambda lam, C, b, eta: torch.stack([_one_ascent(float(x), float(c), b, eta, False)
                                         for x, c in zip(lam, C, strict=True)])),
    ("that is descent, and not projected: λ climbs", lambda lam, C, b, eta: lam - eta * (C - b) ** 2),
    ("not projected: a λ below zero would reward a missed budget; cut at 0",
     lambda lam, C, b, eta: lam + eta * (C - b) ** 2),
    (_NO_SQUARE, lambda lam, C, b, eta: lam + eta * (C - b)),
    (_NO_SQUARE, lambda lam, C, b, eta: (lam + eta * (C - b)).clamp(min=0)),
    ("that is the gradient for C, 2λ(C − b): differentiate λ(C − b)² by λ",
     lambda lam, C, b, eta: (lam + eta * 2 * lam * (C - b)).clamp(min=0)),
    ("the rate η_c is missing", lambda lam, C, b, eta: ascend_lambda(lam, C, b, 1.0)),
    ("that is the gradient alone: add η_c times it to λ", lambda lam, C, b, eta: (C - b) ** 2))

_R: Sequence[tuple[str, Callable[..., Any]]] = (
    ("that is AᵀA, (k, k): its rank is at most r, so it can never be the identity; take A Aᵀ, (r, r)",
     lambda A, B: _off_identity([A.T, B.T]).sum()),
    ("that is B Bᵀ, (d, d): it can never be the identity; take BᵀB, (r, r)",
     lambda A, B: _off_identity([A, B]).sum()),
    ("both products are the large ones, AᵀA and B Bᵀ: take those that are (r, r)",
     lambda A, B: _off_identity([A.T, B]).sum()),
    ("not squared: the norms are added, their squares are wanted", lambda A, B: _off_identity([A, B.T]).sqrt().sum()),
    ("only A's half: B has one, too", lambda A, B: _off_identity([A]).sum()),
    ("only B's half: A has one, too", lambda A, B: _off_identity([B.T]).sum()),
    ("the identity is missing: this penalty would pull A and B to zero",
     lambda A, B: (A @ A.T).square().sum() + (B.T @ B).square().sum()),
    ("that is a mean over the entries: the Frobenius norm adds them up",
     lambda A, B: orthogonality_penalty(A, B) / len(A) ** 2))

_PRUNE: Sequence[tuple[str, Callable[..., Any]]] = (
    ("the columns are right, but their gates are not folded in: the function would jump", _pruned(torch.ones_like)),
    ("folded with E[g]: use the deterministic gate, the one that the network ran with", _pruned(Stretch().mean)),
    ("folded with P(g > 0), a probability: use the deterministic gate", _pruned(Stretch().open_probability)),
    ("those are the directions that should go: keep where the gate is above zero",
     lambda B, t: B[:, Stretch().deterministic(t) == 0]))

_DEBUG: Sequence[tuple[str, Callable[..., Any]]] = (
    ("one draw serves all steps: draw inside the loop, for each step its own noise",
     lambda path, noise: gates_of_a_run(path, lambda step: noise(0))[:1].expand_as(path)),
    ("log θ moves, but the noise is that of the first step: a gate that was lucky once stays lucky",
     lambda path, noise: gates_of_a_run(path, lambda step: noise(0))),
    ("the noise is new, but log θ is that of the first step: use the row of this step",
     lambda path, noise: gates_of_a_run(path[:1].expand_as(path), noise)),
    ("there is no noise left: this is the deterministic gate, for after the window",
     lambda path, noise: Stretch().deterministic(path)),
    ("all directions share one number: each has its own u",
     lambda path, noise: gates_of_a_run(path, lambda step: noise(step)[:1].expand(path.shape[1]))))


def _sites(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    p = torch.rand(3, 4, generator=torch.Generator().manual_seed(seed))
    return p, torch.tensor([6.0, 24.0, 6.0]), torch.tensor([6.0, 6.0, 12.0])


def _factors(seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(3, 7, generator=g) * 0.6, torch.randn(5, 3, generator=g) * 0.5


def _columns(seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(8, 6, generator=g), torch.tensor([-3.0, 0.4, -2.5, -1.1, -2.2, -4.0])


TASKS: dict[str, Task] = {
    "sample_gate": Task(
        sample_gate, _gate_cases,
        "add logit u and log θ, divide by τ, take the sigmoid, stretch to (γ, ζ), clip to [0, 1]", _SAMPLE,
        (Stretch.sample,), "u, log_theta and the result are (r,) each"),
    "open_probability": Task(
        open_probability, lambda: [case[1:] for case in _gate_cases()],
        "the gate is 0 where the stretched sigmoid is not above 0: solve that for logit u", _OPEN,
        (Stretch.open_probability,), "log_theta and the result are (r,)"),
    "expected_density": Task(
        expected_density, lambda: [_sites(0), _sites(1)],
        "above the bar each p times its site's d + k; below it the same with p = 1", _DENSITY,
        (SaLoRARule.density, measure.density), "p is (n, r), d and k are (n,): sum p over r first"),
    "ascend_lambda": Task(
        ascend_lambda, lambda: [(torch.tensor([0.0, 0.3, -0.5, 0.2]), torch.tensor([0.92, 0.6, 0.7, 0.3]), b, 0.1)
                                for b in (0.5, 0.4)],
        "λ plus η_c times (C − b)², then never below 0", _ASCEND, (SaLoRARule._ascend,),
        "lam, C and the result are (n,) each"),
    "orthogonality_penalty": Task(
        orthogonality_penalty, lambda: [_factors(0), _factors(1)],
        "‖A Aᵀ − I‖² + ‖BᵀB − I‖²: squares of all entries, added up, with I of r × r", _R,
        (SaLoRARule.orthogonality, _off_identity), "A is (r, k) and B is (d, r): A Aᵀ and BᵀB are (r, r)"),
    "prune_and_fold": Task(
        prune_and_fold, lambda: [_columns(0), _columns(1)],
        "the deterministic gate is 0 where log θ ≤ −log 11: drop those columns, multiply the others by their gates",
        _PRUNE, (SaLoRARule._prune, SaLoRARule.finish), "B is (d, r), the gates are (r,): one a column"),
    "gates_of_a_run": Task(
        gates_of_a_run, lambda: [(_path(seed), _noise(seed)) for seed in (1, 2)],
        "row t of the result is a draw at row t of log_theta with noise(t)", _DEBUG,
        (SaLoRARule.before_step, HardConcrete.forward), "log_theta is (T, r), noise(t) is (r,): stack T rows"),
}

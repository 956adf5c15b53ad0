"""Statements about the methods themselves, computed on the spot in float64: no runs, no seeds, milliseconds.

Each function returns the largest violation it found; 0 where a count or an order is right.
"""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import measure
from ..adapters import Adapters, adapt
from ..gates import HardConcrete, Selection, Stretch
from ..lowrank import LowRank
from ..methods import COLA, LoRA, Method
from ..methods.autolora import hypergradient
from ..toys import frank_wolfe as fw
from ..toys import least_squares

ROBERTA = {"base": (12, 768, 3072), "large": (24, 1024, 4096)}   # layers, width, inner width
GLUE_LISTS = {"MRPC": 99, "QQP": 82, "QNLI": 97, "MNLI": 72, "CoLA": 88, "SST-2": 93, "RTE": 90, "STS-B": 81}


# -- a layer with a method on it

def layer(method: type[Method], d: int = 12, k: int = 10, **values: Any) -> tuple[Adapters, Tensor]:
    """One (d, k) linear layer in float64 with a branch whose B is not zero, and inputs (7, k)."""
    g = torch.Generator().manual_seed(0)
    linear = nn.utils.skip_init(nn.Linear, k, d, bias=False, dtype=torch.float64)
    linear.weight.data = torch.randn(d, k, generator=g, dtype=torch.float64)
    adapters = adapt(nn.Sequential(linear), method(sites=("0",), **values), seed=0)
    x = torch.randn(7, k, generator=g, dtype=torch.float64)
    return adapters, x


def shake(adapters: Adapters, seed: int = 1) -> None:
    """Give every factor values, as training would."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for branch in adapters.values():
            for factor in (branch.lora_A, branch.lora_B):
                factor.copy_(torch.randn(factor.shape, generator=g, dtype=torch.float64))


def gap(a: Tensor, b: Tensor) -> float:
    """Largest difference, in units of the size of b."""
    return float((a - b).abs().max() / b.abs().max().clamp_min(1.0))


@torch.no_grad()
def starts_unchanged() -> float:
    """B = 0: the adapted layer is the layer."""
    adapters, x = layer(LoRA, r=2)
    return gap(adapters.model(x), x @ adapters.owner("0").W.T)


@torch.no_grad()
def merge_is_the_same_function() -> float:
    adapters, x = layer(LoRA, r=2)
    shake(adapters)
    beside = adapters.model(x)
    adapters.merge()
    return gap(adapters.model(x), beside)


# -- COLA

def _chain(links: int = 3, r: int = 2) -> tuple[Adapters, list[float], list[int]]:
    """A chain of links with values in each: the adapters, change of function at each knot, trained numbers a link."""
    adapters, x = layer(COLA, chain=links, r=r)
    trained = [p for b in adapters.values() for p in (b.lora_A, b.lora_B)]
    adapters.rule.loop = SimpleNamespace(optimizer=torch.optim.AdamW(trained))  # type: ignore[assignment]
    changes, counts = [], []
    for link in range(links):
        shake(adapters, seed=link + 1)
        counts.append(measure.parameter_counts(adapters.model)["adapter"])
        if link < links - 1:
            with torch.no_grad():
                before = adapters.model(x)
                adapters.rule.tie()  # type: ignore[attr-defined]
                changes.append(gap(adapters.model(x), before))
    return adapters, changes, counts


def knot_keeps_the_function() -> float:
    return max(_chain()[1])


def chain_reaches_the_sum_of_ranks() -> float:
    """|rank of the whole change − Σ r|, for three links of rank 2."""
    adapters, _, _ = _chain()
    left, right = adapters["0"].factors()
    return abs(measure.numerical_rank(measure.singular_values(left, right), 1e-10) - 6)


def link_trains_what_lora_trains() -> float:
    """Trained numbers of every link less those of LoRA at its rank."""
    lora = measure.parameter_counts(layer(LoRA, r=2)[0].model)["adapter"]
    return max(abs(n - lora) for n in _chain()[2])


def step_down_flops(second: int, first: int = 8, share: float = 0.4) -> float:
    """FLOPs of a training step of a two-link chain, averaged over both links, on W_q and W_v of a BERT of 3 layers.

    share: of the steps that the second link has (the paper: 2 epochs of 5).
    """
    width, inner = 384, 1536
    shapes = {f"{i}.{m}": {"up": (inner, width), "down": (width, inner)}.get(m, (width, width))
              for i in range(3) for m in ("q", "k", "v", "o", "up", "down")}
    one, two = (measure.model_flops(shapes, {s: r for s in shapes if s.endswith((".q", ".v"))}, 512, 32).total
                for r in (first, second))
    return (1 - share) * one + share * two


def flops_fall_with_the_second_rank() -> float:
    """1 for a step-down from 8 that costs no less than the next larger second rank, or more than LoRA."""
    costs = [step_down_flops(r) for r in (2, 4, 6, 8)]
    falls = all(a < b for a, b in itertools.pairwise(costs))
    return float(not (falls and costs[-1] <= step_down_flops(8, share=0.0)))


def frank_wolfe_gap(which: str, units: tuple[float, ...] = (0.1, 1.0, 10.0), steps: int = 200) -> float:
    """By what share the mean gap of Frank-Wolfe exceeds a bound, at worst over units of measurement.

    which: "of the proof" or "as printed", as `frank_wolfe.gap_bound` says.
    """
    excess = []
    for unit in units:
        problem = fw.completion(unit=unit)
        mean = float(fw.frank_wolfe(problem, steps, "constant").gap.mean())
        excess.append(mean / fw.gap_bound(problem, steps, which) - 1)
    return max(0.0, *excess)


# -- SaLoRA

def density_starts_at_092() -> float:
    """P(g > 0) at log θ = 0, less the paper's 0.92, beyond its two digits."""
    start = float(Stretch().open_probability(torch.zeros((), dtype=torch.float64)))
    return max(0.0, abs(start - 0.92) - 0.005)


def pruned_exactly_below_one_half() -> float:
    """Gates whose deterministic value is zero though P(g > 0) > ½, or not zero though P(g > 0) < ½."""
    theta = torch.linspace(-6, 6, 4000, dtype=torch.float64)
    closed, rare = Stretch().deterministic(theta) == 0, Stretch().open_probability(theta) < 0.5
    return float((closed != rare).sum())


def _roberta(size: str, r: int, gated: bool) -> tuple[int, int]:
    """Numbers in A and B, and in the gates, of r directions on all six matrices of every layer."""
    layers, width, inner = ROBERTA[size]
    total = gates = 0
    for d, k in [(width, width)] * 4 + [(inner, width), (width, inner)]:
        branch = LowRank(k, d, r, gate=HardConcrete(Stretch(), r) if gated else None, device="meta")
        counts = {name: p.numel() for name, p in branch.named_parameters()}
        gates += layers * sum(n for name, n in counts.items() if "log_theta" in name)
        total += layers * (counts["lora_A"] + counts["lora_B"])
    return total, gates


def salora_counts() -> float:
    """|ours − paper|, of 1.33 M and 3.54 M numbers at r = 8 (to the digits printed), and 576 and 1152 gates."""
    base, large = (_roberta(size, 8, gated=True) for size in ROBERTA)
    return (abs(round(base[0] / 1e6, 2) - 1.33) + abs(round(large[0] / 1e6, 2) - 3.54)
            + abs(base[1] - 576) + abs(large[1] - 1152))


# -- Delta-LoRA, on the least-squares problem of 05

def _solved(**values: Any) -> least_squares.Path:
    return least_squares.solve(least_squares.problem(), **values)


def before_K_it_is_lora() -> float:
    lora, delta = _solved(steps=60), _solved(lam=2.0, K=50, steps=60)
    return float(np.abs(lora.W[:51] - delta.W[:51]).max() + np.abs(lora.B[:51] - delta.B[:51]).max())


def lambda_zero_is_lora() -> float:
    lora, delta = _solved(), _solved(lam=0.0, K=10)
    return float(np.abs(lora.B - delta.B).max() + np.abs(lora.W - delta.W).max())


def delta_telescopes() -> float:
    """W_T − W_K less λ s (B_T A_T − B_K A_K), W having been written step by step."""
    path = _solved(lam=2.0, K=50)
    return float(np.abs(path.W[-1] - path.W[50] - 2.0 * (path.product(-1) - path.product(50))).max())


def delta_has_rank_2r() -> float:
    """Directions of the whole change beyond 2 r = 4, for r = 2."""
    return float(max(0, np.linalg.matrix_rank(_solved(lam=2.0, K=50).total(), tol=1e-9) - 4))


def delta_from_the_start_is_a_larger_scale() -> float:
    """K = 0 against LoRA at (1 + λ) α: all that was learned, and Adam without ε."""
    delta, larger = _solved(lam=2.0, K=0, eps=1e-300), _solved(alpha=3 * 4.0, eps=1e-300)
    return float(np.abs(delta.total() - larger.total()).max())


# -- AutoLoRA

def _two_losses() -> tuple[Any, Any, dict[str, Tensor], list[nn.Parameter]]:
    """Least-squares losses of U diag(softmax β) V on two halves of the rows, with weights and β."""
    g = torch.Generator().manual_seed(0)
    X, Y = (torch.randn(20, n, generator=g, dtype=torch.float64) for n in (6, 5))
    weights = {name: torch.randn(shape, generator=g, dtype=torch.float64).requires_grad_()
               for name, shape in {"U": (5, 4), "V": (4, 6)}.items()}
    beta = nn.Parameter(torch.randn(4, generator=g, dtype=torch.float64))

    def loss(rows: slice) -> Any:
        return lambda w: (X[rows] @ w["V"].T * beta.softmax(0) @ w["U"].T - Y[rows]).square().mean()

    return loss(slice(0, 10)), loss(slice(10, 20)), weights, [beta]


def _gradient(kind: str, eta: float = 1e-3, radius: float = 1e-4) -> Tensor:
    train, held_out, weights, betas = _two_losses()
    return hypergradient(kind, train, held_out, weights, betas, eta, radius)[0].detach()


def finite_difference_is_the_unrolled() -> float:
    """Their difference in units of the unrolled hypergradient."""
    exact = _gradient("unrolled")
    return float((_gradient("finite_difference") - exact).norm() / exact.norm())


def code_weighs_by_one() -> float:
    """(betty − direct) less (finite difference − direct) / η, in units of the latter, at one radius."""
    eta = 1e-3
    train, held_out, weights, betas = _two_losses()
    virtual = {n: (w - eta * g).detach().requires_grad_() for (n, w), g in zip(
        weights.items(), torch.autograd.grad(train(weights), list(weights.values())), strict=True)}
    direct = torch.autograd.grad(held_out(virtual), betas)[0]
    ours = (_gradient("finite_difference", eta) - direct) / eta
    return float((_gradient("betty", eta) - direct - ours).norm() / ours.norm())


def second_order_vanishes_with_eta(eta: float = 1e-4) -> float:
    """|2 − the factor by which unrolled and η = 0 come to differ more when η is doubled|."""
    direct = _gradient("first_order")
    one, two = (float((_gradient("unrolled", e) - direct).norm()) for e in (eta, 2 * eta))
    return abs(two / one - 2)


def softmax_ranks_stay_inside(k: int = 8, draws: int = 500) -> float:
    """Ranks outside 1 .. k among random β, of every size."""
    g, outside = torch.Generator().manual_seed(0), 0
    selection = Selection(k)
    for i in range(draws):
        selection.beta.data = torch.randn(k, generator=g) * 10 ** (i % 5 - 3)
        outside += not 1 <= selection.rank() <= k
    return float(outside)


def autolora_counts() -> float:
    """|ours − theirs|: 147 456 numbers at r = 4 on q and v of RoBERTa-base; 110 592, 152 064 at two of the lists."""
    layers, width, _ = ROBERTA["base"]
    unit = sum(p.numel() for p in LowRank(width, width, 1, device="meta").parameters())
    lists = [unit * GLUE_LISTS[task] for task in ("MNLI", "MRPC")]
    return abs(2 * layers * 4 * unit - 147_456) + abs(lists[0] - 110_592) + abs(lists[1] - 152_064)


# -- LoRA

def lora_count() -> float:
    """|ours − 294 912|: r = 8 on q and v of RoBERTa-base, the table's 0.3 M."""
    layers, width, _ = ROBERTA["base"]
    return abs(2 * layers * sum(p.numel() for p in LowRank(width, width, 8, device="meta").parameters()) - 294_912)

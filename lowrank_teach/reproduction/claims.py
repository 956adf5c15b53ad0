"""The claims of the papers, one table a paper, with the numbers that the papers report."""

from __future__ import annotations

import itertools
import json
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..adapters import Adapters, adapt
from ..analysis import measures, toy_problems
from ..gates import HardConcrete, Selection, Stretch
from ..lowrank import LowRank
from ..methods import COLA, LoRA, Method
from ..methods.autolora import hypergradient
from .results import Record, Value, references_folder
from .verdicts import (
    FULL,
    NO_RUNS,
    TURNED,
    Beyond,
    Claim,
    Compared,
    Exact,
    FromRuns,
    between,
    bleu_claim,
    each,
    every_score_claim,
    last,
    log10,
    mean_rank,
    over_tasks,
    peak_memory,
    ratio,
    seconds,
    site_mean,
    spread,
    step_time,
)

# ---- checked on the spot -----------------------------------------------------------------------------------
# Statements about the methods themselves, computed on the spot in float64: no runs, no seeds, milliseconds.
#
# Each function returns the largest violation it found; 0 where a count or an order is right.
ROBERTA = {"base": (12, 768, 3072), "large": (24, 1024, 4096)}   # layers, width, inner width
GLUE_LISTS = {"MRPC": 99, "QQP": 82, "QNLI": 97, "MNLI": 72, "CoLA": 88, "SST-2": 93, "RTE": 90, "STS-B": 81}


# -- a layer with a method on it

def layer(method: type[Method], d: int = 12, k: int = 10, **values: Any) -> tuple[Adapters, Tensor]:
    """Return one (d, k) linear layer in float64 with a branch whose B is not zero, and inputs (7, k)."""
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
    """Return the largest difference, in units of the size of b."""
    return float((a - b).abs().max() / b.abs().max().clamp_min(1.0))


@torch.no_grad()
def starts_unchanged() -> float:
    """Return B = 0: the adapted layer is the layer."""
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
    """Return a chain with values in each link: adapters, change of function at each knot, trained numbers a link."""
    adapters, x = layer(COLA, chain=links, r=r)
    trained = [p for b in adapters.values() for p in (b.lora_A, b.lora_B)]
    adapters.rule.loop = SimpleNamespace(optimizer=torch.optim.AdamW(trained))  # type: ignore[assignment]
    changes, counts = [], []
    for link in range(links):
        shake(adapters, seed=link + 1)
        counts.append(measures.parameter_counts(adapters.model)["adapter"])
        if link < links - 1:
            with torch.no_grad():
                before = adapters.model(x)
                adapters.rule.tie()  # type: ignore[attr-defined]
                changes.append(gap(adapters.model(x), before))
    return adapters, changes, counts


def knot_keeps_the_function() -> float:
    return max(_chain()[1])


def chain_reaches_the_sum_of_ranks() -> float:
    """Return |rank of the whole change − Σ r|, for three links of rank 2."""
    adapters, _, _ = _chain()
    left, right = adapters["0"].factors()
    return abs(measures.numerical_rank(measures.singular_values(left, right), 1e-10) - 6)


def link_trains_what_lora_trains() -> float:
    """Return the trained numbers of every link less those of LoRA at its rank."""
    lora = measures.parameter_counts(layer(LoRA, r=2)[0].model)["adapter"]
    return max(abs(n - lora) for n in _chain()[2])


def step_down_flops(second: int, first: int = 8, share: float = 0.4) -> float:
    """Return the FLOPs of a training step of a two-link chain, averaged over both, on W_q and W_v of a 3-layer BERT.

    share: of the steps that the second link has (the paper: 2 epochs of 5).
    """
    width, inner = 384, 1536
    shapes = {f"{i}.{m}": {"up": (inner, width), "down": (width, inner)}.get(m, (width, width))
              for i in range(3) for m in ("q", "k", "v", "o", "up", "down")}
    one, two = (measures.model_flops(shapes, {s: r for s in shapes if s.endswith((".q", ".v"))}, 512, 32).total
                for r in (first, second))
    return (1 - share) * one + share * two


def flops_fall_with_the_second_rank() -> float:
    """Return 1 for a step-down from 8 that costs no less than the next larger second rank, or more than LoRA."""
    costs = [step_down_flops(r) for r in (2, 4, 6, 8)]
    falls = all(a < b for a, b in itertools.pairwise(costs))
    return float(not (falls and costs[-1] <= step_down_flops(8, share=0.0)))


def frank_wolfe_gap(units: tuple[float, ...] = (0.1, 1.0, 10.0), steps: int = 200) -> float:
    """Return by what share the mean gap of Frank-Wolfe exceeds its bound, at worst over units of measurement."""
    excess = []
    for unit in units:
        problem = toy_problems.completion(unit=unit)
        mean = float(toy_problems.frank_wolfe(problem, steps, "constant").gap.mean())
        excess.append(mean / toy_problems.gap_bound(problem, steps) - 1)
    return max(0.0, *excess)


# -- SaLoRA

def density_starts_at_092() -> float:
    """Return P(g > 0) at log θ = 0, less the paper's 0.92, beyond its two digits."""
    start = float(Stretch().open_probability(torch.zeros((), dtype=torch.float64)))
    return max(0.0, abs(start - 0.92) - 0.005)


def pruned_exactly_below_one_half() -> float:
    """Return the gates whose deterministic value is zero though P(g > 0) > ½, or not zero though P(g > 0) < ½."""
    theta = torch.linspace(-6, 6, 4000, dtype=torch.float64)
    closed, rare = Stretch().deterministic(theta) == 0, Stretch().open_probability(theta) < 0.5
    return float((closed != rare).sum())


def _roberta(size: str, r: int, gated: bool) -> tuple[int, int]:
    """Return the numbers in A and B, and in the gates, of r directions on all six matrices of every layer."""
    layers, width, inner = ROBERTA[size]
    total = gates = 0
    for d, k in [(width, width)] * 4 + [(inner, width), (width, inner)]:
        branch = LowRank(k, d, r, gate=HardConcrete(Stretch(), r) if gated else None, device="meta")
        counts = {name: p.numel() for name, p in branch.named_parameters()}
        gates += layers * sum(n for name, n in counts.items() if "log_theta" in name)
        total += layers * (counts["lora_A"] + counts["lora_B"])
    return total, gates


def salora_counts() -> float:
    """Return |ours − paper| of 1.33 M and 3.54 M numbers at r = 8 (to the digits printed), 576 and 1152 gates."""
    base, large = (_roberta(size, 8, gated=True) for size in ROBERTA)
    return (abs(round(base[0] / 1e6, 2) - 1.33) + abs(round(large[0] / 1e6, 2) - 3.54)
            + abs(base[1] - 576) + abs(large[1] - 1152))


# -- Delta-LoRA, on the least-squares problem of 05

def _solved(**values: Any) -> toy_problems.Trajectory:
    return toy_problems.solve(toy_problems.problem(), **values)


def before_K_it_is_lora() -> float:
    lora, delta = _solved(steps=60), _solved(lam=2.0, K=50, steps=60)
    return float(np.abs(lora.W[:51] - delta.W[:51]).max() + np.abs(lora.B[:51] - delta.B[:51]).max())


def lambda_zero_is_lora() -> float:
    lora, delta = _solved(), _solved(lam=0.0, K=10)
    return float(np.abs(lora.B - delta.B).max() + np.abs(lora.W - delta.W).max())


def delta_telescopes() -> float:
    """Return W_T − W_K less λ s (B_T A_T − B_K A_K), W having been written step by step."""
    path = _solved(lam=2.0, K=50)
    return float(np.abs(path.W[-1] - path.W[50] - 2.0 * (path.product(-1) - path.product(50))).max())


def delta_has_rank_2r() -> float:
    """Return the directions of the whole change beyond 2 r = 4, for r = 2."""
    return float(max(0, np.linalg.matrix_rank(_solved(lam=2.0, K=50).total(), tol=1e-9) - 4))


def delta_from_the_start_is_a_larger_scale() -> float:
    """Return K = 0 against LoRA at (1 + λ) α: all that was learned, and Adam without ε."""
    delta, larger = _solved(lam=2.0, K=0, eps=1e-300), _solved(alpha=3 * 4.0, eps=1e-300)
    return float(np.abs(delta.total() - larger.total()).max())


# -- AutoLoRA

def _two_losses() -> tuple[Any, Any, dict[str, Tensor], list[nn.Parameter]]:
    """Return Least-squares losses of U diag(softmax β) V on two halves of the rows, with weights and β."""
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
    """Return the their difference in units of the unrolled hypergradient."""
    exact = _gradient("unrolled")
    return float((_gradient("finite_difference") - exact).norm() / exact.norm())


def code_weighs_by_one() -> float:
    """Return (betty − direct) less (finite difference − direct) / η, in units of the latter, at one radius."""
    eta = 1e-3
    train, held_out, weights, betas = _two_losses()
    virtual = {n: (w - eta * g).detach().requires_grad_() for (n, w), g in zip(
        weights.items(), torch.autograd.grad(train(weights), list(weights.values())), strict=True)}
    direct = torch.autograd.grad(held_out(virtual), betas)[0]
    ours = (_gradient("finite_difference", eta) - direct) / eta
    return float((_gradient("betty", eta) - direct - ours).norm() / ours.norm())


def second_order_vanishes_with_eta(eta: float = 1e-4) -> float:
    """Return |2 − the factor by which unrolled and η = 0 come to differ more when η is doubled|."""
    direct = _gradient("first_order")
    one, two = (float((_gradient("unrolled", e) - direct).norm()) for e in (eta, 2 * eta))
    return abs(two / one - 2)


def softmax_ranks_stay_inside(k: int = 8, draws: int = 500) -> float:
    """Return the ranks outside 1 .. k among random β, of every size."""
    g, outside = torch.Generator().manual_seed(0), 0
    selection = Selection(k)
    for i in range(draws):
        selection.beta.data = torch.randn(k, generator=g) * 10 ** (i % 5 - 3)
        outside += not 1 <= selection.rank() <= k
    return float(outside)


def autolora_counts() -> float:
    """Return |ours − theirs|: 147 456 at r = 4 on q and v of RoBERTa-base; 110 592, 152 064 at two of the lists."""
    layers, width, _ = ROBERTA["base"]
    unit = sum(p.numel() for p in LowRank(width, width, 1, device="meta").parameters())
    lists = [unit * GLUE_LISTS[task] for task in ("MNLI", "MRPC")]
    return abs(2 * layers * 4 * unit - 147_456) + abs(lists[0] - 110_592) + abs(lists[1] - 152_064)


# -- LoRA

def lora_count() -> float:
    """Return |ours − 294 912|: r = 8 on q and v of RoBERTa-base, the table's 0.3 M."""
    layers, width, _ = ROBERTA["base"]
    return abs(2 * layers * sum(p.numel() for p in LowRank(width, width, 8, device="meta").parameters()) - 294_912)


# ---- numbers that the papers report ------------------------------------------------------------------------
# The papers' own numbers that the ledger quotes: only those that were found in a text, a table or a repository.
#
# Numbers remembered, or read off a figure, are not here. A test holds each against the list they were taken from.
_COLA, _SALORA = "Xia, Qin and Hazan 2024, arXiv 2401.04151", "Hu et al. 2023, Mathematics 11(20), 4317"
_DELTA, _AUTO = "Zi et al. 2023, arXiv 2309.02411", "Zhang et al. 2024, NAACL, arXiv 2403.09113"
_LORA = "Hu et al. 2021, arXiv 2106.09685, tables in microsoft/LoRA@c4593f0"
_SECOND = "a secondary page on arXiv 2309.02411"


@dataclass(frozen=True)
class Reported:
    """text: as a table cell.  values: the numbers in it, as reported.  source: where they stand."""

    text: str
    values: Sequence[str]
    source: str


REPORTED: dict[str, Reported] = {
    "COLA: gains": Reported("+3.66 on WSC, +1.38 on BoolQ, +1.66 on RTE (OPT-1.3B)", ("3.66", "1.38", "1.66"),
                            f"{_COLA}, text on table 1"),
    "COLA: WSC": Reported("+3.66 points, 6.47 % of LoRA's score", ("3.66", "6.47"), f"{_COLA}, text on table 1"),
    "COLA: RTE, Llama2": Reported("82.09 → 85.70", ("82.09", "85.70"), f"{_COLA}, text on table 2"),
    "COLA: SST-2, Llama2": Reported("0 points", ("0 (means stated equal)",), f"{_COLA}, text on table 2"),
    "SaLoRA: counts": Reported("1.33 M, 3.54 M; 576, 1152", ("1.33", "3.54", "576", "1152"),
                               f"{_SALORA}, text on tables 1 and 4"),
    "SaLoRA: kept": Reported("0.5 × 1.33 M", ("0.5 x 1.33M",), f"{_SALORA}, text on table 1"),
    "SaLoRA: style": Reported("StyIns 92.40, human 64.60", ("92.40", "64.60"), f"{_SALORA}, text on table 2"),
    "SaLoRA: λ = 0": Reported("0.37 (CoLA), 0.42 (STS-B), 0.43 (MRPC) at b = 0.5", ("0.37", "0.42", "0.43", "0.5"),
                              f"{_SALORA}, text on table 3"),
    "SaLoRA: time": Reported("+11 % at batch 32", ("11",), f"{_SALORA}, text on table 4"),
    "SaLoRA: density": Reported("down to 0.125 (RoBERTa-large)", ("0.125",), f"{_SALORA}, text on figure 5"),
    "SaLoRA: start": Reported("0.92", ("0.92",), f"{_SALORA}, text on figure 6"),
    "SaLoRA: end": Reported("about 0.50", ("about 0.50",), f"{_SALORA}, text on figure 6"),
    "SaLoRA: orthogonality": Reported("about 0.001", ("about 0.001",), f"{_SALORA}, text on figure 6"),
    "Delta-LoRA: E2E": Reported("+1.24 BLEU, +0.13 NIST, +0.86 METEOR, +1.13 ROUGE-L, +0.08 CIDEr over LoRA",
                                ("+1.24", "+0.13", "+0.86", "+1.13", "+0.08"), f"{_DELTA}, text on table 1"),
    "Delta-LoRA: WebNLG": Reported("+0.79, +1.08, +0.91 BLEU (seen, unseen, all), +0.01 METEOR, TER better by 0.02",
                                   ("+0.79", "+1.08", "+0.91", "+0.01", "0.02"), f"{_DELTA}, text on table 2"),
    "Delta-LoRA: GLUE": Reported("MRPC 90.19, SST-2 95.1", ("90.19", "95.1"), _SECOND),
    "Delta-LoRA: λ": Reported("λ = 2", ("2",), _SECOND),
    "Delta-LoRA: K": Reported("K ≥ 500", (">=500",), _SECOND),
    "AutoLoRA: GLUE": Reported("average 85.5 (RoBERTa-base)", ("85.5",), f"{_AUTO}, text on table 1"),
    "AutoLoRA: best": Reported("6 of 8", ("6",), f"{_AUTO}, text on table 1"),
    "AutoLoRA: cost": Reported("AdaLoRA normalised to 1", ("1",), f"{_AUTO}, text on table 5"),
    "AutoLoRA: lists": Reported("means 3.000 (MNLI) to 4.125 (MRPC) on GLUE", ("3.000", "4.125"),
                                "ruz048/AutoLoRA@2b2db5c, rank lists"),
    "LoRA: average": Reported("87.2 against 86.4 (RoBERTa-base)", ("87.2", "86.4"), f"{_LORA}, table 2"),
    "LoRA: size": Reported("0.3 M", ("LoRA (0.3M)",), f"{_LORA}, table 2"),
    "LoRA: E2E": Reported("BLEU 70.4 against 68.2", ("70.4", "68.2"), f"{_LORA}, table 3"),
}


def says(name: str) -> str:
    """Return a reported number as the ledger prints it.

    Raises:
        KeyError: there is no such number.
    """
    return REPORTED[name].text


# ---- AutoLoRA ----------------------------------------------------------------------------------------------
# Claims of AutoLoRA (Zhang et al. 2024, NAACL, arXiv 2403.09113), and the control it lacks.
AUTO = "autolora_parts", "AutoLoRA"
BESIDE, ADA = ("adalora", "AutoLoRA"), ("adalora", "AdaLoRA, 8 to 4")   # trained in turns: their seconds compare


OURS = "our control, not the paper's"
DEALS = 2000


def _by_chance(value: Value) -> Value:
    """Return the mean of `value` over the same run with its ranks dealt to its matrices at random."""
    def chance(record: Record) -> float:
        sites, dealer = list(record["ranks"]), random.Random(0)
        ranks = list(record["ranks"].values())
        dealt = [dict(zip(sites, dealer.sample(ranks, len(ranks)), strict=True)) for _ in range(DEALS)]
        return statistics.fmean(value({"ranks": one}) for one in dealt)

    return chance


def _ranks(record: Record, letter: str) -> list[int]:
    """Return the ranks of one matrix, layer by layer."""
    return [r for site, r in sorted(record["ranks"].items()) if site.endswith(f".{letter}")]


def _between_blocks(record: Record) -> float:
    """Return the standard deviation of ranks over layers, averaged over q and v."""
    return statistics.fmean(statistics.pstdev(_ranks(record, letter)) for letter in "qv")


def _between_q_and_v(record: Record) -> float:
    pairs = zip(_ranks(record, "q"), _ranks(record, "v"), strict=True)
    return statistics.fmean(abs(q - v) for q, v in pairs)


def _share_of_a_grid(record: Record) -> float:
    return seconds(record) / (16 * record["seconds"]["training"])


def _ablation(arm: str, what: str, note: str = "") -> Compared:
    return Compared("T4" if not note else "control", f"the search beats {what}",
                    between(AUTO, ("autolora_parts", arm)), note=note)


def _learned(where: str, statement: str, second: str, says: str = "–", note: str = "") -> tuple[Compared, ...]:
    return over_tasks("tuned_autolora", where, statement, "AutoLoRA", second, ">", says, note)


AUTOLORA_CLAIMS: tuple[Claim, ...] = (
    *_learned("T1", "AutoLoRA beats LoRA of rank 4", "LoRA, r = 4", says("AutoLoRA: GLUE")),
    *_learned("T1", "AutoLoRA beats AdaLoRA", "AdaLoRA, 8 to 4", note="AdaLoRA from rank 8 to 4 on average"),
    *_learned("T4", "the search beats its own with η = 0, which looks at the present weights only", "η = 0"),
    *_learned("control", "the search beats its own ranks dealt out at random", "ranks dealt at random", note=OURS),
    Compared("T1", "AutoLoRA beats LoRA of rank 4", between(AUTO, ("autolora_parts", "LoRA, r = 4"))),
    Compared("T1", "AutoLoRA beats AdaLoRA", between(BESIDE, ADA), note="AdaLoRA from rank 8 to 4 on average"),
    Compared("T1", "AutoLoRA is comparable with full fine-tuning", between(("autolora_parts", "AutoLoRA"), FULL), "≈",
             margin=1.0, note="our reading: within one point"),
    Beyond("T1", "it is the best on six of eight GLUE tasks", "RoBERTa-base", says("AutoLoRA: best")),
    Beyond("Fig. 2", "it is above all baselines on MRPC, QQP and SST-2", "RoBERTa-large"),
    Beyond("T2", "it is the best on all five metrics of E2E, and equal or better on WebNLG's three", "GPT2-medium"),
    Beyond("T3", "it has the best F1 on BioNLP", "RoBERTa-base"),
    _ablation("η = 0", "its own with η = 0, which looks at the present weights only"),
    _ablation("ranks dealt at random", "its own ranks dealt out at random", OURS),
    _ablation("no constraint", "its own without the constraint that α sums to one"),
    _ablation("sigmoid", "its own with a sigmoid for each α"),
    Compared("T5", "search and training cost slightly more than AdaLoRA: up to one half more",
             ratio(BESIDE, ADA, seconds, 1.25), "≈", says("AutoLoRA: cost"), 25.0, "% of AdaLoRA's time",
             note="our reading of “slightly”: between 0 and 50 %"),
    Compared("T5", "search and training cost less than a grid of 16 LoRA trainings",
             each(AUTO, _share_of_a_grid, 1.0, "of the grid's time"), "<", unit="% of the grid",
             note="a grid counted as 16 times AutoLoRA's own retraining"),
    Compared("Fig. 3", "ranks differ between blocks, more than the same ranks dealt at random do",
             each(AUTO, _between_blocks, _by_chance(_between_blocks), "spread of ranks over blocks"),
             unit="directions", scale=1.0, note="less what dealing gives: any list of unequal ranks differs"),
    Compared("Fig. 3", "ranks differ between W_q and W_v, more than the same ranks dealt at random do",
             each(AUTO, _between_q_and_v, _by_chance(_between_q_and_v), "|q − v|"),
             unit="directions", scale=1.0, note="less what dealing gives: any list of unequal ranks differs"),
    Compared("code", "ranks average 3.6 at k = 8, give or take 0.6", each(AUTO, mean_rank(), 3.6, "mean rank"), "≈",
             says("AutoLoRA: lists"), 0.6, "directions", 1.0, "the band of the lists printed in the authors' code"),
    Exact("Section 3.3", "softmax ranks lie in 1 .. k: none is ever 0", softmax_ranks_stay_inside,
          "500 random β of five sizes"),
    Exact("eq. 8", "the finite difference is the unrolled hypergradient",
          finite_difference_is_the_unrolled, "a pair of least-squares losses, radius 10⁻⁴",
          tolerance=1e-6),
    Exact("T4", "η = 0 differs from the exact hypergradient in proportion to η: hardly, at the paper's rate",
          second_order_vanishes_with_eta, "the same losses, η = 10⁻⁴ against twice that", tolerance=0.01),
    Exact("code", "the authors' code weighs the second-order part by 1 in place of η, 1/η times as much",
          code_weighs_by_one, "the same losses, η = 10⁻³", tolerance=1e-9),
    Exact("T1", "LoRA r = 4 on q and v trains 147 456 numbers, the lists in the code 110 592 to 152 064",
          autolora_counts, "counted on RoBERTa-base's shapes"),
    bleu_claim("T2", "on E2E, AutoLoRA beats LoRA of rank 4 by BLEU, each at its best rate", "AutoLoRA", "LoRA"),
    every_score_claim("T2", "on E2E, AutoLoRA beats LoRA of rank 4 by all five scores", "AutoLoRA", "LoRA"),
)


# ---- COLA --------------------------------------------------------------------------------------------------
# Claims of COLA (Xia, Qin and Hazan 2024, arXiv 2401.04151).
COLA_BASELINE, TWO, THREE = ("chain", "1"), ("chain", "2"), ("chain", "3")


def _second_rank(r: int) -> Compared:
    return Compared("Fig. 3, T3", f"with a second link of rank {r}, the chain beats LoRA of rank 8",
                    between(("step_down", str(r)), COLA_BASELINE))


def _chained(where: str, statement: str, first: str, second: str, side: str = ">", says: str = "–", note: str = ""
             ) -> tuple[Compared, ...]:
    return over_tasks("tuned_cola", where, statement, first, second, side, says, note)


COLA_CLAIMS: tuple[Claim, ...] = (
    *_chained("T1, T2", "a chain of 2 beats LoRA at equal epochs", "COLA 2", "LoRA", says=says("COLA: gains"),
              note="third-party re-runs: better in 9 of 20 settings, worse in 11"),
    *_chained("T1, T2", "a chain of 3 beats LoRA at equal epochs", "COLA 3", "LoRA"),
    *_chained("Fig. 2", "the score rises again from a chain of 2 to one of 3", "COLA 3", "COLA 2"),
    *_chained("control", "a chain of 2 beats one LoRA of the whole chain's rank, 16", "COLA 2", "LoRA, r = 16",
              note=OURS),
    *_chained("control", "a chain of 3 beats one LoRA of the whole chain's rank, 24", "COLA 3", "LoRA, r = 24",
              note=OURS),
    Compared("T1, T2", "a chain of 2 beats LoRA at equal epochs", between(TWO, COLA_BASELINE)),
    Compared("T1, T2", "a chain of 3 beats LoRA at equal epochs", between(THREE, COLA_BASELINE)),
    Beyond("T1", "the largest gain of OPT-1.3B is on WSC", "OPT-1.3B", says("COLA: WSC")),
    Beyond("T2", "Llama2-7B gains on RTE", "Llama2-7B", says("COLA: RTE, Llama2")),
    Beyond("T2", "Llama2-7B ties on SST-2", "Llama2-7B", says("COLA: SST-2, Llama2")),
    Compared("Fig. 2", "scores of a chain of 2 scatter less over seeds than LoRA's", spread(TWO, COLA_BASELINE), "<",
             unit="points of scatter", note="distances from the median over seeds are compared"),
    Compared("Fig. 2", "scores of a chain of 3 scatter less over seeds than LoRA's", spread(THREE, COLA_BASELINE),
             "<",
             unit="points of scatter", note="distances from the median over seeds are compared"),
    *(_second_rank(r) for r in (2, 4, 6)),   # with 8 it is the chain of 2
    Beyond("Fig. 3, T3", "CB and WSC gain with a larger second rank; WIC peaks at 4 and loses at 2", "OPT-1.3B"),
    Exact("T4", "training FLOPs fall with the second rank and never exceed LoRA's",
          flops_fall_with_the_second_rank, "counted from the shapes, both links' steps averaged"),
    Exact("Alg. 1", "tying a knot and adding a link leave the function as it was",
          knot_keeps_the_function, "outputs before and after two knots"),
    Exact("Section 3", "three links of rank 2 reach rank 6 together",
          chain_reaches_the_sum_of_ranks, "rank of the whole change, random links"),
    Exact("Section 3", "each link trains as many numbers as LoRA of its rank",
          link_trains_what_lora_trains, "parameters counted before and after each knot"),
    Exact("Theorem", "Frank-Wolfe's average gap stays under 2 D √(M β / T), which the proof gives",
          frank_wolfe_gap, "matrix completion in three units of measurement, exact answers", tolerance=0.0),
)


# ---- Delta-LoRA --------------------------------------------------------------------------------------------
# Claims of Delta-LoRA (Zi et al. 2023, arXiv 2309.02411), and the controls its reviewers asked for.
DELTA_LORA_BASELINE, DELTA = ("delta", "LoRA"), ("delta", "Delta-LoRA λ = 0.5")
WET_LORA, WET_DELTA = ("delta", "LoRA, dropout 0.1"), ("delta", "Delta-LoRA, dropout 0.1")


def _turn(record: Record) -> float:
    """Return 1 − cosine of W before and after, mean over matrices."""
    return 1 - site_mean("cosine")(record)


def _delta(where: str, statement: str, first: str, second: str, side: str = ">", says: str = "–", note: str = ""
           ) -> tuple[Compared, ...]:
    return over_tasks("tuned_delta", where, statement, first, second, side, says, note)


DELTA_LORA_CLAIMS: tuple[Claim, ...] = (
    *_delta("T1-T4", "Delta-LoRA with λ = 0.5 beats LoRA", "Delta-LoRA, λ = 0.5", "LoRA"),
    *_delta("T1-T4", "Delta-LoRA with λ = 2 beats LoRA", "Delta-LoRA, λ = 2", "LoRA"),
    *_delta("T1", "LoRA is a little below fine-tuning of W_q and W_v alone", "LoRA", "FT‡ (W_q, W_v)", "<"),
    *_delta("appendix", "λ = 2 is better than λ = 0.5", "Delta-LoRA, λ = 2", "Delta-LoRA, λ = 0.5",
            says=says("Delta-LoRA: λ")),
    *_delta("control", "Delta-LoRA with λ = 0.5 beats LoRA at (1 + λ) α", "Delta-LoRA, λ = 0.5", "LoRA, α × 1.5",
            note=OURS),
    *_delta("control", "Delta-LoRA with λ = 2 beats LoRA at (1 + λ) α", "Delta-LoRA, λ = 2", "LoRA, α × 3",
            note=OURS),
    *_delta("control", "with K = 0, Delta-LoRA is LoRA at (1 + λ) α", "Delta-LoRA, λ = 2, K = 0", "LoRA, α × 3", "≈",
            note=OURS),
    *_delta("control", "LoRA beats training the head alone", "LoRA", "head only", note=OURS),
    Beyond("T1", "on E2E it gains on all five metrics, and is the best of all rows", "GPT2-medium",
           says("Delta-LoRA: E2E")),
    Beyond("T2", "on WebNLG it gains BLEU, seen and unseen, METEOR and TER", "GPT2-medium",
           says("Delta-LoRA: WebNLG")),
    Beyond("T3", "on XSum it is the best of the parameter-efficient rows", "BART-large"),
    Beyond("T4", "on GLUE it is the best of the parameter-efficient rows, on all eight tasks", "RoBERTa-base",
           says("Delta-LoRA: GLUE"), "the two cells come from a secondary page"),
    Compared("T5", "with dropout, Delta-LoRA beats LoRA", between(WET_DELTA, WET_LORA)),
    Compared("T5", "Delta-LoRA is better without dropout than with it", between(DELTA, WET_DELTA)),
    Compared("Fig. 3", "W turns further under Delta-LoRA than under LoRA: its cosine is lower",
             between(DELTA, DELTA_LORA_BASELINE, _turn), unit="thousandths of 1 − cosine", scale=1000.0),
    Compared("Fig. 3", "fine-tuning of W_q and W_v turns W further than LoRA",
             between(TURNED, DELTA_LORA_BASELINE, _turn),
             unit="thousandths of 1 − cosine", scale=1000.0),
    Compared("Fig. 3", "and less than Delta-LoRA", between(TURNED, DELTA, _turn), "<",
             unit="thousandths of 1 − cosine", scale=1000.0),
    Compared("appendix", "λ = 2 is better than λ = 5", between(("delta_lam", "2"), ("delta_lam", "5"))),
    Compared("appendix", "the gain does not depend on K once K is large: 25 % and 50 % of the steps differ by less "
             "than one point", between(("delta_K", "0.5"), ("delta_K", "0.25")), "≈", says("Delta-LoRA: K"), 1.0),
    Exact("Alg. 1", "up to step K it is LoRA without dropout", before_K_it_is_lora,
          "W and B of the first 50 steps, least squares", tolerance=0.0),
    Exact("Alg. 1", "λ = 0 is LoRA", lambda_zero_is_lora, "120 steps, least squares", tolerance=0.0),
    Exact("Alg. 1", "the steps telescope: W_T − W_K = λ s (B_T A_T − B_K A_K)", delta_telescopes,
          "W written step by step, least squares"),
    Exact("Alg. 1", "the whole change has rank 2 r at most", delta_has_rank_2r,
          "r = 2, K = 50, least squares"),
    Exact("Alg. 1", "with K = 0 it is LoRA at (1 + λ) α", delta_from_the_start_is_a_larger_scale,
          "120 steps of AdamW without ε and clipping, least squares"),
    bleu_claim("T1", "on E2E, Delta-LoRA beats LoRA by BLEU, each at its best rate", "Delta-LoRA", "LoRA",
               says("Delta-LoRA: E2E")),
    every_score_claim("T1", "on E2E, Delta-LoRA beats LoRA by all five scores", "Delta-LoRA", "LoRA",
                      says("Delta-LoRA: E2E")),
    bleu_claim("control", "on E2E, Delta-LoRA beats LoRA at (1 + λ) α and the same rate by BLEU, for λ = 2",
               "Delta-LoRA", "LoRA, α × 3", note=OURS),
)


# ---- LoRA --------------------------------------------------------------------------------------------------
# Claims of LoRA (Hu et al. 2021, arXiv 2106.09685).
LORA_CLAIMS: tuple[Claim, ...] = (
    Compared("T2", "LoRA matches full fine-tuning or beats it", between(("delta", "LoRA"), FULL),
             says=says("LoRA: average"), note="held to be better, not only as good"),
    Compared("T2", "LoRA beats fine-tuning of the same matrices, W_q and W_v",
             between(("delta", "LoRA"), ("delta", "FT‡ (W_q, W_v)")), note="our reading: only those matrices train"),
    Beyond("T2", "the average over GLUE is above that of full fine-tuning, on RoBERTa", "RoBERTa-base",
           says("LoRA: average"), "RTE, MRPC and STS-B start from an MNLI adapter there"),
    Beyond("T3", "on E2E it beats fine-tuning", "GPT2-medium", says("LoRA: E2E")),
    Exact("T2", "r = 8 on q and v of RoBERTa-base trains 294 912 numbers, the table's 0.3 M", lora_count,
          "counted on its shapes", says("LoRA: size")),
    Exact("eq. 3", "B = 0 leaves the function as it was", starts_unchanged, "random inputs",
          tolerance=0.0),
    Exact("Section 4.1", "merging leaves the function as it was: no cost at inference",
          merge_is_the_same_function, "random factors and inputs"),
)


# ---- SaLoRA ------------------------------------------------------------------------------------------------
# Claims of SaLoRA (Hu et al. 2023, Mathematics 11(20), 4317).
GATED, WHOLE = "SaLoRA", "LoRA, all six"
WIDE = ("up", "o", "v")
LOOK = "sst2"   # the task whose trainings are looked into


def _target(record: Record) -> float:
    return float(record["method"]["b"])


def _largest_fall(record: Record) -> float:
    """Return the by how much λ ever falls from one step to the next."""
    return max([a - b for a, b in itertools.pairwise(record["series"]["lambda"][1])] + [0.0])


def _left_of_peak(record: Record) -> float:
    """Return the budget penalty at the end, as a share of its peak."""
    penalty = record["series"]["budget_penalty"][1]
    return float(penalty[-1] / max(penalty))


def _wide_less_others(record: Record) -> float:
    others = tuple({site.rpartition(".")[2] for site in record["ranks"]} - set(WIDE))
    return mean_rank(WIDE)(record) - mean_rank(others)(record)


def _gates(where: str, statement: str, first: str, second: str, side: str = ">", says: str = "–", note: str = ""
           ) -> tuple[Compared, ...]:
    return over_tasks("tuned_salora", where, statement, first, second, side, says, note)


def _as_it_closes(name: str) -> Value:
    """Return the value of a series at the last step inside the gate window; from then on the gates are folded."""
    def value(record: Record) -> float:
        steps, values = record["series"][name]
        return float(values[steps.index(round(record["method"]["t_end"] * steps[-1]) - 1)])

    return value


def _seen(value: Value, aim: Value | float = 0.0, name: str = "", arm: str = GATED) -> FromRuns:
    return each(("tuned_salora", arm), value, aim, name, LOOK)


SALORA_CLAIMS: tuple[Claim, ...] = (
    *_gates("T1", "SaLoRA beats LoRA on the same six matrices, with half of its directions", GATED, WHOLE),
    *_gates("T3", "without β the score is worse", "β = 0", GATED, "<"),
    *_gates("T3", "without λ the score is slightly better", "λ = 0", GATED),
    *_gates("control", "SaLoRA beats LoRA that has its final rank, 4, from the start", GATED,
            "LoRA, all six, r = 4", note=OURS),
    *_gates("control", "the directions that the gates keep are better than as many drawn at random", GATED,
            "a random half", note=OURS),
    *_gates("control", "keeping the likeliest half is as good as keeping what has P(g > 0) > ½", "the likeliest half",
            GATED, "≈", note=OURS),
    *_gates("control", "gates that stay half shut after the window cost accuracy", "gates left on", GATED, "<",
            note=OURS),
    *_gates("control", "summing R over the matrices, as equation 10 does, is as good as its mean", "R summed", GATED,
            "≈", note=OURS),
    Beyond("T1", "SaLoRA beats full fine-tuning", "runs of full fine-tuning at its own rate over 800 steps",
           verdict=NO_RUNS),
    Beyond("T1", "the gain is on every GLUE task", "RoBERTa-base and RoBERTa-large"),
    Exact("T1, T4", "at r = 8 on six matrices, 1.33 M and 3.54 M numbers, and 576 and 1152 gates",
          salora_counts, "counted on RoBERTa's shapes", says("SaLoRA: counts")),
    Compared("T1", "half of the adapter's numbers are kept, give or take 5 %",
             _seen(last("kept_density"), _target, "share kept"), "≈", says("SaLoRA: kept"), 5.0, "% of the numbers",
             task=LOOK),
    Beyond("T2", "from negative to positive, accuracy is below StyIns and near the human reference", "LLaMA-7B",
           says("SaLoRA: style")),
    Beyond("T2", "perplexity is below that of systems made for one data set", "LLaMA-7B"),
    Beyond("T2", "from formal to informal, accuracy is below that of systems made for one data set", "LLaMA-7B",
           note="the text also says the opposite"),
    Compared("T3", "without λ the density ends below the target",
             _seen(last("density"), _target, "density at the end", "λ = 0"), "<", says("SaLoRA: λ = 0"),
             unit="of the density", scale=1.0, task=LOOK),
    Compared("T4", "a step takes 11 % longer than LoRA's on the same matrices, give or take 5",
             step_time("loop: SaLoRA all", "loop: LoRA all", 1.11), "≈", says("SaLoRA: time"), 5.0,
             "% of LoRA's time"),
    Compared("T4", "memory is about LoRA's, give or take 5 %", peak_memory("loop: SaLoRA all", "loop: LoRA all"), "≈",
             margin=5.0, unit="% of LoRA's peak", scale=1.0, note="of the whole process, weights and libraries"),
    Beyond("Fig. 4", "SaLoRA beats LoRA at starting ranks 2, 4 and 16", "runs at these ranks over 800 steps",
           verdict=NO_RUNS),
    *(Compared("Fig. 4", f"LoRA loses from rank {a} to {b} (it is not monotone in r if it does anywhere)",
               between(("salora_r", f"LoRA {b}"), ("salora_r", f"LoRA {a}")), "<")
      for a, b in ((2, 4), (4, 8), (8, 16))),
    Beyond("Fig. 5", "SaLoRA beats LoRA at densities 0.75, 0.25 and 0.125", "runs at these densities over 800 steps",
           says("SaLoRA: density"), verdict=NO_RUNS),
    Exact("Fig. 6", "the expected density starts at 0.92", density_starts_at_092,
          "P(g > 0) at log θ = 0, to the two digits printed", says("SaLoRA: start")),
    Compared("Fig. 6", "the expected density ends within 0.02 of the target",
             _seen(last("density"), _target, "density at the end"), "≈", says("SaLoRA: end"), 0.02, "of the density",
             1.0, task=LOOK),
    Compared("Fig. 6", "λ never falls", _seen(_largest_fall, name="largest fall of λ"), "≈", margin=1e-9, unit="",
             scale=1.0, task=LOOK),
    *(Compared("Fig. 6", f"the penalty on {which} ends at about 10⁻³, within half a power of ten",
               _seen(log10(_as_it_closes(f"orth_{which}")), -3.0, f"log₁₀ of the penalty on {which}"), "≈",
               says("SaLoRA: orthogonality"), 0.5, "powers of ten", 1.0, "a matrix, as the window closes", task=LOOK)
      for which in "AB"),
    Compared("Fig. 6", "the budget penalty ends under 5 % of its peak",
             _seen(_left_of_peak, 0.05, "left of the peak"), "<", unit="% of the peak", task=LOOK),
    Compared("Fig. 7", "W_up, W_o and W_v keep more directions than the other three",
             _seen(_wide_less_others, name="these three less the others"), unit="directions", scale=1.0, task=LOOK),
    Beyond("Fig. 7", "layers 4 to 7 keep more directions", "RoBERTa-base",
           note="its twelve layers; stored studies use three"),
    Exact("Section 3.3", "a gate is dropped exactly where P(g > 0) < ½", pruned_exactly_below_one_half,
          "4000 values of log θ from −6 to 6"),
)


# ---- ranks that AutoLoRA reports ---------------------------------------------------------------------------
# Numbers that authors printed themselves, with where they stand. Used by 06.
#
# They are read from figures/data and drawn beside ours; nothing here is measured.
def autolora_ranks() -> tuple[dict[str, dict[str, int]], str]:
    """Return task -> site ("0.q") -> rank that AutoLoRA's authors found, and a line that says where.

    roberta-base, W_q and W_v of 12 layers, k = 8: 24 ranks a task (Zhang et al. 2024; the authors' repository).
    """
    stored = json.loads((references_folder() / "autolora_ranks.json").read_text(encoding="utf-8"))
    source = stored["source"]
    tasks = {task: {f"{i // 2}.{'qv'[i % 2]}": rank for i, rank in enumerate(ranks)}
             for task, ranks in stored["ranks"].items()}
    return tasks, (f"repository {source['repository']}, commit {source['commit']}: {source['model']}, "
                   f"k = {source['k']}")

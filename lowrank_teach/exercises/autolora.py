"""The exercises of 06: selection weights, ranks, the virtual step, two hypergradients, the hand-over of s."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from ..adapters import adapt
from ..gates import Selection
from ..lowrank import LowRank
from ..methods import LoRA
from ..methods import autolora as library
from ..methods.lora import LoRARule
from ..toys.bilevel import Bilevel
from .engine import Task

# M matrices (sites), k directions each; a toy has one inner number w and one outer number β


def _selections(beta: Tensor, constraint: str = "softmax") -> list[Selection]:
    made = [Selection(beta.shape[1], constraint) for _ in beta]
    for selection, row in zip(made, beta, strict=True):
        selection.beta.data = row.clone()
    return made


def selection_factors(beta: Tensor, lora_alpha: float, constraint: str = "softmax") -> Tensor:
    """s · α (M, k) of β (M, k): what each rank-one term is multiplied with, by the library's branch."""
    k = beta.shape[1]
    branches = [LowRank(k, k, k, lora_alpha / k, gate=selection) for selection in _selections(beta, constraint)]
    return torch.stack([branch.scaling * branch.gate() for branch in branches]).detach()


def ranks_from_beta(beta: Tensor) -> Tensor:
    """Ranks (M,) of β (M, k), by the library's rule."""
    return torch.tensor([float(selection.rank()) for selection in _selections(beta)])


def take_virtual_step(W: Tensor, gradient: Tensor, eta: float) -> Tensor:
    """Ŵ of W's shape."""
    return library.virtual_step({"W": W}, [gradient], eta)["W"].detach()


def unrolled(toy: Bilevel, w: float, beta: float, eta: float) -> float:
    """The library's exact hypergradient at one point of a toy."""
    return toy.hypergradient("unrolled", w, beta, eta)


def hypergradient_fd(toy: Bilevel, w: float, beta: float, eta: float, radius: float) -> float:
    """The library's hypergradient by finite differences at one point of a toy."""
    return toy.hypergradient("finite_difference", w, beta, eta, radius)


def retrained_scales(ranks: list[int], lora_alpha: float, k: int) -> Tensor:
    """s of each matrix (2, M) in the LoRA that follows: α / r held first, then α fixed."""
    pattern = {str(i): rank for i, rank in enumerate(ranks)}
    rows = []
    for fixed in (False, True):
        model = nn.Sequential(*(nn.Linear(k, k, bias=False) for _ in ranks))
        method = LoRA(r=k, lora_alpha=lora_alpha, sites=tuple(pattern), rank_pattern=pattern, fixed_alpha=fixed)
        rows.append([branch.scaling for branch in adapt(model, method, seed=0).values()])
    return torch.tensor(rows)


def _virtual(toy: Bilevel, w: float, beta: float, eta: float) -> float:
    return float(take_virtual_step(torch.tensor(w, dtype=torch.float64),
                                   torch.tensor(toy.gradients("train", w, beta)[0], dtype=torch.float64), eta))


def _direct(toy: Bilevel, w: float, beta: float, eta: float, radius: float = 0.01) -> float:
    """∂L_held-out/∂β at Ŵ held fixed."""
    return toy.hypergradient("first_order", _virtual(toy, w, beta, eta), beta, eta)


def _epsilon(toy: Bilevel, w: float, beta: float, eta: float, radius: float) -> float:
    return radius / abs(toy.gradients("held_out", _virtual(toy, w, beta, eta), beta)[0])


def _second(share: Callable[..., float]) -> Callable[..., float]:
    """The direct part and `share` times the second-order one: what a wrong factor leaves."""
    def wrong(*at: float) -> float:
        return _direct(*at) + share(*at) * (hypergradient_fd(*at) - _direct(*at))  # type: ignore[arg-type]

    return wrong


def _betas() -> list[tuple[Tensor, float]]:
    g = torch.Generator().manual_seed(6)
    made = [(1.5 * torch.randn(3, 8, generator=g), 16.0), (1.5 * torch.randn(5, 4, generator=g), 2.0)]
    for beta, _ in made:
        beta[0] += 3.0         # the softmax sees differences alone
        beta[1] = 0.0          # a row as every search starts: all equal
    return made


_TOYS = [(Bilevel(), 0.5, -0.5, 0.3), (Bilevel(train=(0.5, 1.5), held_out=(1.5, 0.4)), 1.2, 0.4, 0.1)]
_WEIGHTS = [(torch.arange(6.0).reshape(2, 3), torch.ones(2, 3) * torch.tensor([1.0, -2.0, 0.5]), 0.1),
            (torch.tensor([[1.0, -1.0]]), torch.tensor([[4.0, 2.0]]), 0.5)]
_RANKS = [([5, 3, 4, 8], 16.0, 8), ([1, 2, 4], 8.0, 4)]
_TWICE = "the two points lie 2ε apart: divide the difference by 2ε"

TASKS: dict[str, Task] = {
    "selection_factors": Task(
        selection_factors, _betas,
        "softmax within each row: every matrix shares out a sum of one; then times s = lora_alpha / k",
        [("softmax runs over the wrong axis: each row (one matrix) must sum to s, not each column",
          lambda beta, alpha: selection_factors(beta.T, alpha).T * len(beta) / beta.shape[1]),
         ("that is the sigmoid of each entry, an ablation: the softmax makes a row share out a sum of one",
          lambda beta, alpha: selection_factors(beta, alpha, "sigmoid")),
         ("that is the raw β, an ablation: the softmax is missing",
          lambda beta, alpha: selection_factors(beta, alpha, "none")),
         ("the scale is missing: multiply by s = lora_alpha / k",
          lambda beta, alpha: selection_factors(beta, beta.shape[1])),
         ("you scale by α, LoRA scales by α / k",
          lambda beta, alpha: selection_factors(beta, alpha * beta.shape[1]))],
        (Selection.forward, LowRank.add_to, library.AutoLoRARule.branch)),
    "ranks_from_beta": Task(
        ranks_from_beta, lambda: [(beta,) for beta, _ in _betas()],
        "count in each row the softmax weights that are at least 1/k, k being the row's length",
        [("greater than 1/k drops a direction that is exactly at it: an all-equal row must count k, so use ≥",
          lambda beta: (torch.stack([s() for s in _selections(beta)]) > 1 / beta.shape[1]).sum(1).float()),
         ("that compares the raw β with its mean, as the authors' search script does; the paper compares the "
          "softmax with 1/k", lambda beta: torch.tensor([s.rank() for s in _selections(beta, "none")])),
         ("that is the threshold of the sigmoid, an ablation: compare the softmax with 1/k",
          lambda beta: torch.tensor([s.rank() for s in _selections(beta, "sigmoid")])),
         ("the threshold is 1 over the directions in a row, not over the number of matrices",
          lambda beta: torch.stack([(s() >= 1 / len(beta)).sum() for s in _selections(beta)])),
         ("that counts along the wrong axis: one rank a row", lambda beta: ranks_from_beta(beta.T))],
        (Selection.rank,)),
    "take_virtual_step": Task(
        take_virtual_step, lambda: list(_WEIGHTS), "one step of plain gradient descent, as a new tensor: W − η g",
        [("that goes uphill: subtract the gradient", lambda W, g, eta: take_virtual_step(W, g, -eta)),
         ("η is missing: the step is η times the gradient", lambda W, g, eta: take_virtual_step(W, g, 1.0)),
         ("that is the step alone: W is missing", lambda W, g, eta: take_virtual_step(0 * W, g, eta)),
         ("that is the step alone: W is missing", lambda W, g, eta: take_virtual_step(0 * W, g, -eta)),
         ("W has not moved: subtract η times the gradient", lambda W, g, eta: take_virtual_step(W, g, 0.0))],
        (library.virtual_step,)),
    "unrolled": Task(
        unrolled, lambda: list(_TOYS), "ŵ must remember that it was made from β: look at the gradient's create_graph",
        [("that is the direct part: ŵ has forgotten that it depends on β. Keep the graph of the inner gradient "
          "(create_graph=True)", _direct),
         ("that is the gradient without a virtual step, the ablation η = 0",
          lambda toy, w, beta, eta: toy.hypergradient("first_order", w, beta, eta)),
         ("the virtual step goes uphill: ŵ = w − η ∂L/∂w", lambda toy, w, beta, eta: unrolled(toy, w, beta, -eta)),
         ("η is missing from the virtual step", lambda toy, w, beta, eta: unrolled(toy, w, beta, 1.0))],
        (library.hypergradient,)),
    "hypergradient_fd": Task(
        hypergradient_fd, lambda: [(*toy, 0.1) for toy in _TOYS],
        "direct − η (g₊ − g₋) / 2ε with g± = ∂L_train/∂β at w ± ε v, ε = radius / |v|",
        [("η is missing: that is the authors' code (betty), which weighs the second-order part by 1",
          lambda toy, w, beta, eta, radius: toy.hypergradient("betty", w, beta, eta, radius)),
         ("that is the direct part: the second-order part is missing", _direct),
         ("the sign is wrong: ŵ = w − η …, so the second-order part is subtracted", _second(lambda *at: -1.0)),
         (_TWICE, _second(lambda *at: 2 * _epsilon(*at))), (_TWICE, _second(lambda *at: 2.0)),
         (_TWICE, _second(lambda *at: _epsilon(*at)))],
        (library.hypergradient,)),
    "retrained_scales": Task(
        retrained_scales, lambda: list(_RANKS),
        "row 0: lora_alpha / k for every matrix; row 1: lora_alpha / its rank",
        [("the rows are swapped: first s held at lora_alpha / k, then α fixed",
          lambda ranks, alpha, k: retrained_scales(ranks, alpha, k).flip(0)),
         ("both rows hold s: with α fixed, each matrix is divided by its own rank",
          lambda ranks, alpha, k: retrained_scales(ranks, alpha, k)[[0, 0]]),
         ("both rows fix α: in the first, s is the same for every matrix",
          lambda ranks, alpha, k: retrained_scales(ranks, alpha, k)[[1, 1]]),
         ("that is α, not the scale: s = α / r", lambda ranks, alpha, k: np.array(
             [[alpha * rank / k for rank in ranks], [alpha] * len(ranks)])),
         ("that is upside down: s = α / r, not r / α",
          lambda ranks, alpha, k: 1 / retrained_scales(ranks, alpha, k))],
        (LoRARule.branch, library.AutoLoRARule.finish)),
}

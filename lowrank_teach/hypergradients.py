"""AutoLoRA's four hypergradients on a real network in the middle of a search: direction, parts, cost.

Each number is about `methods.autolora.hypergradient`; no formula stands here. Dropout is off and all kinds see the
same rows, so that nothing but the kind differs. Used by 06.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .methods.autolora import HYPERGRADIENTS, Weights, hypergradient, virtual_step
from .timing import in_turns, training_step
from .train import Trainer

# M matrices, k directions each


class Probe:
    """A searched network, and pairs of batches from both halves of its rows.

    Args: trainer: of AutoLoRA(retrain=False), after `run()`; rows: of a batch; pairs: how many pairs.
    betas: β of every matrix; weights: all else that trains, by name.
    """

    def __init__(self, trainer: Trainer, rows: int = 16, pairs: int = 3) -> None:
        self.model = trainer.adapters.model.eval()
        self.betas = trainer.rule.own_parameters()
        for beta in self.betas:
            beta.requires_grad_(True)
        own = {id(beta) for beta in self.betas}
        self.weights: Weights = {name: p for name, p in self.model.named_parameters()
                                 if p.requires_grad and id(p) not in own}

        def batch(half: str, i: int) -> dict[str, Tensor]:
            picked = trainer.collate(list(trainer.streams[half][i * rows:(i + 1) * rows]))
            return {name: value.to(self.betas[0].device) for name, value in picked.items()}

        self.pairs = [(batch("train", i), batch("held_out", i)) for i in range(pairs)]

    def loss_on(self, batch: dict[str, Tensor]) -> Callable[[Weights], Tensor]:
        """The task loss of a batch as a function of the weights."""
        return lambda weights: torch.func.functional_call(self.model, weights, (), batch).loss

    def training_gradient(self, pair: int = 0) -> tuple[Tensor, ...]:
        """∇_W L_train, in the order of the weights: what one plain training step computes."""
        with sdpa_kernel(SDPBackend.MATH):
            return torch.autograd.grad(self.loss_on(self.pairs[pair][0])(self.weights), list(self.weights.values()))

    def gradient(self, kind: str, eta: float, pair: int = 0, at: Weights | None = None) -> Tensor:
        """A hypergradient of one kind (M·k,), at these weights or the network's own."""
        losses = [self.loss_on(batch) for batch in self.pairs[pair]]
        with sdpa_kernel(SDPBackend.MATH):   # fused attention has no second derivative
            found = hypergradient(kind, losses[0], losses[1], at or self.weights, self.betas, eta)
        return torch.cat(found).detach()

    def parts(self, eta: float, pair: int = 0, kind: str = "unrolled") -> tuple[Tensor, Tensor]:
        """(direct, implicit), each (M·k,): with Ŵ held fixed, and what comes through Ŵ; their sum is the whole."""
        virtual = virtual_step(self.weights, self.training_gradient(pair), eta)
        held = {name: w.detach().requires_grad_() for name, w in virtual.items()}
        direct = self.gradient("first_order", eta, pair, held)
        return direct, self.gradient(kind, eta, pair) - direct

    def implicit_share(self, eta: float, kind: str = "unrolled") -> float:
        """‖implicit‖ / ‖direct‖, the mean over the pairs."""
        norms = [[float(part.norm()) for part in self.parts(eta, i, kind)] for i in range(len(self.pairs))]
        return statistics.fmean(implicit / direct for direct, implicit in norms)

    def cosines(self, eta: float) -> dict[str, float]:
        """Kind -> cosine to the exact hypergradient, the mean over the pairs."""
        found = {kind: [self.gradient(kind, eta, i) for i in range(len(self.pairs))] for kind in HYPERGRADIENTS}
        return {kind: statistics.fmean(float(F.cosine_similarity(one, exact, dim=0))
                                       for one, exact in zip(found[kind], found["unrolled"], strict=True))
                for kind in HYPERGRADIENTS}

    def costs(self, eta: float, repeats: int = 3) -> dict[str, float]:
        """Kind -> seconds in gradients of the training loss, medians of turns."""
        kinds = {kind: lambda kind=kind: self.gradient(kind, eta) for kind in HYPERGRADIENTS}
        seconds = in_turns({"plain": self.training_gradient, **kinds}, repeats)
        return {kind: statistics.median(seconds[kind]) / statistics.median(seconds["plain"]) for kind in kinds}

    def search_step(self, kind: str, eta: float, eta_beta: float) -> Callable[[], None]:
        """A function that takes one step of β, then one of the weights; it changes the network."""
        outer = torch.optim.AdamW(self.betas, lr=eta_beta, weight_decay=0.0)
        inner = training_step(self.model, self.pairs[0][0], list(self.weights.values()), lr=eta)
        k = len(self.betas[0])

        def step() -> None:
            for beta, part in zip(self.betas, self.gradient(kind, eta).split(k), strict=True):
                beta.grad = part
            outer.step()
            inner()

        return step

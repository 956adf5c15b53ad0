"""Two-level optimisation with one inner number w and one outer number β, so that it can be drawn as a surface.

The model has two outputs and shares w out between them by selection weights, as AutoLoRA shares an update out
between its rank-one terms:

    f(w, β) = w · α,  α = softmax(β, 0) = (σ(β), 1 − σ(β));   L(w, β) = ½ ‖f(w, β) − y‖²

The rows that w learns on ask for y = `train`, the held-out rows for y = `held_out`. The hypergradients are the
library's own (`methods.autolora.hypergradient`; Zhang et al. 2024, equations 5 to 8). Taught in 06.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..methods.autolora import hypergradient, virtual_step

# S steps of a path; w and β may have any common shape where no gradient is taken


@dataclass(frozen=True)
class Bilevel:
    """train, held_out: what the two halves of the rows ask of the two outputs."""

    train: tuple[float, float] = (1.0, 2.0)
    held_out: tuple[float, float] = (1.0, 0.5)

    def alpha(self, beta: Tensor) -> Tensor:
        """Selection weights (*, 2) of β (*), the softmax of (β, 0)."""
        return torch.softmax(torch.stack([beta, torch.zeros_like(beta)], -1), -1)

    def loss(self, part: str, w: Tensor, beta: Tensor) -> Tensor:
        """½ ‖w α(β) − y‖² (*) for the rows `part`, "train" or "held_out"."""
        y = torch.tensor({"train": self.train, "held_out": self.held_out}[part], dtype=w.dtype)
        return 0.5 * (w.unsqueeze(-1) * self.alpha(beta) - y).square().sum(-1)

    def inner_solution(self, beta: np.ndarray) -> np.ndarray:
        """The w that the training rows ask for at β, of β's shape: y·α / α·α."""
        alpha = self.alpha(torch.as_tensor(beta, dtype=torch.float64)).numpy()
        return alpha @ np.asarray(self.train) / (alpha ** 2).sum(-1)

    def surface(self, part: str, w: np.ndarray, beta: np.ndarray) -> np.ndarray:
        """The loss over the grid of w (n,) and β (m,), as (n, m)."""
        grid = torch.meshgrid(torch.as_tensor(w), torch.as_tensor(beta), indexing="ij")
        return self.loss(part, *grid).numpy()

    def best(self, low: float = -4.0, high: float = 6.0) -> tuple[float, float]:
        """(β, w) with the lowest held-out loss among the inner solutions: what the two levels together ask for."""
        beta = np.linspace(low, high, 10001)
        w = self.inner_solution(beta)
        i = int(self.loss("held_out", torch.as_tensor(w), torch.as_tensor(beta)).argmin())
        return float(beta[i]), float(w[i])

    def gradients(self, part: str, w: float, beta: float) -> tuple[float, float]:
        """(∂L/∂w, ∂L/∂β) at one point."""
        at = [_leaf(w), _leaf(beta)]
        slope_w, slope_beta = torch.autograd.grad(self.loss(part, *at), at)
        return slope_w.item(), slope_beta.item()

    def hypergradient(self, kind: str, w: float, beta: float, eta: float, radius: float = 0.01) -> float:
        """The library's hypergradient of one kind (`methods.autolora.HYPERGRADIENTS`) at one point."""
        outer = _leaf(beta)
        found = hypergradient(kind, lambda weights: self.loss("train", weights["w"], outer),
                              lambda weights: self.loss("held_out", weights["w"], outer),
                              {"w": _leaf(w)}, [outer], eta, radius)
        return found[0].item()

    def path(self, kind: str, w: float, beta: float, *, eta: float = 0.3, eta_beta: float = 0.5,
             steps: int = 150) -> tuple[np.ndarray, np.ndarray]:
        """β (S + 1,) and w (S + 1,) of the alternation: a step of β by its hypergradient, then a step of w."""
        points = [(beta, w)]
        for _ in range(steps):
            beta -= eta_beta * self.hypergradient(kind, w, beta, eta)
            slope = torch.tensor(self.gradients("train", w, beta)[0], dtype=torch.float64)
            w = virtual_step({"w": _leaf(w)}, [slope], eta)["w"].item()
            points.append((beta, w))
        betas, ws = np.array(points).T
        return betas, ws


def _leaf(value: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(value, dtype=torch.float64))

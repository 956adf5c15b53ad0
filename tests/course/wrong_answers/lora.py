"""Answers to the exercises of 02."""

import torch
from torch import nn

from lowrank_teach.course.chapters import lora  # noqa: F401  (it adds its exercises)
from lowrank_teach.course.exercises import EXERCISES
from lowrank_teach.lowrank import Adapted, LowRank


def library_layer(linear, r, alpha):
    """The library's layer around a linear layer, its factors under the exercise's names."""
    d, k = linear.weight.shape
    branch = LowRank(k, d, r, alpha / r)
    layer = Adapted(linear, {"0": (branch, None)})
    layer.lora_A, layer.lora_B = branch.lora_A, branch.lora_B
    return layer


def library_gradients(x, G, A, B, alpha):
    """The gradients by autograd through the library's branch."""
    (r, k), d = A.shape, len(B)
    branch = LowRank(k, d, r, alpha / r, dtype=x.dtype)
    branch.lora_A.data, branch.lora_B.data = A.clone(), B.clone()
    return torch.autograd.grad((branch(x) * G).sum(), (branch.lora_A, branch.lora_B))


def layer(A=lambda u: (2 * u - 1) / u.shape[1] ** 0.5, B=torch.zeros_like, s=lambda alpha, r: alpha / r,
          forward=lambda self, x: self.linear(x) + self.s * (x @ self.lora_A.T) @ self.lora_B.T, frozen=True):
    """A learner's class in which one thing is otherwise; A, B: of numbers even between 0 and 1."""
    class Made(nn.Module):
        def __init__(self, linear, r, alpha):
            super().__init__()
            self.linear = linear.requires_grad_(not frozen)
            d, k = linear.weight.shape
            self.lora_A = nn.Parameter(A(torch.rand(r, k)))
            self.lora_B = nn.Parameter(B(torch.rand(d, r)))
            self.s = s(alpha, r)

        def forward(self, x):
            return forward(self, x)

    return Made


WRONG = {
    "LoRALinear": {
        "B does not start at zero": layer(B=lambda u: (2 * u - 1) / 8),
        "both start at zero": layer(A=torch.zeros_like),
        "swapped": layer(A=torch.zeros_like, B=lambda u: 2 * u - 1),
        "all of A is positive": layer(A=lambda u: u / u.shape[1] ** 0.5),
        "A starts too large": layer(A=lambda u: 2 * u - 1),
        "A starts too small": layer(A=lambda u: (2 * u - 1) / u.shape[1]),
        "scale is missing": layer(s=lambda alpha, r: 1.0),
        "you scale by α": layer(s=lambda alpha, r: alpha),
        "you scale by r / α": layer(s=lambda alpha, r: r / alpha),
        "W alone": layer(forward=lambda self, x: self.linear(x)),
        "subtracted": layer(forward=lambda self, x: self.linear(x) - self.s * x @ self.lora_A.T @ self.lora_B.T),
        "W is missing": layer(forward=lambda self, x: self.s * x @ self.lora_A.T @ self.lora_B.T),
        "W trains": layer(frozen=False),
        "shapes do not meet": layer(forward=lambda self, x: self.linear(x) + self.s * x @ self.lora_B @ self.lora_A),
    },
    "lora_gradients": {
        "scale is missing": lambda x, G, A, B, a: ((G @ B).T @ x, G.T @ (x @ A.T)),
        "you scale by α": lambda x, G, A, B, a: (a * (G @ B).T @ x, a * G.T @ (x @ A.T)),
        "stands there twice": lambda x, G, A, B, a: ((a / len(A)) ** 2 * (G @ B).T @ x,
                                                     (a / len(A)) ** 2 * G.T @ (x @ A.T)),
        "mean over the tokens": lambda x, G, A, B, a: (a / len(A) * (G @ B).T @ x / len(x),
                                                       a / len(A) * G.T @ (x @ A.T) / len(x)),
        "points uphill": lambda x, G, A, B, a: (-a / len(A) * (G @ B).T @ x, -a / len(A) * G.T @ (x @ A.T)),
        "gradient of A is still zero": lambda x, G, A, B, a: (0 * A, a / len(A) * G.T @ (x @ A.T)),
        "gradient of B is still zero": lambda x, G, A, B, a: (a / len(A) * (G @ B).T @ x, 0 * B),
        "both are still zero": lambda x, G, A, B, a: (0 * A, 0 * B),
        "shapes do not meet": lambda x, G, A, B, a: (G.T @ B @ x, G.T @ x @ A.T),
        "returned nothing": lambda x, G, A, B, a: None,
    },
    "lora_merge": {
        "scale is missing": lambda W, A, B, alpha: W + B @ A,
        "scale by α, LoRA": lambda W, A, B, alpha: W + alpha * B @ A,
        "scale by r / α": lambda W, A, B, alpha: W + len(A) / alpha * B @ A,
        "shapes do not meet": lambda W, A, B, alpha: W + alpha / len(A) * A @ B,
        "W is missing": lambda W, A, B, alpha: alpha / len(A) * B @ A,
        "subtracted": lambda W, A, B, alpha: W - alpha / len(A) * B @ A,
        "not to W": lambda W, A, B, alpha: alpha / len(A) * (W + B @ A),
        "changed its own input": lambda W, A, B, alpha: W.add_(alpha / len(A) * B @ A),
        "returned nothing": lambda W, A, B, alpha: None,
    },
    "count_parameters": {
        "W is frozen": lambda d, k, r: d * k,
        "that is A alone": lambda d, k, r: r * k,
        "r of them": lambda d, k, r: d + k,
        "do not multiply": lambda d, k, r: (d * r) * (r * k),
        "is not counted": lambda d, k, r: d * k + r * (d + k),
        "returned nothing": lambda d, k, r: None,
        "how many does B hold": lambda d, k, r: 7,
    },
    "alpha_by_rule": {
        "kept in all three": lambda a, r, new: [a, a, a],
        "are the scales": lambda a, r, new: [a / new, a / r, a / (r * new) ** 0.5],
        "the second is the wrong way round": lambda a, r, new: [a, a * r / new, a * (new / r) ** 0.5],
        "both are the wrong way round": lambda a, r, new: [a, a * r / new, a * (r / new) ** 0.5],
        "the third is the wrong way round": lambda a, r, new: [a, a * new / r, a * (r / new) ** 0.5],
        "divide by the old rank": lambda a, r, new: [a, a * new, a * new ** 0.5],
        "swapped": lambda a, r, new: [a, a * (new / r) ** 0.5, a * new / r],
        "returned shape": lambda a, r, new: a * new / r,
        "one that stays": lambda a, r, new: [new, new, new],
        "returned nothing": lambda a, r, new: None,
    },
}
RIGHT = {name: EXERCISES[name].answer for name in WRONG} | {
    "LoRALinear": library_layer, "lora_gradients": library_gradients}

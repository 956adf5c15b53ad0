"""Answers to the exercises of 04."""

import math

import torch

from lowrank_teach.course.chapters import salora  # noqa: F401  (it fills EXERCISES)
from lowrank_teach.course.exercises import EXERCISES

logit, sigmoid = torch.logit, torch.sigmoid
LOG_11 = math.log(11)


def gate(log_theta):
    return (sigmoid(log_theta) * 1.2 - 0.1).clamp(0, 1)


def draw(log_theta, u):
    return (sigmoid(logit(u) + log_theta) * 1.2 - 0.1).clamp(0, 1)


def open_(log_theta):
    return sigmoid(log_theta + LOG_11)


def kept(log_theta, *tensors):
    return torch.stack(tensors)[:, :, log_theta > -LOG_11]


def eye(r):
    return torch.eye(r)


WRONG = {
    "sample_gate": {
        "log θ is missing": lambda u, t, tau, g, z: (sigmoid(logit(u) / tau) * (z - g) + g).clamp(0, 1),
        "log θ is subtracted": lambda u, t, tau, g, z: (sigmoid((logit(u) - t) / tau) * (z - g) + g).clamp(0, 1),
        "u goes in raw": lambda u, t, tau, g, z: (sigmoid((u + t) / tau) * (z - g) + g).clamp(0, 1),
        "τ is missing": lambda u, t, tau, g, z: (sigmoid(logit(u) + t) * (z - g) + g).clamp(0, 1),
        "τ multiplies": lambda u, t, tau, g, z: (sigmoid((logit(u) + t) * tau) * (z - g) + g).clamp(0, 1),
        "divides the whole sum": lambda u, t, tau, g, z: (sigmoid(logit(u) / tau + t) * (z - g) + g).clamp(0, 1),
        "not stretched": lambda u, t, tau, g, z: sigmoid((logit(u) + t) / tau),
        "not clipped": lambda u, t, tau, g, z: sigmoid((logit(u) + t) / tau) * (z - g) + g,
        "noise u is missing": lambda u, t, tau, g, z: (sigmoid(t / tau) * (z - g) + g).clamp(0, 1),
        "add logit u and log θ": lambda u, t, tau, g, z: u,
    },
    "open_probability": {
        "complement": lambda t, tau, g, z: 1 - sigmoid(t - tau * math.log(-g / z)),
        "wrong sign": lambda t, tau, g, z: sigmoid(t + tau * math.log(-g / z)),
        "shift is missing": lambda t, tau, g, z: sigmoid(t),
        "τ is missing": lambda t, tau, g, z: sigmoid(t - math.log(-g / z)),
        "does not divide log θ": lambda t, tau, g, z: sigmoid(t / tau - math.log(-g / z)),
        "a value": lambda t, tau, g, z: (sigmoid(t / tau) * (z - g) + g).clamp(0, 1),
        "P(g = 1)": lambda t, tau, g, z: sigmoid(t - tau * math.log((1 - g) / (z - 1))),
        "solve that for logit u": lambda t, tau, g, z: t,
    },
    "expected_density": {
        "each matrix's own share": lambda p, d, k: p.mean(1).sum(),
        "weigh the same": lambda p, d, k: p.mean(),
        "weighed by d · k": lambda p, d, k: (p.sum(1) * d * k).sum() / (4 * d * k).sum(),
        "only d": lambda p, d, k: (p.sum(1) * d).sum() / (4 * d).sum(),
        "only k": lambda p, d, k: (p.sum(1) * k).sum() / (4 * k).sum(),
        "number of parameters": lambda p, d, k: (p.sum(1) * (d + k)).sum(),
        "r below the bar": lambda p, d, k: (p.sum(1) * (d + k)).sum() / (d + k).sum(),
        "has no gradient": lambda p, d, k: ((p > 0.5).sum(1) * (d + k)).sum() / (4 * (d + k)).sum(),
        "returned shape": lambda p, d, k: p.mean(1),
    },
    "ascend_lambda": {
        "that is descent: λ": lambda lam, C, b, eta: (lam - eta * (C - b) ** 2).clamp(min=0),
        "descent, and not projected": lambda lam, C, b, eta: lam - eta * (C - b) ** 2,
        "not projected": lambda lam, C, b, eta: lam + eta * (C - b) ** 2,
        "not its square": lambda lam, C, b, eta: (lam + eta * (C - b)).clamp(min=0),
        "gradient for C": lambda lam, C, b, eta: (lam + eta * 2 * lam * (C - b)).clamp(min=0),
        "rate η_c is missing": lambda lam, C, b, eta: (lam + (C - b) ** 2).clamp(min=0),
        "gradient alone": lambda lam, C, b, eta: (C - b) ** 2,
        "changed its own input": lambda lam, C, b, eta: lam.add_(eta * (C - b) ** 2).clamp_(min=0),
    },
    "orthogonality_penalty": {
        "that is AᵀA": lambda A, B: (A.T @ A - eye(7)).square().sum() + (B.T @ B - eye(3)).square().sum(),
        "that is B Bᵀ": lambda A, B: (A @ A.T - eye(3)).square().sum() + (B @ B.T - eye(5)).square().sum(),
        "the large ones": lambda A, B: (A.T @ A - eye(7)).square().sum() + (B @ B.T - eye(5)).square().sum(),
        "not squared": lambda A, B: (A @ A.T - eye(3)).norm() + (B.T @ B - eye(3)).norm(),
        "only A's half": lambda A, B: (A @ A.T - eye(3)).square().sum(),
        "only B's half": lambda A, B: (B.T @ B - eye(3)).square().sum(),
        "identity is missing": lambda A, B: (A @ A.T).square().sum() + (B.T @ B).square().sum(),
        "mean over the entries": lambda A, B: (A @ A.T - eye(3)).square().mean() + (B.T @ B - eye(3)).square().mean(),
    },
    "prune_and_fold": {
        "not folded in": lambda B, m, v, t: kept(t, B, m, v),
        "Adam is left behind": lambda B, m, v, t: kept(t, B * gate(t), m, v),
        "so divide": lambda B, m, v, t: kept(t, B * gate(t), m * gate(t), v * gate(t) ** 2),
        "all three are multiplied": lambda B, m, v, t: kept(t, B * gate(t), m * gate(t), v * gate(t)),
        "squares of gradients": lambda B, m, v, t: kept(t, B * gate(t), m / gate(t), v / gate(t)),
        "m is left as it was": lambda B, m, v, t: kept(t, B * gate(t), m, v / gate(t) ** 2),
        "must be multiplied": lambda B, m, v, t: kept(t, B / gate(t), m / gate(t), v / gate(t) ** 2),
        "a probability": lambda B, m, v, t: kept(t, B * open_(t), m / open_(t), v / open_(t) ** 2),
        "should go": lambda B, m, v, t: torch.stack([B, m, v])[:, :, t <= -LOG_11],
        "returned shape (3, 8, 6)": lambda B, m, v, t: torch.stack([B, m, v]),
        "changed its own input": lambda B, m, v, t: kept(t, B.mul_(gate(t)), m, v),
        "drop those columns": lambda B, m, v, t: kept(t, B * gate(t) ** 2, m, v),
    },
    "gates_of_a_run": {
        "one draw serves all": lambda path, noise: draw(path[0], noise(0)).expand_as(path),
        "lucky": lambda path, noise: torch.stack([draw(row, noise(0)) for row in path]),
        "use the row of this step": lambda path, noise: torch.stack([draw(path[0], noise(t)) for t in range(6)]),
        "no noise left": lambda path, noise: gate(path),
        "own u": lambda path, noise: torch.stack([draw(row, noise(t)[0]) for t, row in enumerate(path)]),
        "returned nothing": lambda path, noise: None,
    },
}
RIGHT = {name: EXERCISES[name].answer for name in WRONG}

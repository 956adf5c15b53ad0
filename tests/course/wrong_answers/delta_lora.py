"""Answers to the exercises of 05."""

import torch

from lowrank_teach.course.chapters import delta_lora  # noqa: F401  (it adds its exercises)
from lowrank_teach.course.exercises import EXERCISES


def _scale(A, alpha):
    return alpha / len(A)


def _loop(W, As, Bs, alpha, lam, K, *, first=1, held=False, late=0, scale=True):
    """A learner's loop: `first` is when it begins after K, `held` starts from nothing instead of step 0."""
    s = alpha / As.shape[1] if scale else 1.0
    products = [s * B @ A for A, B in zip(As, Bs, strict=True)]
    before = 0 * W if held else products[0]
    for step in range(1, len(As)):
        if step >= K + first + late:
            W = W + lam * (products[step] - before)
        if step >= K + first + late or not held:
            before = products[step]
    return W


def _lazy(x, W, A, B, A_K, B_K, alpha, lam, of_branch=1.0):
    """A learner's layer, whose branch may be left out."""
    s = _scale(A, alpha)
    return x @ W.T + s * ((of_branch + lam) * x @ A.T @ B.T - lam * x @ A_K.T @ B_K.T)


WRONG = {
    "delta_step": {
        "scale is missing": lambda W, A, B, A2, B2, alpha, lam: W + lam * (B2 @ A2 - B @ A),
        "stands there twice": lambda W, A, B, A2, B2, alpha, lam:
            W + lam * _scale(A, alpha) ** 2 * (B2 @ A2 - B @ A),
        "you scale by α": lambda W, A, B, A2, B2, alpha, lam: W + lam * alpha * (B2 @ A2 - B @ A),
        "whole new product at once": lambda W, A, B, A2, B2, alpha, lam: W + lam * _scale(A, alpha) * B2 @ A2,
        "before the step": lambda W, A, B, A2, B2, alpha, lam: W + lam * _scale(A, alpha) * B @ A,
        "sign is turned round": lambda W, A, B, A2, B2, alpha, lam:
            W + lam * _scale(A, alpha) * (B @ A - B2 @ A2),
        "λ is missing": lambda W, A, B, A2, B2, alpha, lam: W + _scale(A, alpha) * (B2 @ A2 - B @ A),
        "product of the differences": lambda W, A, B, A2, B2, alpha, lam:
            W + lam * _scale(A, alpha) * (B2 - B) @ (A2 - A),
        "here only W moves": lambda W, A, B, A2, B2, alpha, lam: W + _scale(A, alpha) * B2 @ A2,
        "changed its own input": lambda W, A, B, A2, B2, alpha, lam:
            W.add_(lam * _scale(A, alpha) * (B2 @ A2 - B @ A)),
        "shapes do not meet": lambda W, A, B, A2, B2, alpha, lam: W + A2 @ B2 - A @ B,
        "returned nothing": lambda *arguments: None,
        "W plus λ · s": lambda W, A, B, A2, B2, alpha, lam: W,
    },
    "left_factor": {
        "counts ΔB ΔA twice": lambda A, B, A2, B2: torch.cat([B2 - B, B2], 1),
        "right factor [A′; A]": lambda A, B, A2, B2: torch.cat([B2, -B], 1),
        "in the other order": lambda A, B, A2, B2: torch.cat([B, B2 - B], 1),
        "sign of ΔB": lambda A, B, A2, B2: torch.cat([B - B2, B], 1),
        "returned shape": lambda A, B, A2, B2: torch.cat([B2 - B, B], 0),
        "X and Y side by side": lambda A, B, A2, B2: torch.cat([B2, B], 1),
    },
    "delta_run": {
        "is a jump": lambda *arguments: _loop(*arguments, first=0, held=True),   # the notebook's faulty version
        "add only differences": lambda *arguments: _loop(*arguments, held=True),   # half repaired
        "one step early": lambda *arguments: _loop(*arguments, first=0),
        "one step late": lambda *arguments: _loop(*arguments, late=1),
        "K is not looked at": lambda W, As, Bs, alpha, lam, K: _loop(W, As, Bs, alpha, lam, 0),
        "λ is missing": lambda W, As, Bs, alpha, lam, K: _loop(W, As, Bs, alpha, 1.0, K),
        "no longer moves": lambda W, As, Bs, alpha, lam, K: W,
        "two things are wrong": lambda *arguments: _loop(*arguments, scale=False),
    },
    "whole_change": {
        "what W holds": lambda A, B, A_K, B_K, alpha, lam: lam * _scale(A, alpha) * (B @ A - B_K @ A_K),
        "branch alone": lambda A, B, A_K, B_K, alpha, lam: _scale(A, alpha) * B @ A,
        "never went into W: subtract": lambda A, B, A_K, B_K, alpha, lam: (1 + lam) * _scale(A, alpha) * B @ A,
        "only λ times": lambda A, B, A_K, B_K, alpha, lam: _scale(A, alpha) * ((1 + lam) * B @ A - B_K @ A_K),
        "scale is missing": lambda A, B, A_K, B_K, alpha, lam: (1 + lam) * B @ A - lam * B_K @ A_K,
        "is added": lambda A, B, A_K, B_K, alpha, lam: _scale(A, alpha) * ((1 + lam) * B @ A + lam * B_K @ A_K),
        "add up what W holds": lambda A, B, A_K, B_K, alpha, lam: lam * B @ A,
    },
    "highest_ranks": {
        "telescopes": lambda d, k, r, T: [min(2 * r * (T - K), d, k) if K < T else r for K in (0, T // 2, T)],
        "one product is left": lambda d, k, r, T: [2 * r, 2 * r, 2 * r],
        "two different products": lambda d, k, r, T: [r, r, r],
        "full rank": lambda d, k, r, T: [min(d, k)] * 3,
        "the branch is there": lambda d, k, r, T: [r, 2 * r, 0],
        "above min(d, k)": lambda d, k, r, T: [r, 2 * r, r],
        "returned shape": lambda d, k, r, T: 2 * r,
    },
    "same_alpha": {
        "counts once more": lambda alpha, lam, r: alpha * lam,
        "not added to α": lambda alpha, lam, r: alpha + lam,
        "the wrong way": lambda alpha, lam, r: alpha / (1 + lam),
        "that is the scale s": lambda alpha, lam, r: alpha * (1 + lam) / r,
        "would not move at all": lambda alpha, lam, r: alpha,
        "returned nothing": lambda alpha, lam, r: None,
        "B_K = 0": lambda alpha, lam, r: alpha * lam * r,
    },
    "lazy_forward": {
        "without its branch": lambda *arguments: _lazy(*arguments, of_branch=0.0),
        "that is LoRA": lambda x, W, A, B, A_K, B_K, alpha, lam: _lazy(x, W, A, B, A_K, B_K, alpha, 0.0),
        "never went into W: subtract": lambda x, W, A, B, A_K, B_K, alpha, lam:
            _lazy(x, W, A, B, A_K, 0 * B_K, alpha, lam),
        "pretrained W x is missing": lambda x, W, A, B, A_K, B_K, alpha, lam:
            _lazy(x, 0 * W, A, B, A_K, B_K, alpha, lam),
        "scale is missing": lambda x, W, A, B, A_K, B_K, alpha, lam: _lazy(x, W, A, B, A_K, B_K, len(A), lam),
        "is added": lambda x, W, A, B, A_K, B_K, alpha, lam: _lazy(x, W, A, B, A_K, -B_K, alpha, lam),
        "returned shape": lambda x, W, *rest: (x @ W.T).T,
        "less λ s B_K A_K x": lambda x, W, *rest: 2 * x @ W.T,
    },
}
RIGHT = {name: EXERCISES[name].answer for name in WRONG}

"""Answers to the exercises of 01."""

import torch


def _svd(delta):
    return torch.linalg.svd(delta, full_matrices=False)


def _last(delta, i):
    u, s, vh = _svd(delta)
    return (u[:, -i:] * s[-i:]) @ vh[-i:]


def _no_sigma(delta, i):
    u, _, vh = _svd(delta)
    return u[:, :i] @ vh[:i]


def _columns_of_vh(delta, i):
    u, s, vh = _svd(delta)
    return (u[:, :i] * s[:i]) @ vh[:, :i]


def _cut(delta, i):
    u, s, vh = _svd(delta)
    return u[:, :i] @ torch.diag(s[:i]) @ vh[:i]


def _exp_of_entropy(s):
    p = s / s.sum()
    return float(torch.exp(-(p * p.log()).sum()))


def _hot(logits, labels):
    return torch.eye(logits.shape[1])[labels]


WRONG = {
    "truncate": {
        "i smallest": _last,
        "σ is missing": _no_sigma,
        "twice": lambda delta, i: _cut(delta, i) @ _svd(delta)[2].T @ torch.diag(_svd(delta)[1]) @ _svd(delta)[2],
        "too many": lambda delta, i: _cut(delta, i + 1),
        "direction is missing": lambda delta, i: _cut(delta, i - 1),
        "leaves out": lambda delta, i: delta - _cut(delta, i),
        "nothing was cut": lambda delta, i: delta.clone(),
        "returned shape": lambda delta, i: _cut(delta, i)[:, :i],
        "first i rows of Vᵀ": lambda delta, i: delta * (torch.arange(delta.shape[0])[:, None] < i),
        "first i rows of Vᵀ (i, k)": _columns_of_vh,
        "returned nothing": lambda delta, i: None,
    },
    "effective_rank": {
        "stable rank": lambda s: float((s ** 2).sum() / s.max() ** 2),
        "that is the entropy": lambda s: float(-(s / s.sum() * (s / s.sum()).log()).sum()),
        "not of σ²": lambda s: _exp_of_entropy(s ** 2),
        "the sign": lambda s: float((s / s.sum() * (s / s.sum()).log()).sum().exp()),
        "counts a small σ": lambda s: int((s > 0).sum()),
        "returned nothing": lambda s: None,
    },
    "rank_for_share": {
        "one too few": lambda s, share: int(((s ** 2).cumsum(0) / (s ** 2).sum() < share).sum()),
        "not of σ": lambda s, share: int((s.cumsum(0) / s.sum() < share).sum()) + 1,
        "count those before": lambda s, share: int(((s ** 2).cumsum(0) / (s ** 2).sum() >= share).sum()),
        "returned nothing": lambda s, share: None,
    },
    "cut_weights": {
        "cuts W itself": lambda W0, W, i: _cut(W, i),
        "add W0 again": lambda W0, W, i: _cut(W - W0, i),
        "has it already": lambda W0, W, i: W + _cut(W - W0, i),
        "the sign": lambda W0, W, i: W0 + _cut(W0 - W, i),
        "W0 stays whole": lambda W0, W, i: _cut(W0, i) + _cut(W - W0, i),
        "leaves out": lambda W0, W, i: W - _cut(W - W0, i),
        "nothing was cut": lambda W0, W, i: W.clone(),
        "returned nothing": lambda W0, W, i: None,
    },
    "logit_gradient": {
        "divide by N": lambda z, y: z.softmax(1) - _hot(z, y),
        "the sign": lambda z, y: (_hot(z, y) - z.softmax(1)) / len(y),
        "take one from": lambda z, y: z.softmax(1) / len(y),
        "softmax first": lambda z, y: (z - _hot(z, y)) / len(y),
        "dim=1": lambda z, y: (z.softmax(0) - _hot(z, y)) / len(y),
        "returned nothing": lambda z, y: None,
    },
}
RIGHT = {
    "truncate": _cut,
    "effective_rank": _exp_of_entropy,
    "rank_for_share": lambda s, share: int(((s ** 2).cumsum(0) / (s ** 2).sum() < share).sum()) + 1,
    "cut_weights": lambda W0, W, i: W0 + _cut(W - W0, i),
    "logit_gradient": lambda z, y: (z.softmax(1) - _hot(z, y)) / len(y),
}

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
    "energy_share": {
        "not of σ": lambda s, i: float(s[:i].sum() / s.sum()),
        "direction i alone": lambda s, i: float(s[i - 1] ** 2 / (s ** 2).sum()),
        "energy itself": lambda s, i: float((s[:i] ** 2).sum()),
        "one direction is missing": lambda s, i: float((s[:i - 1] ** 2).sum() / (s ** 2).sum()),
        "too many": lambda s, i: float((s[:i + 1] ** 2).sum() / (s ** 2).sum()),
        "left out": lambda s, i: float((s[i:] ** 2).sum() / (s ** 2).sum()),
        "returned nothing": lambda s, i: None,
    },
    "rank_for_share": {
        "one too few": lambda s, share: int(((s ** 2).cumsum(0) / (s ** 2).sum() < share).sum()),
        "not of σ": lambda s, share: int((s.cumsum(0) / s.sum() < share).sum()) + 1,
        "count those before": lambda s, share: int(((s ** 2).cumsum(0) / (s ** 2).sum() >= share).sum()),
        "returned nothing": lambda s, share: None,
    },
    "share_of_dense": {
        "divide it by d": lambda d, k, i: i * (d + k),
        "upside down": lambda d, k, i: d * k / (i * (d + k)),
        "a pair is two": lambda d, k, i: i * k / (d * k),
        "there are i of them": lambda d, k, i: (d + k) / (d * k),
        "returned nothing": lambda d, k, i: None,
    },
}
RIGHT = {
    "truncate": _cut,
    "energy_share": lambda s, i: float((s[:i] ** 2).sum() / (s ** 2).sum()),
    "rank_for_share": lambda s, share: int(((s ** 2).cumsum(0) / (s ** 2).sum() < share).sum()) + 1,
    "share_of_dense": lambda d, k, i: i * (d + k) / (d * k),
}

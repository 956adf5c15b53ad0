"""A matrix as a sum of directions: its singular value decomposition, cut to a rank, and its unstructured twin.

    ΔW = U diag(σ) Vᵀ = Σ σ_j u_j v_jᵀ           u_j (d,), v_j (k,) of length 1, σ_1 ≥ σ_2 ≥ … ≥ 0

The first i terms are the nearest matrix of rank i (Eckart & Young 1936). `measure.py` has the same for a matrix
that is given by thin factors; here it is dense. Taught in 01.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# d out, k in, n = min(d, k), i directions kept


class Directions(NamedTuple):
    """A matrix as a sum of directions, sorted by weight: U (d, i), s (i,) descending, Vh (i, k), in float64."""

    U: Tensor
    s: Tensor
    Vh: Tensor

    def keep(self, which: slice | Sequence[int]) -> Directions:
        """Only these of them: slice(8) keeps the first eight, slice(8, None) leaves them out."""
        return Directions(self.U[:, which], self.s[which], self.Vh[which])

    def matrix(self) -> Tensor:
        """Their sum Σ σ_j u_j v_jᵀ, (d, k)."""
        return (self.U * self.s) @ self.Vh


def directions(delta: Tensor) -> Directions:
    """The singular value decomposition of a dense matrix delta (d, k), all n = min(d, k) directions."""
    return Directions(*torch.linalg.svd(delta.detach().cpu().double(), full_matrices=False))


def truncate(delta: Tensor, i: int) -> Tensor:
    """delta (d, k) cut to its first i directions: no matrix of rank i is nearer to it (Eckart & Young 1936)."""
    return directions(delta).keep(slice(i)).matrix().to(delta)


def random_twin(delta: Tensor, seed: int = 0) -> Tensor:
    """A matrix (d, k) of independent Gaussian numbers with delta's shape and norm: a change without structure."""
    noise = torch.randn(delta.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return noise * (delta.detach().cpu().double().norm() / noise.norm())

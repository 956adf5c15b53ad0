"""The exercises of 01: cut a matrix to rank i, the energy it keeps, the rank for a share, what a pair costs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .. import measure, svd
from .engine import Task
from .lora import count_parameters

# d out, k in, n = min(d, k), i directions kept


def energy_share(s: Tensor, i: int) -> float:
    """Share of the energy that the first i of the singular values s (n,) hold."""
    return float(measure.energy(s)[i - 1])


def share_of_dense(d: int, k: int, i: int) -> float:
    """Numbers in a pair of rank i over the numbers in a (d, k) matrix."""
    return count_parameters(d, k, i) / (d * k)


def _matrix(d: int, k: int) -> Tensor:
    """A matrix whose directions fall off, so that the first few matter."""
    g = torch.Generator().manual_seed(d)
    n = min(d, k)
    scale = torch.tensor([3.0 / (j + 1) ** 1.5 for j in range(n)])
    return (torch.randn(d, n, generator=g) * scale) @ torch.randn(n, k, generator=g)


def _spectrum(n: int) -> Tensor:
    return torch.tensor([4.0 / (j + 1) for j in range(n)], dtype=torch.float64)


def _kept(change: Callable[[svd.Directions, int], svd.Directions]) -> Callable[[Tensor, int], Tensor]:
    """A mistake in which directions are kept, or in what is done to them."""
    return lambda delta, i: change(svd.directions(delta), i).matrix()


_LAST = "these are the i smallest directions: σ is sorted, so the first i are the largest"
_NO_S = "σ is missing: every direction must get its weight back"
_TWICE = "σ stands in the product twice: U diag(σ) Vᵀ holds it once"
_MORE = "that is one direction too many: U[:, :i] holds the first i"
_FEWER = "one direction is missing: U[:, :i] holds the first i"
_REST = "that is what the cut leaves out: keep the first i, drop the rest"
_ALL = "nothing was cut: that is all of ΔW"
_NO_SQUARES = "energy is the sum of the squares σ², not of σ"
_ONE = "that is the energy of direction i alone: sum over the first i"
_SUM = "that is the energy itself: divide by that of all directions"
_SHORT = "one direction is missing: the first i are s[:i]"
_LEFT = "that is the share of what is left out"
_INDEX = "that is one too few: you count the ranks whose share is below the target, and the next one reaches it"
_SHAPES = "the first i columns of U are (d, i), of σ (i,), and the first i rows of Vᵀ (i, k)"

TASKS: dict[str, Task] = {
    "truncate": Task(
        svd.truncate, lambda: [(_matrix(9, 12), 3), (_matrix(12, 8), 2)],
        "keep the first i columns of U, the first i of σ and the first i rows of Vᵀ, and multiply them back",
        [(_LAST, _kept(lambda parts, i: parts.keep(slice(len(parts.s) - i, None)))),
         (_NO_S, _kept(lambda parts, i: parts._replace(s=torch.ones_like(parts.s)).keep(slice(i)))),
         (_TWICE, _kept(lambda parts, i: parts._replace(s=parts.s**2).keep(slice(i)))),
         (_MORE, lambda delta, i: svd.truncate(delta, i + 1)),
         (_FEWER, lambda delta, i: svd.truncate(delta, i - 1)),
         (_REST, lambda delta, i: delta - svd.truncate(delta, i)),
         (_ALL, lambda delta, i: delta)],
        (svd.directions, svd.Directions.keep, svd.Directions.matrix, svd.truncate), _SHAPES),
    "energy_share": Task(
        energy_share, lambda: [(_spectrum(10), 2), (_spectrum(6), 3)],
        "sum the squares of the first i singular values, and divide by the sum of all squares",
        [(_NO_SQUARES, lambda s, i: energy_share(s.sqrt(), i)),
         (_ONE, lambda s, i: energy_share(s, i) - energy_share(s, i - 1)),
         (_SUM, lambda s, i: energy_share(s, i) * float(s.square().sum())),
         (_SHORT, lambda s, i: energy_share(s, i - 1)),
         (_MORE, lambda s, i: energy_share(s, i + 1)),
         (_LEFT, lambda s, i: 1 - energy_share(s, i))],
        (measure.energy,)),
    "rank_for_share": Task(
        measure.energy_rank, lambda: [(_spectrum(40), 0.9), (_spectrum(12), 0.5), (_spectrum(12), 0.75)],
        "which is the first i whose share of the energy reaches the target?",
        [(_INDEX, lambda s, share: measure.energy_rank(s, share) - 1),
         ("energy is the sum of the squares σ², not of σ", lambda s, share: measure.energy_rank(s.sqrt(), share)),
         ("those are the directions that come after the target is reached; count those before it",
          lambda s, share: len(s) - measure.energy_rank(s, share) + 1)],
        (measure.energy, measure.energy_rank)),
    "share_of_dense": Task(
        share_of_dense, lambda: [(384, 384, 8), (1536, 384, 64)],
        "the pair is (d × i) and (i × k): how many numbers is that, and how many are in d × k?",
        [("that is the count: divide it by d · k", count_parameters),
         ("upside down: the pair's numbers over those of the whole", lambda d, k, i: 1 / share_of_dense(d, k, i)),
         ("a pair is two matrices: count (d × i) and (i × k)", lambda d, k, i: i / d),
         ("a pair is two matrices: count (d × i) and (i × k)", lambda d, k, i: i / k),
         ("that is one direction: there are i of them", lambda d, k, i: share_of_dense(d, k, 1))],
        (count_parameters,)),
}

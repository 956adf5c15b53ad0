"""A trained network with every branch cut to its first b directions, for as long as one looks. Taught in 07.

    with cut_branches(adapters, 2, by_svd=True):
        rows.score(model, "test")
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from . import measure
from .adapters import Adapters
from .methods.checks import require


@contextmanager
def cut_branches(adapters: Adapters, b: int, *, by_svd: bool = False) -> Iterator[None]:
    """The first b directions of each branch; the factors are put back at the end.

    Args:
        by_svd: the branch is first turned into its singular directions: the first b are then the best b there are.

    Raises:
        ValueError: b is outside 0 … r; or a branch has a gate or fixed terms, whose directions are not its factors'.
    """
    for name, branch in adapters.items():
        require(0 <= b <= branch.r, f"rank {b} is outside 0 .. r = {branch.r} at site {name}")
        require(branch._gate is None and not branch.echo and not branch.fixed_left.shape[1],
                f"site {name} holds more than B and A: a gate, an echo or merged links; cut a plain LoRA")
    kept = {name: (branch.lora_A.detach().clone(), branch.lora_B.detach().clone())
            for name, branch in adapters.items()}
    try:
        with torch.no_grad():
            for branch in adapters.values():
                if by_svd:
                    U, s, Vh = measure.factor_svd(*branch.factors())   # (d, r), (r,), (r, k)
                    branch.lora_A.copy_(Vh)
                    branch.lora_B.copy_(U * s / branch.scaling)
                branch.lora_B[:, b:] = 0
        yield
    finally:
        with torch.no_grad():
            for name, branch in adapters.items():
                branch.lora_A.copy_(kept[name][0])
                branch.lora_B.copy_(kept[name][1])

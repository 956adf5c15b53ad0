"""Adam's moments where a rule changes parameters under the optimizer: forgotten, or taken over by others."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def reset_moments(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor]) -> None:
    """Zero the moments and the step counts of these parameters, in place; all others keep theirs."""
    for parameter in parameters:
        for value in optimizer.state.get(parameter, {}).values():
            value.zero_()


def replace_parameter(optimizer: torch.optim.Optimizer, old: nn.Parameter, new: nn.Parameter,
                      keep: Tensor | None, dim: int) -> None:
    """Let `new` take `old`'s place in its group, with the rows `keep` of its moments along `dim` (None: none)."""
    for group in optimizer.param_groups:
        group["params"] = [new if p is old else p for p in group["params"]]
    state = optimizer.state.pop(old, {})
    if keep is not None and state:
        optimizer.state[new] = {name: value.index_select(dim, keep) if value.shape == old.shape else value
                                for name, value in state.items()}

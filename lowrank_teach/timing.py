"""What one training step costs: seconds and bytes, measured side by side. Taught in 02.

Two candidates are stepped in turn, so that whatever else the machine does meanwhile falls on both alike.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class StepCost:
    """seconds: of each step.  state_bytes: gradients and AdamW's moments of what trains."""

    seconds: list[float]
    state_bytes: int

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def step_costs(models: Mapping[str, nn.Module], batch: dict[str, Tensor], steps: int = 8) -> dict[str, StepCost]:
    """Train each model on one batch in turn, `steps` times after a first that is not counted.

    Args: name -> a model whose trainable parameters are set; batch with "labels". The models are changed.
    """
    optimizers = {name: torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
                  for name, model in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(steps + 1):
        for name, model in models.items():
            start = time.perf_counter()
            optimizers[name].zero_grad()
            model(**batch).loss.backward()
            optimizers[name].step()
            seconds[name].append(time.perf_counter() - start)
    return {name: StepCost(seconds[name][1:], _state_bytes(optimizers[name])) for name in models}


def in_turns(steps: Mapping[str, Callable[[], object]], repeats: int = 5) -> dict[str, list[float]]:
    """Name -> seconds of each call; all are called in turn, `repeats` times after a first that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    return {name: taken[1:] for name, taken in seconds.items()}


def training_step(model: nn.Module, batch: dict[str, Tensor], parameters: Sequence[Tensor] | None = None, *,
                  lr: float = 1e-4, after: Callable[[int], object] | None = None) -> Callable[[], None]:
    """A function that takes one step of AdamW on a batch with "labels"; it changes the model.

    Args: parameters: None takes all that train; after: called with the step's number, before gradients are cleared.
    """
    trained = [p for p in model.parameters() if p.requires_grad] if parameters is None else parameters
    optimizer, numbers = torch.optim.AdamW(trained, lr=lr), itertools.count(1)

    def step() -> None:
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
        if after is not None:
            after(next(numbers))

    return step


def _state_bytes(optimizer: torch.optim.Optimizer) -> int:
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    tensors = [p.grad for p in trained if p.grad is not None]
    tensors += [value for p in trained for value in optimizer.state[p].values() if value.shape == p.shape]
    return sum(t.numel() * t.element_size() for t in tensors)

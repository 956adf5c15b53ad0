"""Train one run on several processes (ranks), with sums over all of them.

    accelerate launch --num_processes 2 -m lowrank_teach.cli train salora --task rt     # on two GPUs
    torchrun --nproc_per_node 2 -m lowrank_teach.cli train salora --task rt             # there, or on a CPU

`batch_size` is that of one process, so the batch of a step is `size` times as large, with the same examples that one
process with that batch size would take. Each process weights its loss by its share of the batch's labels, so that the
gradients add up to those of one process. The penalty is added after the sum, since every process computes all of it.
Weights, gates (whose noise comes from the method's own generator), knots, W and AutoLoRA's β are the same on every
process; only dropout differs. Only rank 0 evaluates, calls callbacks and writes files. Gradients are summed here and
not by DistributedDataParallel, which cannot follow parameters that are replaced at a knot or when gates are pruned.
"""

from __future__ import annotations

import dataclasses
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, reduce
from torch import Tensor, nn

from .batches import counted, interrupt_between_steps, shares
from .config import TrainConfig

T = TypeVar("T")
LONGEST = timedelta(hours=6)   # how long the other processes wait while rank 0 evaluates
Batch = dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Team:
    """The processes of one run, as seen by one of them; the default is a single process.

    rank: number of this process, from 0.  size: number of processes.  device: device of this process's tensors.
    """

    rank: int = 0
    size: int = 1
    device: Any = "cpu"

    @staticmethod
    def here(cpu: bool = False) -> Team:
        """Return the team that this process was started in."""
        # PartialState joins processes on a CPU only if cpu=True
        state = PartialState(cpu=cpu or not torch.accelerator.is_available(), timeout=LONGEST)
        return Team(state.process_index, state.num_processes, state.device)

    @property
    def is_main(self) -> bool:
        """Return whether this is rank 0, which evaluates, calls callbacks and writes files."""
        return self.rank == 0

    def own_seed(self, seed: int) -> int:
        """Return this process's seed for dropout, which has 32 bits, the most that torch's CPU generator takes."""
        return (seed + 2_654_435_761 * self.rank) % 2**32

    # -- the batch of a step

    def whole(self, config: TrainConfig) -> TrainConfig:
        """Return the configuration with the batch size of all processes together."""
        return config if self.size == 1 else dataclasses.replace(config, batch_size=self.size * config.batch_size)

    def shard(self, rows: list[T]) -> list[T]:
        """Return this process's examples of a step, or all of them if there are fewer examples than processes."""
        return rows[self.rank::self.size] if len(rows) >= self.size else rows

    def pieces(self, rows: int, accumulation: int) -> int:
        """Return the number of micro-batches in a step of this many examples, the same on every process."""
        return min(accumulation, rows // self.size or rows)

    def shares(self, batches: Sequence[Batch], model: Any) -> list[float]:
        """Return each micro-batch's share of the mean loss over the batch of all processes; see `batches.shares`."""
        if self.size == 1:
            return shares(batches, model)
        counts = [int(counted(batch, model)) for batch in batches]
        whole = self.total(sum(counts)) or 1
        return [count / whole for count in counts]

    # -- sums over all

    def total(self, number: float) -> float:
        """Return the sum of a number over all processes."""
        return self._reduced([number])[0]

    def any(self, *flags: bool) -> list[bool]:
        """Return for each flag whether some process has it set, so that all stop at the same step."""
        return [value > 0 for value in self._reduced([float(flag) for flag in flags])]

    def _reduced(self, numbers: list[float]) -> list[float]:
        if self.size == 1:
            return numbers
        return reduce(torch.tensor(numbers, dtype=torch.float64, device=self.device), "sum").tolist()

    def add_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Put the sum over all processes into each gradient."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.size > 1 and gradients:
            for mine, summed in zip(gradients, _summed(gradients), strict=True):
                mine.copy_(summed)

    def joined(self, model: nn.Module, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return parameters by name for a loss whose gradients, of any order, are summed over all processes.

        given: tensors to use in place of the model's parameters; its other trainable parameters are added.
        """
        if self.size == 1:
            return dict(given)
        rest = {name: p for name, p in model.named_parameters() if p.requires_grad and name not in given}
        return {name: value for part in (given, rest) if part
                for name, value in zip(part, _Spread.apply(*part.values()), strict=True)}

    # -- what rank 0 does for all

    def broadcast(self, make: Callable[[], T]) -> T:
        """Run `make` on rank 0, and return its result, or raise its error, on every rank."""
        if self.size == 1:
            return make()
        result: list[Any] = [None, None]  # the value and the error
        if self.is_main:
            try:
                result[0] = make()
            except Exception as error:  # else the other processes would wait for ever
                result[1] = error
        broadcast_object_list(result)
        if result[1] is not None:
            raise result[1]
        return result[0]

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, by rank."""
        return [value] if self.size == 1 else gather_object([value])

    @contextmanager
    def interrupts(self) -> Iterator[threading.Event]:
        """Let Ctrl-C, and the launcher's SIGTERM after it, wait for the end of the step; see `batches`."""
        if self.size == 1 or threading.current_thread() is not threading.main_thread():
            with interrupt_between_steps() as asked:
                yield asked
            return
        asked = threading.Event()
        before = {number: signal.signal(number, lambda *_: asked.set()) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield asked
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _summed(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Sum each tensor over all processes, with one exchange for each dtype; every process gets the same bits."""
    found: dict[int, Tensor] = {}
    for dtype in dict.fromkeys(t.dtype for t in tensors):
        places = [i for i, t in enumerate(tensors) if t.dtype == dtype]
        flat = reduce(torch.cat([tensors[i].detach().flatten() for i in places]), "sum")
        parts = flat.split([tensors[i].numel() for i in places])
        found |= {i: part.view_as(tensors[i]) for i, part in zip(places, parts, strict=True)}
    return [found[i] for i in range(len(tensors))]


class _Spread(torch.autograd.Function):
    """Pass on tensors that are equal on all processes; the backward pass sums their gradients over the processes."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(t.view_as(t) for t in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _Sum.apply(*gradients)


class _Sum(torch.autograd.Function):
    """Sum over all processes; the adjoint of `_Spread`."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(_summed(tensors))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _Spread.apply(*gradients)

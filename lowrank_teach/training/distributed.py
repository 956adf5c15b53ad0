"""One run on several processes: who does what, and the sums over all of them.

    accelerate launch --num_processes 2 -m lowrank_teach.cli train salora --task rt     # on two GPUs
    torchrun --nproc_per_node 2 -m lowrank_teach.cli train salora --task rt             # there, or on a CPU

`batch_size` is of one process, so a step's batch is `size` times as large: it is the batch that one process with that
`batch_size` would take, row for row, and every process takes its part. Each weighs its loss by its share of the
batch's rows (or words), so that the gradients of all add up to those of one process. The penalty is added after that,
since every process has the whole of it. All else is the same on all of them: weights, gates (their noise comes from
the method's own generator), knots, what Delta-LoRA writes into W, AutoLoRA's β. Only dropout differs. The first
process alone evaluates, calls callbacks and writes. Gradients are summed here and not by a wrapper around the model
(DistributedDataParallel), which could not follow parameters that are replaced at a knot or when gates are pruned.
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
LONGEST = timedelta(hours=6)   # that the others wait while the first process evaluates
Batch = dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Team:
    """The processes of one run; alone, every method is what one process would do.

    rank: this one's number.  size: how many.  device: where its tensors are.
    """

    rank: int = 0
    size: int = 1
    device: Any = "cpu"

    @staticmethod
    def here(cpu: bool = False) -> Team:
        """Return the team that this process was started in."""
        # PartialState joins processes of a CPU only when it is told that there is nothing else
        state = PartialState(cpu=cpu or not torch.accelerator.is_available(), timeout=LONGEST)
        return Team(state.process_index, state.num_processes, state.device)

    @property
    def is_main(self) -> bool:
        """Say whether this is the process that evaluates, calls callbacks and writes: rank 0."""
        return self.rank == 0

    def own_seed(self, seed: int) -> int:
        """Return this process's seed for dropout, of 32 bits, of which torch's generator of the CPU takes no more."""
        return (seed + 2_654_435_761 * self.rank) % 2**32

    # -- the batch of a step

    def whole(self, config: TrainConfig) -> TrainConfig:
        """Return the training as one process would do it: with the batch of all."""
        return config if self.size == 1 else dataclasses.replace(config, batch_size=self.size * config.batch_size)

    def shard(self, rows: list[T]) -> list[T]:
        """Return this process's rows of a step; all of them, if they are fewer than the processes."""
        return rows[self.rank::self.size] if len(rows) >= self.size else rows

    def pieces(self, rows: int, accumulation: int) -> int:
        """Return the number of micro-batches of a step of so many rows, which is the same on every process."""
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

        given: tensors in the place of the model's own; the others that train are joined to them.
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
        said: list[Any] = [None, None]
        if self.is_main:
            try:
                said[0] = make()
            except Exception as error:  # else the others would wait for ever
                said[1] = error
        broadcast_object_list(said)
        if said[1] is not None:
            raise said[1]
        return said[0]

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, by rank."""
        return [value] if self.size == 1 else gather_object([value])

    @contextmanager
    def interrupts(self) -> Iterator[threading.Event]:
        """Let Ctrl-C, and with several processes the launcher's SIGTERM after it, wait for the end of the step."""
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
    """Sum each tensor over all processes, in one exchange a type of number; every process gets the same bits."""
    found: dict[int, Tensor] = {}
    for dtype in dict.fromkeys(t.dtype for t in tensors):
        places = [i for i, t in enumerate(tensors) if t.dtype == dtype]
        flat = reduce(torch.cat([tensors[i].detach().flatten() for i in places]), "sum")
        parts = flat.split([tensors[i].numel() for i in places])
        found |= {i: part.view_as(tensors[i]) for i, part in zip(places, parts, strict=True)}
    return [found[i] for i in range(len(tensors))]


class _Spread(torch.autograd.Function):
    """Tensors that are the same on all processes, into a loss that is each one's own: gradients are summed."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(t.view_as(t) for t in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _Sum.apply(*gradients)


class _Sum(torch.autograd.Function):
    """The sum over all processes, and from there on the same on all: the adjoint of `_Spread`."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(_summed(tensors))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _Spread.apply(*gradients)

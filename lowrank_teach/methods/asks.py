"""Gradients that a rule asks for before its step, one request at a time.

A rule whose step needs passes of its own (AutoLoRA's) says which as a generator: it yields an `Ask` and is sent the
gradients. `answer` serves one rule from its own loop; replicas serve the asks of many rules in one pass.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .base import Loop


@dataclass(frozen=True)
class Ask:
    """∂ of the mean loss over some rows.

    batches: micro-batches.  at: tensors in the place of the parameters they name.  of: what is differentiated by.
    same_noise: draw the dropout masks that the step's first such ask drew.
    """

    batches: list[dict[str, Tensor]]
    at: dict[str, Tensor]
    of: Sequence[Tensor]
    same_noise: bool = False


Asks = Generator[Ask, Sequence[Tensor], None]


def answer(asks: Asks, loop: Loop) -> None:
    """Serve all asks of one rule, each in a pass of its own."""
    noise = Noise()
    try:
        ask = next(asks)
        while True:
            with noise.again(ask.same_noise):
                found = torch.autograd.grad(loop.mean_loss(ask.batches, ask.at), list(ask.of))
            ask = asks.send(found)
    except StopIteration:
        return


class Noise:
    """Torch's random state as it is now, to be used again."""

    def __init__(self) -> None:
        self.cpu = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None

    @contextmanager
    def again(self, same: bool = True) -> Iterator[None]:
        """What is drawn in here is the same each time, and torch's own state does not move; unless same is False."""
        if not same:
            yield
            return
        with torch.random.fork_rng():
            torch.set_rng_state(self.cpu)
            if self.cuda is not None:
                torch.cuda.set_rng_state_all(self.cuda)
            yield

"""What the loop asks about one step: how fast, on which rows, and whether to stop after it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch


def linear_schedule(step: int, total: int, warmup: float) -> float:
    """Factor of the peak rate at step 1 … total: up over the warm-up's share, then down to almost nothing."""
    rise = max(1, round(warmup * total))
    return step / rise if step <= rise else max(0.0, (total - step + 1) / (total - rise + 1))


def batch_order(rows: Sequence[dict[str, Any]], size: int, generator: torch.Generator) -> list[list[int]]:
    """Row numbers by batch for one epoch: shuffled, with rows of like length together to save padding.

    Lengths are sorted only within eight batches of shuffled rows, and the batches are shuffled again.
    """
    mixed = torch.randperm(len(rows), generator=generator).tolist()
    batches: list[list[int]] = []
    for start in range(0, len(mixed), 8 * size):
        pool = sorted(mixed[start:start + 8 * size], key=lambda i: len(rows[i]["input_ids"]))
        batches += [pool[i:i + size] for i in range(0, len(pool), size)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def shares(batches: Sequence[dict[str, torch.Tensor]]) -> list[float]:
    """Each micro-batch's share of the mean loss: a loss is a mean over rows, or over the words that count."""
    counts = [int((batch["labels"] != -100).sum()) for batch in batches]
    return [count / sum(counts) for count in counts]


@contextmanager
def interrupt_between_steps() -> Iterator[threading.Event]:
    """Ctrl-C waits for the end of the step, so that what is written down is whole; a second one does not wait."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    previous = signal.getsignal(signal.SIGINT)

    def handler(number: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    signal.signal(signal.SIGINT, handler)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, previous)

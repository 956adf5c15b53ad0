"""What the loop asks about one step: how fast, on which rows, and whether to stop after it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.trainer_pt_utils import LabelSmoother


def linear_schedule(step: int, total: int, warmup: float) -> float:
    """Factor of the peak rate at step 1 … total: up over the warm-up's share, then down to almost nothing."""
    rise = max(1, round(warmup * total))
    return step / rise if step <= rise else max(0.0, (total - step + 1) / (total - rise + 1))


def hold_out(n: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """The numbers of n rows, mixed: those to train on, and the share that a method takes for itself.

    Raises:
        ValueError: a share is asked for, and the rows are too few for two parts.
    """
    mixed = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()
    cut = round(share * n)
    if share and not 0 < cut < n:
        raise ValueError(f"{n} rows are too few to hold out a share of {share:g}")
    return mixed[cut:], mixed[:cut]


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


@contextmanager
def activations_kept(model: torch.nn.Module) -> Iterator[None]:
    """No gradient checkpointing for a while: what runs in here keeps its activations for the backward pass."""
    recomputing: list[Any] = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
    for module in recomputing:
        module.gradient_checkpointing = False
    try:
        yield
    finally:
        for module in recomputing:
            module.gradient_checkpointing = True


def shares(batches: Sequence[dict[str, torch.Tensor]]) -> list[float]:
    """Each micro-batch's share of the mean loss: a loss is a mean over rows, or over the words that count."""
    if len(batches) == 1:
        return [1.0]   # without a look at the labels, for which a GPU would be waited for
    counts = [int((batch["labels"] != -100).sum()) for batch in batches]
    return [count / sum(counts) for count in counts]


def task_loss(output: Any, batch: dict[str, torch.Tensor], smoothing: float, model: Any) -> torch.Tensor:
    """The model's own mean loss, or the same with smoothed labels (Szegedy et al. 2016); pads count in neither.

    Raises:
        ValueError: labels of a regression have nothing to be smoothed.
    """
    if not smoothing:
        return output.loss
    if batch["labels"].is_floating_point():
        raise ValueError("label_smoothing is for classes and words: leave it out of a regression")
    shift = model.can_generate() and not model.config.is_encoder_decoder  # a causal model predicts the next word
    return LabelSmoother(smoothing)(output, batch["labels"], shift_labels=shift)


def loss_from(logits: torch.Tensor, batch: dict[str, torch.Tensor], smoothing: float, model: Any) -> torch.Tensor:
    """`task_loss` where only the logits are at hand; the formulae are those of transformers' models."""
    labels, writes = batch["labels"], model.can_generate()
    if smoothing:
        return task_loss({"logits": logits}, batch, smoothing, model)
    if writes and not model.config.is_encoder_decoder:
        return ForCausalLMLoss(logits, labels, logits.shape[-1])
    if labels.is_floating_point():
        return F.mse_loss(logits.squeeze(), labels.squeeze())
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))


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

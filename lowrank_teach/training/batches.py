"""Parts of one training step: the schedule, the order of the examples, labels and loss, and interrupts."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.modules.module import register_module_forward_hook
from transformers.loss.loss_utils import ForCausalLMLoss, ForSequenceClassificationLoss
from transformers.trainer_pt_utils import LabelSmoother

ENDINGS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


def linear_schedule(step: int, total: int, warmup: float) -> float:
    """Return the factor of the peak learning rate at step 1 … total: linear warm-up, then linear decay.

    warmup: share of the steps.
    """
    rise = max(1, round(warmup * total))
    return step / rise if step <= rise else max(0.0, (total - step + 1) / (total - rise + 1))


def hold_out(n: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Shuffle the indices of n examples and return those to train on, and the share to hold out.

    Raises:
        ValueError: the examples are too few for two parts.
    """
    mixed = torch.randperm(n, generator=torch.Generator().manual_seed(seed), device="cpu").tolist()
    cut = round(share * n)
    if share and not 0 < cut < n:
        raise ValueError(f"{n} examples are too few to hold out a share of {share:g}: give more")
    return mixed[cut:], mixed[:cut]


def batch_order(rows: Sequence[dict[str, Any]], size: int, generator: torch.Generator) -> list[list[int]]:
    """Return the indices of the examples by batch for one epoch, shuffled.

    The examples of eight batches at a time are sorted by length to save padding, and the batches are shuffled again.
    """
    mixed = torch.randperm(len(rows), generator=generator, device="cpu").tolist()
    batches: list[list[int]] = []
    for start in range(0, len(mixed), 8 * size):
        pool = sorted(mixed[start:start + 8 * size], key=lambda i: len(rows[i]["input_ids"]))
        batches += [pool[i:i + size] for i in range(0, len(pool), size)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator, device="cpu").tolist()]


@contextmanager
def calls_seen() -> Iterator[set[torch.nn.Module]]:
    """Yield a set that collects every module that is called.

    The hook is global, since a hook of a module would switch off torch's fast paths.
    """
    called: set[torch.nn.Module] = set()
    compiles = "torch._dynamo" in sys.modules  # a compiled model calls its modules only if it runs eagerly
    with (torch.compiler.set_stance("force_eager") if compiles else nullcontext(),
          register_module_forward_hook(lambda module, inputs, output: called.add(module))):
        yield called


def require_gradients() -> None:
    """Raise RuntimeError if gradients are switched off."""
    if torch.is_inference_mode_enabled() or not torch.is_grad_enabled():
        raise RuntimeError("gradients are switched off here, so nothing would be learned: train outside of "
                           "torch.no_grad() and inference_mode(), or call torch.set_grad_enabled(True) first")


@contextmanager
def activations_kept(model: torch.nn.Module) -> Iterator[None]:
    """Switch off gradient checkpointing for a while, so that activations are kept for the backward pass."""
    recomputing: list[Any] = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
    for module in recomputing:
        module.gradient_checkpointing = False
    try:
        yield
    finally:
        for module in recomputing:
            module.gradient_checkpointing = True


def shifts(model: Any) -> bool:
    """Return whether the loss predicts the next token, so that the first label of an example is not used."""
    return bool(hasattr(model, "can_generate") and model.can_generate() and not model.config.is_encoder_decoder)


def counted(batch: dict[str, torch.Tensor], model: Any) -> torch.Tensor | int:
    """Return over how many labels the model's own loss is a mean; a tensor, if the GPU would have to be waited for.

    Class and token labels count unless they are -100, scores always. A batch without "labels" (question answering)
    counts its examples.
    """
    labels = batch.get("labels")
    if labels is None:
        return len(next(iter(batch.values())))
    if labels.is_floating_point():
        return labels.numel()
    return (labels[..., 1:] if shifts(model) else labels).ne(-100).sum()


def shares(batches: Sequence[dict[str, torch.Tensor]], model: Any) -> list[float]:
    """Return each micro-batch's share of the mean loss over the labels of all."""
    if len(batches) == 1:
        return [1.0]   # counting labels would wait for the GPU
    counts = [int(counted(batch, model)) for batch in batches]
    return [count / (sum(counts) or 1) for count in counts]


def require_labels(batches: Iterable[dict[str, torch.Tensor]], model: Any) -> None:
    """Refuse examples without a label that counts.

    Raises:
        ValueError: every label is -100, or the first one of an example under a causal loss.
    """
    if not any(int(counted(batch, model)) for batch in batches):
        first = ", or are the first of an example, which a causal model does not predict" if shifts(model) else ""
        raise ValueError(f"not one label of the examples counts: all are -100{first}; look at how the labels are "
                         "made, and whether the prompt leaves room for the answer")


def task_loss(output: Any, batch: dict[str, torch.Tensor], smoothing: float, model: Any) -> torch.Tensor:
    """Return the model's own mean loss, or the one with smoothed labels (Szegedy et al. 2016), without pads.

    A batch without a label that counts has loss 0 and gradients of 0.

    Raises:
        ValueError: the batch has no labels, or labels of a regression are to be smoothed.
    """
    if not smoothing:
        if output.loss is None:
            raise ValueError(f"{type(model).__name__} returned no loss, since the batches have no labels: give the "
                             f"collator examples with \"labels\" (it made {', '.join(batch)})")
        return _zero_if_unlabeled(output.loss, batch, model)
    if batch["labels"].is_floating_point():
        raise ValueError("label_smoothing is for classes and tokens: leave it out of a regression")
    loss = LabelSmoother(smoothing)(output, batch["labels"], shift_labels=shifts(model))
    return _zero_if_unlabeled(loss, batch, model)


def _zero_if_unlabeled(loss: torch.Tensor, batch: dict[str, torch.Tensor], model: Any) -> torch.Tensor:
    """Return the mean loss, with 0 in place of nan if no label counts."""
    found = counted(batch, model)
    return loss if isinstance(found, int) else loss.masked_fill(found.to(loss.device) == 0, 0.0)


def loss_from(logits: torch.Tensor, batch: dict[str, torch.Tensor], smoothing: float, model: Any) -> torch.Tensor:
    """Return `task_loss` from logits alone, with the formulas of transformers' models."""
    labels = batch["labels"]
    if smoothing:
        return task_loss({"logits": logits}, batch, smoothing, model)
    if shifts(model):
        return _zero_if_unlabeled(ForCausalLMLoss(logits, labels, logits.shape[-1]), batch, model)
    if labels.is_floating_point():
        return ForSequenceClassificationLoss(labels, logits, model.config)
    loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))
    return _zero_if_unlabeled(loss, batch, model)


@contextmanager
def interrupt_at_once() -> Iterator[None]:
    """Let a signal interrupt at once within `interrupt_between_steps`, where no state is being changed."""
    with _handled(_raise, (signal.SIGINT, *ENDINGS)):
        yield


@contextmanager
def interrupt_between_steps() -> Iterator[threading.Event]:
    """Let Ctrl-C, SIGTERM and SIGHUP wait for the end of the step; a second signal interrupts at once."""
    asked = threading.Event()

    def handler(number: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    with _handled(handler, (signal.SIGINT, *ENDINGS)):
        yield asked


@contextmanager
def ended_like_ctrl_c() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise KeyboardInterrupt, so that cleanup code runs."""
    with _handled(_raise, ENDINGS):
        yield


def _raise(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


@contextmanager
def _handled(handler: Callable[[int, Any], None], signals: Sequence[int]) -> Iterator[None]:
    """Install a handler for signals, in the main thread only; a signal that is ignored (nohup) stays ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in signals}
    before = {number: old for number, old in before.items() if number == signal.SIGINT or old != signal.SIG_IGN}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)

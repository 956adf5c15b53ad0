"""What the loop asks about one step: how fast, on which rows, and whether to stop after it."""

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
    """Factor of the peak rate at step 1 … total: up over the warm-up's share, then down to almost nothing."""
    rise = max(1, round(warmup * total))
    return step / rise if step <= rise else max(0.0, (total - step + 1) / (total - rise + 1))


def hold_out(n: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """The numbers of n rows, mixed: those to train on, and the share that a method takes for itself.

    Raises:
        ValueError: a share is asked for, and the rows are too few for two parts.
    """
    mixed = torch.randperm(n, generator=torch.Generator().manual_seed(seed), device="cpu").tolist()
    cut = round(share * n)
    if share and not 0 < cut < n:
        raise ValueError(f"{n} rows are too few to hold out a share of {share:g}")
    return mixed[cut:], mixed[:cut]


def batch_order(rows: Sequence[dict[str, Any]], size: int, generator: torch.Generator) -> list[list[int]]:
    """Row numbers by batch for one epoch: shuffled, with rows of like length together to save padding.

    Lengths are sorted only within eight batches of shuffled rows, and the batches are shuffled again.
    """
    mixed = torch.randperm(len(rows), generator=generator, device="cpu").tolist()
    batches: list[list[int]] = []
    for start in range(0, len(mixed), 8 * size):
        pool = sorted(mixed[start:start + 8 * size], key=lambda i: len(rows[i]["input_ids"]))
        batches += [pool[i:i + size] for i in range(0, len(pool), size)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator, device="cpu").tolist()]



@contextmanager
def calls_seen() -> Iterator[set[torch.nn.Module]]:
    """Every module that is called meanwhile. By a global hook: torch's fast paths look for a module's own."""
    called: set[torch.nn.Module] = set()
    compiles = "torch._dynamo" in sys.modules  # what was compiled calls its modules only when it runs eagerly
    with (torch.compiler.set_stance("force_eager") if compiles else nullcontext(),
          register_module_forward_hook(lambda module, inputs, output: called.add(module))):
        yield called


def require_gradients() -> None:
    """Refuse to train where nothing can learn.

    Raises:
        RuntimeError: gradients are switched off.
    """
    if torch.is_inference_mode_enabled() or not torch.is_grad_enabled():
        raise RuntimeError("gradients are switched off here, so nothing would be learned: train outside of "
                           "torch.no_grad() and inference_mode(), or call torch.set_grad_enabled(True) first")


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


def shifts(model: Any) -> bool:
    """Whether the model's loss asks each word for the next one, so that the first label of a row is never used."""
    return bool(hasattr(model, "can_generate") and model.can_generate() and not model.config.is_encoder_decoder)


def counted(batch: dict[str, torch.Tensor], model: Any) -> torch.Tensor | int:
    """Over how many labels the model's own loss of a batch is a mean; without a wait for a GPU.

    Scores count whatever they are, classes and words unless they are -100. Where nothing is called "labels" (as in
    question answering) it is the rows that count.
    """
    labels = batch.get("labels")
    if labels is None:
        return len(next(iter(batch.values())))
    if labels.is_floating_point():
        return labels.numel()
    return (labels[..., 1:] if shifts(model) else labels).ne(-100).sum()


def shares(batches: Sequence[dict[str, torch.Tensor]], model: Any) -> list[float]:
    """Each micro-batch's share of the mean loss: a loss is a mean over rows, or over the words that count."""
    if len(batches) == 1:
        return [1.0]   # without a look at the labels, for which a GPU would be waited for
    counts = [int(counted(batch, model)) for batch in batches]
    return [count / (sum(counts) or 1) for count in counts]


def require_labels(batches: Iterable[dict[str, torch.Tensor]], model: Any) -> None:
    """Refuse examples of which not one has a label that counts; the search ends at the first that has one.

    Raises:
        ValueError: all labels are -100, or the first of their rows under a causal loss.
    """
    if not any(int(counted(batch, model)) for batch in batches):
        first = ", or are the first of a row, which a causal model is never asked for" if shifts(model) else ""
        raise ValueError(f"not one label of the examples counts: all are -100{first}; look at how the labels are "
                         "made, and whether the prompt leaves room for the answer")


def task_loss(output: Any, batch: dict[str, torch.Tensor], smoothing: float, model: Any) -> torch.Tensor:
    """The model's own mean loss, or the same with smoothed labels (Szegedy et al. 2016); pads count in neither.

    A batch without a label that counts has the loss 0, and gradients of 0.

    Raises:
        ValueError: labels of a regression have nothing to be smoothed; or there are no labels.
    """
    if not smoothing:
        if output.loss is None:
            raise ValueError(f"{type(model).__name__} gave no loss, for the batches hold no labels: give the "
                             f"collator rows with \"labels\" (it made {', '.join(batch)})")
        return _of_some(output.loss, batch, model)
    if batch["labels"].is_floating_point():
        raise ValueError("label_smoothing is for classes and words: leave it out of a regression")
    return _of_some(LabelSmoother(smoothing)(output, batch["labels"], shift_labels=shifts(model)), batch, model)


def _of_some(loss: torch.Tensor, batch: dict[str, torch.Tensor], model: Any) -> torch.Tensor:
    """The mean loss, and 0 where it is the mean of nothing (which torch makes nan)."""
    found = counted(batch, model)
    return loss if isinstance(found, int) else loss.masked_fill(found.to(loss.device) == 0, 0.0)


def loss_from(logits: torch.Tensor, batch: dict[str, torch.Tensor], smoothing: float, model: Any) -> torch.Tensor:
    """`task_loss` where only the logits are at hand; the formulae are those of transformers' models."""
    labels = batch["labels"]
    if smoothing:
        return task_loss({"logits": logits}, batch, smoothing, model)
    if shifts(model):
        return _of_some(ForCausalLMLoss(logits, labels, logits.shape[-1]), batch, model)
    if labels.is_floating_point():
        return ForSequenceClassificationLoss(labels, logits, model.config)
    return _of_some(F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)), batch, model)


@contextmanager
def interrupt_at_once() -> Iterator[None]:
    """Within `interrupt_between_steps`: nothing waits, as where nothing is changed that a checkpoint must hold."""
    with _handled(_raise, (signal.SIGINT, *ENDINGS)):
        yield


@contextmanager
def interrupt_between_steps() -> Iterator[threading.Event]:
    """Ctrl-C waits for the end of the step, so that what is written down is whole; a second one does not wait. So do
    SIGTERM and the SIGHUP of a terminal that is closed."""
    asked = threading.Event()

    def handler(number: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    with _handled(handler, (signal.SIGINT, *ENDINGS)):
        yield asked


@contextmanager
def ended_like_ctrl_c() -> Iterator[None]:
    """SIGTERM and SIGHUP raise KeyboardInterrupt, so that what is under way is stopped and cleared up."""
    with _handled(_raise, ENDINGS):
        yield


def _raise(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


@contextmanager
def _handled(handler: Callable[[int, Any], None], signals: Sequence[int]) -> Iterator[None]:
    """These signals go to a handler, in the main thread alone; what a program ignores (nohup) stays ignored."""
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

"""What `LowRankTrainer` makes of transformers' TrainingArguments: refusals, lengths, rows, a TrainConfig."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset
from transformers import TrainingArguments

from .config import TrainConfig
from .errors import Refusal
from .methods.base import Clock, Method
from .methods.checks import require_kind
from .steps import counted, hold_out, require_labels, shifts


class TrainerError(Refusal, ValueError):
    """The arguments ask for something that a method cannot be trained with; the message says what to change."""


def refuse(args: TrainingArguments, others: dict[str, Any], own_schedule: bool) -> None:
    """Refuse what would be trained otherwise than the method says, or not at all.

    Raises:
        TrainerError: names the argument, and what to change.  ValueError: `args` is of another type.
    """
    require_kind("args", args, TrainingArguments, "the transformers.TrainingArguments of this training")
    several = args.world_size > 1 or args.n_gpu > 1
    refused = {
        "train_dataset": (others.get("train_dataset") is None, "give the rows to train on"),
        "more than one device": (several, "a method changes parameters between steps: make one device visible"),
        "deepspeed or fsdp": (bool(args.deepspeed or args.fsdp), "a method changes parameters between steps"),
        "fp16": (args.fp16, "a skipped step would still be counted: use bf16"),
        f"optim={args.optim}": (args.optim not in ("adamw_torch", "adamw_torch_fused"),
                                "a method resets AdamW's moments: use 'adamw_torch'"),
        f"lr_scheduler_type={args.lr_scheduler_type}": (
            args.lr_scheduler_type not in ("linear", "constant") and not own_schedule,
            "pass schedule=, a function of (step, length)"),
        "label_smoothing_factor": (args.label_smoothing_factor != 0, "the loss is the model's own"),
        "auto_find_batch_size": (args.auto_find_batch_size, "a training cannot begin twice: set the batch size"),
        "torch_compile": (args.torch_compile, "a method changes parameters between steps"),
        **{name: (name in others, "the loop makes its own")
           for name in ("model", "model_init", "optimizers", "optimizer_cls_and_kwargs", "compute_loss_func")},
    }
    for name, (wrong, why) in refused.items():
        if wrong:
            raise TrainerError(f"{name}: {why}")


def lengths(method: Method, args: TrainingArguments, rows: Any, held_out: Any) -> tuple[Clock, TrainingArguments]:
    """Steps in all and in a pass over what the method leaves to train on, and arguments that say so."""
    share = method.held_out if held_out is None else 0.0

    def steps(n: int) -> int:
        batches = n // size if args.dataloader_drop_last else -(-n // size)
        return max(1, -(-batches // args.gradient_accumulation_steps))

    n = len(rows) if hasattr(rows, "__len__") else 0
    left, size = n - round(share * n), args.per_device_train_batch_size
    if hasattr(rows, "__len__") and (left < size if args.dataloader_drop_last else not n):
        raise TrainerError(f"train_dataset: {left} rows make no batch of {size}, so nothing would be trained; give "
                           "more rows, or a smaller per_device_train_batch_size without dataloader_drop_last")
    if not n and (args.max_steps <= 0 or share):
        raise TrainerError("train_dataset has no length: set max_steps, and hold no rows out of it")
    total = method.steps(args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps(n)))
    args = copy.copy(args)
    args.max_steps = total
    return Clock(0, total, steps(left) if n else total), args


def look_at_labels(batches: Sequence[dict[str, Tensor]], model: Any, rows: Any, collate: Callable) -> None:
    """Before the first step, whose micro-batches these are: whether its labels can teach what is asked for.

    Raises:
        ValueError: not one label of all rows counts (where they have a length, and can be looked through).
    """
    _warn_of_masked_ends(batches, model)
    if not any(int(counted(batch, model)) for batch in batches) and hasattr(rows, "__len__"):
        size = 64
        require_labels((collate([rows[i] for i in range(at, min(at + size, len(rows)))])
                        for at in range(0, len(rows), size)), model)


def _warn_of_masked_ends(batches: Sequence[dict[str, Tensor]], model: Any) -> None:
    """Warn where a causal model is asked for no token that ends a text, though the rows have some.

    A collator that masks pads by their number does so where the pad token is the end token, too.
    """
    ends = next((end for name in ("generation_config", "config")
                 if (end := getattr(getattr(model, name, None), "eos_token_id", None)) is not None), None)
    if not shifts(model) or ends is None or not all({"input_ids", "attention_mask", "labels"} <= batch.keys()
                                                    for batch in batches):
        return
    found = learned = 0
    for batch in batches:
        ids, labels = batch["input_ids"], batch["labels"]
        ended = torch.isin(ids, torch.tensor(ends, device=ids.device)) & batch["attention_mask"].bool()
        ended[:, 0] = False  # some texts begin with it
        if labels.shape != ids.shape:
            return
        found, learned = found + int(ended.sum()), learned + int((ended & (labels != -100)).sum())
    if found and not learned:
        warnings.warn("the labels leave out the token that ends a text (eos), so the model will not learn to stop: "
                      "give the tokenizer a pad token of its own, or use a collator that masks pads by the "
                      "attention mask", stacklevel=2)


def streams(method: Method, rows: Any, held_out: Any, seed: int) -> tuple[Any, Any]:
    """The rows to train on and those that the method keeps for itself.

    Raises:
        TrainerError: rows are given that no method would read, or none.
    """
    if held_out is not None and not (method.held_out and len(held_out)):
        why = "it is empty" if method.held_out else f"{method.name} learns from no rows besides those to train on"
        raise TrainerError(f"held_out: {why}; leave it out")
    if held_out is not None or not method.held_out:
        return rows, held_out
    train, kept = hold_out(len(rows), method.held_out, seed)
    return Subset(rows, train), Subset(rows, kept)


def config_of(args: TrainingArguments, total: int, head_lr: float | None) -> TrainConfig:
    """transformers' arguments in this package's words."""
    size, pieces = args.per_device_train_batch_size, args.gradient_accumulation_steps
    return TrainConfig(
        steps=total, batch_size=size * pieces, accumulation=pieces, lr=args.learning_rate, head_lr=head_lr,
        weight_decay=args.weight_decay, warmup=args.get_warmup_steps(total) / total, max_grad_norm=args.max_grad_norm,
        mixed_precision="bf16" if args.bf16 else "no",
        gradient_checkpointing=bool(getattr(args, "activation_checkpointing", False)
                                    or getattr(args, "gradient_checkpointing", False)))

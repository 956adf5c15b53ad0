"""Train every method of this package with `transformers.Trainer`.

    args = TrainingArguments("out", max_steps=500, learning_rate=1e-3, per_device_train_batch_size=16)
    adapters = lt.adapt(model, lt.COLA(r=8, sites="qv"))
    trainer = lt.LowRankTrainer(adapters, args, train_dataset=rows, data_collator=collate)
    trainer.train()                                  # or train(resume_from_checkpoint=True)
    trainer.save_model("adapter/")                   # in peft's format, as lt.save_peft(adapters, "adapter/")

    while trainer.following is not None:             # after a search of ranks: train at the ranks it found
        adapters.remove()
        adapters = lt.adapt(model, trainer.following)
        trainer = lt.LowRankTrainer(adapters, args, train_dataset=rows, data_collator=collate)
        trainer.train()

transformers provides the data, the logging, the evaluation and the callbacks. The parameter groups, the schedule and
the hooks around each optimizer step are those of our `Trainer`: the same examples in the same order give the same
result. Two things differ from transformers' Trainer: all groups have one weight decay, and the first step's learning
rate is not 0.
"""

from __future__ import annotations

import copy
import json
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.utils.data import Subset
from transformers import TrainerCallback, TrainingArguments

from ..adaptable import modes_kept
from ..adapters import Adapters, require_adapters
from ..errors import Refusal, require_kind
from ..methods.base import Clock, Method
from ..training.batches import counted, hold_out, require_gradients, require_labels, shares, shifts
from ..training.callbacks import Outcome
from ..training.checkpoint import STATE, Checkpoint, load_folder, newest_whole, save_checkpoint
from ..training.config import TrainConfig
from ..training.trainer import Batch, RuleLoop, start_from
from .peft_format import ExportError, save_peft, why_not


class TrainerError(Refusal, ValueError):
    """A method cannot be trained with these arguments; the message says what to change."""


# ---- from TrainingArguments to lengths, examples and a TrainConfig ---------------------------------------------

def refuse(args: TrainingArguments, others: dict[str, Any], own_schedule: bool) -> None:
    """Refuse arguments with which a method would train differently or not at all.

    Raises:
        TrainerError: names the argument and the remedy.  ValueError: `args` has a wrong type.
    """
    require_kind("args", args, TrainingArguments, "the transformers.TrainingArguments of this training")
    several = args.world_size > 1 or args.n_gpu > 1
    refused = {
        "train_dataset": (others.get("train_dataset") is None, "give the examples to train on"),
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
    """Return a clock of all steps and of an epoch without held-out examples, and arguments with that max_steps."""
    share = method.held_out if held_out is None else 0.0

    def steps(n: int) -> int:
        batches = n // size if args.dataloader_drop_last else -(-n // size)
        return max(1, -(-batches // args.gradient_accumulation_steps))

    n = len(rows) if hasattr(rows, "__len__") else 0
    left, size = n - round(share * n), args.per_device_train_batch_size
    if hasattr(rows, "__len__") and (left < size if args.dataloader_drop_last else not n):
        raise TrainerError(f"train_dataset: {left} examples make no batch of {size}, so nothing would be trained; "
                           "give more, or a smaller per_device_train_batch_size without dataloader_drop_last")
    if not n and (args.max_steps <= 0 or share):
        raise TrainerError("train_dataset has no length: set max_steps, and hold no examples out of it")
    total = method.steps(args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps(n)))
    args = copy.copy(args)
    args.max_steps = total
    return Clock(0, total, steps(left) if n else total), args


def check_labels(batches: Sequence[dict[str, Tensor]], model: Any, rows: Any, collate: Callable) -> None:
    """Check the labels before the first step, whose micro-batches these are.

    Raises:
        ValueError: no label of any example counts (checked if the dataset has a length).
    """
    _warn_of_masked_ends(batches, model)
    if not any(int(counted(batch, model)) for batch in batches) and hasattr(rows, "__len__"):
        size = 64
        require_labels((collate([rows[i] for i in range(at, min(at + size, len(rows)))])
                        for at in range(0, len(rows), size)), model)


def _warn_of_masked_ends(batches: Sequence[dict[str, Tensor]], model: Any) -> None:
    """Warn if the labels of a causal model mask every end token of the examples.

    A collator that masks the pad token does this if pad and end token are the same.
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
        ended[:, 0] = False  # some texts begin with this token
        if labels.shape != ids.shape:
            return
        found, learned = found + int(ended.sum()), learned + int((ended & (labels != -100)).sum())
    if found and not learned:
        warnings.warn("the labels leave out the token that ends a text (eos), so the model will not learn to stop: "
                      "give the tokenizer a separate pad token, or use a collator that masks pads by the attention "
                      "mask", stacklevel=2)


def streams(method: Method, rows: Any, held_out: Any, seed: int) -> tuple[Any, Any]:
    """Return the examples to train on, and those that the method holds out.

    Raises:
        TrainerError: held_out is empty, or the method does not use it.
    """
    if held_out is not None and not (method.held_out and len(held_out)):
        why = "it is empty" if method.held_out else f"{method.name} learns from no examples besides train_dataset"
        raise TrainerError(f"held_out: {why}; leave it out")
    if held_out is not None or not method.held_out:
        return rows, held_out
    train, kept = hold_out(len(rows), method.held_out, seed)
    return Subset(rows, train), Subset(rows, kept)


def config_of(args: TrainingArguments, total: int, head_lr: float | None) -> TrainConfig:
    """Return the TrainConfig with the meaning of transformers' arguments."""
    size, pieces = args.per_device_train_batch_size, args.gradient_accumulation_steps
    return TrainConfig(
        steps=total, batch_size=size * pieces, accumulation=pieces, lr=args.learning_rate, head_lr=head_lr,
        weight_decay=args.weight_decay, warmup=args.get_warmup_steps(total) / total, max_grad_norm=args.max_grad_norm,
        mixed_precision="bf16" if args.bf16 else "no",
        gradient_checkpointing=bool(getattr(args, "activation_checkpointing", False)
                                    or getattr(args, "gradient_checkpointing", False)))


# ---- the trainer ---------------------------------------------------------------------------------------------

class LowRankTrainer(RuleLoop, transformers.Trainer):
    """A `transformers.Trainer` of one method on one model.

    After `train()`, `outcome.history` has (step, site, name, value) for every step, and `following` is the method to
    train next from the pretrained weights, or None. The Trainer's log also has the rule's values, those of a site as
    "name/site". Evaluation is skipped while the model does not yet have its final form.

    Args:
        adapters: the return value of `adapt`. If that had no seed, the branches start from args.seed.
        args: transformers' arguments; `lr_scheduler_type` may be "linear" or "constant", both with warm-up.
        held_out: further examples that the method learns from (AutoLoRA); None takes a share of train_dataset.
        head_lr: learning rate of the head; None is `learning_rate`.
        schedule: any other schedule, as a function (step 1 … length, length) -> factor of the peak learning rate. A
            method may apply it to a part of the training.
        others: arguments of `transformers.Trainer`: data_collator, train_dataset, eval_dataset, processing_class,
            compute_metrics, callbacks, preprocess_logits_for_metrics.

    Raises:
        TrainerError: a method cannot be trained with the arguments (several devices, float16, not AdamW …).
    """

    def __init__(self, adapters: Adapters, args: TrainingArguments, *, held_out: Any = None,
                 head_lr: float | None = None, schedule: Callable[[int, int], float] | None = None,
                 **others: Any) -> None:
        require_adapters(adapters)
        adapters.require_state("train", "adapted")
        refuse(args, others, schedule is not None)
        self.adapters, self.rule, self.seed, self.schedule = adapters, adapters.rule, args.seed, schedule
        self.clock, self.args = lengths(adapters.method, args, others["train_dataset"], held_out)
        self.total, self.outcome = self.clock.total, Outcome()
        self.config = config_of(self.args, self.total, head_lr)
        others["train_dataset"], held_out = streams(adapters.method, others["train_dataset"], held_out, args.seed)
        others["callbacks"] = [_Hooks(self), *(others.get("callbacks") or [])]
        super().__init__(adapters.model, self.args, **others)
        self.streams = {"held_out": held_out}
        self.collate = self._get_collator_with_removed_columns(self.data_collator, "held-out")
        self.best: None = None  # transformers itself keeps the best checkpoint
        self.identity = json.dumps([adapters.method.to_dict(), self.total], sort_keys=True)
        self._stored: Checkpoint | None = None
        self.pass_began, self._learned = -1, False  # steps before this epoch; whether a label has counted
        start_from(adapters, args.seed)

    @property
    def following(self) -> Method | None:
        """The method to train next from the pretrained weights, after a search of ranks; else None."""
        return self.outcome.following

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train once, as `transformers.Trainer.train`. True resumes from the newest complete checkpoint.

        Raises:
            LivenessError: an invariant of the method does not hold.  DivergedError: a loss is not finite.
            TrainerError, ValueError: the examples do not fill a step, or no label counts.
            RuntimeError: gradients are switched off, or this trainer has trained already.
            CheckpointError: the folder has no checkpoint of this run to resume from.
        """
        require_gradients()
        if self.outcome.step:
            raise RuntimeError(f"this trainer has trained {self.outcome.step} steps already; make a new one, and "
                               "resume from a checkpoint to go on")
        if resume_from_checkpoint is True:
            resume_from_checkpoint = newest_whole(str(self.args.output_dir), self.identity) or True
        self.refuse_short()
        with modes_kept(self.adapters.model):
            return super().train(resume_from_checkpoint, *args, **kwargs)

    # -- the optimizer and its learning rates

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Return AdamW over the rule's groups, the head and the pretrained weights that train."""
        a, groups = self.args, self._groups()
        self.optimizer = torch.optim.AdamW(groups, lr=a.learning_rate, betas=(a.adam_beta1, a.adam_beta2),
                                           eps=a.adam_epsilon, weight_decay=a.weight_decay,
                                           fused=a.optim == "adamw_torch_fused" or None)
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Return the learning rates of `training.Trainer`; start the rule first, which may restart the schedule."""
        self.start_rule(self.outcome.step)
        self.lr_scheduler: Any = _Rates(self)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def factor(self, step: int, length: int) -> float:
        if self.schedule is not None:
            return self.schedule(step, length)
        return 1.0 if self.args.lr_scheduler_type == "constant" else super().factor(step, length)

    # -- one optimizer step

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Batch], None]:
        """Return the micro-batches of one optimizer step, or none if too few are left or all steps are done."""
        try:
            batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        except ValueError as error:
            if "does not contain any data" not in str(error):
                raise
            batches = []  # accelerate's error for an empty epoch
        whole = len(batches) == num_batches and self.outcome.step < self.total
        if not (whole or self.outcome.step):
            raise TrainerError(f"train_dataset: it gave {len(batches)} batches, and the first step takes "
                               f"{num_batches}, so nothing would be trained; give more examples, or smaller steps")
        self.micro_batches = [self._prepare_inputs(batch) for batch in batches] if whole else []
        if not self.outcome.step:
            check_labels(self.micro_batches, self.adapters.model, self.train_dataset,
                         self._get_collator_with_removed_columns(self.data_collator, "training"))
        return self.micro_batches, None

    def begin_step(self) -> None:
        """Prepare the step before its first micro-batch."""
        self.clock = Clock(self.outcome.step + 1, self.total, self.clock.per_epoch)
        self.model.train()
        self._shares, self._values = shares(self.micro_batches, self.adapters.model), {"loss": 0.0}
        self.rule.before_step(self.clock)

    def training_step(self, model: Any, inputs: Batch, num_items_in_batch: Any = None) -> Tensor:
        """Run the backward pass of a micro-batch, and after the last one of the penalty; return the task loss."""
        model.train()
        loss = self.refuse_non_finite(self.loss(inputs) * self._shares.pop(0), "loss")
        self.backward(loss)
        self._values["loss"] += float(loss.detach())
        if self._shares:
            return loss.detach()
        self.rest_without_labels(self._values["loss"])
        self._learned |= not self.idle
        penalty = self.rule.penalty()
        if penalty is not None:
            self._values["penalty"] = float(penalty.detach())
            if penalty.requires_grad:
                self.backward(self.refuse_non_finite(penalty, "penalty"))
        return loss.detach()

    def _clip_grad_norm(self, model: Any) -> Tensor:
        return self._clip()

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Tensor:
        norm = self.refuse_non_finite(self._clip() if grad_norm is None else grad_norm, "gradient norm")
        self._values["grad_norm"] = float(norm)
        return norm

    def end_step(self) -> None:
        """Run the rule after the optimizer, check the invariants and log."""
        self.rule.after_step(self.clock)
        self.outcome.step = self.clock.step
        self.rule.trained = True
        self._assert_alive()
        self._values["lr"] = self.optimizer.param_groups[0]["lr"]
        self.rule_log = self.rule.log()
        self._log({**self._values, **self.rule_log})

    def end_training(self) -> None:
        """Let the rule finish (prune, fold), unless a callback stopped the training too early for that."""
        if not self.outcome.step:  # a callback stopped the training before its first step
            return
        if not self._learned:
            require_labels((), self.adapters.model)
        if self.outcome.step == self.pass_began < self.total:
            warnings.warn(f"train_dataset ended after step {self.outcome.step} of {self.total}, so the schedule did "
                          "not reach its end: give data that can be read again, or a smaller max_steps", stacklevel=2)
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is None:
            warnings.warn(f"load_best_model_at_end: no evaluation gave a number for {self.args.metric_for_best_model}"
                          ", so none was best, and the weights are those of the last step", stacklevel=2)
        if self.clock.step == self.total or self.rule.settled(self.clock):
            self.outcome.finished, self.outcome.following = True, self.rule.finish()

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as transformers' Trainer, and add the rule's values to the training loss."""
        if "loss" in logs:
            for name, value in self.rule_log.items():
                sites = value if isinstance(value, dict) else {"": value}
                logs |= {f"{name}/{site}" if site else name: float(v) for site, v in sites.items()}
        super().log(logs, *args, **kwargs)

    # -- checkpoints

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the branches in peft's format, or a model without branches with its `save_pretrained`.

        Raises:
            ExportError: peft's format cannot hold the branches (checkpoints are then saved without them).
        """
        reason = why_not(self.adapters) if self.adapters.owners or self.adapters.extra_names else ""
        if reason and not _internal_call:
            raise ExportError(reason)
        if not reason:
            super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not self.adapters.owners:
            return super()._save(output_dir, state_dict)
        folder = Path(str(output_dir or self.args.output_dir))
        try:
            save_peft(self.adapters, folder, tokenizer=self.processing_class)
        except ExportError:  # every site has rank 0; the state in the same folder is complete
            if not self.is_in_train:
                raise
            if self.processing_class is not None:
                self.processing_class.save_pretrained(folder)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        save_checkpoint(Path(output_dir) / STATE, self)  # type: ignore[arg-type]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self._stored = load_folder(resume_from_checkpoint, self.identity)
        self._stored.refuse_longer(self.total)
        self._stored.into_adapters(self.adapters)
        self.outcome.step, self._learned = self._stored.values["step"], True

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self._stored is not None:
            self._stored.into(self)  # type: ignore[arg-type]
            self.lr_scheduler.go_to(self.outcome.step)

    def _load_best_model(self) -> None:
        load_folder(str(self.state.best_model_checkpoint), self.identity).into_adapters(self.adapters)


class _Rates(torch.optim.lr_scheduler.LRScheduler):
    """The learning rates as transformers' scheduler: after n of its steps they are those of step n + 1."""

    def __init__(self, loop: LowRankTrainer) -> None:
        self.loop = loop
        super().__init__(loop.optimizer)

    def get_lr(self) -> list[float | Tensor]:
        return list(self.loop._rates(self.last_epoch + 1))

    def go_to(self, steps: int) -> None:
        """Set the learning rates as after this many steps."""
        self.last_epoch = steps
        self._last_lr = self.get_lr()
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate


class _Hooks(TrainerCallback):
    """Call the trainer at moments that transformers offers to callbacks only."""

    def __init__(self, loop: LowRankTrainer) -> None:
        self.loop = loop

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.loop.pass_began = self.loop.outcome.step
        control.should_training_stop |= self.loop.outcome.step == self.loop.total  # resumed after the last step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.loop.begin_step()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.loop.end_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_evaluate &= self.loop.rule.settled(self.loop.clock)

    on_epoch_end = on_step_end

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.loop.end_training()

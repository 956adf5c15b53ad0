"""`LowRankTrainer`: every method of this package inside `transformers.Trainer`.

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

transformers brings the data, the logging, the evaluation and the callbacks. The optimizer's groups, the schedule and
the hooks around each optimizer step are those of `train.Trainer`: on the same rows in the same order the result is
the same. Two things differ from the stock Trainer: all groups decay alike, and the rate is not 0 in the first step.
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
from ..training.checkpoint import STATE, Stored, load_folder, newest_whole, save_checkpoint
from ..training.config import TrainConfig
from ..training.trainer import Batch, RuleLoop, start_from
from .peft_format import ExportError, save_peft, why_not


# ---- TrainingArguments that are refused --------------------------------------------------------------------
# What `LowRankTrainer` makes of transformers' TrainingArguments: refusals, lengths, rows, a TrainConfig.
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


# ---- the trainer -------------------------------------------------------------------------------------------

class LowRankTrainer(RuleLoop, transformers.Trainer):
    """A `transformers.Trainer` of one method on one model.

    Args:
        adapters: from `adapt`; the model is theirs. Where that was given no seed they start from args.seed.
        args: transformers' own. `lr_scheduler_type` "linear" and "constant" are known, with warm-up.
        held_out: rows that the method learns from besides (AutoLoRA); None takes its share of train_dataset.
        head_lr: the head's rate, `learning_rate` where None.
        schedule: (step 1 … length, length) -> factor of the peak rate, for any other schedule. A method may run
            it over a part of the training.
        others: of `transformers.Trainer`: data_collator, train_dataset, eval_dataset, processing_class,
            compute_metrics, callbacks, preprocess_logits_for_metrics.

    After `train()`: `outcome.history` has (step, site, name, value) for every step, `following` the method to train
    next from the pretrained weights, or None. At its logging steps the Trainer's log has the rule's values too, a
    site's as "name/site". Evaluation is skipped while the model does not have the form that will be used.

    Raises:
        TrainerError: the arguments ask for more than one device, float16, another optimizer than AdamW, or the like.
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
        self.best: None = None  # transformers keeps the best checkpoint itself
        self.identity = json.dumps([adapters.method.to_dict(), self.total], sort_keys=True)
        self._stored: Stored | None = None
        self.pass_began, self._learned = -1, False  # steps before this pass over the rows; if a label counted
        start_from(adapters, args.seed)

    @property
    def following(self) -> Method | None:
        """What to train next, from the pretrained weights; None but after a search."""
        return self.outcome.following

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As `transformers.Trainer.train`, once. True resumes from the newest checkpoint that is whole.

        Raises:
            LivenessError: an invariant of the method does not hold.  DivergedError: a loss is not finite.
            TrainerError, ValueError: there is no whole step to make, or no label that counts.
            RuntimeError: gradients are switched off, or it has trained already.
            CheckpointError: there is nothing to resume from in that folder, or it is another run's.
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

    # -- the optimizer and its rates

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW on the rule's groups, the head and pretrained weights that train."""
        a, groups = self.args, self._groups()
        self.optimizer = torch.optim.AdamW(groups, lr=a.learning_rate, betas=(a.adam_beta1, a.adam_beta2),
                                           eps=a.adam_epsilon, weight_decay=a.weight_decay,
                                           fused=a.optim == "adamw_torch_fused" or None)
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The rates of `train.Trainer`; the rule is started first, since it says which stretch they run over."""
        self.start_rule(self.outcome.step)
        self.lr_scheduler: Any = _Rates(self)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def factor(self, step: int, length: int) -> float:
        if self.schedule is not None:
            return self.schedule(step, length)
        return 1.0 if self.args.lr_scheduler_type == "constant" else super().factor(step, length)

    # -- one optimizer step, from its first micro-batch to what follows the optimizer

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Batch], None]:
        """The micro-batches of one optimizer step; none where it is not made: too few are left, or no step is."""
        try:
            batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        except ValueError as error:
            if "does not contain any data" not in str(error):
                raise
            batches = []  # what accelerate says of a pass over nothing
        whole = len(batches) == num_batches and self.outcome.step < self.total
        if not (whole or self.outcome.step):
            raise TrainerError(f"train_dataset: it gave {len(batches)} batches, and the first step takes "
                               f"{num_batches}, so nothing would be trained; give more rows, or take smaller steps")
        self.micro_batches = [self._prepare_inputs(batch) for batch in batches] if whole else []
        if not self.outcome.step:
            look_at_labels(self.micro_batches, self.adapters.model, self.train_dataset,
                           self._get_collator_with_removed_columns(self.data_collator, "training"))
        return self.micro_batches, None

    def begin_step(self) -> None:
        """What comes before the first micro-batch."""
        self.clock = Clock(self.outcome.step + 1, self.total, self.clock.per_epoch)
        self.model.train()
        self._shares, self._values = shares(self.micro_batches, self.adapters.model), {"loss": 0.0}
        self.rule.before_step(self.clock)

    def training_step(self, model: Any, inputs: Batch, num_items_in_batch: Any = None) -> Tensor:
        """Backward of one micro-batch, and of the rule's penalty after the last one; the loss without it."""
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
        """What comes after the optimizer."""
        self.rule.after_step(self.clock)
        self.outcome.step = self.clock.step
        self.rule.trained = True
        self._assert_alive()
        self._values["lr"] = self.optimizer.param_groups[0]["lr"]
        self.rule_log = self.rule.log()
        self._log({**self._values, **self.rule_log})

    def end_training(self) -> None:
        """Prune and fold, unless a callback stopped the training before the model had its form."""
        if not self.outcome.step:  # a callback stopped it even before its first step
            return
        if not self._learned:
            require_labels((), self.adapters.model)
        if self.outcome.step == self.pass_began < self.total:
            warnings.warn(f"train_dataset ended after step {self.outcome.step} of {self.total}, so the rates did not "
                          "come to their end: give rows that can be read again, or a smaller max_steps", stacklevel=2)
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is None:
            warnings.warn(f"load_best_model_at_end: no evaluation gave a number for {self.args.metric_for_best_model}"
                          ", so none was best, and the weights are those of the last step", stacklevel=2)
        if self.clock.step == self.total or self.rule.settled(self.clock):
            self.outcome.finished, self.outcome.following = True, self.rule.finish()

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The Trainer's log, with the rule's values beside the training loss."""
        if "loss" in logs:
            for name, value in self.rule_log.items():
                sites = value if isinstance(value, dict) else {"": value}
                logs |= {f"{name}/{site}" if site else name: float(v) for site, v in sites.items()}
        super().log(logs, *args, **kwargs)

    # -- checkpoints

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Branches in peft's format; a model without branches as `save_pretrained` writes it.

        Raises:
            ExportError: peft's format cannot hold them (a checkpoint of the training goes without, then).
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
        except ExportError:  # every site closed: the state beside it has all
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
    """transformers' handle on the rates: after n of its steps they are those of step n + 1."""

    def __init__(self, loop: LowRankTrainer) -> None:
        self.loop = loop
        super().__init__(loop.optimizer)

    def get_lr(self) -> list[float | Tensor]:
        return list(self.loop._rates(self.last_epoch + 1))

    def go_to(self, steps: int) -> None:
        """As if so many steps were done."""
        self.last_epoch = steps
        self._last_lr = self.get_lr()
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate


class _Hooks(TrainerCallback):
    """Calls the trainer at the moments that it offers to callbacks only."""

    def __init__(self, loop: LowRankTrainer) -> None:
        self.loop = loop

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.loop.pass_began = self.loop.outcome.step
        control.should_training_stop |= self.loop.outcome.step == self.loop.total  # taken up at its end

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.loop.begin_step()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.loop.end_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_evaluate &= self.loop.rule.settled(self.loop.clock)

    on_epoch_end = on_step_end

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.loop.end_training()

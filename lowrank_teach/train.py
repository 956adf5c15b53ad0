"""The one training loop. It knows no method by name: it calls the rule's hooks and asserts its invariants.

Optimizer steps, accumulation, a linear schedule with warm-up, clipping, evaluation, mixed precision (on
accelerate), early refusal of a loss that is not finite. Between two steps the run can be written down whole and
taken up again, bit for bit on a CPU. Taught in 02.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from .adapters import Adapters
from .checkpoint import load_checkpoint, save_checkpoint
from .config import TrainConfig
from .methods.base import Clock
from .outcome import Callback, DivergedError, LivenessError, Outcome
from .steps import batch_order, interrupt_between_steps, linear_schedule, shares

Batch = dict[str, Tensor]


class Trainer:
    """One method on one model over one set of rows.

    Args:
        adapters: from `adapt`.
        rows: encoded training rows (dicts of lists).  collate: rows -> batch of tensors, with "labels".
        config: lengths and rates.  seed: order of the rows, dropout.
        evaluate: model -> metrics, called every `eval_every` steps; the first metric decides what is best.
        checkpoint: file for the state of an unfinished run; taken up where it is there.
        identity: what the checkpoint must belong to; another run's is refused.
    """

    def __init__(self, adapters: Adapters, rows: Sequence[dict[str, Any]], collate: Callable[[list], Batch],
                 config: TrainConfig, *, seed: int = 0, callbacks: Sequence[Callback] = (),
                 evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
                 checkpoint: Path | None = None, identity: str = "", cpu: bool = False) -> None:
        if adapters.state != "adapted":
            raise RuntimeError(f"the adapters are {adapters.state}: call restore() before training")
        if not rows:
            raise ValueError("there are no rows to train on")
        self.adapters, self.rule, self.config, self.seed = adapters, adapters.rule, config, seed
        self.collate, self.callbacks, self.evaluate = collate, callbacks, evaluate
        self.checkpoint, self.identity = checkpoint, identity
        share = adapters.method.held_out
        mixed = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
        cut = round(share * len(rows))
        if share and not 0 < cut < len(rows):
            raise ValueError(f"{len(rows)} rows are too few to hold out a share of {share:g}")
        self.streams = {"train": [rows[i] for i in mixed[cut:]], "held_out": [rows[i] for i in mixed[:cut]]}
        per_epoch = config.steps_per_epoch(len(self.streams["train"]))
        self.total = adapters.method.steps(config.total_steps(len(rows)))
        self.clock = Clock(0, self.total, per_epoch)
        self.outcome = Outcome()
        AcceleratorState._reset_state()  # else a second run with another precision is refused
        self.accelerator = Accelerator(mixed_precision=config.mixed_precision, cpu=cpu)
        self.best: tuple[float, tuple[dict[str, Tensor], dict[str, Any]]] | None = None

    # -- what a rule may ask for (methods.base.Loop)

    optimizer: torch.optim.Optimizer
    micro_batches: list[Batch]

    def loss(self, batch: Batch, parameters: dict[str, Tensor] | None = None) -> Tensor:
        """Mean task loss of one micro-batch."""
        if parameters is None:
            return self.model(**batch).loss
        return torch.func.functional_call(self.model, parameters, (), batch).loss

    def mean_loss(self, batches: list[Batch], parameters: dict[str, Tensor] | None = None) -> Tensor:
        """The loss over several micro-batches as one batch would give it; refused where it is not finite."""
        losses = [self.loss(batch, parameters) * share for batch, share in zip(batches, shares(batches), strict=True)]
        return self.refuse_non_finite(torch.stack(losses).sum(), "loss")

    @torch.no_grad()
    def logits(self, batch: Batch) -> Tensor:
        """Logits in eval mode; the random state is left alone."""
        self.model.eval()
        try:
            return self.model(**batch).logits.float()
        finally:
            self.model.train()

    @property
    def dtype(self) -> torch.dtype:
        """The coarsest type that logits pass through: W's, or autocast's."""
        return torch.bfloat16 if self.config.mixed_precision == "bf16" else self.adapters.dtype

    def backward(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)

    def held_out(self) -> list[Batch]:
        """The held-out micro-batches of the step in progress."""
        return self._batches("held_out", self.clock.step)

    # -- the loop

    def run(self) -> Outcome:
        """Train to the end, to a callback's stop, or to an interrupt (which leaves a checkpoint, then raises).

        Raises:
            LivenessError: an invariant does not hold.  DivergedError: the loss is not finite.
            KeyboardInterrupt: Ctrl-C; the state is in the checkpoint.
        """
        self._prepare()
        try:
            with interrupt_between_steps() as interrupted:
                for step in range(self.outcome.step + 1, self.total + 1):
                    if self._one_more(step, interrupted):
                        return self.outcome
            self._save()  # what comes now (another stage, the evaluation) can be taken up again from here
            if self.best is not None:
                self.adapters.load_state_dict(*self.best[1])
            self.outcome.finished = True
            self.outcome.following = self.rule.finish()
        finally:  # takes accelerate's precision wrapper off the model
            self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        return self.outcome

    def _one_more(self, step: int, interrupted: threading.Event) -> bool:
        """One step and what comes after it; True if a callback wants to stop here."""
        start = time.perf_counter()
        self.clock = Clock(step, self.total, self.clock.per_epoch)
        values = self._step()
        self.outcome.seconds += time.perf_counter() - start
        self.outcome.step = step
        stops = [callback.on_step(self.clock, values) for callback in self.callbacks]  # each hears of each step
        stop = any(stops)
        self._maybe_evaluate(step)
        every = self.config.checkpoint_every
        if stop or interrupted.is_set() or (every and step % every == 0):
            self._save()
        if interrupted.is_set():
            advice = "run the same line again to go on from there" if self.checkpoint else "nothing was kept"
            raise KeyboardInterrupt(f"stopped after step {step} of {self.total}; {advice}")
        return stop

    def _prepare(self) -> None:
        torch.manual_seed(self.seed)
        stored = load_checkpoint(self.checkpoint, self.identity) if self.checkpoint else None
        if stored:
            self.adapters.load_state_dict(stored.part("adapters"), stored.values["adapters"])
        if self.config.gradient_checkpointing:
            self.adapters.model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        self.model = self.accelerator.prepare(self.adapters.model).train()
        groups = self.rule.parameter_groups()
        extra = [(self.adapters.head_parameters(), self.config.head_lr or self.config.lr),
                 (self.adapters.base_parameters(), self.config.lr)]
        groups += [{"params": parameters, "lr": lr} for parameters, lr in extra if parameters]
        self.schedules = [group.pop("schedule", "linear") for group in groups]
        if not groups:
            raise ValueError("nothing trains: the method names no matrix and the model has no new head")
        self.optimizer = torch.optim.AdamW(groups, lr=self.config.lr, weight_decay=self.config.weight_decay)
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        self.accelerated = self.accelerator.prepare(self.optimizer)
        self.rule.start(Clock(self.outcome.step, self.total, self.clock.per_epoch), self)
        if stored:
            stored.into(self)

    def _step(self) -> dict[str, float]:
        """One optimizer step; values for the callbacks."""
        clock, rule = self.clock, self.rule
        self.micro_batches = self._batches("train", clock.step)
        self._set_rates(clock.step)
        rule.before_step(clock)
        self.accelerated.zero_grad()
        task_loss = 0.0
        for batch, share in zip(self.micro_batches, shares(self.micro_batches), strict=True):
            loss = self.refuse_non_finite(self.loss(batch) * share, "loss")
            self.backward(loss)
            task_loss += float(loss.detach())
        penalty = rule.penalty()
        if penalty is not None and penalty.requires_grad:
            self.backward(self.refuse_non_finite(penalty, "penalty"))
        norm = self.refuse_non_finite(self._clip(), "gradient norm")
        self.accelerated.step()
        rule.after_step(clock)
        self._assert_alive()
        values = {"loss": task_loss, "grad_norm": float(norm), "lr": self.optimizer.param_groups[0]["lr"]}
        if penalty is not None:
            values["penalty"] = penalty.item()
        self._log({**values, **rule.log()})
        return values

    def _clip(self) -> Tensor:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        limit = self.config.max_grad_norm or math.inf
        return self.accelerator.clip_grad_norm_(parameters, limit)  # type: ignore[return-value]

    def _set_rates(self, step: int) -> None:
        done, length = self.rule.stretch(step - 1, self.total)
        factor = linear_schedule(done + 1, length, self.config.warmup)
        for group, peak, kind in zip(self.optimizer.param_groups, self.peaks, self.schedules, strict=True):
            group["lr"] = peak * (factor if kind == "linear" else 1.0)

    def _batches(self, stream: str, step: int) -> list[Batch]:
        """The micro-batches of a step: a function of the seed and the step alone, so a resume needs no position."""
        rows, size = self.streams[stream], self.config.batch_size
        per_epoch = self.config.steps_per_epoch(len(rows))
        epoch, at = divmod(step - 1, per_epoch)
        if getattr(self, f"_order_{stream}", (None,))[0] != epoch:
            generator = torch.Generator().manual_seed(7919 * self.seed + 2 * epoch + (stream == "held_out"))
            setattr(self, f"_order_{stream}", (epoch, batch_order(rows, size, generator)))
        picked = getattr(self, f"_order_{stream}")[1][at]
        pieces = min(self.config.accumulation, len(picked))
        device = self.accelerator.device
        return [{k: v.to(device) for k, v in self.collate([rows[i] for i in picked[j::pieces]]).items()}
                for j in range(pieces)]

    def _assert_alive(self) -> None:
        for invariant in self.rule.invariants(self.clock):
            if not invariant.holds:
                raise LivenessError(f"step {self.clock.step}: {invariant.says}")
        if self.clock.step == 1:
            must, may = self.adapters.listed_names()
            trains = {n for n, p in self.adapters.model.named_parameters() if p.requires_grad}
            if not must <= trains <= must | may:
                wrong = sorted((trains - must - may) | (must - trains))
                raise LivenessError(f"other parameters train than were listed: {', '.join(wrong[:4])}")

    def refuse_non_finite(self, value: Tensor, what: str) -> Tensor:
        """The value itself.

        Raises:
            DivergedError: it is nan or infinite.
        """
        if not torch.isfinite(value.detach()):
            raise DivergedError(f"the {what} is {float(value.detach())} at step {self.clock.step} of {self.total}, "
                                f"and nothing was updated; lower lr (now {self.config.lr:g}), lengthen the "
                                "warm-up, or clip gradients (max_grad_norm)")
        return value

    def _maybe_evaluate(self, step: int) -> None:
        every = self.config.eval_every
        due = every and (step % every == 0 or step == self.total)
        if self.evaluate is None or not due or not self.rule.settled(self.clock):
            return
        state = torch.get_rng_state()
        metrics = self.evaluate(self.model)
        torch.set_rng_state(state)
        self.model.train()
        self._log({f"validation.{name}": value for name, value in metrics.items()})
        for callback in self.callbacks:
            callback.on_eval(self.clock, metrics)
        name, value = next(iter(metrics.items()))
        goodness = -value if name in ("loss", "perplexity") else value
        if self.config.best and (self.best is None or goodness > self.best[0]):
            tensors, values = self.adapters.state_dict()
            self.best = goodness, ({k: v.clone() for k, v in tensors.items()}, values)

    def _log(self, values: dict[str, float | dict[str, float]]) -> None:
        for name, value in values.items():
            pairs = value.items() if isinstance(value, dict) else [("", value)]
            self.outcome.history += [(self.clock.step, site, name, float(v)) for site, v in pairs]

    # -- between two steps

    def _save(self) -> None:
        if self.checkpoint:
            save_checkpoint(self.checkpoint, self)

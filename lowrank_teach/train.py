"""The one training loop. It knows no method by name: it calls the rule's hooks and asserts its invariants.

Optimizer steps, accumulation, a linear schedule with warm-up, clipping, evaluation, mixed precision (on
accelerate), early refusal of a loss that is not finite. Between two steps the run can be written down whole and
taken up again, bit for bit on a CPU. Taught in 02.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from .adapters import Adapters
from .checkpoint import load_checkpoint, save_checkpoint
from .config import TrainConfig
from .errors import Refusal
from .methods.base import Clock, Method

Batch = dict[str, Tensor]
Row = tuple[int, str, str, float]  # step, site ("" for the whole model), name, value


class LivenessError(Refusal, RuntimeError):
    """A method is not doing what it says; the message says what was found."""


class DivergedError(Refusal, RuntimeError):
    """The loss is not finite."""


class StoppedError(Refusal, RuntimeError):
    """A callback stopped the run; its checkpoint lets the same call go on."""


class Callback(Protocol):
    """What a caller can hang on the loop; return True from `on_step` to stop after this step."""

    def on_step(self, clock: Clock, values: dict[str, float]) -> bool | None: ...

    def on_eval(self, clock: Clock, metrics: dict[str, float]) -> None: ...


@dataclass
class Outcome:
    """What a training leaves beside the model: rows of history, seconds in steps, whether it came to its end."""

    history: list[Row] = field(default_factory=list)
    seconds: float = 0.0
    step: int = 0
    finished: bool = False
    following: Method | None = None  # what to train next, from the pretrained weights (after a search)


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
        with _interrupt_between_steps() as interrupted:
            for step in range(self.outcome.step + 1, self.total + 1):
                start = time.perf_counter()
                self.clock = Clock(step, self.total, self.clock.per_epoch)
                values = self._step()
                self.outcome.seconds += time.perf_counter() - start
                self.outcome.step = step
                stop = [callback.on_step(self.clock, values) for callback in self.callbacks]
                self._maybe_evaluate(step)
                if interrupted.is_set() or any(stop):
                    self._save()
                    if interrupted.is_set():
                        raise KeyboardInterrupt(f"stopped after step {step} of {self.total}; run the same line "
                                                "again to go on from there")
                    return self._unwrap()
                if self.config.checkpoint_every and step % self.config.checkpoint_every == 0:
                    self._save()
        self._save()  # what comes now (another stage, the evaluation) can be taken up again from here
        if self.best is not None:
            self.adapters.load_state_dict(*self.best[1])
        self.outcome.finished = True
        self.outcome.following = self.rule.finish()
        return self._unwrap()

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
            self._restore(stored)

    def _step(self) -> dict[str, float]:
        """One optimizer step; values for the callbacks."""
        clock, rule = self.clock, self.rule
        self.micro_batches = self._batches("train", clock.step)
        self._set_rates(clock.step)
        rule.before_step(clock)
        self.accelerated.zero_grad()
        # a loss is a mean over rows, or over the words that count
        counts = [int((batch["labels"] != -100).sum()) for batch in self.micro_batches]
        task_loss = 0.0
        for batch, n in zip(self.micro_batches, counts, strict=True):
            loss = self.loss(batch) * (n / sum(counts))
            self._refuse_non_finite(loss, "loss")
            self.backward(loss)
            task_loss += float(loss.detach())
        penalty = rule.penalty()
        if penalty is not None and penalty.requires_grad:
            self._refuse_non_finite(penalty, "penalty")
            self.backward(penalty)
        norm = self._clip()
        self._refuse_non_finite(norm, "gradient norm")
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

    def _refuse_non_finite(self, value: Tensor, what: str) -> None:
        if not torch.isfinite(value.detach()):
            raise DivergedError(f"the {what} is {float(value.detach())} at step {self.clock.step} of {self.total}, "
                                f"and nothing was updated; lower lr (now {self.config.lr:g}), lengthen the "
                                "warm-up, or clip gradients (max_grad_norm)")

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

    def _restore(self, stored: Any) -> None:
        stored.into(self)

    def _unwrap(self) -> Outcome:
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        return self.outcome


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


@contextmanager
def _interrupt_between_steps() -> Iterator[threading.Event]:
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

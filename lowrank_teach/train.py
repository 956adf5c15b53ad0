"""The one training loop. It knows no method by name: it calls the rule's hooks and asserts its invariants.

Optimizer steps, accumulation, a linear schedule with warm-up, clipping, evaluation, mixed precision (on
accelerate), early refusal of a loss that is not finite. Between two steps the run can be written down whole and
taken up again, bit for bit on a CPU. Taught in 02.
"""

from __future__ import annotations

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
from .loop import Batch, RuleLoop
from .methods.base import Clock
from .outcome import Callback, Outcome
from .steps import hold_out, interrupt_between_steps, shares


class Trainer(RuleLoop):
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
        parts = zip(("train", "held_out"), hold_out(len(rows), adapters.method.held_out, seed), strict=True)
        self.streams = {name: [rows[i] for i in part] for name, part in parts}
        per_epoch = config.steps_per_epoch(len(self.streams["train"]))
        self.total = adapters.method.steps(config.total_steps(len(rows)))
        self.clock = Clock(0, self.total, per_epoch)
        self.outcome = Outcome()
        AcceleratorState._reset_state()  # else a second run with another precision is refused
        self.accelerator = Accelerator(mixed_precision=config.mixed_precision, cpu=cpu)
        self.best: tuple[float, tuple[dict[str, Tensor], dict[str, Any]]] | None = None

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
        self._checkpoint_activations()
        self.model = self.accelerator.prepare(self.adapters.model).train()
        groups = self._groups()
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
        for group, rate in zip(self.optimizer.param_groups, self._rates(clock.step), strict=True):
            group["lr"] = rate
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

    # -- between two steps

    def _save(self) -> None:
        if self.checkpoint:
            save_checkpoint(self.checkpoint, self)

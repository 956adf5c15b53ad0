"""The one training loop. It knows no method by name: it calls the rule's hooks and asserts its invariants.

Optimizer steps, accumulation, a linear schedule with warm-up, clipping, evaluation, mixed precision (on
accelerate), early refusal of a loss that is not finite. Between two steps the run can be written down whole and
taken up again, bit for bit on a CPU. Taught in 02.
"""

from __future__ import annotations

import math
import numbers
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence, Sized
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from .adapters import Adapters, require_adapters
from .checkpoint import load_checkpoint, random_state, save_checkpoint
from .config import TrainConfig
from .distributed import Team
from .loop import Batch, RuleLoop, start_from
from .methods.base import Clock
from .methods.checks import require, require_kind, require_seed, shown
from .outcome import Callback, Outcome
from .steps import hold_out, interrupt_at_once, modes_kept, require_gradients, require_labels


class Trainer(RuleLoop):
    """One method on one model over one set of rows.

    Args:
        adapters: from `adapt`. Where that was given no seed they start from the one below.
        rows: encoded training rows (dicts of lists).  collate: rows -> batch of tensors, with "labels".
        config: lengths and rates; of several processes each takes `batch_size` rows a step.
        seed: order of the rows, dropout.
        evaluate: model -> metrics, called every `eval_every` steps; a dict of numbers by name, of which the first
            decides what is best: the highest, of "loss", "perplexity" and "ter" the lowest, and never nan.
        checkpoint: file for the state of an unfinished run; taken up where it is there.
        identity: what the checkpoint must belong to; another run's is refused.
        autosave: seconds after which a checkpoint is due, whatever the configuration says.

    Raises:
        ValueError: an argument is of another type, there are no rows or no labels, or `best` is asked for without
            an evaluation.  RuntimeError: the adapters are merged or off.
    """

    def __init__(self, adapters: Adapters, rows: Sequence[dict[str, Any]], collate: Callable[[list], Batch],
                 config: TrainConfig, *, seed: int = 0, callbacks: Sequence[Callback] = (),
                 evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
                 checkpoint: Path | None = None, identity: str = "", autosave: float = math.inf,
                 cpu: bool = False) -> None:
        require_adapters(adapters)
        require_kind("rows", rows, Sized, "a list of encoded rows")
        require_kind("collate", collate, Callable, "a function from rows to a batch of tensors")  # type: ignore[arg-type]
        require_kind("config", config, TrainConfig, "a TrainConfig, such as lt.train_config('tiny', steps=100) makes")
        require_kind("evaluate", evaluate, (Callable, type(None)),  # type: ignore[arg-type]
                     "a function from the model to a dict of numbers, or None")
        seed = require_seed(seed)
        adapters.require_state("train", "adapted")
        if not rows:
            raise ValueError("there are no rows to train on")
        require(not config.best or evaluate is not None, "best = True keeps the weights of the best evaluation, and "
                "this training has none: give the trainer an evaluate, or leave best out")
        self.team = Team.here(cpu)
        config = self.team.whole(config)
        self.adapters, self.rule, self.config, self.seed = adapters, adapters.rule, config, seed
        self.collate, self.callbacks, self.evaluate = collate, callbacks if self.team.leads else (), evaluate
        self.checkpoint, self.identity = checkpoint, identity
        self.autosave, self.saved_at = autosave, time.monotonic()
        parts = zip(("train", "held_out"), hold_out(len(rows), adapters.method.held_out, seed), strict=True)
        self.streams: dict[str, list[dict[str, Any]]] = {name: [rows[i] for i in part] for name, part in parts}
        per_epoch = config.steps_per_epoch(len(self.streams["train"]))
        for part in filter(None, self.streams.values()):
            size = config.batch_size
            require_labels((collate(part[i:i + size]) for i in range(0, len(part), size)), adapters.model)
        self.total = adapters.method.steps(config.total_steps(len(rows)))
        self.clock = Clock(0, self.total, per_epoch)
        self.outcome = Outcome()
        start_from(adapters, seed)
        AcceleratorState._reset_state()  # else a second run with another precision is refused
        self.accelerator = Accelerator(mixed_precision=config.mixed_precision, cpu=cpu)
        self.best: tuple[float, tuple[dict[str, Tensor], dict[str, Any]]] | None = None

    # -- the loop

    def run(self) -> Outcome:
        """Train to the end, to a callback's stop, or to an interrupt (which leaves a checkpoint, then raises).

        The model is left in the mode, training or eval, that it was found in.

        Raises:
            LivenessError: an invariant does not hold.  DivergedError: the loss is not finite.
            RuntimeError: gradients are switched off, or it has trained already and has no checkpoint to go on from.
            CheckpointError: the checkpoint cannot be taken up.  ValueError: evaluate returned no dict of numbers.
            KeyboardInterrupt: Ctrl-C; the state is in the checkpoint.
        """
        with modes_kept(self.adapters.model):
            self.prepare()
            try:
                with self.team.interrupts() as interrupted:
                    for step in range(self.outcome.step + 1, self.total + 1):
                        if self._one_more(step, interrupted):
                            return self.outcome
                self.complete()
            finally:
                self.unwrap()
        return self.outcome

    def _one_more(self, step: int, interrupted: threading.Event) -> bool:
        """One step and what comes after it; True if a callback wants to stop here."""
        start = time.perf_counter()
        values = self.step(step)
        self.outcome.seconds += time.perf_counter() - start
        return self.conclude_step(values, interrupted)

    def conclude_step(self, values: dict[str, float], interrupted: threading.Event | None = None) -> bool:
        """Callbacks, an evaluation, a checkpoint where one is due; True if a callback wants to stop here.

        interrupted: whether Ctrl-C was pressed, which then ends an evaluation as well; None where others train, too.
        """
        step = self.outcome.step = self.clock.step
        self.rule.trained = True
        stops = [callback.on_step(self.clock, values) for callback in self.callbacks]  # each hears of each step
        alone, pressed = interrupted is not None and self.team.size == 1, interrupted or threading.Event()
        if not (alone and pressed.is_set()):   # one that is left out is made up for when the run is taken up
            self._maybe_evaluate(step, at_once=alone)
        every = self.config.checkpoint_every
        due = (bool(every) and step % every == 0) or time.monotonic() - self.saved_at >= self.autosave
        stop, asked, due = self.team.any(any(stops), pressed.is_set(), due)
        if stop or asked or due:
            self.save()
        if asked:
            raise KeyboardInterrupt(self._where("stopped after"))
        return stop

    def _where(self, stopped: str) -> str:
        advice = "run the same line again to go on from there" if self.checkpoint else "nothing was kept"
        return f"{stopped} step {self.outcome.step} of {self.total}; {advice}"

    def prepare(self) -> None:
        """Model, optimizer and rule, ready for the next step; a checkpoint is taken up where there is one."""
        require_gradients()
        self.refuse_short()
        path = self.checkpoint
        stored = self.team.told(lambda: load_checkpoint(path, self.identity)) if path else None
        if self.outcome.step and not stored:
            raise RuntimeError(f"this trainer has trained {self.outcome.step} steps already; make a new one to train "
                               "the same adapters again")
        torch.manual_seed(self.team.own_seed(self.seed))  # dropout alone draws from it
        if stored:
            stored.refuse_longer(self.total)
            stored.into_adapters(self.adapters)
        self._checkpoint_activations()
        # as for evaluation: no wrapper that sums gradients, the team does
        self.model = self.accelerator.prepare_model(self.adapters.model, evaluation_mode=True).train()
        groups = self._groups()
        self.optimizer = torch.optim.AdamW(groups, lr=self.config.lr, weight_decay=self.config.weight_decay)
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        self.start_rule(stored.values["step"] if stored else 0)
        if stored:
            stored.into(self)
            self._make_up_for_an_evaluation()

    def complete(self) -> None:
        """What follows the last step: the best state back, the rule's own end."""
        self.save()  # what comes now (another stage, the evaluation) can be taken up again from here
        if self.best is not None:
            self.adapters.load_state_dict(*self.best[1])
        elif self.config.best and any(name.startswith("validation.") for _, _, name, _ in self.outcome.history):
            self.outcome.notes.append("not one evaluation gave a number, so none was best, and the weights are those "
                                      "of the last step")
            warnings.warn(self.outcome.notes[-1], stacklevel=3)
        self.outcome.finished = True
        self.outcome.following = self.rule.finish()

    def unwrap(self) -> None:
        """Take accelerate's precision wrapper off the model."""
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)

    # -- one optimizer step: opened, descended, closed (replicas share the middle)

    def step(self, number: int) -> dict[str, float]:
        """Step 1 … total; values for the callbacks."""
        self.open_step(number, self._batches("train", number))
        self.rule.before_step(self.clock)
        return self.close_step(self._descend())

    def open_step(self, number: int, batches: list[Batch], held: list[Batch] | None = None) -> None:
        """The clock, the rows and the rates of a step; no gradients."""
        self.held = held or []
        self.clock, self.micro_batches = Clock(number, self.total, self.clock.per_epoch), batches
        for group, rate in zip(self.optimizer.param_groups, self._rates(number), strict=True):
            group["lr"] = rate

    def _descend(self) -> float:
        """Gradients of the task loss; the loss."""
        self.optimizer.zero_grad()
        task_loss = 0.0
        weights = self.team.shares(self.micro_batches, self.adapters.model)
        for batch, share in zip(self.micro_batches, weights, strict=True):
            loss = self.refuse_non_finite(self.loss(batch) * share, "loss")
            self.backward(loss)
            task_loss += float(loss.detach())
        self.team.add_gradients([p for group in self.optimizer.param_groups for p in group["params"]])
        return self.team.total(task_loss)

    def close_step(self, task_loss: float) -> dict[str, float]:
        """The penalty's gradients, the optimizer's step and the rule's; values for the callbacks."""
        self.rest_without_labels(task_loss)
        penalty = self.add_penalty()
        norm = self.refuse_non_finite(self._clip(), "gradient norm")
        self.optimizer.step()   # gradients are summed by the team and need no scaling: nothing here is accelerate's
        return self.after_step(task_loss, float(norm), penalty)

    def add_penalty(self) -> Tensor | None:
        """What the rule adds to the loss, its gradients added, too."""
        penalty = self.rule.penalty()
        if penalty is not None and penalty.requires_grad:
            self.backward(self.refuse_non_finite(penalty, "penalty"))
        return penalty

    def after_step(self, task_loss: float, norm: float, penalty: Tensor | None) -> dict[str, float]:
        """The rule's part after the optimizer's step, the invariants, the log; values for the callbacks."""
        rule = self.rule
        rule.after_step(self.clock)
        self._assert_alive()
        values = {"loss": task_loss, "grad_norm": norm, "lr": self.optimizer.param_groups[0]["lr"]}
        if penalty is not None:
            values["penalty"] = penalty.item()
        self._log({**values, **rule.log()})
        return values

    def _make_up_for_an_evaluation(self) -> None:
        """The one of the last step, where an interrupt ended it."""
        step = self.outcome.step
        if not any(at == step and name.startswith("validation.") for at, _, name, _ in self.outcome.history):
            self.clock = Clock(step, self.total, self.clock.per_epoch)
            self._maybe_evaluate(step)

    def _maybe_evaluate(self, step: int, at_once: bool = False) -> None:
        every = self.config.eval_every
        due = every and (step % every == 0 or step == self.total)
        if self.evaluate is None or not due or not self.rule.settled(self.clock):
            return
        state, evaluate = torch.get_rng_state(), self.evaluate
        try:
            with interrupt_at_once() if at_once else nullcontext():
                metrics = self.team.told(lambda: _numbers(evaluate(self.model)))
        except KeyboardInterrupt:
            torch.set_rng_state(state)
            self.save()
            raise KeyboardInterrupt(self._where("stopped in the evaluation after")) from None
        torch.set_rng_state(state)
        self.model.train()
        self._log({f"validation.{name}": value for name, value in metrics.items()})
        for callback in self.callbacks:
            callback.on_eval(self.clock, metrics)
        name, value = next(iter(metrics.items()))
        goodness = -value if name in ("loss", "perplexity", "ter") else value
        if self.config.best and not math.isnan(goodness) and (self.best is None or not goodness <= self.best[0]):
            tensors, values = self.adapters.state_dict()
            self.best = goodness, ({k: v.clone() for k, v in tensors.items()}, values)

    # -- between two steps

    def save(self) -> None:
        """Write the checkpoint, where one was named."""
        if path := self.checkpoint:
            random = self.team.gathered(random_state())
            self.team.told(lambda: save_checkpoint(path, self, random))
            self.saved_at = time.monotonic()


def _numbers(metrics: Any) -> dict[str, float]:
    """What an evaluation returned, as Python's own numbers.

    Raises:
        ValueError: it is no dict of numbers, or an empty one.
    """
    fits = isinstance(metrics, Mapping) and metrics and all(
        isinstance(name, str) and (isinstance(value, numbers.Real) or (
            isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex()))
        for name, value in metrics.items())
    require(bool(fits), f"evaluate returned {shown(metrics)}: it must return a dict of numbers by name, such as "
                        "{'accuracy': 0.9}, of which the first decides what is best")
    return {name: float(value) for name, value in metrics.items()}

"""The training loop, which calls the hooks of a method's rule and asserts the rule's invariants.

It has accumulation, a linear schedule with warm-up, clipping, evaluation and mixed precision (by accelerate). A loss
that is not finite stops it before the update. A run can be resumed between two steps, bit for bit on a CPU. Taught
in 02.
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
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from ..adaptable import modes_kept, plain_name
from ..adapters import Adapters, require_adapters
from ..errors import DivergedError, LivenessError, require, require_kind, require_seed, shown
from ..methods.base import Clock, Noise, Rule
from ..precision import short_parameters
from .batches import (
    activations_kept,
    batch_order,
    calls_seen,
    counted,
    hold_out,
    interrupt_at_once,
    linear_schedule,
    require_gradients,
    require_labels,
    task_loss,
)
from .callbacks import Callback, Outcome
from .checkpoint import load_checkpoint, random_state, save_checkpoint
from .config import TrainConfig
from .distributed import Team

# ---- what a loop offers to a rule, in our Trainer and in transformers' -----------------------------------------

Batch = dict[str, Tensor]


class Request(NamedTuple):
    """The arguments of `RuleLoop.gradient`."""

    batches: list[Batch]
    at: dict[str, Tensor]
    of: Sequence[Tensor]
    noise: Noise | None


class RuleLoop:
    """The part of a training loop that a rule sees (`methods.base.Loop`), and the checks of a step."""

    adapters: Adapters
    rule: Rule
    config: TrainConfig
    model: Any                # the model to call, with autocast if mixed precision is on
    optimizer: Any            # a torch Optimizer
    accelerator: Accelerator
    streams: Mapping[str, Sequence[dict[str, Any]]]  # encoded examples: "train", "held_out"
    collate: Callable[[list], Batch]
    seed: int
    clock: Clock
    total: int
    outcome: Outcome
    micro_batches: list[Batch]  # of this step
    held: Sequence[Batch] = ()  # held-out micro-batches of this step, if they were made already
    idle = False              # whether no label of this step counts
    schedules: list[str]      # of each group: "linear" or "constant"
    peaks: list[float]        # of each group: its peak learning rate
    team = Team()             # the processes of this run
    answers: Callable[[Request], Sequence[Tensor]] | None = None  # who answers `gradient`, where replicas share it

    # -- what a rule may ask for

    def loss(self, batch: Batch, parameters: dict[str, Tensor] | None = None) -> Tensor:
        """Return the mean task loss of one micro-batch, with other parameters by name if given."""
        if parameters is None:
            return task_loss(self.model(**batch), batch, self.config.label_smoothing, self.adapters.model)
        parameters = self.team.joined(self.adapters.model, parameters)
        with activations_kept(self.adapters.model):  # recomputation would read the model's own parameters
            output = torch.func.functional_call(self.model, parameters, (), batch)
        return task_loss(output, batch, self.config.label_smoothing, self.adapters.model)

    def mean_loss(self, batches: list[Batch], parameters: dict[str, Tensor] | None = None) -> Tensor:
        """Return the loss of several micro-batches as of one batch; DivergedError if it is not finite.

        Of several processes each gets its part of the sum, with the gradients of the whole.
        """
        weights = self.team.shares(batches, self.adapters.model)
        losses = [self.loss(batch, parameters) * share for batch, share in zip(batches, weights, strict=True)]
        return self.refuse_non_finite(torch.stack(losses).sum(), "loss")

    def gradient(self, batches: list[Batch], at: dict[str, Tensor], of: Sequence[Tensor],
                 noise: Noise | None = None) -> Sequence[Tensor]:
        """Differentiate the loss over several micro-batches; see `methods.base.Loop`."""
        if self.answers is not None:
            return self.answers(Request(batches, at, of, noise))
        with noise.again() if noise else nullcontext():
            return torch.autograd.grad(self.mean_loss(batches, at), list(of))

    @torch.no_grad()
    def logits(self, batch: Batch) -> Tensor:
        """Return the logits in eval mode, without a use of the random state."""
        self.model.eval()
        try:
            return self.model(**batch).logits.float()
        finally:
            self.model.train()

    @property
    def dtype(self) -> torch.dtype:
        """The least precise type that the logits pass through: that of W, or of autocast."""
        return torch.bfloat16 if self.config.mixed_precision == "bf16" else self.adapters.dtype

    def backward(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)

    def held_out(self) -> list[Batch]:
        """Return the held-out micro-batches of this step."""
        return list(self.held) or self._batches("held_out", self.clock.step)

    # -- before the first step

    def refuse_short(self) -> None:
        """Refuse to train in a float of fewer than 32 bits.

        Raises:
            ValueError: the model was converted after `adapt`; names the remedy.
        """
        model = self.adapters.model
        must, may = self.adapters.listed_names()
        trains = must | may | {plain_name(name) for name, p in model.named_parameters() if p.requires_grad}
        for name, dtype in short_parameters(model, sorted(trains)).items():
            raise ValueError(f"{name} trains and is {dtype}, in which small steps are lost: convert the model "
                             "before adapt() and not after it (adapters.remove() and adapt() do it now), or train in "
                             "float32")

    def _checkpoint_activations(self) -> None:
        """Switch on gradient checkpointing if the configuration has it."""
        model: Any = self.adapters.model
        if not self.config.gradient_checkpointing:
            return
        if not getattr(model, "supports_gradient_checkpointing", False):
            raise ValueError(f"{type(model).__name__} cannot recompute its activations: leave gradient_checkpointing "
                             "out, and split the batch instead (accumulation)")
        older = "gradient_checkpointing_enable"  # the name in older versions of transformers
        enable: Any = getattr(model, "activation_checkpointing_enable", None) or getattr(model, older)
        enable({"use_reentrant": False})

    def start_rule(self, step: int) -> None:
        """Start the rule for a training with `step` steps done; a rule that has trained before starts again.

        Raises:
            ValueError: the configuration does not fit this length of training; nothing has changed.
        """
        self.clock = Clock(step, self.total, self.clock.per_epoch)
        self.rule.start(self.clock, self)
        if self.rule.trained and not step:
            self.rule.again()
        self.rule.trained |= step > 0

    def _groups(self) -> list[dict[str, Any]]:
        """Return the parameter groups: those of the rule, the head, and pretrained weights that train."""
        groups = self.rule.parameter_groups()
        extra = [(self.adapters.head_parameters(), self.config.head_lr or self.config.lr),
                 (self.adapters.base_parameters(), self.config.lr)]
        groups += [{"params": parameters, "lr": lr} for parameters, lr in extra if parameters]
        self.schedules = [group.pop("schedule", "linear") for group in groups]
        if not groups:
            raise ValueError("nothing trains: the method names no matrix and the model has no new head")
        return groups

    # -- one step

    def factor(self, step: int, length: int) -> float:
        """Return the factor of the peak learning rate at step 1 … length of a schedule."""
        return linear_schedule(step, length, self.config.warmup)

    def _rates(self, step: int) -> list[float]:
        """Return the learning rate of each group at step 1 … total."""
        done, length = self.rule.stretch(step - 1, self.total)
        factor = self.factor(done + 1, length)
        return [peak * (factor if kind == "linear" else 1.0)
                for peak, kind in zip(self.peaks, self.schedules, strict=True)]

    def rest_without_labels(self, loss: float) -> None:
        """Remove the gradients of a step without a label that counts, so that AdamW changes nothing."""
        self.idle = loss == 0 and not self.team.total(sum(int(counted(batch, self.adapters.model))
                                                          for batch in self.micro_batches))
        if self.idle:
            self.optimizer.zero_grad()

    def _clip(self) -> Tensor:
        """Clip the gradients of the optimizer's parameters and return their norm before that."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        limit = self.config.max_grad_norm or math.inf
        return self.accelerator.clip_grad_norm_(parameters, limit)  # type: ignore[return-value]

    def _batches(self, stream: str, step: int) -> list[Batch]:
        """Return the micro-batches of a step."""
        device = self.accelerator.device
        return [{k: v.to(device) for k, v in self.collate(rows).items()} for rows in self.rows_of(stream, step)]

    def rows_of(self, stream: str, step: int) -> list[list[dict[str, Any]]]:
        """Return the examples of a step's micro-batches, which depend only on the seed and the step."""
        rows, size = self.streams[stream], self.config.batch_size
        per_epoch = self.config.steps_per_epoch(len(rows))
        epoch, at = divmod(step - 1, per_epoch)
        if getattr(self, f"_order_{stream}", (None,))[0] != epoch:
            generator = torch.Generator().manual_seed(7919 * self.seed + 2 * epoch + (stream == "held_out"))
            setattr(self, f"_order_{stream}", (epoch, batch_order(rows, size, generator)))
        picked = getattr(self, f"_order_{stream}")[1][at]
        pieces, own = self.team.pieces(len(picked), self.config.accumulation), self.team.shard(picked)
        return [[rows[i] for i in own[j::pieces]] for j in range(pieces)]

    def _assert_alive(self) -> None:
        nothing_yet = self.idle and self.clock.step == 1
        for invariant in self.rule.invariants(self.clock):
            if not (invariant.holds or nothing_yet):
                raise LivenessError(f"step {self.clock.step}: {invariant.says}")
        if self.clock.step == 1:
            must, may = self.adapters.listed_names()
            trains = {plain_name(n) for n, p in self.adapters.model.named_parameters() if p.requires_grad}
            if not must <= trains <= must | may:
                wrong = sorted((trains - must - may) | (must - trains))
                raise LivenessError(f"other parameters train than were listed: {', '.join(wrong[:4])}")
            bypassed = self._bypassed()
            if self.team.any(bool(bypassed))[0]:
                raise LivenessError(f"step 1: in eval mode the weight of {', '.join(bypassed[:4]) or 'a layer'} is "
                                    "used and the layer not called, so its branch has no effect: let its module call "
                                    "it (self.lin(x), not self.lin.weight), or leave this site out")

    def _bypassed(self) -> list[str]:
        """Return the layers whose weight affects the output in eval mode although the layer is not called.

        A layer that the batch does not use at all, such as an expert, is not among them.
        """
        model, batch = self.adapters.model, self.micro_batches[0]
        with modes_kept(model), calls_seen() as called, torch.no_grad():
            if self.adapters.owners:
                model.eval()
                self.model(**batch)
        rest = {path: owner.weight for path, owner in self.adapters.owners.items()
                if owner not in called and owner.weight.is_floating_point()}
        if not rest:
            return []
        try:  # again with gradients, which switch off fast paths and show what the loss depends on
            with modes_kept(model), calls_seen() as called, torch.enable_grad():
                model.eval()
                for weight in rest.values():
                    weight.requires_grad_(True)
                loss = self.loss(batch)
                found = (torch.autograd.grad(loss, list(rest.values()), allow_unused=True) if loss.requires_grad
                         else [None] * len(rest))
        finally:
            for weight in rest.values():
                weight.requires_grad_(False)
        return [path for path, gradient in zip(rest, found, strict=True)
                if gradient is not None or self.adapters.owners[path] in called]

    def refuse_non_finite(self, value: Tensor, what: str) -> Tensor:
        """Return the value, or raise DivergedError if it is nan or infinite."""
        if self.team.any(not torch.isfinite(value.detach()))[0]:
            raise DivergedError(f"the {what} is {float(value.detach())} at step {self.clock.step} of {self.total}, "
                                f"and nothing was updated; lower lr (now {self.config.lr:g}), lengthen the "
                                "warm-up, or clip gradients (max_grad_norm)")
        return value

    def _log(self, values: Mapping[str, float | dict[str, float]]) -> None:
        for name, value in values.items():
            pairs = value.items() if isinstance(value, dict) else [("", value)]
            self.outcome.history += [(self.clock.step, site, name, float(v)) for site, v in pairs]


@torch.no_grad()
def start_from(adapters: Adapters, seed: int) -> None:
    """Draw A as `adapt(seed=seed)` does, if `adapt` got no seed and nothing was trained or loaded since.

    Modules that a method adds beside the branches (adapters, prompts) are not drawn again; a warning says so.
    """
    if adapters.drawn_seed is None:
        return
    if adapters.extra_names:
        warnings.warn(f"the start of {adapters.method.name} was drawn at random: call adapt(…, seed=…) for a start "
                      "that can be repeated", stacklevel=3)
        return
    generator, drawn = _starts(adapters, adapters.drawn_seed)
    kept = torch.equal(generator.get_state(), adapters.rule.generator.get_state()) and all(
        branch.lora_A.shape == drawn[name].shape and torch.equal(branch.lora_A, drawn[name].to(branch.lora_A))
        and not branch.lora_B.any() for name, branch in adapters.items())
    if kept:
        generator, drawn = _starts(adapters, seed)
        for name, branch in adapters.items():
            branch.lora_A.copy_(drawn[name])
        adapters.rule.generator.set_state(generator.get_state())
    adapters.drawn_seed = seed if kept else None


def _starts(adapters: Adapters, seed: int) -> tuple[torch.Generator, dict[str, Tensor]]:
    """Draw A of each site with a seed; return the generator after that, and A by site."""
    rule = adapters.method.rule()
    rule.generator.manual_seed(seed)
    made = {name: rule.branch(site) for name, site in adapters.sites.items()}
    return rule.generator, {name: branch.lora_A for name, branch in made.items() if branch is not None}


# ---- the trainer ---------------------------------------------------------------------------------------------

class Trainer(RuleLoop):
    """Train one method on one model with one set of examples.

    Args:
        adapters: the return value of `adapt`. If that had no seed, A is drawn with the seed below.
        rows: encoded training examples (dicts of lists).  collate: examples -> batch of tensors, with "labels".
        config: the configuration; with several processes each takes `batch_size` examples in a step.
        seed: determines the order of the examples, and dropout.
        evaluate: a function from the model to a dict of metrics by name, called every `eval_every` steps. The first
            metric decides which weights are best: lowest for "loss", "perplexity" and "ter", else highest.
        checkpoint: file for the state of an unfinished run, which is resumed if the file exists.
        identity: text that the checkpoint must contain; the checkpoint of another run is refused.
        autosave: seconds between checkpoints, in addition to those of the configuration.

    Raises:
        ValueError: an argument has a wrong type, there are no examples or no labels, or `best` is set without an
            evaluation.  RuntimeError: the adapters are merged or removed.
    """

    def __init__(self, adapters: Adapters, rows: Sequence[dict[str, Any]], collate: Callable[[list], Batch],
                 config: TrainConfig, *, seed: int = 0, callbacks: Sequence[Callback] = (),
                 evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
                 checkpoint: Path | None = None, identity: str = "", autosave: float = math.inf,
                 cpu: bool = False) -> None:
        require_adapters(adapters)
        require_kind("rows", rows, Sized, "a list of encoded examples")
        require_kind("collate", collate, Callable, "a function from examples to a batch")  # type: ignore[arg-type]
        require_kind("config", config, TrainConfig, "a TrainConfig, such as lt.train_config('tiny', steps=100) makes")
        require_kind("evaluate", evaluate, (Callable, type(None)),  # type: ignore[arg-type]
                     "a function from the model to a dict of numbers, or None")
        seed = require_seed(seed)
        adapters.require_state("train", "adapted")
        if not rows:
            raise ValueError("there are no examples to train on: rows is empty")
        require(not config.best or evaluate is not None, "best = True keeps the weights of the best evaluation, and "
                "this training has none: give the trainer an evaluate, or leave best out")
        self.team = Team.here(cpu)
        config = self.team.whole(config)
        self.adapters, self.rule, self.config, self.seed = adapters, adapters.rule, config, seed
        self.collate, self.callbacks, self.evaluate = collate, callbacks if self.team.is_main else (), evaluate
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
        AcceleratorState._reset_state()  # else accelerate refuses a second run with another precision
        self.accelerator = Accelerator(mixed_precision=config.mixed_precision, cpu=cpu)
        self.best: tuple[float, tuple[dict[str, Tensor], dict[str, Any]]] | None = None

    # -- the loop

    def run(self) -> Outcome:
        """Train until the last step, or until a callback stops it; the model's training or eval mode is restored.

        Raises:
            LivenessError: an invariant does not hold.  DivergedError: the loss is not finite.
            RuntimeError: gradients are switched off, or it has trained already and has no checkpoint to resume from.
            CheckpointError: the checkpoint cannot be resumed.  ValueError: evaluate returned no dict of numbers.
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
        """Take and conclude one step; return True if a callback stops the training here."""
        start = time.perf_counter()
        values = self.step(step)
        self.outcome.seconds += time.perf_counter() - start
        return self.conclude_step(values, interrupted)

    def conclude_step(self, values: dict[str, float], interrupted: threading.Event | None = None) -> bool:
        """Call the callbacks, evaluate and save if due; return True if a callback stops the training here.

        interrupted: set after Ctrl-C, which then also ends an evaluation; None if replicas train together.
        """
        step = self.outcome.step = self.clock.step
        self.rule.trained = True
        stops = [callback.on_step(self.clock, values) for callback in self.callbacks]  # call all of them
        alone, pressed = interrupted is not None and self.team.size == 1, interrupted or threading.Event()
        if not (alone and pressed.is_set()):   # a skipped evaluation is made when the run is resumed
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
        """Prepare model, optimizer and rule for the next step, from the checkpoint if there is one."""
        require_gradients()
        self.refuse_short()
        path = self.checkpoint
        stored = self.team.broadcast(lambda: load_checkpoint(path, self.identity)) if path else None
        if self.outcome.step and not stored:
            raise RuntimeError(f"this trainer has trained {self.outcome.step} steps already; make a new one to train "
                               "the same adapters again")
        torch.manual_seed(self.team.own_seed(self.seed))  # used by dropout only
        if stored:
            stored.refuse_longer(self.total)
            stored.into_adapters(self.adapters)
        self._checkpoint_activations()
        # evaluation_mode: without DistributedDataParallel, since the team sums the gradients
        self.model = self.accelerator.prepare_model(self.adapters.model, evaluation_mode=True).train()
        groups = self._groups()
        self.optimizer = torch.optim.AdamW(groups, lr=self.config.lr, weight_decay=self.config.weight_decay)
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        self.start_rule(stored.values["step"] if stored else 0)
        if stored:
            stored.into(self)
            self._evaluate_if_interrupted()

    def complete(self) -> None:
        """Save, load the best state and let the rule finish, after the last step."""
        self.save()  # so that a later stage, or the evaluation, can be resumed
        if self.best is not None:
            self.adapters.load_state_dict(*self.best[1])
        elif self.config.best and any(name.startswith("validation.") for _, _, name, _ in self.outcome.history):
            self.outcome.notes.append("not one evaluation gave a number, so none was best, and the weights are those "
                                      "of the last step")
            warnings.warn(self.outcome.notes[-1], stacklevel=3)
        self.outcome.finished = True
        self.outcome.following = self.rule.finish()

    def unwrap(self) -> None:
        """Remove accelerate's precision wrapper from the model."""
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)

    # -- one optimizer step

    def step(self, number: int) -> dict[str, float]:
        """Take step 1 … total, and return its values for the callbacks; replicas take the same steps in one pass."""
        self.open_step(number, self._batches("train", number))
        self.rule.before_step(self.clock)
        self.optimizer.zero_grad()
        loss, shares = 0.0, self.team.shares(self.micro_batches, self.adapters.model)
        for batch, share in zip(self.micro_batches, shares, strict=True):
            part = self.refuse_non_finite(self.loss(batch) * share, "loss")
            self.backward(part)
            loss += float(part.detach())
        self.team.add_gradients([p for group in self.optimizer.param_groups for p in group["params"]])
        loss = self.team.total(loss)
        self.rest_without_labels(loss)
        penalty = self.add_penalty()
        norm = self.refuse_non_finite(self._clip(), "gradient norm")
        self.optimizer.step()   # not accelerate's: the team sums the gradients, and they need no scaling
        return self.after_step(loss, float(norm), penalty)

    def open_step(self, number: int, batches: list[Batch], held: list[Batch] | None = None) -> None:
        """Set the clock, the micro-batches and the learning rates of a step."""
        self.held = held or []
        self.clock, self.micro_batches = Clock(number, self.total, self.clock.per_epoch), batches
        for group, rate in zip(self.optimizer.param_groups, self._rates(number), strict=True):
            group["lr"] = rate

    def add_penalty(self) -> Tensor | None:
        """Return the rule's penalty, after adding its gradients."""
        penalty = self.rule.penalty()
        if penalty is not None and penalty.requires_grad:
            self.backward(self.refuse_non_finite(penalty, "penalty"))
        return penalty

    def after_step(self, task_loss: float, norm: float, penalty: Tensor | None) -> dict[str, float]:
        """Run the rule after the optimizer's step, check the invariants and log; return values for the callbacks."""
        rule = self.rule
        rule.after_step(self.clock)
        self._assert_alive()
        values = {"loss": task_loss, "grad_norm": norm, "lr": self.optimizer.param_groups[0]["lr"]}
        if penalty is not None:
            values["penalty"] = penalty.item()
        self._log({**values, **rule.log()})
        return values

    def _evaluate_if_interrupted(self) -> None:
        """Make the evaluation of the last step, if an interrupt ended it."""
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
                metrics = self.team.broadcast(lambda: _numbers(evaluate(self.model)))
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
        """Write the checkpoint, if it has a path."""
        if path := self.checkpoint:
            random = self.team.gather(random_state())
            self.team.broadcast(lambda: save_checkpoint(path, self, random))
            self.saved_at = time.monotonic()


def _numbers(metrics: Any) -> dict[str, float]:
    """Return the metrics of an evaluation as floats.

    Raises:
        ValueError: they are not a dict of numbers, or the dict is empty.
    """
    fits = isinstance(metrics, Mapping) and metrics and all(
        isinstance(name, str) and (isinstance(value, numbers.Real) or (
            isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex()))
        for name, value in metrics.items())
    require(bool(fits), f"evaluate returned {shown(metrics)}: it must return a dict of numbers by name, such as "
                        "{'accuracy': 0.9}, of which the first decides what is best")
    return {name: float(value) for name, value in metrics.items()}

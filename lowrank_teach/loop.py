"""What a training loop gives to a method's rule, whoever drives it: `train.Trainer`, or transformers' own Trainer.

The losses and logits that a rule may ask for, the optimizer's groups, the rates of a step, held-out rows, and what
stops a run: an invariant that does not hold, a number that is not finite. Knows no method by name.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from .adaptable import plain_name
from .adapters import Adapters
from .config import TrainConfig
from .distributed import Team
from .methods.base import Clock, Rule
from .outcome import DivergedError, LivenessError, Outcome
from .steps import activations_kept, batch_order, calls_seen, counted, linear_schedule, modes_kept, task_loss
from .wide import short_parameters

Batch = dict[str, Tensor]


class RuleLoop:
    """The side of a training loop that a rule sees (`methods.base.Loop`), and the checks around a step."""

    adapters: Adapters
    rule: Rule
    config: TrainConfig
    model: Any                # as it runs: with autocast where that was asked for
    optimizer: Any            # a torch Optimizer
    accelerator: Accelerator
    streams: Mapping[str, Sequence[dict[str, Any]]]  # encoded rows: "train", "held_out"
    collate: Callable[[list], Batch]
    seed: int
    clock: Clock
    total: int
    outcome: Outcome
    micro_batches: list[Batch]  # of the step in progress
    held: Sequence[Batch] = ()  # of its held-out rows, where they were made already
    idle = False              # whether no label of that step counts
    schedules: list[str]      # of each group: "linear" or "constant"
    peaks: list[float]
    team = Team()             # the processes of this run

    # -- what a rule may ask for

    def loss(self, batch: Batch, parameters: dict[str, Tensor] | None = None) -> Tensor:
        """Mean task loss of one micro-batch."""
        if parameters is None:
            return task_loss(self.model(**batch), batch, self.config.label_smoothing, self.adapters.model)
        parameters = self.team.joined(self.adapters.model, parameters)
        with activations_kept(self.adapters.model):  # to recompute would read the model's own parameters, not these
            output = torch.func.functional_call(self.model, parameters, (), batch)
        return task_loss(output, batch, self.config.label_smoothing, self.adapters.model)

    def mean_loss(self, batches: list[Batch], parameters: dict[str, Tensor] | None = None) -> Tensor:
        """The loss over several micro-batches as one batch would give it; refused where it is not finite.

        Of several processes each gets its part of the sum, with gradients of the whole.
        """
        weights = self.team.shares(batches, self.adapters.model)
        losses = [self.loss(batch, parameters) * share for batch, share in zip(batches, weights, strict=True)]
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
        return list(self.held) or self._batches("held_out", self.clock.step)

    # -- before the first step

    def refuse_short(self) -> None:
        """Refuse to train in a float of fewer than 32 bits.

        Raises:
            ValueError: the model was converted after `adapt`; says what to do.
        """
        model = self.adapters.model
        must, may = self.adapters.listed_names()
        trains = must | may | {plain_name(name) for name, p in model.named_parameters() if p.requires_grad}
        for name, dtype in short_parameters(model, sorted(trains)).items():
            raise ValueError(f"{name} trains and is {dtype}, in which small steps are lost: convert the model "
                             "before adapt() and not after it (adapters.remove() and adapt() do it now), or train in "
                             "float32")

    def _checkpoint_activations(self) -> None:
        """Recompute activations in the backward pass, where that was asked for."""
        model: Any = self.adapters.model
        if not self.config.gradient_checkpointing:
            return
        if not getattr(model, "supports_gradient_checkpointing", False):
            raise ValueError(f"{type(model).__name__} cannot recompute its activations: leave gradient_checkpointing "
                             "out, and split the batch instead (accumulation)")
        older = "gradient_checkpointing_enable"  # what transformers called it before
        enable: Any = getattr(model, "activation_checkpointing_enable", None) or getattr(model, older)
        enable({"use_reentrant": False})

    def start_rule(self, step: int) -> None:
        """Start the rule on a training of which `step` steps are done; one that has trained before begins again.

        Raises:
            ValueError: something in the configuration does not fit this length of training; nothing has changed.
        """
        self.clock = Clock(step, self.total, self.clock.per_epoch)
        self.rule.start(self.clock, self)
        if self.rule.trained and not step:
            self.rule.again()
        self.rule.trained |= step > 0

    def _groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups: the rule's, the head, pretrained weights that train."""
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
        """Of the peak rate, at step 1 … length of a stretch."""
        return linear_schedule(step, length, self.config.warmup)

    def _rates(self, step: int) -> list[float]:
        """Each group's rate at a step, 1 … total."""
        done, length = self.rule.stretch(step - 1, self.total)
        factor = self.factor(done + 1, length)
        return [peak * (factor if kind == "linear" else 1.0)
                for peak, kind in zip(self.peaks, self.schedules, strict=True)]

    def rest_without_labels(self, loss: float) -> None:
        """Take the gradients away, all 0, in a step in which no label counts: so AdamW leaves all as it is."""
        self.idle = loss == 0 and not self.team.total(sum(int(counted(batch, self.adapters.model))
                                                          for batch in self.micro_batches))
        if self.idle:
            self.optimizer.zero_grad()

    def _clip(self) -> Tensor:
        """Clip the gradients of all that the optimizer steps; their norm before."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        limit = self.config.max_grad_norm or math.inf
        return self.accelerator.clip_grad_norm_(parameters, limit)  # type: ignore[return-value]

    def _batches(self, stream: str, step: int) -> list[Batch]:
        """The micro-batches of a step."""
        device = self.accelerator.device
        return [{k: v.to(device) for k, v in self.collate(rows).items()} for rows in self.rows_of(stream, step)]

    def rows_of(self, stream: str, step: int) -> list[list[dict[str, Any]]]:
        """The rows of a step's micro-batches: a function of the seed and the step alone, so a resume needs no
        position."""
        rows, size = self.streams[stream], self.config.batch_size
        per_epoch = self.config.steps_per_epoch(len(rows))
        epoch, at = divmod(step - 1, per_epoch)
        if getattr(self, f"_order_{stream}", (None,))[0] != epoch:
            generator = torch.Generator().manual_seed(7919 * self.seed + 2 * epoch + (stream == "held_out"))
            setattr(self, f"_order_{stream}", (epoch, batch_order(rows, size, generator)))
        picked = getattr(self, f"_order_{stream}")[1][at]
        pieces, own = self.team.pieces(len(picked), self.config.accumulation), self.team.part(picked)
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
        """Layers whose weight takes part in an eval pass of the step's rows although they are not called.

        One that is called by no row (an expert) and whose weight no output depends on is none of them.
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
        try:  # once more with gradients: without a fast path, and with a look at what the loss depends on
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
        """The value itself.

        Raises:
            DivergedError: it is nan or infinite.
        """
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
    """Start as `adapt(seed=seed)` would have, where it was given none and nothing was trained or loaded since.

    Modules that a method puts on beside the branches (adapters, prompts) keep their start, with a warning.
    """
    if adapters.drawn_seed is None:
        return
    if adapters.extra_names:
        warnings.warn(f"the start of {adapters.method.name} was drawn at random: for one that can be repeated give "
                      "adapt(…, seed=…)", stacklevel=3)
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
    """The generator of a seed after each site's A was drawn from it, and these, by site."""
    rule = adapters.method.rule()
    rule.generator.manual_seed(seed)
    made = {name: rule.branch(site) for name, site in adapters.sites.items()}
    return rule.generator, {name: branch.lora_A for name, branch in made.items() if branch is not None}

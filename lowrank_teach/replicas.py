"""R trainings in lockstep over one frozen base: each its own, but for the forward and backward pass they share.

Every replica is a `Trainer` with its own branches, head, rule, optimizer, rows, rates and clock; all it does alone is
what it does in a run of its own. What is shared is the costly part: W x and its backward pass, once for the rows of
all (`stacked`). So a replica's trajectory is that of the single run, up to the rounding of a batched product; with
dropout in the base it is equal in distribution only, since one mask generator serves all rows.

    outcomes = train_together(trainers)     # an Outcome each, or the error that ended that one
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from . import joint
from .loop import Batch
from .methods.asks import Ask, Asks, Noise
from .outcome import Outcome
from .stacked import Weights, conductor, why_not
from .steps import interrupt_between_steps, loss_from, modes_kept, shares
from .train import Trainer

Rows = list[list[dict[str, Any]]]   # micro-batches of encoded rows


class Lane:
    """One replica: its trainer, and what ended it, if anything did."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.stopped = trainer, False
        self.error: Exception | None = None

    @property
    def runs(self) -> bool:
        return self.error is None and not self.stopped and not self.trainer.outcome.finished

    @contextmanager
    def alone(self) -> Iterator[None]:
        """What goes wrong in a replica's own work ends this replica and no other; memory is everybody's."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            self.error = error

    def next(self, asks: Asks, found: Sequence[Tensor] | None, loss: Tensor | None = None) -> Ask | None:
        """What its rule asks for next, given what it asked for last; None when it asks no more."""
        with self.alone(), suppress(StopIteration):
            if loss is not None:
                self.trainer.refuse_non_finite(loss, "loss")
            return asks.send(found)  # type: ignore[arg-type]
        return None


class Shared:
    """The pass that some replicas share."""

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self.lanes = list(lanes)
        self.instead: list[Weights] = [{} for _ in lanes]
        self.first = lanes[0].trainer
        self.model = conductor([lane.trainer.adapters for lane in lanes], self.instead)

    def gradients(self, asks: Sequence[Ask]) -> list[tuple[Tensor, Sequence[Tensor]]]:
        """The loss and the gradients that each replica asks for, in one pass a micro-batch."""
        self.instead[:] = [ask.at for ask in asks]
        weights = [shares(ask.batches, self.first.adapters.model) for ask in asks]
        nothing = torch.zeros((), dtype=torch.float32, device=self.first.accelerator.device)
        totals: list[Tensor] = [nothing for _ in asks]
        try:
            for j in range(len(weights[0])):
                losses = self.losses([ask.batches[j] for ask in asks])
                totals = [t + loss * w[j] for t, loss, w in zip(totals, losses, weights, strict=True)]
            # one replica's loss depends on no other's tensors, so the gradient of the sum is that of each
            found = torch.autograd.grad(torch.stack(totals).sum(), [tensor for ask in asks for tensor in ask.of])
        finally:
            self.instead[:] = [{} for _ in asks]
        ends = accumulate(len(ask.of) for ask in asks)
        return [(t, found[end - len(ask.of):end]) for t, ask, end in zip(totals, asks, ends, strict=True)]

    def losses(self, batches: Sequence[Batch]) -> list[Tensor]:
        """The mean task loss of each replica on its own batch; all batches are of one shape, lane by lane."""
        inputs = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
        labels = inputs.pop("labels")
        if self.model.config.is_encoder_decoder and self.model.can_generate():
            inputs["decoder_input_ids"] = self.model.prepare_decoder_input_ids_from_labels(labels=labels)
        with self.first.accelerator.autocast():
            logits = self.model(**inputs).logits
        if self.first.config.mixed_precision != "no":
            logits = logits.float()
        parts = logits.chunk(len(self.lanes))
        return [loss_from(part, batch, lane.trainer.config.label_smoothing, lane.trainer.adapters.model)
                for part, batch, lane in zip(parts, batches, self.lanes, strict=True)]


def train_together(trainers: Sequence[Trainer], on_step: Callable[[int, int], None] | None = None
                   ) -> list[Outcome | Exception]:
    """Train all to their ends; what each leaves, or the error that ended it and no other.

    Args:
        trainers: over models that share their frozen parameters (`share_weights`), with one collate and device.
        on_step: called after each step with how many replicas still run, and the steps that are left at most.

    Raises:
        ValueError: one of them cannot share its pass.
        KeyboardInterrupt: Ctrl-C; each replica's state is in its checkpoint.
    """
    for trainer in trainers:
        if trainer.team.size > 1:
            raise ValueError("replicas share a pass within one process: start this one without a launcher")
        if reason := why_not(trainer.adapters):
            raise ValueError(f"{trainer.adapters.method.name} cannot share its pass: {reason}; train it alone")
    lanes = [Lane(trainer) for trainer in trainers]
    passes = Passes()
    modes = ExitStack()
    try:
        for lane in lanes:
            modes.enter_context(modes_kept(lane.trainer.adapters.model))
            with lane.alone():
                lane.trainer.prepare()
        _finish(lanes)  # those that are taken up at their end
        with interrupt_between_steps() as interrupted:
            while running := [lane for lane in lanes if lane.runs]:
                passes.step(running)
                _finish(running)
                if on_step is not None:
                    on_step(sum(lane.runs for lane in lanes), max(t.total - t.outcome.step for t in trainers))
                if interrupted.is_set():
                    _leave(lanes)
    finally:
        for lane in lanes:
            if hasattr(lane.trainer, "model"):
                lane.trainer.unwrap()
        modes.close()
    return [lane.error or lane.trainer.outcome for lane in lanes]


def _finish(lanes: Sequence[Lane]) -> None:
    for lane in lanes:
        if lane.runs and lane.trainer.outcome.step == lane.trainer.total:
            with lane.alone():
                lane.trainer.complete()


def _leave(lanes: Sequence[Lane]) -> None:
    for lane in lanes:
        if lane.runs:
            lane.trainer.save()
    raise KeyboardInterrupt("stopped between two steps; run the same line again to go on from there")


class Passes:
    """Steps of replicas: those with batches of one shape share a pass."""

    def __init__(self) -> None:
        self.made: dict[tuple[int, ...], Shared] = {}

    def of(self, lanes: Sequence[Lane]) -> Shared:
        key = tuple(map(id, lanes))
        if key not in self.made:
            if len(self.made) > 3:  # one ends, and the others go on without it
                self.made.clear()
            self.made[key] = Shared(lanes)
        return self.made[key]

    def step(self, lanes: Sequence[Lane]) -> None:
        """The next step of each."""
        alike: dict[tuple, list[tuple[Lane, Rows, Rows]]] = {}
        for lane in lanes:
            trainer, number = lane.trainer, lane.trainer.outcome.step + 1
            rows, held = (trainer.rows_of(stream, number) if trainer.streams[stream] else []
                          for stream in ("train", "held_out"))
            alike.setdefault((tuple(map(len, rows)), tuple(map(len, held))), []).append((lane, rows, held))
        for group in alike.values():
            self._step_alike(*map(list, zip(*group, strict=True)))

    def _step_alike(self, lanes: list[Lane], rows: list[Rows], held: list[Rows]) -> None:
        start = time.perf_counter()
        for lane, batches, aside in zip(lanes, *(together(lanes[0].trainer, r) for r in (rows, held)), strict=True):
            with lane.alone():
                lane.trainer.open_step(lane.trainer.outcome.step + 1, batches, aside)
        self._before(lanes)
        lanes = [lane for lane in lanes if lane.runs]
        losses = self._descend(lanes) if lanes else []
        values = _close([(lane, loss) for lane, loss in zip(lanes, losses, strict=True) if lane.runs])
        seconds = (time.perf_counter() - start) / max(len(lanes), 1)
        for lane, found in values:
            lane.trainer.outcome.seconds += seconds
            with lane.alone():
                lane.stopped = lane.trainer.conclude_step(found)

    def _before(self, lanes: list[Lane]) -> None:
        """What each rule does before the step, and the gradients they ask for: those of like rows in one pass."""
        asking = [(lane, lane.trainer.rule.asks(lane.trainer.clock)) for lane in lanes]
        pending = [(lane, asks, lane.next(asks, None)) for lane, asks in asking]
        if all(ask is None for _, _, ask in pending):
            return
        noise = Noise()
        while pending := [(lane, asks, ask) for lane, asks, ask in pending if ask is not None]:
            alike: dict[tuple, list[tuple[Lane, Asks, Ask]]] = {}
            for one in pending:
                ask = one[2]
                shapes = tuple(tuple(value.shape) for batch in ask.batches for value in batch.values())
                alike.setdefault((ask.same_noise, shapes), []).append(one)
            pending = []
            for (same_noise, _), group in alike.items():
                with noise.again(same_noise):
                    answers = self.of([lane for lane, _, _ in group]).gradients([ask for _, _, ask in group])
                pending += [(lane, asks, lane.next(asks, found, loss))
                            for (lane, asks, _), (loss, found) in zip(group, answers, strict=True)]

    def _descend(self, lanes: list[Lane]) -> list[float]:
        """Gradients of all task losses, in one backward pass a micro-batch; the losses."""
        shared = self.of(lanes)
        totals = [0.0] * len(lanes)
        for lane in lanes:
            lane.trainer.optimizer.zero_grad()
        weights = [shares(lane.trainer.micro_batches, lane.trainer.adapters.model) for lane in lanes]
        for j in range(len(weights[0])):
            losses = shared.losses([lane.trainer.micro_batches[j] for lane in lanes])
            losses = [loss * weight[j] for loss, weight in zip(losses, weights, strict=True)]
            found = torch.stack([loss.detach() for loss in losses]).tolist()
            for i, (lane, loss) in enumerate(zip(lanes, losses, strict=True)):
                totals[i] += found[i]
                if not math.isfinite(found[i]):
                    with lane.alone():
                        lane.trainer.refuse_non_finite(loss, "loss")
            well = [loss for loss, value in zip(losses, found, strict=True) if math.isfinite(value)]
            if well:  # the rows of another replica get no gradient from these, nor these from it
                torch.stack(well).sum().backward()
        return totals


def _close(lanes: Sequence[tuple[Lane, float]]) -> list[tuple[Lane, dict[str, float]]]:
    """`Trainer.close_step` of all, clipping and the optimizers' steps in one; values of those that got through."""
    penalties, values = {}, []
    for lane, loss in lanes:
        with lane.alone():
            lane.trainer.rest_without_labels(loss)
            penalties[lane] = lane.trainer.add_penalty()
    running = [(lane, loss) for lane, loss in lanes if lane.runs]
    norms = _clip([lane for lane, _ in running])
    running = [(lane, loss) for lane, loss in running if lane.runs]
    joint.step([lane.trainer.optimizer for lane, _ in running])
    for lane, loss in running:
        with lane.alone():
            values.append((lane, lane.trainer.after_step(loss, norms[lane], penalties[lane])))
    return values


def _clip(lanes: Sequence[Lane]) -> dict[Lane, float]:
    """The gradient norm of each, clipped where it is finite; one that is not ends its replica."""
    if not lanes:
        return {}
    norms = joint.gradient_norms([lane.trainer.optimizer for lane in lanes])
    found = dict(zip(lanes, norms.tolist(), strict=True))
    for lane, norm in zip(lanes, norms, strict=True):
        if not math.isfinite(found[lane]):
            with lane.alone():
                lane.trainer.refuse_non_finite(norm, "gradient norm")
    joint.clip([lane.trainer.optimizer for lane in lanes], norms,
               [lane.trainer.config.max_grad_norm or math.inf for lane in lanes])
    return found


def together(trainer: Trainer, rows: Sequence[Rows]) -> list[list[Batch]]:
    """The micro-batches of each replica, padded to one length, on the device.

    Args:
        trainer: whose collate and device to take.  rows: of each replica its micro-batches of rows.
    """
    made: list[list[Batch]] = [[] for _ in rows]
    for j in range(len(rows[0])):
        whole = trainer.collate([row for of in rows for row in of[j]])
        n = len(rows[0][j])
        placed = {name: value.to(trainer.accelerator.device) for name, value in whole.items()}
        for i, batches in enumerate(made):
            batches.append({name: value[i * n:(i + 1) * n] for name, value in placed.items()})
    return made

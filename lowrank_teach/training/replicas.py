"""R trainings in lockstep over one frozen base: each its own, but for the forward and backward pass they share.

Every replica is a `Trainer` with its own branches, head, rule, optimizer, rows, rates and clock; all it does alone is
what it does in a run of its own. What is shared is the costly part: W x and its backward pass, once for the rows of
all. So a replica's trajectory is that of the single run, up to the rounding of a batched product; with
dropout in the base it is equal in distribution only, since one mask generator serves all rows.

    outcomes = train_together(trainers)     # an Outcome each, or the error that ended that one
"""

from __future__ import annotations

import copy
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import accumulate
from queue import SimpleQueue
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW

from ..adaptable import modes_kept
from ..adapters import Adapters
from ..errors import DivergedError
from ..lowrank import Adapted, LowRank
from ..methods.base import Rule
from ..precision import product, to_multiply, under_autocast
from .batches import interrupt_between_steps, loss_from, shares
from .callbacks import Outcome
from .trainer import Batch, Request, Trainer


# ---- clipping and AdamW over the tensors of all runs -------------------------------------------------------
# Clipping and AdamW for many runs at once: torch's formulae over the tensors of all, in a dozen calls.
#
# Each run keeps its own optimizer, with its groups, rates and moments; only the loop over tensors is shared. On a GPU
# a call is a few kernels instead of one for each tensor, and the norms come back in one transfer instead of one a
# run. The results are those of `clip_grad_norm_` and of the optimizer's own step, bit for bit on a CPU.
class Moving(NamedTuple):
    """A parameter that an optimizer is about to step."""

    parameter: Tensor
    gradient: Tensor
    state: dict[str, Tensor]
    rate: float
    decay: float


def _gradients(optimizer: AdamW) -> list[Tensor]:
    """Of all that it steps."""
    return [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


@torch.no_grad()
def gradient_norms(optimizers: Sequence[AdamW]) -> Tensor:
    """(R,) Euclidean norm of the gradients of all that each optimizer steps."""
    of_each = [_gradients(optimizer) for optimizer in optimizers]
    if not (every := [gradient for gradients in of_each for gradient in gradients]):
        return torch.zeros(len(optimizers), device="cpu")
    norms, none = iter(torch._foreach_norm(every)), every[0].new_zeros(())
    return torch.stack([torch.linalg.vector_norm(torch.stack([next(norms) for _ in gradients])) if gradients else none
                        for gradients in of_each])


@torch.no_grad()
def clip(optimizers: Sequence[AdamW], norms: Tensor, limits: Sequence[float]) -> None:
    """Scale each optimizer's gradients to a norm of `limits` where their norm (R,) is above it, as torch does."""
    factors = (norms.new_tensor(limits) / (norms + 1e-6)).tolist()
    pairs = [(gradient, factor) for optimizer, factor in zip(optimizers, factors, strict=True) if factor < 1.0
             for gradient in _gradients(optimizer)]
    if pairs:
        torch._foreach_mul_([gradient for gradient, _ in pairs], [factor for _, factor in pairs])


@torch.no_grad()
def step(optimizers: Sequence[AdamW]) -> None:
    """The next step of every optimizer (Loshchilov and Hutter 2019, algorithm 2, in the order of torch's own).

    One without moments yet, or with settings of its own beside rate, decay, betas and ε, makes its step alone.
    """
    alike: dict[tuple[float, float, float], list[Moving]] = {}
    for optimizer in optimizers:
        if not _plain(optimizer):
            optimizer.step()
            continue
        for group in optimizer.param_groups:
            alike.setdefault((*group["betas"], group["eps"]), []).extend(
                Moving(p, p.grad, optimizer.state[p], group["lr"], group["weight_decay"])
                for p in group["params"] if p.grad is not None)
    for (beta1, beta2, eps), moving in alike.items():
        if moving:
            _adamw(moving, beta1, beta2, eps)


def _plain(optimizer: AdamW) -> bool:
    """Whether its step is the one below."""
    special = ("amsgrad", "maximize", "capturable", "differentiable", "fused")
    return (not any(group[name] for group in optimizer.param_groups for name in special)
            and all(optimizer.state.get(p) for group in optimizer.param_groups for p in group["params"]
                    if p.grad is not None))


def _adamw(moving: list[Moving], beta1: float, beta2: float, eps: float) -> None:
    parameters, gradients = [m.parameter for m in moving], [m.gradient for m in moving]
    counts, first, second = ([m.state[name] for m in moving] for name in ("step", "exp_avg", "exp_avg_sq"))
    torch._foreach_add_(counts, 1)
    if any(m.decay for m in moving):
        torch._foreach_mul_(parameters, [1 - m.rate * m.decay for m in moving])
    torch._foreach_lerp_(first, gradients, 1 - beta1)
    torch._foreach_mul_(second, beta2)
    torch._foreach_addcmul_(second, gradients, gradients, 1 - beta2)
    steps = torch.stack(counts).tolist()
    below = torch._foreach_sqrt(second)
    torch._foreach_div_(below, [(1 - beta2 ** t) ** 0.5 for t in steps])
    torch._foreach_add_(below, eps)
    torch._foreach_addcdiv_(parameters, first, below,
                            [-m.rate / (1 - beta1 ** t) for m, t in zip(moving, steps, strict=True)])


# ---- one pass over one frozen network ----------------------------------------------------------------------
# One forward pass for R adapted models over one frozen base: their branches and heads, stacked.
#
#     shared = conductor(all_adapters)       # all adapted in the same way on models that share their weights
#     shared(**batch).logits                 # rows of the first model, then of the second, …
#
# W x is computed once for all rows; the R branches beside it are two batched products (`baddbmm`), as are the heads.
# The factors stay the parameters of their own models: the stack is made anew in each pass, so that a gradient reaches
# each of them, and a rule may prune, reset or replace its own at any time. Ranks that differ are filled up with
# zeros.
Weights = Mapping[str, Tensor]   # tensors that stand in for the parameters of one model, by name


class StackedSite(nn.Module):
    """A frozen layer with the branches of R models on it.

    Args:
        base: the layer.  path: its module's name.
        owners: what each model has there; None where it leaves the layer alone.
        instead: of each model, tensors to use in the place of its parameters.
    """

    def __init__(self, base: nn.Module, path: str, owners: Sequence[Adapted | None], instead: list[Weights]) -> None:
        super().__init__()
        self.base, self.path, self.instead = base, path, instead
        self.owners = list(owners)   # in a list, so that they stay modules of their own models

    @property
    def weight(self) -> Tensor:
        """The stored weight (some models look at its dtype)."""
        return self.base.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """(R · N, *, k) -> (R · N, *, d)."""
        h = self.base(x)
        flat = h.reshape(len(self.owners), -1, h.shape[-1])                                       # (R, N, D)
        rows = {name: part for owner in self.owners if owner for name, part in owner.rows.items()}
        for name, part in rows.items():
            flat = self._add(flat, x, name, part)
        return flat.view(h.shape)

    def _add(self, h: Tensor, x: Tensor, name: str, part: slice | None) -> Tensor:
        """h[..., part] + the branches of this name, for h (R, N, D)."""
        pairs = [(owner.branches[name], instead) if owner and name in owner.rows else None
                 for owner, instead in zip(self.owners, self.instead, strict=True)]
        some = next(pair[0] for pair in pairs if pair)
        z = x.reshape(len(pairs), -1, x.shape[-1])                                                # (R, N, k)
        prefix = f"{self.path}.lora.{name.replace('.', '_')}"
        if live := _live(pairs, prefix, some):
            h = _add_products(h, _dropped(z, pairs, some), *live, part)
        still = _stack([_still(pair[0]) if pair else None for pair in pairs], some)
        return _add_products(h, z, *still, part) if still else h


class StackedLinear(nn.Module):
    """The same `nn.Linear` of R models, each on its own rows."""

    def __init__(self, path: str, layers: Sequence[nn.Linear], instead: list[Weights]) -> None:
        super().__init__()
        self.path, self.instead = path, instead
        self.layers = list(layers)

    @property
    def weight(self) -> Tensor:
        return self.layers[0].weight

    def forward(self, x: Tensor) -> Tensor:
        """(R · N, *, k) -> (R · N, *, d)."""
        def of(name: str) -> Tensor:
            return torch.stack([instead.get(f"{self.path}.{name}", getattr(layer, name))
                                for layer, instead in zip(self.layers, self.instead, strict=True)])

        weight = of("weight")                                                                     # (R, d, k)
        x = to_multiply(x, weight)
        flat = x.reshape(len(self.layers), -1, x.shape[-1])                                       # (R, N, k)
        if self.layers[0].bias is None:
            h = torch.bmm(flat, weight.mT)
        else:
            h = torch.baddbmm(of("bias").unsqueeze(1).to(flat.dtype), flat, weight.mT)
        return h.view(*x.shape[:-1], -1)


def conductor(models: Sequence[Adapters], instead: list[Weights]) -> Any:
    """A model that runs all of these in one pass, its weights those of the first; rows stand model by model.

    Args:
        models: adapted alike (`why_not`), over the same frozen parameters, not merged.
        instead: a mapping a model, looked up in every pass: tensors in the place of parameters.
    """
    first = models[0].model
    frozen = [*first.parameters(), *first.buffers()]
    shared: Any = copy.deepcopy(first, {id(t): t for t in frozen})
    for name in ("forward", "_original_forward", "save_pretrained"):  # what was put on the first model itself
        vars(shared).pop(name, None)
    paths = dict.fromkeys(path for adapters in models for path in adapters.owners)
    for path in paths:
        layer = shared.get_submodule(path)
        base = layer.base if isinstance(layer, Adapted) else layer
        shared.set_submodule(path, StackedSite(base, path, [a.owners.get(path) for a in models], instead))
    for path in _heads(models[0]):
        layers = [adapters.model.get_submodule(path) for adapters in models]
        shared.set_submodule(path, StackedLinear(path, layers, instead))  # type: ignore[arg-type]
    return shared


def share_weights(model: nn.Module, other: nn.Module, but: Sequence[str] = ()) -> None:
    """Let a model use the other's parameters and buffers, of which there is then one copy.

    but: names of parameters that stay its own, such as a new head's.
    """
    theirs = dict(other.named_modules(remove_duplicate=False))
    for path, module in model.named_modules(remove_duplicate=False):
        for kind in ("_parameters", "_buffers"):
            for name in getattr(module, kind):
                if f"{path}.{name}".lstrip(".") not in but:
                    getattr(module, kind)[name] = getattr(theirs[path], kind)[name]


def why_not(adapters: Adapters) -> str:
    """Why a model cannot share its pass with others; empty where it can."""
    if adapters.base_names:
        return "it trains pretrained weights, of which there is one copy only"
    if adapters.extra_names:
        return "its rule puts modules of its own on the model"
    if adapters.method.writes_base:
        return "it writes into W, of which there is one copy only"
    other = [path for path in _heads(adapters) if type(adapters.model.get_submodule(path)) is not nn.Linear]
    return f"its head has more than linear layers ({other[0]})" if other else ""


def _heads(adapters: Adapters) -> list[str]:
    """Modules with parameters of the head."""
    return list(dict.fromkeys(name.rpartition(".")[0] for name in adapters.head_names))


Pair = tuple[Tensor, Tensor]   # left (d, r), right (r, k)


def _live(pairs: Sequence[tuple[LowRank, Weights] | None], prefix: str, like: LowRank) -> Pair | None:
    """(R, d, r) and (R, r, k): the factors that train, s and g on the left one; None if no model has any."""
    found = [_own(*pair, prefix) if pair and pair[0].r else None for pair in pairs]
    if (factors := _stack(found, like)) is None:
        return None
    left, right = factors
    scales = {pair[0].scaling for pair in pairs if pair}
    if len(scales) == 1:
        return left * scales.pop(), right
    of_each = [pair[0].scaling if pair else 0.0 for pair in pairs]
    return left * left.new_tensor(of_each)[:, None, None], right


def _own(branch: LowRank, instead: Weights, prefix: str) -> Pair:
    """One model's factors, g on the left one."""
    A, B = (instead.get(f"{prefix}.{name}", getattr(branch, name)) for name in ("lora_A", "lora_B"))
    return B if branch.gate_module is None else B * branch.gate_module(), A


def _still(branch: LowRank) -> Pair | None:
    """The factors that the forward pass adds and no step moves: of the merged share, and the fixed ones."""
    if not (branch.merged_share or branch.fixed_left.shape[1]):
        return None
    left, right = branch.factors_in_base()
    return (left, right) if len(right) else None


def _stack(pairs: Sequence[Pair | None], like: LowRank) -> Pair | None:
    """(R, d, r) and (R, r, k), narrower ones filled up with zeros; None if no model has any."""
    widest = max((pair[1].shape[0] for pair in pairs if pair), default=0)
    if not widest:
        return None
    (d, _), (_, k) = like.lora_B.shape, like.lora_A.shape
    nothing = like.lora_A.new_zeros(d, 0), like.lora_A.new_zeros(0, k)
    filled = [pair or nothing for pair in pairs]
    return (torch.stack([F.pad(left, (0, widest - left.shape[1])) if left.shape[1] < widest else left
                         for left, _ in filled]),
            torch.stack([F.pad(right, (0, 0, 0, widest - right.shape[0])) if right.shape[0] < widest else right
                         for _, right in filled]))


def _dropped(x: Tensor, pairs: Sequence[tuple[LowRank, Weights] | None], like: LowRank) -> Tensor:
    """x (R, N, k) with each branch's own dropout."""
    p = [pair[0].dropout if pair and pair[0].training else 0.0 for pair in pairs]
    if not any(p):
        return x
    x = to_multiply(x, like.lora_A)
    if len(set(p)) == 1:
        return F.dropout(x, p[0], p[0] > 0)
    return torch.stack([F.dropout(rows, one, one > 0) for rows, one in zip(x, p, strict=True)])


def _add_products(h: Tensor, x: Tensor, left: Tensor, right: Tensor, part: slice | None) -> Tensor:
    """h[..., part] + x rightᵀ leftᵀ for h (R, N, D), x (R, N, k), left (R, d, r), right (R, r, k)."""
    y = product(x, right)                                                                         # (R, N, r)
    if part is None and h.dtype == y.dtype == left.dtype and not under_autocast(h):
        return torch.baddbmm(h, y, left.mT)
    y = torch.bmm(y, left.mT).to(h.dtype)                                                         # (R, N, d)
    if part is None:
        return h + y
    return torch.cat([h[..., :part.start], h[..., part] + y, h[..., part.stop:]], -1)


# ---- the loop over runs ------------------------------------------------------------------------------------

Rows = list[list[dict[str, Any]]]   # micro-batches of encoded rows


class ReplicaState:
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


class BeforeStep:
    """`before_step` of one replica's rule, halted at each gradient that it asks for.

    It runs in a thread of its own so that the pass that answers can be shared. The two threads take turns: one
    always waits for the other.
    """

    def __init__(self, lane: ReplicaState) -> None:
        self.lane = lane
        self.asked: SimpleQueue[Request | BaseException | None] = SimpleQueue()
        self.answered: SimpleQueue[Sequence[Tensor] | BaseException] = SimpleQueue()
        self.request: Request | None = None   # what waits for its gradients; None at the end
        lane.trainer.answers = self._ask
        threading.Thread(target=self._run, daemon=True).start()
        self._wait()

    def answer(self, gradients: Sequence[Tensor] | BaseException) -> None:
        """Let the rule go on, to its next request or to its end; an error is raised where it asked."""
        self.answered.put(gradients)
        self._wait()

    def _run(self) -> None:
        trainer, end = self.lane.trainer, None
        try:
            trainer.rule.before_step(trainer.clock)
        except BaseException as error:
            end = error
        trainer.answers = None
        self.asked.put(end)

    def _ask(self, request: Request) -> Sequence[Tensor]:
        self.asked.put(request)
        found = self.answered.get()
        if isinstance(found, BaseException):
            raise found
        return found

    def _wait(self) -> None:
        self.request = None
        with self.lane.alone():
            found = self.asked.get()
            if isinstance(found, BaseException):
                raise found
            self.request = found


class Shared:
    """The pass that some replicas share."""

    def __init__(self, lanes: Sequence[ReplicaState]) -> None:
        self.lanes = list(lanes)
        self.instead: list[Weights] = [{} for _ in lanes]
        self.first = lanes[0].trainer
        self.model = conductor([lane.trainer.adapters for lane in lanes], self.instead)

    def gradients(self, requests: Sequence[Request]) -> list[tuple[Tensor, Sequence[Tensor]]]:
        """The loss and the gradients that each replica asks for, in one pass a micro-batch."""
        self.instead[:] = [request.at for request in requests]
        weights = [shares(request.batches, self.first.adapters.model) for request in requests]
        nothing = torch.zeros((), dtype=torch.float32, device=self.first.accelerator.device)
        totals: list[Tensor] = [nothing for _ in requests]
        try:
            for j in range(len(weights[0])):
                losses = self.losses([request.batches[j] for request in requests])
                totals = [t + loss * w[j] for t, loss, w in zip(totals, losses, weights, strict=True)]
            # one replica's loss depends on no other's tensors, so the gradient of the sum is that of each
            found = torch.autograd.grad(torch.stack(totals).sum(), [tensor for one in requests for tensor in one.of])
        finally:
            self.instead[:] = [{} for _ in requests]
        ends = accumulate(len(request.of) for request in requests)
        return [(t, found[end - len(one.of):end]) for t, one, end in zip(totals, requests, ends, strict=True)]

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
    lanes = [ReplicaState(trainer) for trainer in trainers]
    passes = BatchedPass()
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


def _finish(lanes: Sequence[ReplicaState]) -> None:
    for lane in lanes:
        if lane.runs and lane.trainer.outcome.step == lane.trainer.total:
            with lane.alone():
                lane.trainer.complete()


def _leave(lanes: Sequence[ReplicaState]) -> None:
    for lane in lanes:
        if lane.runs:
            lane.trainer.save()
    raise KeyboardInterrupt("stopped between two steps; run the same line again to go on from there")


class BatchedPass:
    """Steps of replicas: those with batches of one shape share a pass."""

    def __init__(self) -> None:
        self.made: dict[tuple[int, ...], Shared] = {}

    def of(self, lanes: Sequence[ReplicaState]) -> Shared:
        """The pass that these share, made when it is first asked for."""
        key = tuple(map(id, lanes))
        if key not in self.made:
            if len(self.made) > 3:  # one ends, and the others go on without it
                self.made.clear()
            self.made[key] = Shared(lanes)
        return self.made[key]

    def step(self, lanes: Sequence[ReplicaState]) -> None:
        """The next step of each."""
        alike: dict[tuple, list[tuple[ReplicaState, Rows, Rows]]] = {}
        for lane in lanes:
            trainer, number = lane.trainer, lane.trainer.outcome.step + 1
            rows, held = (trainer.rows_of(stream, number) if trainer.streams[stream] else []
                          for stream in ("train", "held_out"))
            alike.setdefault((tuple(map(len, rows)), tuple(map(len, held))), []).append((lane, rows, held))
        for group in alike.values():
            self._step_alike(*map(list, zip(*group, strict=True)))

    def _step_alike(self, lanes: list[ReplicaState], rows: list[Rows], held: list[Rows]) -> None:
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

    def _before(self, lanes: list[ReplicaState]) -> None:
        """Run each rule's `before_step`; gradients asked for on batches of one shape come from one pass."""
        waiting = [BeforeStep(lane) for lane in lanes if type(lane.trainer.rule).before_step is not Rule.before_step]
        try:
            while any(one.request for one in waiting):
                alike: dict[tuple, list[BeforeStep]] = {}
                for one in waiting:
                    if request := one.request:
                        shapes = tuple(tuple(value.shape) for batch in request.batches for value in batch.values())
                        alike.setdefault((request.noise is None, shapes), []).append(one)
                for group in alike.values():
                    self._answer(group)
        except BaseException as error:
            for one in waiting:   # let no thread wait for ever
                if one.request is not None:
                    one.answer(error)
            raise

    def _answer(self, group: list[BeforeStep]) -> None:
        """Serve one request of each, all of one shape; a loss that is not finite ends its replica."""
        requests = [one.request for one in group if one.request is not None]
        noise = requests[0].noise
        with noise.again() if noise else nullcontext():   # one random state serves the rows of all
            found = self.of([one.lane for one in group]).gradients(requests)
        for one, (loss, gradients) in zip(group, found, strict=True):
            try:
                one.lane.trainer.refuse_non_finite(loss, "loss")
            except DivergedError as error:
                one.answer(error)
            else:
                one.answer(gradients)

    def _descend(self, lanes: list[ReplicaState]) -> list[float]:
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


def _close(lanes: Sequence[tuple[ReplicaState, float]]) -> list[tuple[ReplicaState, dict[str, float]]]:
    """End the step of `Trainer.step` for all, with one clipping and one AdamW; values of those that got through."""
    penalties, values = {}, []
    for lane, loss in lanes:
        with lane.alone():
            lane.trainer.rest_without_labels(loss)
            penalties[lane] = lane.trainer.add_penalty()
    running = [(lane, loss) for lane, loss in lanes if lane.runs]
    norms = _clip([lane for lane, _ in running])
    running = [(lane, loss) for lane, loss in running if lane.runs]
    step([lane.trainer.optimizer for lane, _ in running])
    for lane, loss in running:
        with lane.alone():
            values.append((lane, lane.trainer.after_step(loss, norms[lane], penalties[lane])))
    return values


def _clip(lanes: Sequence[ReplicaState]) -> dict[ReplicaState, float]:
    """The gradient norm of each, clipped where it is finite; one that is not ends its replica."""
    if not lanes:
        return {}
    norms = gradient_norms([lane.trainer.optimizer for lane in lanes])
    found = dict(zip(lanes, norms.tolist(), strict=True))
    for lane, norm in zip(lanes, norms, strict=True):
        if not math.isfinite(found[lane]):
            with lane.alone():
                lane.trainer.refuse_non_finite(norm, "gradient norm")
    clip([lane.trainer.optimizer for lane in lanes], norms,
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

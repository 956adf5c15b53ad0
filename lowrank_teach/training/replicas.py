"""Train R replicas in lockstep over one frozen base, with one shared forward and backward pass.

Every replica is a `Trainer` with its own branches, head, rule, optimizer, examples, learning rates and clock. Only
the costly part is shared: W x and its backward pass are computed once for the examples of all. A replica's trajectory
equals that of the single run up to the rounding of a batched product; with dropout in the base it is equal only in
distribution, since one generator draws the masks of all.

    outcomes = train_together(trainers)     # for each an Outcome, or the error that ended it
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

# ---- clipping and AdamW for all replicas at once -------------------------------------------------------------
# Each replica keeps its own optimizer; only the loop over tensors is shared, in a few calls of `torch._foreach_…`.
# The results are those of `clip_grad_norm_` and `AdamW.step`, bit for bit on a CPU.

class Update(NamedTuple):
    """A parameter that an optimizer is about to update."""

    parameter: Tensor
    gradient: Tensor
    state: dict[str, Tensor]
    lr: float
    decay: float


def _gradients(optimizer: AdamW) -> list[Tensor]:
    return [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


@torch.no_grad()
def gradient_norms(optimizers: Sequence[AdamW]) -> Tensor:
    """Return the Euclidean norm (R,) of all gradients of each optimizer."""
    of_each = [_gradients(optimizer) for optimizer in optimizers]
    if not (every := [gradient for gradients in of_each for gradient in gradients]):
        return torch.zeros(len(optimizers), device="cpu")
    norms, none = iter(torch._foreach_norm(every)), every[0].new_zeros(())
    return torch.stack([torch.linalg.vector_norm(torch.stack([next(norms) for _ in gradients])) if gradients else none
                        for gradients in of_each])


@torch.no_grad()
def clip(optimizers: Sequence[AdamW], norms: Tensor, limits: Sequence[float]) -> None:
    """Scale down each optimizer's gradients whose norm (R,) is above its limit, as `clip_grad_norm_` does."""
    factors = (norms.new_tensor(limits) / (norms + 1e-6)).tolist()
    pairs = [(gradient, factor) for optimizer, factor in zip(optimizers, factors, strict=True) if factor < 1.0
             for gradient in _gradients(optimizer)]
    if pairs:
        torch._foreach_mul_([gradient for gradient, _ in pairs], [factor for _, factor in pairs])


@torch.no_grad()
def step(optimizers: Sequence[AdamW]) -> None:
    """Take the next step of every optimizer (Loshchilov and Hutter 2019, algorithm 2, in torch's order).

    An optimizer without moments, or with settings other than learning rate, decay, betas and ε, steps by itself.
    """
    alike: dict[tuple[float, float, float], list[Update]] = {}
    for optimizer in optimizers:
        if not _plain(optimizer):
            optimizer.step()
            continue
        for group in optimizer.param_groups:
            alike.setdefault((*group["betas"], group["eps"]), []).extend(
                Update(p, p.grad, optimizer.state[p], group["lr"], group["weight_decay"])
                for p in group["params"] if p.grad is not None)
    for (beta1, beta2, eps), updates in alike.items():
        if updates:
            _adamw(updates, beta1, beta2, eps)


def _plain(optimizer: AdamW) -> bool:
    """Return whether `_adamw` computes the optimizer's next step."""
    special = ("amsgrad", "maximize", "capturable", "differentiable", "fused")
    return (not any(group[name] for group in optimizer.param_groups for name in special)
            and all(optimizer.state.get(p) for group in optimizer.param_groups for p in group["params"]
                    if p.grad is not None))


def _adamw(updates: list[Update], beta1: float, beta2: float, eps: float) -> None:
    parameters, gradients = [u.parameter for u in updates], [u.gradient for u in updates]
    counts, first, second = ([u.state[name] for u in updates] for name in ("step", "exp_avg", "exp_avg_sq"))
    torch._foreach_add_(counts, 1)
    if any(u.decay for u in updates):
        torch._foreach_mul_(parameters, [1 - u.lr * u.decay for u in updates])
    torch._foreach_lerp_(first, gradients, 1 - beta1)
    torch._foreach_mul_(second, beta2)
    torch._foreach_addcmul_(second, gradients, gradients, 1 - beta2)
    steps = torch.stack(counts).tolist()
    denominators = torch._foreach_sqrt(second)
    torch._foreach_div_(denominators, [(1 - beta2 ** t) ** 0.5 for t in steps])
    torch._foreach_add_(denominators, eps)
    torch._foreach_addcdiv_(parameters, first, denominators,
                            [-u.lr / (1 - beta1 ** t) for u, t in zip(updates, steps, strict=True)])


# ---- one forward pass for all replicas -----------------------------------------------------------------------
# W x is computed once for the examples of all replicas; the R branches are two batched products (`baddbmm`), as are
# the heads. The factors are stacked again in each pass, so that each replica's own parameters get gradients and its
# rule may prune, reset or replace them at any time. Smaller ranks are padded with zeros.

Weights = Mapping[str, Tensor]   # tensors to use in place of the parameters of one model, by name


class StackedSite(nn.Module):
    """A frozen layer with the branches of R models on it.

    Args:
        base: the layer.  path: its name in the model.
        owners: the adapted layer of each model; None where a model does not adapt it.
        instead: tensors to use in place of each model's parameters.
    """

    def __init__(self, base: nn.Module, path: str, owners: Sequence[Adapted | None], instead: list[Weights]) -> None:
        super().__init__()
        self.base, self.path, self.instead = base, path, instead
        self.owners = list(owners)   # a list does not register them as submodules

    @property
    def weight(self) -> Tensor:
        """The stored weight; some models read its dtype."""
        return self.base.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs of all replicas: (R · N, *, k) -> (R · N, *, d)."""
        h = self.base(x)
        flat = h.reshape(len(self.owners), -1, h.shape[-1])                                       # (R, N, D)
        rows = {name: part for owner in self.owners if owner for name, part in owner.rows.items()}
        for name, part in rows.items():
            flat = self._add(flat, x, name, part)
        return flat.view(h.shape)

    def _add(self, h: Tensor, x: Tensor, name: str, part: slice | None) -> Tensor:
        """Add the branches of this name to h[..., part], for h (R, N, D)."""
        pairs = [(owner.branches[name], instead) if owner and name in owner.rows else None
                 for owner, instead in zip(self.owners, self.instead, strict=True)]
        some = next(pair[0] for pair in pairs if pair)
        z = x.reshape(len(pairs), -1, x.shape[-1])                                                # (R, N, k)
        prefix = f"{self.path}.lora.{name.replace('.', '_')}"
        if live := _live(pairs, prefix, some):
            h = _add_products(h, _with_dropout(z, pairs, some), *live, part)
        fixed = _stack([_fixed(pair[0]) if pair else None for pair in pairs], some)
        return _add_products(h, z, *fixed, part) if fixed else h


class StackedLinear(nn.Module):
    """The same `nn.Linear` of R models, each applied to its own examples."""

    def __init__(self, path: str, layers: Sequence[nn.Linear], instead: list[Weights]) -> None:
        super().__init__()
        self.path, self.instead = path, instead
        self.layers = list(layers)

    @property
    def weight(self) -> Tensor:
        return self.layers[0].weight

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs of all replicas: (R · N, *, k) -> (R · N, *, d)."""
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
    """Return a model that runs all of these in one pass; its batches hold the examples of the models in turn.

    Args:
        models: adapters on models with the same frozen parameters, not merged, that `why_not` allows.
        instead: for each model, tensors to use in place of parameters, read in every pass.
    """
    first = models[0].model
    frozen = [*first.parameters(), *first.buffers()]
    shared: Any = copy.deepcopy(first, {id(t): t for t in frozen})
    for name in ("forward", "_original_forward", "save_pretrained"):  # functions bound to the first model
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
    """Let a model use the parameters and buffers of another one.

    but: names of parameters to keep, such as those of a new head.
    """
    theirs = dict(other.named_modules(remove_duplicate=False))
    for path, module in model.named_modules(remove_duplicate=False):
        for kind in ("_parameters", "_buffers"):
            for name in getattr(module, kind):
                if f"{path}.{name}".lstrip(".") not in but:
                    getattr(module, kind)[name] = getattr(theirs[path], kind)[name]


def why_not(adapters: Adapters) -> str:
    """Return why a model cannot share its pass with others, or "" if it can."""
    if adapters.base_names:
        return "it trains pretrained weights, of which there is one copy only"
    if adapters.extra_names:
        return "its rule puts modules of its own on the model"
    if adapters.method.writes_base:
        return "it writes into W, of which there is one copy only"
    other = [path for path in _heads(adapters) if type(adapters.model.get_submodule(path)) is not nn.Linear]
    return f"its head has more than linear layers ({other[0]})" if other else ""


def _heads(adapters: Adapters) -> list[str]:
    """Return the paths of the modules with parameters of the head."""
    return list(dict.fromkeys(name.rpartition(".")[0] for name in adapters.head_names))


Pair = tuple[Tensor, Tensor]   # left (d, r), right (r, k)


def _live(pairs: Sequence[tuple[LowRank, Weights] | None], prefix: str, like: LowRank) -> Pair | None:
    """Return the trained factors (R, d, r), multiplied by s and g, and (R, r, k); None if no model has any."""
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
    """Return one model's factors B diag(g) and A."""
    A, B = (instead.get(f"{prefix}.{name}", getattr(branch, name)) for name in ("lora_A", "lora_B"))
    return B if branch.gate_module is None else B * branch.gate_module(), A


def _fixed(branch: LowRank) -> Pair | None:
    """Return the factors that the forward pass adds without gradients: the merged share and the fixed terms."""
    if not (branch.merged_share or branch.fixed_left.shape[1]):
        return None
    left, right = branch.factors_in_base()
    return (left, right) if len(right) else None


def _stack(pairs: Sequence[Pair | None], like: LowRank) -> Pair | None:
    """Stack pairs to (R, d, r) and (R, r, k), padded with zeros; None if no model has any."""
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


def _with_dropout(x: Tensor, pairs: Sequence[tuple[LowRank, Weights] | None], like: LowRank) -> Tensor:
    """Apply each branch's own dropout to x (R, N, k)."""
    p = [pair[0].dropout if pair and pair[0].training else 0.0 for pair in pairs]
    if not any(p):
        return x
    x = to_multiply(x, like.lora_A)
    if len(set(p)) == 1:
        return F.dropout(x, p[0], p[0] > 0)
    return torch.stack([F.dropout(rows, one, one > 0) for rows, one in zip(x, p, strict=True)])


def _add_products(h: Tensor, x: Tensor, left: Tensor, right: Tensor, part: slice | None) -> Tensor:
    """Add x rightᵀ leftᵀ to h[..., part], for h (R, N, D), x (R, N, k), left (R, d, r), right (R, r, k)."""
    y = product(x, right)                                                                         # (R, N, r)
    if part is None and h.dtype == y.dtype == left.dtype and not under_autocast(h):
        return torch.baddbmm(h, y, left.mT)
    y = torch.bmm(y, left.mT).to(h.dtype)                                                         # (R, N, d)
    if part is None:
        return h + y
    return torch.cat([h[..., :part.start], h[..., part] + y, h[..., part.stop:]], -1)


# ---- the loop ------------------------------------------------------------------------------------------------

Examples = list[list[dict[str, Any]]]   # micro-batches of encoded examples


class ReplicaState:
    """One replica: its trainer, and the error or callback that ended it, if any."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.stopped = trainer, False
        self.error: Exception | None = None

    @property
    def runs(self) -> bool:
        return self.error is None and not self.stopped and not self.trainer.outcome.finished

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Let an error end only this replica, unless memory is exhausted."""
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

    def __init__(self, replica: ReplicaState) -> None:
        self.replica = replica
        self.asked: SimpleQueue[Request | BaseException | None] = SimpleQueue()
        self.answered: SimpleQueue[Sequence[Tensor] | BaseException] = SimpleQueue()
        self.request: Request | None = None   # what waits for its gradients; None at the end
        replica.trainer.answers = self._ask
        threading.Thread(target=self._run, daemon=True).start()
        self._wait()

    def answer(self, gradients: Sequence[Tensor] | BaseException) -> None:
        """Let the rule go on, to its next request or to its end; an error is raised where it asked."""
        self.answered.put(gradients)
        self._wait()

    def _run(self) -> None:
        trainer, end = self.replica.trainer, None
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
        with self.replica.alone():
            found = self.asked.get()
            if isinstance(found, BaseException):
                raise found
            self.request = found


class Shared:
    """The forward and backward pass of some replicas."""

    def __init__(self, replicas: Sequence[ReplicaState]) -> None:
        self.replicas = list(replicas)
        self.instead: list[Weights] = [{} for _ in replicas]
        self.first = replicas[0].trainer
        self.model = conductor([replica.trainer.adapters for replica in replicas], self.instead)

    def gradients(self, requests: Sequence[Request]) -> list[tuple[Tensor, Sequence[Tensor]]]:
        """Return the loss and the gradients that each replica asks for, with one pass for each micro-batch."""
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
        """Return the mean task loss of each replica on its own batch; all batches have one shape."""
        inputs = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
        labels = inputs.pop("labels")
        if self.model.config.is_encoder_decoder and self.model.can_generate():
            inputs["decoder_input_ids"] = self.model.prepare_decoder_input_ids_from_labels(labels=labels)
        with self.first.accelerator.autocast():
            logits = self.model(**inputs).logits
        if self.first.config.mixed_precision != "no":
            logits = logits.float()
        parts = logits.chunk(len(self.replicas))
        return [loss_from(part, batch, replica.trainer.config.label_smoothing, replica.trainer.adapters.model)
                for part, batch, replica in zip(parts, batches, self.replicas, strict=True)]


def train_together(trainers: Sequence[Trainer], on_step: Callable[[int, int], None] | None = None
                   ) -> list[Outcome | Exception]:
    """Train all replicas; return for each its outcome, or the error that ended it.

    Args:
        trainers: trainers of models that share their frozen parameters (`share_weights`), one collate and device.
        on_step: called after each step with the number of replicas that run, and the largest number of steps left.

    Raises:
        ValueError: a replica cannot share its pass, or there are several processes.
        KeyboardInterrupt: Ctrl-C; each replica's state is in its checkpoint.
    """
    for trainer in trainers:
        if trainer.team.size > 1:
            raise ValueError("replicas share a pass within one process: start this one without a launcher")
        if reason := why_not(trainer.adapters):
            raise ValueError(f"{trainer.adapters.method.name} cannot share its pass: {reason}; train it alone")
    replicas = [ReplicaState(trainer) for trainer in trainers]
    passes = BatchedPass()
    modes = ExitStack()
    try:
        for replica in replicas:
            modes.enter_context(modes_kept(replica.trainer.adapters.model))
            with replica.alone():
                replica.trainer.prepare()
        _finish(replicas)  # replicas that are resumed after their last step
        with interrupt_between_steps() as interrupted:
            while running := [replica for replica in replicas if replica.runs]:
                passes.step(running)
                _finish(running)
                if on_step is not None:
                    left = max(t.total - t.outcome.step for t in trainers)
                    on_step(sum(replica.runs for replica in replicas), left)
                if interrupted.is_set():
                    _leave(replicas)
    finally:
        for replica in replicas:
            if hasattr(replica.trainer, "model"):
                replica.trainer.unwrap()
        modes.close()
    return [replica.error or replica.trainer.outcome for replica in replicas]


def _finish(replicas: Sequence[ReplicaState]) -> None:
    for replica in replicas:
        if replica.runs and replica.trainer.outcome.step == replica.trainer.total:
            with replica.alone():
                replica.trainer.complete()


def _leave(replicas: Sequence[ReplicaState]) -> None:
    for replica in replicas:
        if replica.runs:
            replica.trainer.save()
    raise KeyboardInterrupt("stopped between two steps; run the same line again to go on from there")


class BatchedPass:
    """Take steps of replicas; those whose batches have one shape share a pass."""

    def __init__(self) -> None:
        self.made: dict[tuple[int, ...], Shared] = {}

    def of(self, replicas: Sequence[ReplicaState]) -> Shared:
        """Return the shared pass of these replicas, made at the first use."""
        key = tuple(map(id, replicas))
        if key not in self.made:
            if len(self.made) > 3:  # passes of replicas that have ended
                self.made.clear()
            self.made[key] = Shared(replicas)
        return self.made[key]

    def step(self, replicas: Sequence[ReplicaState]) -> None:
        """Take the next step of each replica."""
        alike: dict[tuple, list[tuple[ReplicaState, Examples, Examples]]] = {}
        for replica in replicas:
            trainer, number = replica.trainer, replica.trainer.outcome.step + 1
            rows, held = (trainer.rows_of(stream, number) if trainer.streams[stream] else []
                          for stream in ("train", "held_out"))
            alike.setdefault((tuple(map(len, rows)), tuple(map(len, held))), []).append((replica, rows, held))
        for group in alike.values():
            self._step_alike(*map(list, zip(*group, strict=True)))

    def _step_alike(self, replicas: list[ReplicaState], rows: list[Examples], held: list[Examples]) -> None:
        start = time.perf_counter()
        made = [together(replicas[0].trainer, examples) for examples in (rows, held)]
        for replica, batches, aside in zip(replicas, *made, strict=True):
            with replica.alone():
                replica.trainer.open_step(replica.trainer.outcome.step + 1, batches, aside)
        self._before(replicas)
        replicas = [replica for replica in replicas if replica.runs]
        losses = self._descend(replicas) if replicas else []
        values = _close([(replica, loss) for replica, loss in zip(replicas, losses, strict=True) if replica.runs])
        seconds = (time.perf_counter() - start) / max(len(replicas), 1)
        for replica, found in values:
            replica.trainer.outcome.seconds += seconds
            with replica.alone():
                replica.stopped = replica.trainer.conclude_step(found)

    def _before(self, replicas: list[ReplicaState]) -> None:
        """Run each rule's `before_step`; gradients asked for on batches of one shape come from one pass."""
        waiting = [BeforeStep(replica) for replica in replicas
                   if type(replica.trainer.rule).before_step is not Rule.before_step]
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
            found = self.of([one.replica for one in group]).gradients(requests)
        for one, (loss, gradients) in zip(group, found, strict=True):
            try:
                one.replica.trainer.refuse_non_finite(loss, "loss")
            except DivergedError as error:
                one.answer(error)
            else:
                one.answer(gradients)

    def _descend(self, replicas: list[ReplicaState]) -> list[float]:
        """Add the gradients of all task losses with one backward pass for each micro-batch; return the losses."""
        shared = self.of(replicas)
        totals = [0.0] * len(replicas)
        for replica in replicas:
            replica.trainer.optimizer.zero_grad()
        weights = [shares(replica.trainer.micro_batches, replica.trainer.adapters.model) for replica in replicas]
        for j in range(len(weights[0])):
            losses = shared.losses([replica.trainer.micro_batches[j] for replica in replicas])
            losses = [loss * weight[j] for loss, weight in zip(losses, weights, strict=True)]
            found = torch.stack([loss.detach() for loss in losses]).tolist()
            for i, (replica, loss) in enumerate(zip(replicas, losses, strict=True)):
                totals[i] += found[i]
                if not math.isfinite(found[i]):
                    with replica.alone():
                        replica.trainer.refuse_non_finite(loss, "loss")
            finite = [loss for loss, value in zip(losses, found, strict=True) if math.isfinite(value)]
            if finite:  # no gradient passes from one replica to another
                torch.stack(finite).sum().backward()
        return totals


def _close(replicas: Sequence[tuple[ReplicaState, float]]) -> list[tuple[ReplicaState, dict[str, float]]]:
    """End the step as `Trainer.step` does, with one clipping and one AdamW; return the values of each replica."""
    penalties, values = {}, []
    for replica, loss in replicas:
        with replica.alone():
            replica.trainer.rest_without_labels(loss)
            penalties[replica] = replica.trainer.add_penalty()
    running = [(replica, loss) for replica, loss in replicas if replica.runs]
    norms = _clip([replica for replica, _ in running])
    running = [(replica, loss) for replica, loss in running if replica.runs]
    step([replica.trainer.optimizer for replica, _ in running])
    for replica, loss in running:
        with replica.alone():
            values.append((replica, replica.trainer.after_step(loss, norms[replica], penalties[replica])))
    return values


def _clip(replicas: Sequence[ReplicaState]) -> dict[ReplicaState, float]:
    """Clip the gradients of each replica and return their norms; one that is not finite ends its replica."""
    if not replicas:
        return {}
    norms = gradient_norms([replica.trainer.optimizer for replica in replicas])
    found = dict(zip(replicas, norms.tolist(), strict=True))
    for replica, norm in zip(replicas, norms, strict=True):
        if not math.isfinite(found[replica]):
            with replica.alone():
                replica.trainer.refuse_non_finite(norm, "gradient norm")
    clip([replica.trainer.optimizer for replica in replicas], norms,
         [replica.trainer.config.max_grad_norm or math.inf for replica in replicas])
    return found


def together(trainer: Trainer, rows: Sequence[Examples]) -> list[list[Batch]]:
    """Return the micro-batches of each replica, padded to one length, on the device.

    Args:
        trainer: gives the collate function and the device.  rows: the examples of each replica's micro-batches.
    """
    made: list[list[Batch]] = [[] for _ in rows]
    for j in range(len(rows[0])):
        whole = trainer.collate([row for of in rows for row in of[j]])
        n = len(rows[0][j])
        placed = {name: value.to(trainer.accelerator.device) for name, value in whole.items()}
        for i, batches in enumerate(made):
            batches.append({name: value[i * n:(i + 1) * n] for name, value in placed.items()})
    return made

"""One forward pass for R adapted models over one frozen base: their branches and heads, stacked.

    shared = conductor(all_adapters)       # all adapted in the same way on models that share their weights
    shared(**batch).logits                 # rows of the first model, then of the second, …

W x is computed once for all rows; the R branches beside it are two batched products (`baddbmm`), as are the heads.
The factors stay the parameters of their own models: the stack is made anew in each pass, so that a gradient reaches
each of them, and a rule may prune, reset or replace its own at any time. Ranks that differ are filled up with zeros.
"""

# R models, N rows of each (times tokens), k in, d out, r the largest rank

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adapters import Adapters
from .lowrank import Adapted, LowRank
from .wide import product, to_multiply, under_autocast

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
    return B if branch._gate is None else B * branch._gate(), A


def _still(branch: LowRank) -> Pair | None:
    """The factors that the forward pass adds and no step moves: the echo's and the fixed ones."""
    if not (branch.echo or branch.fixed_left.shape[1]):
        return None
    left, right = branch.held_factors()
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



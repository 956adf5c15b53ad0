"""Train in float32 (float64 beside float64 weights), even if the model is stored in a shorter type.

In bfloat16 the numbers next to 1 are 0.008 apart, so a step of 1e-4 does not change a weight of 1; in float16 AdamW's
ε of 1e-8 becomes 0, and its first step 0 / 0. So branches stay float32 when the model is converted, the head of a
model in a short type is float32 while it trains, and other parameters in a short type are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the type to compute and train in beside weights of `dtype`: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def wide_copy(t: Tensor) -> Tensor:
    """Return a copy of t in `wide(t.dtype)`."""
    return t.to(wide(t.dtype), copy=True)


def is_short(t: Tensor) -> bool:
    """Return whether a tensor is a float of fewer than 32 bits."""
    return t.is_floating_point() and t.element_size() < 4


def short_parameters(model: nn.Module, names: Iterable[str]) -> dict[str, torch.dtype]:
    """Return the types of those of these parameters that are floats of fewer than 32 bits."""
    named = {name: model.get_parameter(name) for name in names}
    return {name: p.dtype for name, p in named.items() if is_short(p)}


def refuse_short(model: nn.Module, names: Iterable[str], method: Any) -> None:
    """Refuse pretrained parameters that a method would train in a float of fewer than 32 bits.

    Raises:
        ValueError: names the parameter and the remedy.
    """
    for name, dtype in short_parameters(model, names).items():
        norms = ", set layer_norms=False" if getattr(method, "layer_norms", False) else ""
        raise ValueError(f"{method.name} trains {name} itself, which needs float32 and is {dtype}: load the model in "
                         f"float32 (mixed_precision=\"bf16\" is for speed){norms}, or choose a method that leaves "
                         "pretrained weights frozen")


class Wide(nn.Module):
    """A module that moves to another device with its model, but keeps at least float32."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def kept(t: Tensor) -> Tensor:
            made = fn(t)
            return t.to(made.device) if is_short(made) and not is_short(t) else made

        return super()._apply(kept, recurse)  # type: ignore[no-untyped-call]


# ---- the head ------------------------------------------------------------------------------------------------

class WideHead:
    """Keep a head in float32 on a model of a shorter type, until `narrow`.

    The head's modules convert their inputs to float32. Their output is converted back for a part of the model that
    is stored in a shorter type; other outputs, such as logits, stay float32.

    Args:
        model: changed in place, unless none of its parameters is short.
        names: names of the head's parameters.

    Raises:
        ValueError: one of them is tied to a parameter that would stay short.
    """

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        paths = dict.fromkeys(name.rpartition(".")[0] for name in names)
        every = dict(model.named_parameters(remove_duplicate=False))
        own = {name: p for name, p in every.items() if name.rpartition(".")[0] in paths}
        self.dtypes = short_parameters(model, own)
        _refuse_tied(model, self.dtypes)
        others = {name: p for name, p in every.items() if name not in own and p.is_floating_point()}
        self.like = next(((name, p.dtype) for name, p in others.items()), None)
        self.hooks: list[Any] = []
        for name in self.dtypes:
            own[name].data = own[name].data.float()
        if self.dtypes or any(map(is_short, others.values())):
            for path in paths:
                self._read_wide(model, path, list(every), others)

    def _read_wide(self, model: nn.Module, path: str, order: list[str], others: dict[str, nn.Parameter]) -> None:
        module, last = model.get_submodule(path), max(i for i, n in enumerate(order) if n.rpartition(".")[0] == path)
        self.hooks.append(module.register_forward_pre_hook(_widened, with_kwargs=True))
        following = next((name for name in order[last + 1:] if name in others and is_short(others[name])), None)
        if following is not None:
            reader = model.get_submodule(following.rpartition(".")[0])
            self.hooks.append(module.register_forward_hook(partial(_as_read, reader)))

    def narrow(self, model: nn.Module) -> None:
        """Restore the types of the head's modules, unless the whole model was converted in between."""
        for hook in self.hooks:
            hook.remove()
        if self.like is None or model.get_parameter(self.like[0]).dtype == self.like[1]:
            for name, dtype in self.dtypes.items():
                parameter = model.get_parameter(name)
                parameter.data = parameter.data.to(dtype)


def _refuse_tied(model: nn.Module, widened: Mapping[str, Any]) -> None:
    own = {id(model.get_parameter(name)): name for name in widened}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in own and name not in widened:
            raise ValueError(f"{own[id(parameter)]} is to train in float32, and is tied to {name}, which would stay "
                             f"{parameter.dtype}: load the model in float32, untie the two, or take it out of head")


def _widened(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Convert the short inputs of a module to the type of its parameters."""
    dtype = next(module.parameters(recurse=False)).dtype

    def read(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, Tensor) and is_short(value) else value

    return tuple(map(read, args)), {name: read(value) for name, value in kwargs.items()}


def _as_read(reader: nn.Module, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
    """Convert a module's output to the type of the module that reads it."""
    dtype = next(p.dtype for p in reader.parameters(recurse=False) if p.is_floating_point())
    return output.to(dtype) if isinstance(output, Tensor) and output.is_floating_point() else output


# ---- products ------------------------------------------------------------------------------------------------

def under_autocast(x: Tensor) -> bool:
    """Return whether autocast is on for x's device."""
    return torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type)


def to_multiply(x: Tensor, factor: Tensor) -> Tensor:
    """Return x in the factor's type, or unchanged under autocast."""
    return x if under_autocast(x) else x.to(factor.dtype)


def product(x: Tensor, right: Tensor) -> Tensor:
    """Return x rightᵀ in the type of right or of autocast.

    Shapes: (*, k) and (r, k) -> (*, r), or for R replicas (R, N, k) and (R, r, k) -> (R, N, r).
    """
    if is_short(x) and not is_short(right) and not under_autocast(x):
        return _WideProduct.apply(x, right)  # type: ignore[no-any-return]
    return _product(to_multiply(x, right), right)


def _product(x: Tensor, right: Tensor) -> Tensor:
    return F.linear(x, right) if right.dim() == 2 else torch.bmm(x, right.mT)


class _WideProduct(torch.autograd.Function):
    """Save the short x for the backward pass and convert it there again, so that branches share one saved input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, right: Tensor) -> Tensor:
        ctx.save_for_backward(x, right)
        return _product(x.to(right.dtype), right)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (x, right), (g,) = ctx.saved_tensors, gradients
        of_x = of_right = None
        if ctx.needs_input_grad[0]:
            of_x = (g @ right).to(x.dtype)
        if ctx.needs_input_grad[1]:
            if right.dim() == 2:  # one matrix for all leading dimensions
                g, x = g.reshape(-1, g.shape[-1]), x.reshape(-1, x.shape[-1])
            of_right = g.mT @ x.to(right.dtype)
        return of_x, of_right

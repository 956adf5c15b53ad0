"""What can be adapted, asked before anything is changed; and which adapters a model has already.

    adapters = lt.adapters_of(model)       # where the variable that held them is gone
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .lowrank import Adapted

if TYPE_CHECKING:
    from .adapters import Adapters


MARK = "lowrank_mark"  # the attribute, on every module of an adapted model


class Mark:
    """What says that a model is adapted, and holds its adapters: None in a copy of the model alone."""

    def __init__(self, adapters: Adapters | None) -> None:
        self.adapters = adapters

    def __deepcopy__(self, memo: dict[int, Any]) -> Mark:
        return Mark(memo.get(id(self.adapters)))  # a copy of the adapters has a copy of the model, not the other way

    def __reduce__(self) -> tuple[Any, ...]:
        return Mark, (None,)


def mark(model: nn.Module, adapters: Adapters) -> None:
    """Say on every module that it is adapted: neither a part nor a whole around it can be adapted again."""
    said = Mark(adapters)
    for module in model.modules():
        vars(module)[MARK] = said


def unmark(model: nn.Module) -> None:
    """Take that back."""
    for module in model.modules():
        vars(module).pop(MARK, None)


def require_module(model: Any) -> None:
    """Refuse what is no model: the name of one, a method in its place.

    Raises:
        ValueError: it is no nn.Module.
    """
    from .errors import require_kind  # late: the methods stand on this file

    require_kind("model", model, nn.Module, "a torch nn.Module, such as the first of what load_backbone(name) gives")


def adapters_of(model: nn.Module) -> Adapters:
    """The adapters that `adapt` or `load_peft` put on a model, or on a part of it.

    Raises:
        ValueError: there are none, the model is a copy and they stayed with the original, or it is no nn.Module.
    """
    require_module(model)
    marks = [vars(module)[MARK] for module in model.modules() if MARK in vars(module)]
    if not marks:
        raise ValueError("this model is not adapted: lt.adapt(model, method) puts adapters on it")
    if marks[0].adapters is None:
        raise ValueError("this model is a copy of an adapted one, and the adapters stayed with the original: copy "
                         "them instead, as copy.deepcopy(adapters).model")
    return marks[0].adapters


def refuse_adapted(model: nn.Module) -> None:
    """Refuse a model that carries branches or other modules already, ours or peft's, on itself or on a part.

    Raises:
        ValueError: says how to take them off; or it is no nn.Module.
    """
    require_module(model)
    for path, module in model.named_modules():
        found = vars(module).get(MARK)
        if found is not None and found.adapters is not None:
            raise ValueError("this model is adapted already; call remove() on its adapters first, which "
                             "lt.adapters_of(model) gives back")
        if found is not None or isinstance(module, Adapted):
            raise ValueError(f"this model is adapted already: {path or 'it'} is a copy of an adapted module, or was "
                             "wrapped by hand, and no adapters stand for it; adapt a model that was loaded anew")
        if _is_of_peft(module):
            can_be_taken_off = any(_is_of_peft(other) and hasattr(other, "merge") for other in model.modules())
            raise ValueError(f"peft's own modules are on this model ({path or type(module).__name__}), and would be "
                             "frozen as if they were pretrained: " + (
                                 "call peft's merge_and_unload() or unload() first, or read a saved adapter with "
                                 "lt.load_peft" if can_be_taken_off else
                                 "peft cannot merge or unload a prompt, so adapt a model that was loaded anew"))


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside of what `torch.compile` and `nn.DataParallel` put around one, which go on running it."""
    while (inner := model._modules.get("_orig_mod", getattr(model, "module", None)
                                       if isinstance(model, nn.DataParallel) else None)) is not None:
        model = inner
    return model


def plain_name(name: str) -> str:
    """A module's or parameter's name without what `torch.compile` adds to it; a model finds it by both."""
    return name.replace("_orig_mod.", "").removesuffix("._orig_mod")


def to_adapt(model: nn.Module) -> nn.Module:
    """The model that branches can be put on: the one given, or the one inside of `torch.compile`'s wrapper.

    Raises:
        ValueError: it is adapted already, or has a wrapper around it or in it that must come after `adapt`.
    """
    refuse_adapted(model)
    kind = type(model).__name__
    if isinstance(model, nn.parallel.DistributedDataParallel) or kind == "FullyShardedDataParallel":
        raise ValueError(f"this model is in a {kind}, which would not hear of the parameters that are added: adapt "
                         "the model inside of it (model.module), and put the wrapper around it after that")
    model = unwrapped(model)
    compiled = [path for path, module in model.named_modules() if "_orig_mod" in module._modules]
    if compiled:
        raise ValueError(f"{compiled[0]} was compiled by itself, which hides the layers in it: adapt the model first "
                         f"and compile after that, or let it compile in place with model.{compiled[0]}.compile()")
    return model


def _is_of_peft(module: nn.Module) -> bool:
    return type(module).__module__.partition(".")[0] == "peft"


def refuse_inference(model: nn.Module | None = None) -> None:
    """Refuse to make tensors that can never train, or to build on weights that no gradient passes through.

    Raises:
        RuntimeError: inference mode is on, or the model was loaded in it.
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError("torch.inference_mode() is on, and what is made in it can never train: do this outside of "
                           "it (torch.no_grad() is no hindrance)")
    name = next((name for name, p in model.named_parameters() if p.is_inference()), "") if model is not None else ""
    if name:
        raise RuntimeError(f"{name} was made in torch.inference_mode(), so no gradient can pass through this model: "
                           "load the model outside of it")


# -- which layers can carry a branch


def refuse_layer(model: nn.Module, path: str) -> None:
    """Refuse a layer whose weight is used without calling it, or is not a parameter of its own.

    Raises:
        ValueError: says which, and what to do.
    """
    parts = path.split(".")
    for above in (model.get_submodule(".".join(parts[:i])) for i in range(len(parts))):
        if isinstance(above, nn.MultiheadAttention):
            raise ValueError(f"{path} lies in an nn.MultiheadAttention, which reads its weight and never calls it: a "
                             "branch there would have no effect. Leave this site out, or build the attention from "
                             "nn.Linear layers")
        if isinstance(above, nn.TransformerEncoderLayer) and torch.backends.mha.get_fastpath_enabled():
            raise ValueError(f"{path} lies in an nn.TransformerEncoderLayer, which in eval mode reads its weight and "
                             "does not call it, so a branch would have no effect: leave this site out, or call "
                             "torch.backends.mha.set_fastpath_enabled(False) wherever the model runs")
    layer = model.get_submodule(path)
    if layer._parameters.get("weight") is None:
        raise ValueError(f"the weight of {path} is computed from other parameters (weight_norm or another "
                         "parametrization), so nothing can be written into it: remove the parametrization first, or "
                         "leave this site out")
    tied = [name for name, parameter in model.named_parameters(remove_duplicate=False)
            if parameter is layer.weight and name != f"{path}.weight"]
    if tied:
        raise ValueError(f"the weight of {path} is tied to {', '.join(sorted(tied))}: a change of one would change "
                         "the other; untie it, or leave this site out")


# -- which parameters can be written


def refuse_unwritable(model: nn.Module, names: Iterable[str]) -> None:
    """Refuse parameters that cannot be written alone: without values, or on memory that is used twice.

    Args: names: of the parameters that are merged into, or train.

    Raises:
        ValueError: names one, and what to do.
    """
    wanted = dict.fromkeys(names)
    planned = all(p.is_meta for p in model.parameters()) and not any(hasattr(m, "_hf_hook") for m in model.modules())
    for name in wanted:
        parameter = model.get_parameter(name)
        if parameter.is_meta and not planned:
            raise ValueError(f"{name} is on the meta device, without values (offloaded, or never loaded): load the "
                             "model without offloading to disk or CPU, in bfloat16 or 4 bits where memory is short")
        if not parameter.is_meta and _repeats(parameter):
            raise ValueError(f"several elements of {name} lie on one place in memory (an expanded tensor or an "
                             "overlapping view), so they cannot be written apart: give it memory of its own with "
                             "nn.Parameter(weight.detach().clone(memory_format=torch.contiguous_format))")
    for first, second in _on_one_memory(model):
        if first in wanted or second in wanted:
            raise ValueError(f"{first} and {second} are two tensors on one memory, so a change of one would change "
                             "the other unseen: give one of them its own with nn.Parameter(weight.detach().clone()), "
                             "or leave it out")


def _on_one_memory(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Pairs of names of different tensors with an element in common."""
    held = sorted(((str(t.device), at, at + _span(t) * t.element_size(), name, t)
                   for name, t in chain(model.named_parameters(), model.named_buffers()) if (at := _address(t))),
                  key=lambda one: one[:4])
    still: list[tuple[str, int, int, str, Tensor]] = []  # those that reach into what comes
    for one in held:
        still = [other for other in still if other[0] == one[0] and other[2] > one[1]]
        yield from ((other[3], one[3]) for other in still if _touch(other[4], one[4]))
        still.append(one)


def _address(t: Tensor) -> int:
    """Where a tensor begins; 0 where it has no memory of its own to look at."""
    try:
        return 0 if t.is_meta or not t.numel() else t.data_ptr()
    except RuntimeError:  # a tensor without storage, as torch.compile and sharding have them
        return 0


def _span(t: Tensor) -> int:
    """Elements from the first to the last one of a strided tensor."""
    return 1 + sum((n - 1) * stride for n, stride in zip(t.shape, t.stride(), strict=True))


def _places(t: Tensor) -> Tensor:
    """The place of every element, counted in elements from the first one. (numel,)"""
    return torch.arange(_span(t)).as_strided(t.shape, t.stride()).flatten()


def _repeats(t: Tensor) -> bool:
    """Whether two elements of a tensor are one place in memory."""
    if not _address(t) or t.is_contiguous() or (t.dim() == 2 and t.t().is_contiguous()):
        return False
    return len(_places(t).unique()) < t.numel()


def _touch(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors whose memory overlaps have an element in common."""
    gap, odd = divmod(b.data_ptr() - a.data_ptr(), a.element_size())
    if odd or a.element_size() != b.element_size():
        return True
    return bool(torch.isin(_places(b) + gap, _places(a)).any())


@contextmanager
def modes_kept(model: torch.nn.Module) -> Iterator[None]:
    """Training or eval mode as it was, module by module: some may be kept in eval on purpose."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module in model.modules():  # one that came meanwhile (a new link's gate) takes the model's own
            module.training = modes.get(module, modes[model])

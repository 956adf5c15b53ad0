"""Check a model before it is adapted, and find the adapters that it has already.

    adapters = lt.adapters_of(model)       # if the variable that held them is gone
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .errors import require_kind
from .lowrank import Adapted

if TYPE_CHECKING:
    from .adapters import Adapters


MARK = "lowrank_mark"  # the attribute of every module of an adapted model


class Mark:
    """The mark of an adapted model, which holds its adapters, or None if the model was copied without them."""

    def __init__(self, adapters: Adapters | None) -> None:
        self.adapters = adapters

    def __deepcopy__(self, memo: dict[int, Any]) -> Mark:
        return Mark(memo.get(id(self.adapters)))  # a copy of the adapters copies the model, but not the reverse

    def __reduce__(self) -> tuple[Any, ...]:
        return Mark, (None,)


def mark(model: nn.Module, adapters: Adapters) -> None:
    """Mark every module as adapted, so that no part of the model and no model around it can be adapted again."""
    shared = Mark(adapters)
    for module in model.modules():
        vars(module)[MARK] = shared


def unmark(model: nn.Module) -> None:
    """Remove the mark from every module."""
    for module in model.modules():
        vars(module).pop(MARK, None)


def require_module(model: Any) -> None:
    """Refuse an argument that is not an nn.Module, such as a model's name.

    Raises:
        ValueError: says how to get a model.
    """
    require_kind("model", model, nn.Module, "a torch nn.Module, such as the first value that load_backbone(name) "
                                            "returns")


def adapters_of(model: nn.Module) -> Adapters:
    """Return the adapters that `adapt` or `load_peft` put on a model or on a part of it.

    Raises:
        ValueError: the model has no adapters, is a copy without them, or is not an nn.Module.
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
    """Refuse a model that is adapted already, as a whole or in part, by this package or by peft.

    Raises:
        ValueError: says how to undo that; or the model is not an nn.Module.
    """
    require_module(model)
    for path, module in model.named_modules():
        found = vars(module).get(MARK)
        if found is not None and found.adapters is not None:
            raise ValueError("this model is adapted already; call remove() on its adapters first, which "
                             "lt.adapters_of(model) returns")
        if found is not None or isinstance(module, Adapted):
            raise ValueError(f"this model is adapted already: {path or 'it'} is a copy of an adapted module, or was "
                             "wrapped by hand, and has no adapters to remove; adapt a model that was loaded anew")
        if _is_of_peft(module):
            can_be_taken_off = any(_is_of_peft(other) and hasattr(other, "merge") for other in model.modules())
            raise ValueError(f"peft's own modules are on this model ({path or type(module).__name__}), and would be "
                             "frozen as if they were pretrained: " + (
                                 "call peft's merge_and_unload() or unload() first, or read a saved adapter with "
                                 "lt.load_peft" if can_be_taken_off else
                                 "peft cannot merge or unload a prompt, so adapt a model that was loaded anew"))


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside the wrappers of `torch.compile` and `nn.DataParallel`, which keep running it."""
    while (inner := model._modules.get("_orig_mod", getattr(model, "module", None)
                                       if isinstance(model, nn.DataParallel) else None)) is not None:
        model = inner
    return model


def plain_name(name: str) -> str:
    """Return the name of a module or parameter without the part that `torch.compile` adds."""
    return name.replace("_orig_mod.", "").removesuffix("._orig_mod")


def to_adapt(model: nn.Module) -> nn.Module:
    """Return the model to put branches on: the given one, or the one inside the wrapper of `torch.compile`.

    Raises:
        ValueError: the model is adapted already, or it has a wrapper that must be added after `adapt`.
    """
    refuse_adapted(model)
    kind = type(model).__name__
    if isinstance(model, nn.parallel.DistributedDataParallel) or kind == "FullyShardedDataParallel":
        raise ValueError(f"this model is in a {kind}, which would not know the parameters that are added: adapt the "
                         "model inside it (model.module), and put the wrapper around it after that")
    model = unwrapped(model)
    compiled = [path for path, module in model.named_modules() if "_orig_mod" in module._modules]
    if compiled:
        raise ValueError(f"{compiled[0]} was compiled by itself, which hides the layers in it: adapt the model first "
                         f"and compile after that, or compile it in place with model.{compiled[0]}.compile()")
    return model


def _is_of_peft(module: nn.Module) -> bool:
    return type(module).__module__.partition(".")[0] == "peft"


def refuse_inference(model: nn.Module | None = None) -> None:
    """Refuse inference mode, whose tensors can never train.

    Raises:
        RuntimeError: inference mode is on, or the model was loaded in it.
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError("torch.inference_mode() is on, and tensors that are made in it can never train: do this "
                           "outside of it (torch.no_grad() is allowed)")
    name = next((name for name, p in model.named_parameters() if p.is_inference()), "") if model is not None else ""
    if name:
        raise RuntimeError(f"{name} was made in torch.inference_mode(), so no gradient can pass through this model: "
                           "load the model outside of it")


# -- which layers can carry a branch


def refuse_layer(model: nn.Module, path: str) -> None:
    """Refuse a layer whose weight is used without calling the layer, is computed, or is tied.

    Raises:
        ValueError: names the reason and the remedy.
    """
    parts = path.split(".")
    for above in (model.get_submodule(".".join(parts[:i])) for i in range(len(parts))):
        if isinstance(above, nn.MultiheadAttention):
            raise ValueError(f"{path} is in an nn.MultiheadAttention, which reads its weight and never calls it: a "
                             "branch there would have no effect. Leave this site out, or build the attention from "
                             "nn.Linear layers")
        if isinstance(above, nn.TransformerEncoderLayer) and torch.backends.mha.get_fastpath_enabled():
            raise ValueError(f"{path} is in an nn.TransformerEncoderLayer, which in eval mode reads its weight and "
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
    """Refuse parameters that cannot be written separately: without values, or in memory that is shared.

    names: the parameters that train or are merged into.

    Raises:
        ValueError: names a parameter and the remedy.
    """
    wanted = dict.fromkeys(names)
    all_meta = all(p.is_meta for p in model.parameters()) and not any(hasattr(m, "_hf_hook") for m in model.modules())
    for name in wanted:
        parameter = model.get_parameter(name)
        if parameter.is_meta and not all_meta:
            raise ValueError(f"{name} is on the meta device, without values (offloaded, or never loaded): load the "
                             "model without offloading to disk or CPU, in bfloat16 or 4 bits where memory is short")
        if not parameter.is_meta and _repeats(parameter):
            raise ValueError(f"several elements of {name} share one place in memory (an expanded tensor or an "
                             "overlapping view), so they cannot be written separately: give it its own memory with "
                             "nn.Parameter(weight.detach().clone(memory_format=torch.contiguous_format))")
    for first, second in _sharing_memory(model):
        if first in wanted or second in wanted:
            raise ValueError(f"{first} and {second} are two tensors that share memory, so a change of one would "
                             "change the other: give one of them its own memory with "
                             "nn.Parameter(weight.detach().clone()), or leave it out")


def _sharing_memory(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield pairs of names of different tensors that have an element in common."""
    by_address = sorted(((str(t.device), start, start + _span(t) * t.element_size(), name, t)
                         for name, t in chain(model.named_parameters(), model.named_buffers())
                         if (start := _address(t))), key=lambda entry: entry[:4])
    reaching: list[tuple[str, int, int, str, Tensor]] = []  # earlier tensors that end after this one starts
    for entry in by_address:
        reaching = [other for other in reaching if other[0] == entry[0] and other[2] > entry[1]]
        yield from ((other[3], entry[3]) for other in reaching if _share_an_element(other[4], entry[4]))
        reaching.append(entry)


def _address(t: Tensor) -> int:
    """Return where a tensor starts in memory, or 0 if it has no memory."""
    try:
        return 0 if t.is_meta or not t.numel() else t.data_ptr()
    except RuntimeError:  # a tensor without storage, as torch.compile and sharding make them
        return 0


def _span(t: Tensor) -> int:
    """Return the number of elements from the first to the last one of a strided tensor."""
    return 1 + sum((n - 1) * stride for n, stride in zip(t.shape, t.stride(), strict=True))


def _places(t: Tensor) -> Tensor:
    """Return the offset (numel,) of every element from the first one, counted in elements."""
    return torch.arange(_span(t)).as_strided(t.shape, t.stride()).flatten()


def _repeats(t: Tensor) -> bool:
    """Return whether two elements of a tensor share one place in memory."""
    if not _address(t) or t.is_contiguous() or (t.dim() == 2 and t.t().is_contiguous()):
        return False
    return len(_places(t).unique()) < t.numel()


def _share_an_element(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors whose memory ranges overlap have an element in common."""
    gap, odd = divmod(b.data_ptr() - a.data_ptr(), a.element_size())
    if odd or a.element_size() != b.element_size():
        return True
    return bool(torch.isin(_places(b) + gap, _places(a)).any())


@contextmanager
def modes_kept(model: torch.nn.Module) -> Iterator[None]:
    """Restore the training or eval mode of every module on leaving; some may be in eval mode on purpose."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module in model.modules():  # a module that is new (the gate of a new link) takes the model's mode
            module.training = modes.get(module, modes[model])

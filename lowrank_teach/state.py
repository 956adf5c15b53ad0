"""All that adapters have learned as flat tensors and plain values, and back: what a checkpoint holds of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .adaptable import refuse_inference
from .methods.checks import require
from .outcome import DivergedError

if TYPE_CHECKING:
    from .adapters import Adapters

REMEDY = "take an earlier checkpoint, or train again at a lower lr"


def listed(adapters: Adapters) -> list[str]:
    """Names of the parameters that train beside the branches: the head's, pretrained ones, a rule's own."""
    return list(dict.fromkeys([*adapters.head_names, *adapters.base_names, *adapters.extra_names]))


def read(adapters: Adapters) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by name and each branch's plain values; of merged adapters what `restore` would leave."""
    tensors = {f"parameter.{name}": adapters.model.get_parameter(name).detach() for name in listed(adapters)}
    values: dict[str, Any] = {}
    for name, branch in adapters.items():
        tensors |= {f"branch.{name}.{key}": value.detach() for key, value in branch.state_dict().items()}
        in_base = branch.in_base and adapters.state == "adapted"
        values[name] = {"scaling": branch.scaling, "echo": branch.echo, "in_base": in_base}
        if phase := getattr(branch._gate, "phase", None):
            values[name]["phase"] = phase
        if in_base:
            tensors[f"base.{name}"] = adapters.owner(name).slice_of(name).clone(memory_format=torch.contiguous_format)
    return tensors, values


@torch.no_grad()
def write(adapters: Adapters, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Put what `read` gave into adapters whose ranks may have changed; refused before anything is changed."""
    refuse_inference()
    _refuse_others(adapters, tensors, values)
    if bad := non_finite(tensors.items()):
        raise DivergedError(f"the state to load is not finite at {bad}, and nothing was changed: {REMEDY}")
    held = {name: tensors[f"base.{name}"] for name in adapters if values[name]["in_base"]}
    if adapters.state == "merged" or any(owner._pretrained is not None for owner in adapters.owners.values()):
        adapters.restore()  # to the pretrained bytes, before what was stored is written
    for name in listed(adapters):
        adapters.model.get_parameter(name).copy_(tensors[f"parameter.{name}"])
    for name, branch in adapters.items():
        stored = {key.removeprefix(f"branch.{name}."): value for key, value in tensors.items()
                  if key.startswith(f"branch.{name}.")}
        branch.drift = stored.pop("drift").to(branch.lora_A).clone() if "drift" in stored else None
        for key, value in stored.items():
            inside, _, leaf = key.rpartition(".")
            own = getattr(branch.get_submodule(inside), leaf)
            own.data = value.to(own).clone()
        branch.scaling, branch.echo = values[name]["scaling"], values[name]["echo"]
        if "phase" in values[name]:
            vars(branch._gate)["phase"] = values[name]["phase"]
        if name in held:
            adapters.owner(name).keep_pretrained()
            adapters.owner(name).slice_of(name).copy_(held[name])
            branch.in_base = True


def _refuse_others(adapters: Adapters, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    def fixed(name: str, t: Tensor) -> torch.Size:  # all but the rank
        return t.shape[1:] if name.endswith("lora_A") else t.shape[:1] if name.endswith("lora_B") else t.shape

    own: dict[str, Tensor] = {f"parameter.{name}": adapters.model.get_parameter(name) for name in listed(adapters)}
    for name, branch in adapters.items():
        own |= {f"branch.{name}.lora_A": branch.lora_A, f"branch.{name}.lora_B": branch.lora_B}
    unlike = [name for name, p in own.items() if name not in tensors or fixed(name, tensors[name]) != fixed(name, p)]
    unlike += sorted(values.keys() ^ adapters.sites.keys())
    require(not unlike, f"this state is that of other adapters: it does not fit at {', '.join(unlike[:4])}")


def non_finite(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Names of those that hold nan or infinity, for a sentence; "" where there are none."""
    bad = [name for name, t in tensors if not t.isfinite().all()]
    return ", ".join(bad[:4]) + (f" and {len(bad) - 4} more" if len(bad) > 4 else "")


def refuse_non_finite(adapters: Adapters) -> None:
    """Refuse to deploy nan and infinity: in W as a merged model has it, in its own type, and in what trains as it is.

    Raises:
        DivergedError: names the sites.
    """
    if bad := non_finite(_deployed(adapters)):
        raise DivergedError(f"what was learned is not finite at {bad}, so it was not merged: {REMEDY}")


@torch.no_grad()
def _deployed(adapters: Adapters) -> Iterator[tuple[str, Tensor]]:
    merged = adapters.state == "merged"
    for name, branch in adapters.items():
        W = adapters.owner(name).slice_of(name) if merged else adapters.owner(name).pretrained_of(name)
        yield name, W if merged else (W + branch.delta()).to(W.dtype)
    for name in listed(adapters):
        yield name, adapters.model.get_parameter(name)

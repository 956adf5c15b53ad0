"""`save_pretrained` of an adapted model: a plain checkpoint where that is right, a refusal where it is not.

    adapters.merge()
    model.save_pretrained("out/")              # W* as plain weights: transformers alone loads it

While branches are live their tensors have names that no transformers class knows, and the checkpoint would load
with fresh weights in their place and only a warning. So `adapt` puts this function in front of the model's own.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

from torch import nn

from .adaptable import unwrapped
from .errors import Refusal
from .lowrank import Adapted
from .state import REMEDY, non_finite


class SaveError(Refusal, RuntimeError):
    """The model cannot be written as it stands; the message says what to call instead."""


def guard(model: nn.Module, attached: bool) -> None:
    """Put a function below in front of the model's own `save_pretrained`, if it has one.

    Args: attached: whether modules other than branches were put on the model, too.
    """
    if hasattr(model, "save_pretrained"):
        ours = refuse_attached if attached else save_pretrained
        vars(model)["save_pretrained"] = MethodType(ours, model)  # bound, so that a copy of the model has its own


def unguard(model: nn.Module) -> None:
    """Give the model its own `save_pretrained` back."""
    vars(model).pop("save_pretrained", None)


def save_pretrained(model: Any, *args: Any, **kwargs: Any) -> Any:
    """A merged model's checkpoint, written with each frozen layer, and each compiled part, in its wrapper's place.

    Args: those of the model's own `save_pretrained`.

    Raises:
        SaveError: branches are live, something learned is not finite, or a state dict is given (its names are those
            of the wrapped layers).
    """
    wrapped = {path: module for path, module in model.named_modules() if isinstance(module, Adapted)}
    live = [path for path, module in wrapped.items() if not module.merged]
    if live:
        raise SaveError(f"{len(live)} layers carry live branches ({live[0]} …), which no plain checkpoint can hold: "
                        "call adapters.merge() first, or lt.save_peft(adapters, folder) for the adapters alone")
    learned = [*((f"{path}.weight", module.weight) for path, module in wrapped.items()),
               *((name, p) for name, p in model.named_parameters() if p.requires_grad and ".lora." not in name)]
    if bad := non_finite(learned):
        raise SaveError(f"what was learned is not finite at {bad}, so nothing was written: {REMEDY}")
    if kwargs.get("state_dict") is not None:
        raise SaveError("a merged model is saved from its own weights: leave state_dict out, or take the model that "
                        "adapters.merge_and_unload() returns")
    parts = wrapped | {path: module for path, module in model.named_modules() if unwrapped(module) is not module}
    inward = sorted(parts, key=lambda path: path.count("."))
    try:
        for path in reversed(inward):
            model.set_submodule(path, parts[path].base if path in wrapped else unwrapped(parts[path]))
        return type(model).save_pretrained(model, *args, **kwargs)
    finally:
        for path in inward:
            model.set_submodule(path, parts[path])


def refuse_attached(model: Any, *args: Any, **kwargs: Any) -> None:
    """In the place of `save_pretrained` while modules stand in the model that its class does not know.

    Raises:
        SaveError: always.
    """
    raise SaveError("modules were put on this model that its class does not know, and a checkpoint with them would "
                    "not load: call adapters.merge_and_unload() first if the method is a change of W, as AdaLoRA "
                    "is, else keep adapters.state_dict(), which load_state_dict reads back")

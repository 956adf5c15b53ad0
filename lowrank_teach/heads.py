"""The head of a model: what is new for a task, and trains as it is, whatever the method freezes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .errors import sentence, shown
from .methods.checks import require

HEADS = ("classifier", "pre_classifier", "score", "classification_head", "qa_outputs")


def head_names(model: nn.Module, head: Sequence[str] | None = None) -> list[str]:
    """Names of the parameters that train beside the branches.

    Args: head: modules or parameters; None takes what `load_backbone` says is new, else the usual names.

    Raises:
        ValueError: one of them has no parameters, or none of its own.
    """
    names = [name for name, _ in model.named_parameters()]
    if head is None:
        new = getattr(model, "lowrank_new_parameters", None)
        return list(new) if new is not None else [n for n in names if any(part in HEADS for part in n.split("."))]
    require(isinstance(head, list | tuple) and all(isinstance(part, str) for part in head),
            f"head = {shown(head)} must be a list of modules that train beside the branches")
    for part in head:
        if not any(_within(name, part) for name in names):
            raise ValueError(sentence(_no_head(model, part)))
    return [n for n in names if any(_within(n, part) for part in head)]


def _within(name: str, part: str) -> bool:
    return name == part or name.startswith(part + ".")


def _no_head(model: nn.Module, part: str) -> str:
    every = dict(model.named_parameters(remove_duplicate=False))
    first = {id(p): name for name, p in model.named_parameters()}
    tied = [first[id(p)] for name, p in every.items() if _within(name, part)]
    if tied:
        return (f"head {part!r} has no weight of its own: it is tied to {tied[0]}, so the two train together or not "
                f"at all; name {tied[0].rpartition('.')[0] or tied[0]!r} to train both, or untie them first")
    known = dict.fromkeys(name.partition(".")[0] for name, _ in model.named_parameters())
    return f"head {part!r} names no module with parameters; name one of {', '.join(known)}, or a part of one"

"""The head of a model: what is new for a task, and trains as it is, whatever the method freezes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .errors import shown
from .methods.checks import require

HEADS = ("classifier", "pre_classifier", "score", "classification_head", "qa_outputs")


def head_names(model: nn.Module, head: Sequence[str] | None = None) -> list[str]:
    """Names of the parameters that train beside the branches.

    Args: head: modules or parameters; None takes what `load_backbone` says is new, else the usual names.

    Raises:
        ValueError: one of them has no parameters, or one that is tied to a parameter outside the head.
    """
    names = [name for name, _ in model.named_parameters()]
    if head is None:
        new = getattr(model, "lowrank_new_parameters", None)
        return list(new) if new is not None else [n for n in names if any(part in HEADS for part in n.split("."))]
    require(isinstance(head, list | tuple) and all(isinstance(part, str) for part in head),
            f"head = {shown(head)} must be a list of modules that train beside the branches")
    chosen = [n for n in names if any(_within(n, part) for part in head)]
    for part in head:
        _refuse_tied(model, part, chosen)
    return chosen


def _within(name: str, part: str) -> bool:
    return name == part or name.startswith(part + ".")


def _refuse_tied(model: nn.Module, part: str, chosen: list[str]) -> None:
    """Refuse a part of the head that is not there, or holds what does not train since it has its name elsewhere."""
    first = {id(p): name for name, p in model.named_parameters()}
    owners = {name: first[id(p)] for name, p in model.named_parameters(remove_duplicate=False) if _within(name, part)}
    known = dict.fromkeys(name.partition(".")[0] for name in first.values())
    require(bool(owners), f"head {part!r} names no module with parameters; name one of {', '.join(known)}, or a part "
                          "of one")
    own = [owner for owner in owners.values() if owner in chosen]
    for name, owner in owners.items():
        where = f"{owner} outside of it" if own else f"{owner}"
        beside = f"{owner!r} too" if own else repr(owner.rpartition(".")[0] or owner)
        holds = f"holds {name}, which" if own else "has no weight of its own: it"
        require(owner in chosen, f"head {part!r} {holds} is tied to {where}, so the two train together or not at "
                                 f"all; name {beside} to train both, or untie them first")

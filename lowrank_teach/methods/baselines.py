"""What the methods are compared with: no branch at all, only other lists of what trains. Taught in 01 and 07."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from .base import Clock, Invariant, Method, Rule, require


@dataclass(frozen=True, kw_only=True)
class HeadOnly(Method):
    """Only the classifier head trains: what the frozen features can do."""

    sites: str | tuple[str, ...] = ()
    name: ClassVar[str] = "head"

    def rule(self) -> NoBranch:
        return NoBranch(self)


@dataclass(frozen=True, kw_only=True)
class FullFineTuning(Method):
    """Pretrained weights train.

    Args:
        trains: "all"; "no_embeddings" (FT†); or "qv" (FT‡, W_q and W_v only).
    """

    sites: str | tuple[str, ...] = ()
    trains: str = "all"
    name: ClassVar[str] = "full"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.trains in ("all", "no_embeddings", "qv"), f"trains {self.trains!r} must be 'all', "
                                                               "'no_embeddings' or 'qv'")

    def rule(self) -> NoBranch:
        return NoBranch(self)

    def base_parameters(self, model: nn.Module) -> list[str]:
        if self.trains == "qv":
            from ..sites import select

            return list(dict.fromkeys(f"{site.path}.weight" for site in select(model, "qv")))  # fused: once
        embeddings = ("embed", "wte", "wpe", "shared") if self.trains == "no_embeddings" else ()
        return [name for name, _ in model.named_parameters() if not any(part in name for part in embeddings)]


class NoBranch(Rule):
    """Nothing is put on any matrix."""

    def parameter_groups(self) -> list[dict[str, object]]:
        return []

    def invariants(self, clock: Clock) -> list[Invariant]:
        return []

"""What the methods are compared with: no branch at all, only other lists of what trains. Taught in 01 and 07."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..sites import Site, find_sites, matrix_of, select
from .base import Clock, Invariant, Loop, Method, Rule, require
from .checks import shown


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
        trains: "all"; "no_embeddings" (FT†: the tables of words and positions stay, with the layer norm of the
            embedding layer where it has one); or "qv" (FT‡: W_q and W_v only, no biases). Where one layer holds
            q, k and v side by side (GPT-2), k's part of it keeps its bytes.
    """

    sites: str | tuple[str, ...] = ()
    trains: str = "all"
    trains_base: ClassVar[bool] = True
    name: ClassVar[str] = "full"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.trains in ("all", "no_embeddings", "qv"), f"trains {shown(self.trains)} must be 'all', "
                                                               "'no_embeddings' or 'qv'")

    def rule(self) -> NoBranch:
        return PartOfALayer(self) if self.trains == "qv" else NoBranch(self)

    def base_parameters(self, model: nn.Module) -> list[str]:
        if self.trains == "qv":
            return list(dict.fromkeys(f"{site.path}.weight" for site in select(model, "qv")))  # fused: once
        embeddings = ("embed", "wte", "wpe", "shared") if self.trains == "no_embeddings" else ()
        return [name for name, _ in model.named_parameters() if not any(part in name for part in embeddings)]


class NoBranch(Rule):
    """Nothing is put on any matrix."""

    def parameter_groups(self) -> list[dict[str, object]]:
        return []

    def invariants(self, clock: Clock) -> list[Invariant]:
        return []


class PartOfALayer(NoBranch):
    """FT‡: of a layer that several matrices share, only W_q and W_v move.

    The gradient of the rest is zero before it is clipped, and what weight decay would do to it is put back after
    each step.
    """

    def __init__(self, method: FullFineTuning) -> None:
        super().__init__(method)
        self._hooks: list[Any] = []

    def still_sites(self) -> list[Site]:
        if not hasattr(self, "_still"):
            known = find_sites(self.adapters.model)
            trained = {site.path for site in known if site.letter in "qv"}
            self._still = [site for site in known if site.path in trained and site.letter not in "qv"]
        return self._still

    def start(self, clock: Clock, loop: Loop) -> None:
        super().start(clock, loop)
        self.detach(self.adapters.model)  # hooks of an earlier training
        for site in self.still_sites():
            weight = self.adapters.model.get_parameter(f"{site.path}.weight")
            self._hooks.append(weight.register_hook(  # type: ignore[no-untyped-call]
                lambda gradient, site=site: self._masked(gradient, site)))

    def _masked(self, gradient: Tensor, site: Site) -> Tensor:
        gradient = gradient.clone()
        matrix_of(self.adapters.model, site, gradient).zero_()
        return gradient

    @torch.no_grad()
    def after_step(self, clock: Clock) -> None:
        model = self.adapters.model
        for site in self.still_sites():
            matrix_of(model, site).copy_(matrix_of(model, site, self.adapters.start_of(f"{site.path}.weight")))

    def detach(self, model: nn.Module) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

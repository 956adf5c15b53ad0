"""LoRA: the layer itself, with nothing around it (Hu et al. 2021, arXiv 2106.09685).

A and B train, W is frozen, and no step does anything else. Taught in 02.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from ..errors import require
from ..lowrank import LowRank
from ..sites import Site
from .base import Method, Rule


@dataclass(frozen=True, kw_only=True)
class LoRA(Method):
    """W + s · B A with s = lora_alpha / r.

    Args:
        rank_pattern: site -> rank where it differs from r; 0 leaves a site out (AutoLoRA hands its ranks over
            like this).
        alpha_pattern: site -> α where it differs. With neither α given, a site of another rank keeps
            s = lora_alpha / r, so that rank and step size are not confounded; `fixed_alpha` divides the same
            α by each rank instead.
    """

    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    fixed_alpha: bool = False

    name: ClassVar[str] = "lora"
    paper: ClassVar[str] = "Hu et al. 2021, arXiv 2106.09685"
    owns: ClassVar[frozenset[str]] = frozenset({"form"})

    def __post_init__(self) -> None:
        super().__post_init__()
        for site, rank in self.rank_pattern.items():
            require(rank >= 0, f"rank {rank} of {site} must be 0 or more")
        for site, alpha in self.alpha_pattern.items():
            require(alpha > 0, f"alpha {alpha} of {site} must be above 0")

    def rule(self) -> LoRARule:
        return LoRARule(self)


class LoRARule(Rule):
    """Nothing happens around a step."""

    method: LoRA

    def check(self, sites: list[Site]) -> None:
        names = [site.name for site in sites]
        for name in [*self.method.rank_pattern, *self.method.alpha_pattern]:
            near = difflib.get_close_matches(name, names, 3)
            require(name in names, f"rank_pattern or alpha_pattern names {name!r}, which is not adapted; "
                                   f"{'did you mean' if near else 'there are'} {', '.join(near or names[:6])}?")

    def branch(self, site: Site) -> LowRank | None:
        m = self.method
        r = m.rank_pattern.get(site.name, m.r)
        if r == 0:
            return None
        own_alpha = m.lora_alpha if m.fixed_alpha else m.lora_alpha * r / m.r
        return self.low_rank(site, r, m.alpha_pattern.get(site.name, own_alpha) / r)

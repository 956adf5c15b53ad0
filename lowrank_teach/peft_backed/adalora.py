"""AdaLoRA: as LoRA with singular values, and the least important ones are dropped until a budget of ranks is met
(Zhang et al. 2023, ICLR, arXiv 2303.10512).

    h  =  W x  +  s · B diag(E) A x         importance of a triplet (B column, E entry, A row): |weight · gradient|,
    loss = task + orth_reg_weight · R       smoothed; R = mean of ‖A Aᵀ − I‖_F and ‖Bᵀ B − I‖_F

peft's layers and its allocator do this; here they are put on, called at the right moment, and read off.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..methods.base import Clock, Invariant, Loop, Method, Rule, require, require_rank
from ..methods.checks import require_shares
from ..sites import Site, is_conv1d
from ..wide import wide
from .library import peft, seeded

NAME = "default"  # peft's name for an adapter that was given none
SCORES = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # importance, its mean over steps, and its uncertainty


@dataclass(frozen=True, kw_only=True)
class AdaLoRA(Method):
    """Start at rank r everywhere, end with target_r on average, spread by importance.

    Trained again once the budget is met, the ranks found stay, and only they train. Stopped before that, the
    importance is measured anew, and ranks start to fall from r.

    GPT-2's fused q, k and v are one matrix to peft: they are taken together ("0.qkv") or not at all.

    Args:
        r: rank at the start, above target_r.  lora_alpha: the scale is lora_alpha / r throughout.
        target_r: mean rank at the end.
        tinit: steps before ranks start to fall.  tfinal: steps at the end, after the last rank has fallen.
        deltaT: steps between two allocations. All three as steps (int) or a share of the training (float).
        beta1, beta2: smoothing of the importance and of its uncertainty.
        orth_reg_weight: of R (the authors' code: 0.1 to 0.5).
    """

    r: int = 12
    sites: str | tuple[str, ...] = "all"
    target_r: int = 8
    tinit: int | float = 0.1
    tfinal: int | float = 0.4
    deltaT: int | float = 1
    beta1: float = 0.85
    beta2: float = 0.85
    orth_reg_weight: float = 0.1

    name: ClassVar[str] = "adalora"
    paper: ClassVar[str] = "Zhang et al. 2023, ICLR, arXiv 2303.10512"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.target_r < self.r, f"target_r = {self.target_r} must lie above 0 and below r = {self.r}, "
                                            "with which every matrix starts")
        require_shares(self, "tinit", "tfinal", "deltaT")
        require(self.deltaT > 0, f"deltaT = {self.deltaT} must be above 0")
        require(0 < self.beta1 < 1 and 0 < self.beta2 < 1, "beta1 and beta2 must lie between 0 and 1")
        require(self.orth_reg_weight >= 0, "orth_reg_weight must be 0 or more")
        require(self.init == "kaiming", "peft starts AdaLoRA's factors in its own way (normal, std 0.02; E = 0): "
                                        "leave init out")

    def rule(self) -> AdaLoRARule:
        return AdaLoRARule(self)


class AdaLoRARule(Rule):
    """Holds peft's tuner, and calls its allocator between the optimizer's step and the next zero_grad."""

    method: AdaLoRA

    def check(self, sites: list[Site]) -> None:
        peft()
        for site in sites:
            require_rank(site, self.method.r)
        for path, here in by_path(sites).items():
            width = sum(site.d for site in here)
            whole = self.adapters.model.get_submodule(path)
            has = getattr(whole, "nf", None) or whole.out_features
            names = ", ".join(site.name for site in here)
            require(width == has, f"{path} holds more than {names}, and peft's AdaLoRA takes a layer as one matrix: "
                                  "choose q, k and v together (sites=\"all\", \"qkv\"), or none of them")

    def branch(self, site: Site) -> None:
        return None

    def attach(self, model: nn.Module, sites: list[Site]) -> list[str]:
        m, paths = self.method, by_path(sites)
        self.paths = {one_name(here): path for path, here in paths.items()}
        fused = any(is_conv1d(model.get_submodule(path)) for path in paths)
        self.config = peft().AdaLoraConfig(
            init_r=m.r, target_r=m.target_r, lora_alpha=m.lora_alpha, lora_dropout=m.lora_dropout, beta1=m.beta1,
            beta2=m.beta2, orth_reg_weight=m.orth_reg_weight, target_modules=list(paths), fan_in_fan_out=fused,
            total_step=1)  # the length is not known yet: `start` says it
        like = next(model.parameters())
        with seeded(self.generator):
            self.tuner = peft().AdaLoraModel(model, {NAME: self.config}, NAME)
        named = {name: p for name, p in model.named_parameters() if any(f".{x}." in name for x in FACTORS)}
        for name, parameter in model.named_parameters():
            if name in named or ".ranknum." in name:  # the rank at the start, a number that peft keeps as a parameter
                parameter.data = parameter.data.to(wide(like.dtype))
                parameter.requires_grad_(name in named)
        self._kept: dict[str, Tensor] = {}
        self.found = False  # an earlier training met the budget: the ranks stay
        return list(named)

    def detach(self, model: nn.Module) -> None:
        self.tuner.unload()

    def layers(self) -> Iterator[tuple[str, Any]]:
        """Site -> peft's layer."""
        for name, path in self.paths.items():
            yield name, self.adapters.model.get_submodule(path)

    def start(self, clock: Clock, loop: Loop) -> None:
        super().start(clock, loop)
        m, c = self.method, self.config
        c.total_step, c.tinit, c.tfinal = clock.total, clock.resolve(m.tinit), clock.resolve(m.tfinal)
        c.deltaT = max(1, clock.resolve(m.deltaT))
        if clock.step:  # taken up: it was looked at when it began
            return
        self.found = sum(self.site_ranks().values()) == m.target_r * len(self.paths)
        if self.found:
            self._keep_ranks()
            return
        require(c.tinit < c.total_step - c.tfinal > 1,
                f"no step is left in which importance could be seen and ranks fall: tinit = {c.tinit} and tfinal = "
                f"{c.tfinal} of {c.total_step} steps; make them smaller, or train longer")

    def _keep_ranks(self) -> None:
        """Let peft see no step before the end of the allocation: it then masks what it has dropped."""
        self.config.total_step = self.config.tinit = self.config.tfinal = 0

    def again(self) -> None:
        if not self.found:
            self.config.rank_pattern = None
            self.tuner.rankallocator.reset_ipt()

    def notes(self) -> list[str]:
        note = "an earlier training met the budget of ranks: this one trained at the ranks that it found"
        return [note] if self.found else []

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": self.adapters.extra_parameters()}]

    def penalty(self) -> Tensor | None:
        """orth_reg_weight · R, as peft's own forward adds it to the loss."""
        if not self.method.orth_reg_weight:
            return None
        factors = [f for _, layer in self.layers() for f in (layer.lora_A[NAME], layer.lora_B[NAME].t())]
        off = [torch.linalg.matrix_norm(M @ M.t() - torch.eye(len(M), dtype=M.dtype, device=M.device))
               for M in factors]
        return self.method.orth_reg_weight * torch.stack(off).mean()

    def after_step(self, clock: Clock) -> None:
        self.tuner.update_and_allocate(clock.step)  # reads this step's gradients, and sets dropped E to zero

    def settled(self, clock: Clock) -> bool:
        return clock.step >= self.config.total_step - self.config.tfinal

    # -- what it has become

    def _open(self, path: str) -> Tensor:
        """Which triplets are in use (r,)."""
        pattern = self.config.rank_pattern or {}
        return torch.tensor(pattern.get(f"{path}.lora_E.{NAME}", [True] * self.method.r), device="cpu")

    def site_ranks(self) -> dict[str, int]:
        return {name: int(self._open(path).sum()) for name, path in self.paths.items()}

    @torch.no_grad()
    def own_updates(self) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        found = {}
        for name, layer in self.layers():
            keep = self._open(self.paths[name])
            A, E, B = (getattr(layer, x)[NAME].detach() for x in FACTORS)                # (r, k), (r, 1), (d, r)
            keep = keep.to(A.device)
            scale = layer.scaling[NAME] / (layer.ranknum[NAME] + 1e-5)
            W = self._kept.get(name, layer.get_base_layer().weight.detach())
            found[name] = (W.t() if layer.fan_in_fan_out else W).float(), scale * B[:, keep] * E[keep].t(), A[keep]
        return found

    def merge(self) -> None:
        self._kept = {name: layer.get_base_layer().weight.detach().clone() for name, layer in self.layers()}
        for _, layer in self.layers():
            layer.merge()

    @torch.no_grad()
    def restore(self) -> None:
        """From the bytes that were kept, since peft would subtract."""
        for name, layer in self.layers() if self._kept else ():
            layer.get_base_layer().weight.copy_(self._kept[name])
            layer.merged_adapters.clear()
        self._kept = {}

    def log(self) -> dict[str, float | dict[str, float]]:
        ranks = {name: float(rank) for name, rank in self.site_ranks().items()}
        return {"kept": ranks, "sum_of_ranks": sum(ranks.values())}

    def state_dict(self) -> dict[str, Any]:
        allocator = self.tuner.rankallocator
        scores = {f"{kind}.{name}": value for kind in SCORES for name, value in getattr(allocator, kind).items()}
        return {**super().state_dict(), **scores, "rank_pattern": self.config.rank_pattern,
                "found": self.found}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.config.rank_pattern, self.found = state["rank_pattern"], state["found"]
        if self.found:
            self._keep_ranks()
        for kind in SCORES:
            setattr(self.tuner.rankallocator, kind, {
                name.removeprefix(f"{kind}."): value.to(self.adapters.model.get_parameter(
                    name.removeprefix(f"{kind}.")).device)
                for name, value in state.items() if name.startswith(f"{kind}.")})

    def invariants(self, clock: Clock) -> list[Invariant]:
        in_use = {name: layer.lora_E[NAME][self._open(self.paths[name])] for name, layer in self.layers()}
        still = [name for name, E in in_use.items() if len(E) and not E.any()]
        checks = [Invariant(not still, f"after the first step no singular value has moved at {', '.join(still[:4])}: "
                                       "no gradient reaches the branch; look for a learning rate of 0")
                  ] if clock.step == 1 else []
        if self.settled(clock):
            total, wanted = sum(self.site_ranks().values()), self.method.target_r * len(self.paths)
            checks.append(Invariant(total == wanted, f"the ranks sum to {total}, not to the budget of {wanted}"))
        return checks


FACTORS = ("lora_A", "lora_E", "lora_B")


def by_path(sites: list[Site]) -> dict[str, list[Site]]:
    """Module -> the sites in it: more than one in a fused layer."""
    found: dict[str, list[Site]] = {}
    for site in sites:
        found.setdefault(site.path, []).append(site)
    return found


def one_name(sites: list[Site]) -> str:
    """The name of a layer: its site's; "0.qkv" for a fused one."""
    first = sites[0].name
    return first if len(sites) == 1 else f"{first.rpartition('.')[0]}.{''.join(site.letter for site in sites)}"

"""What the methods are compared with: other lists of what trains, and bottleneck adapters. Taught in 01 and 07."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import require, shown
from ..lowrank import initial_A
from ..precision import Wide, wide
from ..sites import Site, find_sites, matrix_of, select
from .base import Clock, Invariant, Loop, Method, Rule, require_unused, require_width


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


# ---- bottleneck adapters -----------------------------------------------------------------------------------
# Adapters: a small network of its own after a sub-layer, rather than a change of its matrices.
#
#     h  ←  h + U f(D h + b_D) + b_U          D: (m, d)   U: (d, m)   f a nonlinearity
#
# Houlsby et al. 2019 (ICML, arXiv 1902.00751; the LoRA paper's Adapter^H) put one after the attention's and one after
# the feed-forward network's output projection, before the residual is added. Pfeiffer et al. 2021 (EACL, arXiv
# 2005.00247; Adapter^P) put one a layer, after the feed-forward network. U starts at zero, so a fresh adapter is the
# identity. Being no linear change of W, it cannot be merged. Baselines; taught in 07.
NONLINEARITIES: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu,
                                                         "tanh": torch.tanh}

# model_type -> from the feed-forward output projection: levels up, and the module there after which Pfeiffer's
# adapter stands. A layer norm: the adapter reads LN(s), s the sum with the residual, and what it adds goes into the
# sum, LN(s + U f(D LN(s))). "": the block, whose output is the sum itself (the norm stands in front of a sub-layer).
AFTER_FFN: dict[str, tuple[int, str]] = {
    "bert": (1, "LayerNorm"), "roberta": (1, "LayerNorm"), "mpnet": (1, "LayerNorm"),
    "distilbert": (2, "output_layer_norm"), "bart": (1, "final_layer_norm"), "opt": (1, ""), "gpt2": (2, ""),
    "llama": (2, ""), "t5": (2, ""),
}


class _Bottlenecked(Method):
    """What both kinds share."""

    m: int
    nonlinearity: str
    layer_norms: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        require_unused(self, "m")
        require_width(self, "m", 1)
        require(self.nonlinearity in NONLINEARITIES, f"nonlinearity {shown(self.nonlinearity)} must be one of "
                                                     f"{', '.join(NONLINEARITIES)}")

    @property
    def trains_base(self) -> bool:  # type: ignore[override]
        return self.layer_norms

    def base_parameters(self, model: nn.Module) -> list[str]:
        """Return the names of the layer norms, if they train too."""
        norms = [(path, module) for path, module in model.named_modules() if type(module).__name__.endswith("Norm")]
        return [f"{path}.{name}" for path, module in norms if self.layer_norms
                for name, _ in module.named_parameters()]


@dataclass(frozen=True, kw_only=True)
class Houlsby(_Bottlenecked):
    """An adapter after each sub-layer's output projection, before its dropout and before the residual is added.

    In an encoder-decoder both stacks have them after self-attention and feed-forward network; cross-attention has
    none unless its sites are named ("cross.0.o").

    Args:
        m: width of the bottleneck.  nonlinearity: "gelu", "relu", "silu" or "tanh".
        layer_norms: the layer norms train too, as in the paper.
        sites: after which projections: letters or names, as everywhere.
    """

    sites: str | tuple[str, ...] = ("o", "down")
    m: int = 64
    nonlinearity: str = "gelu"
    layer_norms: bool = True

    name: ClassVar[str] = "houlsby"
    paper: ClassVar[str] = "Houlsby et al. 2019, ICML, arXiv 1902.00751"

    def rule(self) -> HoulsbyRule:
        return HoulsbyRule(self)


@dataclass(frozen=True, kw_only=True)
class Pfeiffer(_Bottlenecked):
    """One adapter a layer, after the feed-forward network, the residual and (where it stands there) the layer norm.

    With s the sum of the network's output and its residual: LN(s + U f(D LN(s))) where the norm comes after the
    sum (BERT, RoBERTa, MPNet, DistilBERT, BART), s + U f(D s) where norms come first (GPT-2, OPT, Llama, T5).

    Args:
        m: width of the bottleneck.  nonlinearity: "relu" (the paper's), "gelu", "silu" or "tanh".
        layer_norms: the layer norms train too; not so in the paper.
        sites: in which layers: "down", or names such as "3.down".
    """

    sites: str | tuple[str, ...] = ("down",)
    m: int = 48
    nonlinearity: str = "relu"
    layer_norms: bool = False

    name: ClassVar[str] = "pfeiffer"
    paper: ClassVar[str] = "Pfeiffer et al. 2021, EACL, arXiv 2005.00247"

    def rule(self) -> PfeifferRule:
        return PfeifferRule(self)


class Bottleneck(Wide):
    """x -> U f(D x + b_D) + b_U, (*, d) -> (*, d); zero at the start. 2 d m + m + d parameters."""

    def __init__(self, d: int, m: int, nonlinearity: str, generator: torch.Generator | None = None) -> None:
        super().__init__()
        # without torch's own start, which would draw from its own generator
        self.down, self.up = (nn.utils.skip_init(nn.Linear, k, n, dtype=torch.float32, device="cpu")
                              for k, n in ((d, m), (m, d)))
        self.f = NONLINEARITIES[nonlinearity]
        with torch.no_grad():
            self.down.weight.copy_(initial_A(m, d, "kaiming", generator))
            for start in (self.down.bias, self.up.weight, self.up.bias):
                start.zero_()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.up(self.f(self.down(x.to(self.up.weight.dtype))))
        return y.to(x.dtype)


class HoulsbyRule(Rule):
    """Puts an adapter on each chosen projection, and takes it off."""

    method: Houlsby

    def branch(self, site: Site) -> None:
        return None

    def attach(self, model: nn.Module, sites: list[Site]) -> list[str]:
        self.hooks, self.places = [], list(dict.fromkeys(self.place(model, site) for site in self.chosen(sites)))
        names = []
        for place, d in self.places:
            module = model.get_submodule(place)
            like = next(p for p in model.parameters())
            made = Bottleneck(d, self.method.m, self.method.nonlinearity, self.generator)
            made.to(like.device, wide(like.dtype))
            module.add_module("bottleneck", made)
            self.hooks.append(module.register_forward_hook(self.add))
            names += [f"{place}.bottleneck.{name}" for name, _ in made.named_parameters()]
        return names

    def detach(self, model: nn.Module) -> None:
        for hook in self.hooks:
            hook.remove()
        for place, _ in self.places:
            del model.get_submodule(place).bottleneck

    def chosen(self, sites: list[Site]) -> list[Site]:
        """Cross-attention takes part only where it is named."""
        return [site for site in sites if not site.name.startswith("cross.") or site.name in self.method.sites]

    def place(self, model: nn.Module, site: Site) -> tuple[str, int]:
        """Return the module after which a site's adapter stands, and the width there."""
        return site.path, site.d

    @staticmethod
    def add(module: Any, inputs: tuple[Any, ...], output: Any) -> Any:
        """Return the module's output with the adapter's share; the rest of a tuple stays."""
        if isinstance(output, tuple):
            return (output[0] + module.bottleneck(output[0]), *output[1:])
        return output + module.bottleneck(output)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": self.adapters.extra_parameters()}]

    def invariants(self, clock: Clock) -> list[Invariant]:
        if clock.step != 1:
            return []
        # the bias as well: where no row opens a unit, U has no gradient and b_U has one
        moved = {name.rpartition(".")[0] for name in self.adapters.extra_names
                 if ".up." in name and self.adapters.model.get_parameter(name).any()}
        still = [up for place, _ in self.places if (up := f"{place}.bottleneck.up") not in moved]
        return [Invariant(not still, f"after the first step {', '.join(still[:4])} has not moved: no gradient "
                                     "reaches the adapter; look for a learning rate of 0")]

    def merge(self) -> None:
        raise RuntimeError(f"{self.method.name} cannot be merged: an adapter's nonlinearity is no change of W; keep "
                           "its modules on the model, or use LoRA")


class PfeifferRule(HoulsbyRule):
    """One adapter a layer, on the norm after the feed-forward network or on the block that it ends."""

    method: Pfeiffer  # type: ignore[assignment]

    def check(self, sites: list[Site]) -> None:
        kind = getattr(getattr(self.adapters.model, "config", None), "model_type", None)
        require(kind in AFTER_FFN, f"where the feed-forward network of a {kind!r} ends is not in the table "
                                   f"({', '.join(AFTER_FFN)}); use Houlsby, which takes module paths")
        wrong = [site.name for site in sites if site.letter != "down"]
        require(not wrong, f"{', '.join(wrong[:4])} ends no feed-forward network; name \"down\" or sites such as "
                           "\"3.down\"")

    def place(self, model: nn.Module, site: Site) -> tuple[str, int]:
        """Return the norm or block of AFTER_FFN, and its width."""
        config: Any = model.config
        levels, inside = AFTER_FFN[config.model_type]
        if config.model_type == "opt" and not config.do_layer_norm_before:
            inside = "final_layer_norm"
        above = ".".join(site.path.split(".")[:-levels])
        return f"{above}.{inside}" if inside else above, site.d

    @staticmethod
    def add(module: Any, inputs: tuple[Any, ...], output: Any) -> Any:
        """Return the sum that the norm read and the adapter's share, normed again."""
        if not isinstance(module, nn.LayerNorm):
            return HoulsbyRule.add(module, inputs, output)
        return type(module).forward(module, inputs[0] + module.bottleneck(output))  # type: ignore[operator]

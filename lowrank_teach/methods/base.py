"""The contract of a method: a configuration, and the rule that runs it.

A `Method` is a frozen dataclass, validated when built; it can be written to JSON and back. From it `adapt`
and `fit` make a `Rule`, which holds the state: what is put on each matrix, and what happens around an
optimizer step. The training loop calls the rule's hooks and never asks which method it is. Taught in 02.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from ..lowrank import LowRank
from ..sites import Site
from .asked import Asked
from .asks import Asks
from .attach import Attachments
from .checks import require, require_init, require_rank, require_types, shown
from .registry import Registry

if TYPE_CHECKING:
    from ..adapters import Adapters

METHODS = Registry()  # short name -> configuration, in teaching order


@dataclass(frozen=True)
class Clock:
    """Where training stands. Counts optimizer steps, never micro-batches.

    step: the step in progress, 1 … total.  total: all steps.  per_epoch: steps in one pass over the data.
    """

    step: int
    total: int
    per_epoch: int

    def resolve(self, when: int | float) -> int:
        """A step count from an int (steps) or a float in [0, 1] (a share of all steps)."""
        return round(when * self.total) if isinstance(when, float) else when


@dataclass(frozen=True)
class Invariant:
    """Something that must be true now; the loop stops with `says` where it is not."""

    holds: bool
    says: str


class Loop(Protocol):
    """What the training loop offers to a rule."""

    optimizer: torch.optim.Optimizer
    micro_batches: list[dict[str, Tensor]]  # of the step in progress

    @property
    def dtype(self) -> torch.dtype:
        """The coarsest type that logits pass through: W's, or autocast's."""
        ...

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        """In eval mode, without a graph."""
        ...

    def loss(self, batch: dict[str, Tensor], parameters: dict[str, Tensor] | None = None) -> Tensor:
        """In training mode, with a graph; with these tensors in place of the parameters they name."""
        ...

    def mean_loss(self, batches: list[dict[str, Tensor]], parameters: dict[str, Tensor] | None = None) -> Tensor:
        """The same over several micro-batches; refused where it is not finite."""
        ...

    def held_out(self) -> list[dict[str, Tensor]]: ...


@dataclass(frozen=True, kw_only=True)
class Method(Asked):
    """What every method has.

    Trained again, by a second `Trainer` on the same adapters, a method goes on from what it has learned, with a new
    optimizer and a new schedule; where more happens, its own docstring says what.

    Args:
        r: rank of each branch.  lora_alpha: α; the branch is scaled by s = α / r.
        lora_dropout: dropout on the branch's input.
        sites: which matrices; letters ("qv", "qkvo"), "all", or names ("3.q", module paths).
        init: how A starts; see `LowRank`.

    Raises:
        ValueError: a value is out of range; the sentence says which values are not.
    """

    r: int = 8
    lora_alpha: float = 16.0
    lora_dropout: float = 0.0
    sites: str | tuple[str, ...] = "qv"
    init: str = "kaiming"

    name: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    trains_base: ClassVar[bool] = False  # whether pretrained parameters train (`base_parameters`)
    held_out: ClassVar[float] = 0.0  # share of the training rows that the rule takes for itself
    # what `compose` asks: what it must be the only one to do (keys of compose.SOLE; None: it shares no branch), why
    # nothing can go with it, and whether what it learned stands in W (True), beside W (False), or either (None)
    owns: ClassVar[frozenset[str] | None] = None
    alone: ClassVar[str] = ""
    writes_base: ClassVar[bool | None] = None

    def __init_subclass__(cls) -> None:
        if cls.name:
            METHODS[cls.name] = cls

    def __post_init__(self) -> None:
        require_types(self)
        if not isinstance(self.sites, str):
            named = isinstance(self.sites, list | tuple) and all(isinstance(site, str) for site in self.sites)
            require(named, f"sites = {shown(self.sites)} must be letters such as \"qv\", \"all\", or a tuple of "
                           "names")
            object.__setattr__(self, "sites", tuple(self.sites))
        require(bool(self.sites) or not type(self).sites, "sites is empty, so nothing would be adapted; name letters "
                                                          "such as \"qv\", \"all\", or a tuple of names")
        require_init(self)
        require(self.r > 0, f"r = {self.r} must be a whole number above 0")
        require(self.lora_alpha > 0, f"lora_alpha = {self.lora_alpha} must be above 0")
        require(0 <= self.lora_dropout < 1, f"lora_dropout = {self.lora_dropout} must lie in [0, 1)")

    def rule(self) -> Rule:
        """The running rule, which holds the state."""
        raise TypeError(f"{type(self).__name__} names no rule: override rule()")

    def steps(self, total: int) -> int:
        """How long this method trains when the run's configuration says `total` steps."""
        return total

    def beside(self) -> Method:
        """The same method with all it learns kept beside W, where it has such a form: many then share one W."""
        return self

    def base_parameters(self, model: nn.Module) -> list[str]:
        """Names of pretrained parameters that train too (none, but for full fine-tuning)."""
        return []

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with the method's name under "method"."""
        return {"method": self.name, **dataclasses.asdict(self)}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Method:
        """The configuration that `to_dict` wrote, with all of its values asked for.

        Raises:
            ValueError: a name is unknown, or a value out of range.
        """
        require(isinstance(values, Mapping) and all(isinstance(key, str) for key in values),
                f"{shown(values)} is no dict that to_dict wrote")
        if "members" in values:
            from .compose import compose  # a composition is made of methods, and so stands above them

            require(isinstance(members := values["members"], list), f"members = {shown(members)} must be a list")
            return compose(*map(Method.from_dict, members))
        values = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        name = values.pop("method", None)
        require(isinstance(name, str) and name in METHODS,
                f"unknown method {shown(name)}; choose among {', '.join(METHODS)}")
        return METHODS[name].rebuilt(values, values)


class Rule(Attachments):
    """A method at work on one adapted model. Every hook has a default that does nothing.

    Life: `branch` for each site, `start` when the training's length is known (then `again`, if it is not the first
    training), then for every optimizer step `before_step`, the loss with `penalty`, the step, `after_step`; `finish`
    at the end. In a composition (`compose`) `lap`, `close_link` and `open_link` tell the members of a chain's links.
    """

    by_link: ClassVar[bool] = False  # lives anew in every link of a chain: given the link's own clock
    nesting: ClassVar[int] = 1       # 0 stands next to the optimizer's step and reads its change, 2 outermost
    trained = False                  # whether a training has moved what this rule put on the model

    def __init__(self, method: Any) -> None:
        self.method = method
        self.adapters: Adapters
        self.generator = torch.Generator()  # A's start, gate noise: apart from the model's own dropout

    def branch(self, site: Site) -> LowRank | None:
        """What is put on one matrix; None leaves it as it is."""
        m = self.method
        return self.low_rank(site, m.r, m.lora_alpha / m.r)

    def low_rank(self, site: Site, r: int, scaling: float, gate: nn.Module | None = None) -> LowRank:
        """A branch of rank r for one site, with this method's dropout and start.

        Raises:
            ValueError: r is larger than min(d, k).
        """
        require_rank(site, r)
        return LowRank(site.k, site.d, r, scaling, dropout=self.method.lora_dropout, init=self.method.init,
                       gate=gate, generator=self.generator)

    def check(self, sites: list[Site]) -> None:
        """Refuse a configuration that does not fit the matrices that were matched.

        Raises:
            ValueError: it names a site that is not among them.
        """

    def start(self, clock: Clock, loop: Loop) -> None:
        """Called once before the first step, also when a run is resumed: turn shares of the training into steps.

        Raises:
            ValueError: something in the configuration does not fit this length of training.
        """
        self.loop = loop

    def again(self) -> None:
        """Bring what an earlier training left to the form that a training begins from; the function stays.

        Called after `start`, with an optimizer that has made no step; not called when a run is resumed.
        """

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimizer groups; "lr" and "schedule": "constant" override the run's own."""
        return [{"params": [p for b in self.adapters.values() for p in (b.lora_A, b.lora_B)]}]

    def own_parameters(self) -> list[nn.Parameter]:
        """Parameters that the rule steps itself, outside the loop's optimizer."""
        return []

    def stretch(self, step: int, total: int) -> tuple[int, int]:
        """(steps done, steps in all) of the stretch that the learning-rate schedule runs over."""
        return step, total

    def lap(self, clock: Clock) -> Clock:
        """The clock of the link in progress, counted from the link's own first step."""
        return clock

    def close_link(self, clock: Clock) -> None:
        """The link is about to be frozen: bring the branch to the form that stays."""

    def open_link(self, clock: Clock) -> None:
        """A new link was started, from what `branch` makes: start its own state anew."""

    def before_step(self, clock: Clock) -> None: ...

    def asks(self, clock: Clock) -> Asks:
        """`before_step`, with the gradients it needs asked for one by one; none, where it needs none."""
        self.before_step(clock)
        yield from ()

    def penalty(self) -> Tensor | None:
        """Added to the task loss, once per optimizer step; None for nothing."""
        return None

    def after_step(self, clock: Clock) -> None: ...

    def settled(self, clock: Clock) -> bool:
        """Whether the model has the form that will be used; it is evaluated on the way only then."""
        return True

    def finish(self) -> Method | None:
        """Prune and fold after the last step; a method to train next from the pretrained weights, or None."""
        return None

    def log(self) -> dict[str, float | dict[str, float]]:
        """What the figures need now: name -> value, or name -> {site: value}."""
        return {}

    def notes(self) -> list[str]:
        """Warnings that belong in the run's record."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """Everything a resume needs that is not a parameter of the model: tensors and plain values."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])

    def invariants(self, clock: Clock) -> list[Invariant]:
        """What must be true after the step in progress."""
        if clock.step != 1:
            return []
        still = [site for site, branch in self.adapters.items() if branch.r and not branch.lora_B.any()]
        return [Invariant(not still, f"after the first step lora_B has not moved at {', '.join(still[:4])}: no "
                          "gradient reaches the branch; look for a frozen path, a learning rate of 0 or "
                          "gradient checkpointing without use_reentrant=False")]


def unchanged(before: Tensor, after: Tensor, dtype: torch.dtype, what: str) -> Invariant:
    """That logits stayed the same through a change of form, up to the rounding of the type they pass through."""
    tolerance = 1e-4 if dtype in (torch.float32, torch.float64) else 0.1
    gap = float((after - before).abs().max() / before.abs().max().clamp_min(1.0))
    return Invariant(gap <= tolerance, f"{what} changed the logits by {gap:.1e} of their size, more than "
                                       f"{tolerance:g}: the function should have stayed the same")

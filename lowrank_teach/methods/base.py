"""The contract of a method: a configuration, and the rule that runs it.

A `Method` is a frozen dataclass, validated when built; it can be written to JSON and back. From it `adapt`
and `fit` make a `Rule`, which holds the state: what is put on each matrix, and what happens around an
optimizer step. The training loop calls the rule's hooks and never asks which method it is. Taught in 02.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ..errors import among, require, require_types, shown
from ..lowrank import INITS, LowRank
from ..sites import Site

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..adapters import Adapters




# ---- values that were asked for ----------------------------------------------------------------------------
# Which values of a configuration were asked for, and which were left alone.
#
# A value that equals its default can be asked for, too; a profile (`config.fit_to_profile`) and a composition set
# only what nobody asked for. Equality, `vars` and what is written of a configuration know nothing of it.
M = TypeVar("M", bound="Asked")


class Asked:
    """A frozen dataclass that knows the names of the values that it was given."""

    name: ClassVar[str] = ""
    given: frozenset[str]
    __slots__ = ("__dict__", "__weakref__", "given")  # apart from the values, which stand in `__dict__`

    def __new__(cls: type[M], *args: Any, **values: Any) -> M:
        """Note which values are given: one that equals its default can be asked for, too."""
        made = super().__new__(cls)
        fields = _fields(cls)
        given = {f.name for f, _ in zip((f for f in fields if not f.kw_only), args, strict=False)} | values.keys()
        if given >= {f.name for f in fields}:  # dataclasses.replace hands over all; what is still the default's own
            given -= {f.name for f in fields if f.name in values and _is_default(f, values[f.name])}  # was left alone
        object.__setattr__(made, "given", frozenset(given))
        return made

    def changed(self: M, **values: Any) -> M:
        """Return the same with other values, which are asked for from here on; what was left alone stays so."""
        return self.rebuilt({**_values(self), **values}, self.given | values.keys())

    def filled(self: M, **values: Any) -> M:
        """Return the same with other values that nobody asked for."""
        return self.rebuilt({**_values(self), **values}, self.given)

    @classmethod
    def rebuilt(cls: type[M], values: Mapping[str, Any], given: Iterable[str]) -> M:
        """Return a configuration of these values, of which the ones named by `given` were asked for.

        Raises:
            ValueError: no value has such a name, or one is out of range.
        """
        fields, given = {f.name: f for f in _fields(cls)}, frozenset(given)
        for name in values.keys() - fields.keys():
            require(False, f"{cls.name} has no value {shown(name)}; it has {among(list(fields), str(name))}")
        made = cls.__new__(cls)
        object.__setattr__(made, "given", given)
        made.__init__(**{name: value for name, value in values.items()  # type: ignore[misc]
                         if name in given or value != fields[name].default})
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).rebuilt, (_values(self), self.given)


def _values(asked: Asked) -> dict[str, Any]:
    return {f.name: getattr(asked, f.name) for f in _fields(asked)}


def _fields(asked: Any) -> list[dataclasses.Field[Any]]:
    return [f for f in dataclasses.fields(asked) if f.init]


def _is_default(field: dataclasses.Field[Any], value: Any) -> bool:
    made = field.default_factory is not dataclasses.MISSING and value == field.default_factory()
    return made or value is field.default


# ---- modules beside the matrices ---------------------------------------------------------------------------
# What a rule may put on a model besides low-rank branches: modules of its own, or a library's.
#
# Bottleneck adapters, AdaLoRA and prompts use these hooks; a rule that only has branches leaves all of them alone.
class Attachments:
    """The hooks; every default is that of a rule which puts on nothing but branches."""

    adapters: Adapters

    def attach(self, model: nn.Module, sites: list[Site]) -> list[str]:
        """Put modules on the model, after the branches; return the names of their parameters, all of which train.

        Nothing is refused here any more: what cannot be done is refused in `check`.
        """
        return []

    def detach(self, model: nn.Module) -> None:
        """Remove what `attach` put on, so that the model's modules are what they were."""

    def merge(self) -> None:
        """Write what the attached modules have learned into W.

        Raises:
            RuntimeError: it is no change of W.
        """

    def restore(self) -> None:
        """Give W back what `merge` changed, exactly."""

    def site_ranks(self) -> dict[str, int]:
        """Return site -> number of directions in use."""
        return {name: branch.r for name, branch in self.adapters.items()}

    def own_updates(self) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """Return site -> pretrained W (d, k), left (d, R), right (R, k): attached modules make it W + left right."""
        return {}

    def still_sites(self) -> list[Site]:
        """Return matrices inside a listed parameter that never move (k, if a fused layer trains for q and v only)."""
        return []


# ---- Adam's moments ----------------------------------------------------------------------------------------
# Adam's moments where a rule changes parameters under the optimizer: forgotten, or taken over by others.
def reset_moments(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor]) -> None:
    """Zero the moments and the step counts of these parameters, in place; all others keep theirs."""
    for parameter in parameters:
        for value in optimizer.state.get(parameter, {}).values():
            value.zero_()


def rescale_moments(optimizer: torch.optim.Optimizer, parameter: Tensor, factor: Tensor) -> None:
    """Let the moments follow a parameter that was multiplied by `factor`: its gradient is divided by it."""
    state = optimizer.state.get(parameter, {})
    for name, power in (("momentum_buffer", 1), ("exp_avg", 1), ("exp_avg_sq", 2), ("max_exp_avg_sq", 2)):
        if isinstance(state.get(name), Tensor):
            state[name].div_(factor**power)


def replace_parameter(optimizer: torch.optim.Optimizer, old: nn.Parameter, new: nn.Parameter,
                      keep: Tensor | None, dim: int) -> None:
    """Let `new` take `old`'s place in its group, with the rows `keep` of its moments along `dim` (None: none)."""
    for group in optimizer.param_groups:
        group["params"] = [new if p is old else p for p in group["params"]]
    state = optimizer.state.pop(old, {})
    if keep is not None and state:
        optimizer.state[new] = {name: value.index_select(dim, keep) if value.shape == old.shape else value
                                for name, value in state.items()}


# ---- the registry ------------------------------------------------------------------------------------------
# Short name -> configuration of a method. A name may be listed before its file is imported.
#
# Methods that stand on another library are kept out of the core: only their names and homes are listed here, and
# the home is imported when its configuration is first asked for.
class Registry(MutableMapping[str, "type[Method]"]):
    """A dict of methods by name, in teaching order; `later` lists one that its own module will put in.

    compose: makes one method of several; set by `composition`, which stands on the methods.
    """

    compose: Callable[..., Method]

    def __init__(self) -> None:
        self._made: dict[str, type[Method] | None] = {}
        self._homes: dict[str, str] = {}

    def later(self, name: str, module: str) -> None:
        """List a name whose configuration the module (a full dotted name) defines."""
        self._homes[name] = module
        self._made.setdefault(name, None)

    def __getitem__(self, name: str) -> type[Method]:
        if self._made[name] is None:
            import_module(self._homes[name])
        found = self._made[name]
        if found is None:
            raise KeyError(f"{self._homes[name]} was imported and has no method named {name!r}")
        return found

    def __setitem__(self, name: str, method: type[Method]) -> None:
        self._made[name] = method

    def __delitem__(self, name: str) -> None:
        del self._made[name]

    def __contains__(self, name: object) -> bool:
        return name in self._made  # without importing anything

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)


# ---- the contract of a method ------------------------------------------------------------------------------

METHODS = Registry()  # short name -> configuration, in teaching order


MOST_WIDE = 2**16    # a width beside the model's own


def require_width(config: Any, name: str, least: int) -> None:
    """Refuse a width of new layers that no model has, before memory is asked for them.

    Raises:
        ValueError: it is below `least`, or above MOST_WIDE.
    """
    width = getattr(config, name)
    require(least <= width <= MOST_WIDE, f"{name} = {width} must lie from {least} to {MOST_WIDE:,}")


def require_init(config: Any) -> None:
    """Refuse a start that A cannot have, unless the method has starts of its own.

    Raises:
        ValueError: it is none of INITS.
    """
    require(type(config).init not in INITS or config.init in INITS,
            f"init {shown(config.init)} is not one of {', '.join(map(repr, INITS))}")


def require_shares(config: Any, *names: str) -> None:
    """Refuse a point in the training that lies outside it: floats are shares, whole numbers are steps.

    Raises:
        ValueError: one of them is below 0, or a share above 1.0.
    """
    for name in names:
        at = getattr(config, name)
        require(at >= 0 and not (isinstance(at, float) and at > 1),
                f"{name} = {at} must be a step count of 0 or more, or a share of the training up to 1.0")


def require_rank(site: Site, r: int) -> int:
    """Return the rank, or refuse one that a matrix cannot have, before anything of that size is made.

    Raises:
        ValueError: r is larger than min(d, k).
    """
    require(r <= min(site.d, site.k), f"rank {r} is larger than min(d, k) = {min(site.d, site.k)} at {site.name}; "
                                      f"choose r ≤ {min(site.d, site.k)}")
    return r


def require_unused(config: Any, instead: str, fields: tuple[str, ...] = ("r", "lora_alpha", "lora_dropout", "init")
                   ) -> None:
    """Refuse a value that every method has a field for and this one does not use.

    Raises:
        ValueError: such a field is not at its default.
    """
    for f in dataclasses.fields(config):
        require(f.name not in fields or getattr(config, f.name) == f.default,
                f"{config.name} has no use for {f.name}; its size is {instead}")


@dataclass(frozen=True)
class Clock:
    """Where training stands. Counts optimizer steps, never micro-batches.

    step: the step in progress, 1 … total.  total: all steps.  per_epoch: steps in one pass over the data.
    """

    step: int
    total: int
    per_epoch: int

    def resolve(self, when: int | float) -> int:
        """Return a step count from an int (steps) or a float in [0, 1] (a share of all steps)."""
        return round(when * self.total) if isinstance(when, float) else when


@dataclass(frozen=True)
class Invariant:
    """Something that must be true now; the loop stops with `says` where it is not."""

    holds: bool
    says: str


class Noise:
    """Torch's random state as it is now, to be used again."""

    def __init__(self) -> None:
        self.cpu = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None

    @contextmanager
    def again(self) -> Iterator[None]:
        """Draw the same numbers each time in here, and leave torch's own state as it is."""
        with torch.random.fork_rng():
            torch.set_rng_state(self.cpu)
            if self.cuda is not None:
                torch.cuda.set_rng_state_all(self.cuda)
            yield


class Loop(Protocol):
    """What the training loop offers to a rule."""

    optimizer: torch.optim.Optimizer
    micro_batches: list[dict[str, Tensor]]  # of the step in progress
    outcome: Any                            # with `history`: (step, site, name, value) of all that was logged

    @property
    def dtype(self) -> torch.dtype:
        """The least precise type that logits pass through: W's, or autocast's."""
        ...

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the logits in eval mode, without a graph."""
        ...

    def loss(self, batch: dict[str, Tensor], parameters: dict[str, Tensor] | None = None) -> Tensor:
        """Return the loss in training mode, with a graph; with these tensors in place of the parameters they name."""
        ...

    def mean_loss(self, batches: list[dict[str, Tensor]], parameters: dict[str, Tensor] | None = None) -> Tensor:
        """Return the loss over several micro-batches; refuse one that is not finite."""
        ...

    def held_out(self) -> list[dict[str, Tensor]]: ...

    def gradient(self, batches: list[dict[str, Tensor]], at: dict[str, Tensor], of: Sequence[Tensor],
                 noise: Noise | None = None) -> Sequence[Tensor]:
        """Differentiate `mean_loss(batches, at)` by the tensors `of`; replicas do it in the pass they share.

        noise: the random state that dropout draws from, for losses that must differ in the weights alone.
        """
        ...


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
    # what `compose` asks: what it must be the only one to do (keys of composition.SOLE; None: it shares no branch),
    # why nothing can go with it, and whether what it learned stands in W (True), beside W (False), or either (None)
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
        """Return a new rule, which holds the state while it runs."""
        raise TypeError(f"{type(self).__name__} names no rule: override rule()")

    def steps(self, total: int) -> int:
        """Return how many steps this method trains if the run's configuration says `total`."""
        return total

    def with_frozen_base(self) -> Method:
        """Return the same method with all it learns kept beside W, if it has such a form: many then share one W."""
        return self

    def base_parameters(self, model: nn.Module) -> list[str]:
        """Return the names of pretrained parameters that train too (none, but for full fine-tuning)."""
        return []

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, with the method's name under "method"."""
        return {"method": self.name, **dataclasses.asdict(self)}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Method:
        """Return the configuration that `to_dict` wrote, with all of its values asked for.

        Raises:
            ValueError: a name is unknown, or a value out of range.
        """
        require(isinstance(values, Mapping) and all(isinstance(key, str) for key in values),
                f"{shown(values)} is no dict that to_dict wrote")
        if "members" in values:
            require(isinstance(members := values["members"], list), f"members = {shown(members)} must be a list")
            return METHODS.compose(*map(Method.from_dict, members))
        values = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        name = values.pop("method", None)
        require(isinstance(name, str) and name in METHODS,
                f"unknown method {shown(name)}; choose among {', '.join(METHODS)}")
        return METHODS[name].rebuilt(values, values)


class Rule(Attachments):
    """A method at work on one adapted model. Every hook has a default that does nothing.

    Life: `branch` for each site, `start` when the training's length is known (then `again`, if it is not the first
    training), then for every optimizer step `before_step`, the loss with `penalty`, the step, `after_step`; `finish`
    at the end. In a composition (`compose`) `link_clock`, `close_link` and `open_link` tell the members of a
    chain's links.
    """

    by_link: ClassVar[bool] = False  # lives anew in every link of a chain: given the link's own clock
    nesting: ClassVar[int] = 1       # 0 stands next to the optimizer's step and reads its change, 2 outermost
    trained = False                  # whether a training has moved what this rule put on the model

    def __init__(self, method: Any) -> None:
        self.method = method
        self.adapters: Adapters
        self.generator = torch.Generator()  # A's start, gate noise: apart from the model's own dropout

    def branch(self, site: Site) -> LowRank | None:
        """Return what is put on one matrix; None leaves it as it is."""
        m = self.method
        return self.low_rank(site, m.r, m.lora_alpha / m.r)

    def low_rank(self, site: Site, r: int, scaling: float, gate: nn.Module | None = None) -> LowRank:
        """Return a branch of rank r for one site, with this method's dropout and start.

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
        """Turn shares of the training into steps; called once before the first step, also when a run is resumed.

        Raises:
            ValueError: something in the configuration does not fit this length of training.
        """
        self.loop = loop

    def again(self) -> None:
        """Bring what an earlier training left to the form that a training begins from; the function stays.

        Called after `start`, with an optimizer that has made no step; not called when a run is resumed.
        """

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the optimizer's groups; "lr" and "schedule": "constant" override the run's own."""
        return [{"params": [p for b in self.adapters.values() for p in (b.lora_A, b.lora_B)]}]

    def own_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that the rule steps itself, outside the loop's optimizer."""
        return []

    def stretch(self, step: int, total: int) -> tuple[int, int]:
        """Return (steps done, steps in all) of the stretch that the learning-rate schedule runs over."""
        return step, total

    def link_clock(self, clock: Clock) -> Clock:
        """Return the clock of the link in progress, counted from the link's own first step."""
        return clock

    def close_link(self, clock: Clock) -> None:
        """Bring the branch to the form that stays, since the link is about to be frozen."""

    def open_link(self, clock: Clock) -> None:
        """Start the rule's state anew for a new link, made by `branch`."""

    def before_step(self, clock: Clock) -> None: ...

    def penalty(self) -> Tensor | None:
        """Return what is added to the task loss once an optimizer step; None for nothing."""
        return None

    def after_step(self, clock: Clock) -> None: ...

    def settled(self, clock: Clock) -> bool:
        """Return whether the model has the form that will be used; it is evaluated on the way only then."""
        return True

    def finish(self) -> Method | None:
        """Prune and fold after the last step; return a method to train next from the pretrained weights, or None."""
        return None

    def log(self) -> dict[str, float | dict[str, float]]:
        """Return what the figures need of this step: name -> value, or name -> {site: value}."""
        return {}

    def notes(self) -> list[str]:
        """Return warnings that belong in the run's record."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resume needs and is no parameter of the model: tensors and plain values."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])

    def invariants(self, clock: Clock) -> list[Invariant]:
        """Return what must be true after the step in progress."""
        if clock.step != 1:
            return []
        still = [site for site, branch in self.adapters.items() if branch.r and not branch.lora_B.any()]
        return [Invariant(not still, f"after the first step lora_B has not moved at {', '.join(still[:4])}: no "
                          "gradient reaches the branch; look for a frozen path, a learning rate of 0 or "
                          "gradient checkpointing without use_reentrant=False")]


def unchanged(before: Tensor, after: Tensor, dtype: torch.dtype, what: str) -> Invariant:
    """Return whether logits stayed the same through a change of form, up to the rounding of their type."""
    tolerance = 1e-4 if dtype in (torch.float32, torch.float64) else 0.1
    gap = float((after - before).abs().max() / before.abs().max().clamp_min(1.0))
    return Invariant(gap <= tolerance, f"{what} changed the logits by {gap:.1e} of their size, more than "
                                       f"{tolerance:g}: the function should have stayed the same")

"""Several methods on one branch: a chain whose links have gates, gates under Delta-LoRA, learned ranks in a chain.

    compose(COLA(chain=3), SaLoRA(b=0.25))      # or by name: fit("cola+salora")

Every method is the same layer and a rule around its steps, so rules can share a branch. How their contracts
combine, one rule for all pairs:

- Fields that every method has (r, lora_alpha, lora_dropout, sites, init) are shared. What was asked for, be it a
  method's own default, must agree and holds for all; what nobody asked for is the default of the member that
  decides the form of the branch, else of the first one in teaching order.
- Each thing in SOLE is done by one member at most: a pair that would both do it is refused. So is a method
  named twice, one that shares no branch (`owns` is None), and two of which one writes into W and one does not.
- A member that hands over to a following training (AutoLoRA) trains alone until then; the others begin in the
  training that follows, at the ranks it found.
- Hooks are nested around the optimizer's step: `before_step` from the outside in, `after_step` from the inside
  out. What reads a step's change (Delta-LoRA) stands next to it, what starts new links (COLA) outermost.
- A member that lives by link (SaLoRA) runs anew in each: its window, its λ and its density are of the link, and
  the link's own clock is what it sees. Others keep the clock of the training.
- At a knot every member's invariants are asked, and its numbers logged, before the link is closed; those of the
  member that ties it afterwards. In all other steps invariants are united.
- Parameter groups are united: no parameter is in two of them, and a rate of its own, which one member at most
  may give it, goes before the run's. Penalties are added, names in the log must differ, a state is kept under
  its member's name, random numbers come from one generator.

Two readings are ours, since no paper has them. λ of SaLoRA starts from zero in every link: it is the price of one
link's budget, the new gates all start open, and how long a window must be was measured from λ = 0. And W follows
gates without their noise, W += λ s (B' diag(g') A' − B diag(g) A) with the deterministic g that is deployed: so the
steps telescope, and a direction that a gate closes leaves nothing behind in W. Taught in 10.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..errors import among, require, shown
from ..lowrank import LowRank
from ..sites import Site
from .base import METHODS, Clock, Invariant, Loop, Method, Rule


# ---- the rule of several methods ---------------------------------------------------------------------------
# The running side of a composition: the members' rules, each called when its turn is.
#
# The rule by which contracts combine is written down above. Taught in 10.
class ComposedRule(Rule):
    """The rules of the first training's members, nested around the step.

    Args:
        method: the composition.  members: those that train now.
        following: what is trained next, from what a member hands over.
    """

    def __init__(self, method: Method, members: Sequence[Method], following: Callable[[Method], Method]) -> None:
        super().__init__(method)
        self.following = following
        self.rules = {m.name: m.rule() for m in members}
        self.inside_out = sorted(self.rules.values(), key=lambda rule: rule.nesting)
        for rule in self.rules.values():
            rule.generator = self.generator
        self.maker = self._one("form") or next(iter(self.rules.values()))
        self.chain = self._one("links") or Rule(method)
        self.schedule = self._one("schedule") or Rule(method)
        self.step = 0
        self.closed: list[Rule] = []  # members that were asked already in this step, as a link was closed
        self.closing_log: dict[str, float | dict[str, float]] = {}
        self.closing_checks: list[Invariant] = []

    def _one(self, what: str) -> Rule | None:
        return next((rule for rule in self.rules.values() if what in (rule.method.owns or ())), None)

    # -- before the training

    def check(self, sites: list[Site]) -> None:
        for rule in self.rules.values():
            rule.adapters = self.adapters
            rule.check(sites)

    def branch(self, site: Site) -> LowRank | None:
        return self.maker.branch(site)

    def start(self, clock: Clock, loop: Loop) -> None:
        super().start(clock, loop)
        self.clock = clock
        for rule in self.rules.values():
            if not rule.by_link:
                rule.start(clock, loop)  # the chain now knows its knots
        at = clock.step and clock.total  # of a run that is taken up, all were looked at when it began
        while at < clock.total:  # each link is looked at now, and none refused at its knot
            at += self._start_link(at)
        self._start_link(clock.step)

    def again(self) -> None:
        for rule in reversed(self.inside_out):  # a chain first: the others find its new link
            rule.again()

    def _start_link(self, done: int) -> int:
        """Start those that live by link for the link that the step after `done` is in; return its length."""
        lap = self._lap_after(done)
        for rule in self.rules.values():
            if rule.by_link:
                try:
                    rule.start(lap, self.loop)
                except ValueError as error:
                    where = f"in a link of {lap.total} steps, " if lap.total < self.clock.total else ""
                    raise ValueError(f"{where}{error}") from error
        return lap.total

    def _lap_after(self, done: int) -> Clock:
        """Return the clock of a link between two steps: steps of it that are done, and its length."""
        lap = self.link_clock(dataclasses.replace(self.clock, step=done + 1))
        return dataclasses.replace(lap, step=lap.step - 1)

    def _clock(self, rule: Rule, clock: Clock) -> Clock:
        return self.link_clock(clock) if rule.by_link else clock

    def parameter_groups(self) -> list[dict[str, Any]]:
        found = [group for rule in self.rules.values() for group in rule.parameter_groups()]
        rated = [id(p) for group in found if "lr" in group for p in group["params"]]
        require(len(set(rated)) == len(rated), f"two members of {self.method.name} give one parameter a rate of its "
                                               "own; leave one of them out")
        seen: set[int] = set()
        groups = []
        for group in found:
            left = [p for p in group["params"] if id(p) not in seen and ("lr" in group or id(p) not in rated)]
            seen |= {id(p) for p in left}
            groups += [{**group, "params": left}] if left else []
        return groups

    def own_parameters(self) -> list[nn.Parameter]:
        return [p for rule in self.rules.values() for p in rule.own_parameters()]

    # -- around a step

    def stretch(self, step: int, total: int) -> tuple[int, int]:
        return self.schedule.stretch(step, total)

    def link_clock(self, clock: Clock) -> Clock:
        return self.chain.link_clock(clock)

    def before_step(self, clock: Clock) -> None:
        self.closed, self.closing_log, self.closing_checks = [], {}, []
        for rule in reversed(self.inside_out):
            rule.before_step(self._clock(rule, clock))

    def penalty(self) -> Tensor | None:
        found = [p for rule in self.rules.values() if (p := rule.penalty()) is not None]
        return sum(found[1:], found[0]) if found else None

    def after_step(self, clock: Clock) -> None:
        for rule in self.inside_out:
            rule.after_step(self._clock(rule, clock))
        self.step = clock.step

    def close_link(self, clock: Clock) -> None:
        """Ask every partner of the chain about the step, then let those that live by link come to their end."""
        self.closed = [rule for rule in self.inside_out if rule is not self.chain]
        for rule in self.closed:
            self.closing_checks += rule.invariants(self._clock(rule, clock))
            self.closing_log |= rule.log()
        for rule in self.closed:
            if rule.by_link:
                rule.finish()

    def open_link(self, clock: Clock) -> None:
        for rule in self.closed:
            rule.open_link(self._lap_after(clock.step) if rule.by_link else clock)

    def settled(self, clock: Clock) -> bool:
        return all(rule in self.closed or rule.settled(self._clock(rule, clock)) for rule in self.rules.values())

    def invariants(self, clock: Clock) -> list[Invariant]:
        now = [rule for rule in self.rules.values() if rule not in self.closed]
        return [*self.closing_checks, *(i for rule in now for i in rule.invariants(self._clock(rule, clock)))]

    def log(self) -> dict[str, float | dict[str, float]]:
        found = dict(self.closing_log)
        for rule in self.rules.values():
            new = {} if rule in self.closed else rule.log()
            twice = sorted(found.keys() & new.keys())
            require(not twice, f"two members of {self.method.name} log {', '.join(twice)}: rename it in one of them")
            found |= new
        return found

    # -- after it

    def finish(self) -> Method | None:
        handed = [after for rule in self.inside_out if (after := rule.finish()) is not None]
        return self.following(handed[0]) if handed else None

    def notes(self) -> list[str]:
        return [note for rule in self.rules.values() for note in rule.notes()]

    def state_dict(self) -> dict[str, Any]:
        parts = {f"{name}.{key}": value for name, rule in self.rules.items()
                 for key, value in rule.state_dict().items() if key != "generator"}
        return {**super().state_dict(), "step": self.step, **parts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self._start_link(min(self.step, self.clock.total - 1))
        for name, rule in self.rules.items():
            own = {k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(f"{name}.")}
            rule.load_state_dict({**own, "generator": state["generator"]})


# ---- the configuration -------------------------------------------------------------------------------------

SHARED = tuple(f.name for f in dataclasses.fields(Method))
SOLE = {
    "form": "decide the form of the branch (its gates, or its rank at each site)",
    "links": "start new links",  # as many as its `chain` says
    "schedule": "change the stretch of the learning-rate schedule",
    "following": "hand over to a training that follows",
    "held_out": "take training rows for themselves",
}


@dataclass(frozen=True, kw_only=True)
class Composed(Method):
    """Several methods at once; made by `compose`, and a method like any other.

    Args:
        members: the methods, in teaching order, with the shared fields made equal. The five fields of every
            method are read from them.

    Raises:
        ValueError: two members contradict each other; the sentence names them and says what to do.
    """

    r: int = field(default=8, init=False, repr=False)
    lora_alpha: float = field(default=16.0, init=False, repr=False)
    lora_dropout: float = field(default=0.0, init=False, repr=False)
    sites: str | tuple[str, ...] = field(default="qv", init=False, repr=False)
    init: str = field(default="kaiming", init=False, repr=False)
    members: tuple[Method, ...]

    def __post_init__(self) -> None:
        require(isinstance(self.members, list | tuple) and all(isinstance(m, Method) for m in self.members),
                f"members = {shown(self.members)} must be methods")
        members = tuple(sorted(self.members, key=lambda m: list(METHODS).index(m.name)))
        _refuse_contradictions(members)
        members = _agreed(members)
        object.__setattr__(self, "members", members)
        object.__setattr__(self, "name", "+".join(m.name for m in members))
        for shared in SHARED:
            object.__setattr__(self, shared, getattr(members[0], shared))
        super().__post_init__()

    @property
    def first(self) -> tuple[Method, ...]:
        """The members of the first training: the one that hands over, or else all."""
        return tuple(m for m in self.members if "following" in _owned(m)) or self.members

    @property
    def held_out(self) -> float:  # type: ignore[override]
        return sum(m.held_out for m in self.first)

    def with_frozen_base(self) -> Method:
        return compose(*(m.with_frozen_base() for m in self.members))

    @property
    def owns(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset().union(*map(_owned, self.members))

    @property
    def links(self) -> int:
        """How many links are trained one after another; 1 without a chain."""
        return next((getattr(m, "chain", 1) for m in self.members if "links" in _owned(m)), 1)

    def steps(self, total: int) -> int:
        asked = {m.steps(total) for m in self.first}
        require(len(asked) == 1, f"the members of {self.name} do not agree on how long to train")
        return asked.pop()

    def base_parameters(self, model: nn.Module) -> list[str]:
        return list(dict.fromkeys(name for m in self.first for name in m.base_parameters(model)))

    def rule(self) -> ComposedRule:
        return ComposedRule(self, self.first, self._following)

    def _following(self, handed: Method) -> Method:
        """Return what a member hands over to, with those that have waited for it."""
        shared = {name: getattr(handed, name) for name in SHARED}
        return compose(handed, *(m.changed(**shared) for m in self.members if m not in self.first))

    def to_dict(self) -> dict[str, Any]:
        shared = {name: getattr(self, name) for name in SHARED}
        return {"method": self.name, **shared, "members": [m.to_dict() for m in self.members]}


# ---- making one ---------------------------------------------------------------------------------------------


def compose(*methods: Method) -> Method:
    """Return several methods as one; a single one is itself, and a composition counts as its members.

    Raises:
        ValueError: they contradict each other; the sentence names the members and says what to do.
    """
    flat = [member for method in methods for member in getattr(method, "members", (method,))]
    require(bool(flat), "compose() takes one method or more")
    for member in flat:
        require(isinstance(member, Method), f"{shown(member)} is no method: give a configuration, such as LoRA(r=8)")
    return flat[0] if len(flat) == 1 else Composed(members=tuple(flat))


METHODS.compose = compose


def as_method(what: Method | str | Sequence[Method | str]) -> Method:
    """Return a configuration from itself, from a name ("cola", "cola+salora" for both), or from several of these.

    Raises:
        ValueError: a name is unknown, or the members contradict each other.
    """
    if isinstance(what, Method):
        return what
    each = [what] if isinstance(what, str) else what
    require(isinstance(each, list | tuple) and all(isinstance(one, str | Method) for one in each),
            f"{shown(what)} is no method: give a configuration, such as LoRA(r=8), a short name, or a list of these")
    return compose(*(named(one) if isinstance(one, str) else one for one in each))


def named(name: str, **values: Any) -> Method:
    """Return the method or composition of this name; each value goes to every member that has such a field.

    Raises:
        ValueError: a name is unknown, or no member has one of the values.
    """
    kinds = kinds_of(name)
    fields = {kind: {f.name for f in dataclasses.fields(kind)} for kind in kinds}
    lost = sorted(values.keys() - set().union(*fields.values()))
    require(not lost, f"{name} has no value {', '.join(lost)}; it has {among(fields_of(name), *lost[:1])}")
    return compose(*(kind(**{k: v for k, v in values.items() if k in fields[kind]}) for kind in kinds))


def kinds_of(name: str) -> list[type[Method]]:
    """Return the classes that a name such as "cola+salora" stands for.

    Raises:
        ValueError: a name is unknown.
    """
    require(isinstance(name, str), f"{shown(name)} is no method's name; choose among {', '.join(METHODS)}")
    for part in (parts := name.split("+")):
        require(part in METHODS,
                f"unknown method {shown(part)}; choose among {', '.join(METHODS)}, or join some by +")
    return [METHODS[part] for part in parts]


def fields_of(name: str) -> list[str]:
    """Return the names of all values that the methods of a name take, each once."""
    return list(dict.fromkeys(f.name for kind in kinds_of(name) for f in dataclasses.fields(kind)))


# ---- refusing and agreeing ----------------------------------------------------------------------------------


def _refuse_contradictions(members: Sequence[Method]) -> None:
    names = [m.name for m in members]
    for m in members:
        require(names.count(m.name) == 1, f"{m.name} is named twice: a composition has each method once")
        others = " and ".join(name for name in names if name != m.name)
        reason = "it does not say what of a branch is its own (`owns`)" if m.sites else "it trains without a branch"
        require(not m.alone and m.owns is not None, f"{others} cannot go with {m.name}: {m.alone or reason}")
    for what, words in SOLE.items():
        who = [m.name for m in members if what in _owned(m) or (what == "held_out" and m.held_out)]
        require(len(who) < 2, f"{' and '.join(who)} both {words}, and only one member may; leave one of them out")
    writes = {m.name: m.writes_base for m in members if m.writes_base is not None}
    require(len(set(writes.values())) < 2, "what is learned stands in W or beside it, not both: " + ", ".join(
        f"{name} {'writes into W' if wrote else 'leaves W alone'}" for name, wrote in writes.items())
        + "; set merge_knots and form alike")


def _agreed(members: Sequence[Method]) -> tuple[Method, ...]:
    """Return the members with one value for each shared field."""
    maker = next((m for m in members if "form" in _owned(m)), members[0])
    agreed: dict[str, Any] = {}
    for name in SHARED:
        asked = {m.name: getattr(m, name) for m in members if name in m.given}
        require(len(set(asked.values())) < 2, "members share a branch, so they must agree: " + ", ".join(
            f"{who} has {name} = {value!r}" for who, value in asked.items()))
        agreed[name] = next(iter(asked.values()), getattr(maker, name))
    made = tuple(m.filled(**agreed) for m in members)
    for m in made:
        for name, value in agreed.items():
            require(getattr(m, name) == value, f"members share a branch, so they must agree: {m.name} has {name} = "
                                               f"{getattr(m, name)!r} where another has {value!r}")
    return made


def _owned(method: Method) -> frozenset[str]:
    return method.owns or frozenset()

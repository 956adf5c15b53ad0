"""The running side of a composition: the members' rules, each called when its turn is.

The rule by which contracts combine is written down in `compose.py`. Taught in 10.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from ..lowrank import LowRank
from ..sites import Site
from .base import Clock, Invariant, Loop, Method, Rule, require


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
        """Start those that live by link for the link that the step after `done` is in; its length."""
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
        """The clock of a link between two steps: steps of it that are done, and its length."""
        lap = self.lap(dataclasses.replace(self.clock, step=done + 1))
        return dataclasses.replace(lap, step=lap.step - 1)

    def _clock(self, rule: Rule, clock: Clock) -> Clock:
        return self.lap(clock) if rule.by_link else clock

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

    def lap(self, clock: Clock) -> Clock:
        return self.chain.lap(clock)

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
            if rule.by_link:
                rule.open_link(self._lap_after(clock.step))

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

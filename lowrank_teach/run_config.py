"""What decides a run, as one value: `fit` takes its parts, `sweep` and `fit_many` take lists of them.

    config = RunConfig("salora", "rt", seed=3, training={"lr": 2e-3})
    config.key                    # the name of its record in the store
    run = config.fit()            # or: sweep(grid(["lora", "salora"], seeds=5, lr=[1e-3, 2e-3]))
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from typing import TYPE_CHECKING, Any

from .config import TrainConfig, default_profile, fit_to_profile, set_by_profile, train_config
from .identity import identity
from .methods import Method, as_method, compose
from .methods.checks import among, require, require_seed, shown
from .methods.compose import named
from .runs import config_key

if TYPE_CHECKING:
    from .runs import Run


@dataclass(frozen=True)
class RunConfig:
    """One run, before it is trained; the arguments are those of `fit`.

    Args:
        method: a configuration, or a short name for its defaults.  task, backbone: short names.
        profile: "tiny", "laptop" or "gpu"; None takes LOWRANK_PROFILE, now and not when it is trained.
        training: fields of `TrainConfig` to change.
        adjust: let the profile set what depends on the length of training and was left alone.

    Raises:
        ValueError: a value is unknown or out of range.
    """

    method: Method = field(hash=False)
    task: str = "rt"
    backbone: str = "minilm-l6"
    profile: str = None  # type: ignore[assignment]  # a name from here on
    seed: int = 0
    training: Mapping[str, Any] = field(default_factory=dict, hash=False)
    adjust: bool = field(default=True, hash=False)

    def __post_init__(self) -> None:
        require(isinstance(self.task, str), f"task = {shown(self.task)} must be the short name of a task")
        from .tasks import require_task  # late: it reads the sources of the rows, which few configurations need

        require_task(self.task)
        require(isinstance(self.backbone, str | PathLike), f"backbone = {shown(self.backbone)} must be a name or a "
                                                           "folder")
        require(isinstance(self.profile, str | None), f"unknown profile {shown(self.profile)}: give its name")
        require(isinstance(self.training, Mapping) and all(isinstance(name, str) for name in self.training),
                f"training = {shown(self.training)} must be a dict of fields of TrainConfig")
        require(isinstance(self.adjust, bool), f"adjust = {shown(self.adjust)} must be true or false")
        settled = {"method": as_method(self.method), "backbone": os.path.expanduser(str(self.backbone)),
                   "seed": require_seed(self.seed), "profile": self.profile or default_profile(),
                   "training": dict(self.training)}
        for name, value in settled.items():
            object.__setattr__(self, name, value)
        train_config(self.profile, **self.training)  # refused here, not when its turn comes

    @cached_property
    def train(self) -> TrainConfig:
        """How long and how fast: the profile with what is changed in it."""
        return train_config(self.profile, **self.training)

    @cached_property
    def adjusted(self) -> Method:
        """The method as it is trained, with what the profile sets."""
        return fit_to_profile(self.method, self.profile) if self.adjust else self.method

    @cached_property
    def described(self) -> dict[str, Any]:
        """Plain values, as they stand in the record under "config" and as they are read back."""
        values = {"method": self.adjusted.to_dict(), "task": self.task, "backbone": self.backbone, "seed": self.seed,
                  "profile": self.profile, "training": self.train.to_dict()}
        return json.loads(json.dumps(values))

    def __eq__(self, other: object) -> bool:
        """Whether they are the same run: methods that are equal may follow a profile or keep what was asked for."""
        return self.described == other.described if isinstance(other, RunConfig) else NotImplemented

    @property
    def notes(self) -> list[str]:
        """What the profile set in the method, for the reader and the record."""
        return [f"the profile {self.profile} set {', '.join(f'{key} = {value:g}' for key, value in values.items())} "
                f"of {name}; a value asked for is kept"
                for name, values in (set_by_profile(self.method, self.profile) if self.adjust else {}).items()]

    @property
    def identity(self) -> dict[str, str | None]:
        """Fingerprints of the rows and weights that stand under these names now; see `identity.identity`."""
        return identity(self.task, self.backbone)

    @property
    def key(self) -> str:
        """The name of the run's record, of what would be trained now; see `runs.config_key`."""
        return config_key(self.described, self.identity)

    @property
    def label(self) -> str:
        """Method, task and seed, in a few words."""
        return f"{self.method.name}, {self.task}, seed {self.seed}"

    def fit(self, **options: Any) -> Run:
        """Train it, or find the run that did; options of `fit` such as store, callbacks, progress."""
        from .experiment import fit

        return fit(self.method, self.task, self.backbone, self.profile, self.seed, adjust=self.adjust, **options,
                   **self.training)


def grid(methods: Method | str | Sequence[Method | str], tasks: str | Sequence[str] = "rt",
         backbones: str | Sequence[str] = "minilm-l6", *, seeds: int | Iterable[int] = 1, profile: str | None = None,
         **values: Any) -> list[RunConfig]:
    """Every combination, seed by seed, so that an interrupted sweep is balanced.

    Args:
        methods: configurations or short names; "cola+salora" is one.  seeds: how many, or which.
        values: of the methods or of the training; a list is a list of values to try, all else is one value. A value
            that only some methods have is varied for these alone.

    Raises:
        ValueError: no method here and no training has a value of this name, or one is out of range.
    """
    require(isinstance(seeds, int | Iterable) and not isinstance(seeds, bool), f"seeds = {shown(seeds)} must be how "
                                                                               "many, or which")
    seeds = range(seeds) if isinstance(seeds, int) else seeds
    tried = {name: value if isinstance(value, list) else [value] for name, value in values.items()}
    _refuse_unknown(set(tried), _several(methods))
    chosen = list(itertools.chain(*(_varied(method, tried) for method in _several(methods))))
    return [RunConfig(method, task, backbone, profile, seed, training)  # type: ignore[arg-type]
            for seed in seeds for task in _several(tasks) for backbone in _several(backbones)
            for method, training in chosen]


def _several(what: Any) -> list[Any]:
    return list(what) if isinstance(what, list | tuple | range) else [what]


def _varied(method: Method | str, tried: Mapping[str, list[Any]]) -> Iterable[tuple[Method, dict[str, Any]]]:
    """One method with each combination of the values that it or its training has."""
    own, training = _fields(method), {f.name for f in dataclasses.fields(TrainConfig)}
    names = [name for name in tried if name in own | training]
    for combination in itertools.product(*(tried[name] for name in names)):
        pairs = dict(zip(names, combination, strict=True))
        changed = _with(method, {name: value for name, value in pairs.items() if name in own})
        yield changed, {name: value for name, value in pairs.items() if name not in own}


def _fields(method: Method | str) -> set[str]:
    members = getattr(made := as_method(method), "members", (made,))
    return {f.name for member in members for f in dataclasses.fields(member)}


def _with(method: Method | str, values: Mapping[str, Any]) -> Method:
    """The method with other values; in a composition each goes to every member that has such a field."""
    if isinstance(method, str):
        return named(method, **values)
    members = getattr(method, "members", (method,))
    return compose(*(member.changed(**{k: v for k, v in values.items() if k in _fields(member)})
                     for member in members))


def _refuse_unknown(names: set[str], methods: Sequence[Method | str]) -> None:
    known = set().union({f.name for f in dataclasses.fields(TrainConfig)}, *map(_fields, methods))
    lost = sorted(names - known)
    require(not lost, f"{', '.join(lost)}: no value of the methods or of the training has this name; there are "
                      f"{among(sorted(known), *lost[:1])}")

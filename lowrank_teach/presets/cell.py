"""A preset: one cell of a paper's table with all its values, ready to be trained, or to be read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..config import PROFILES, TrainConfig, fit_to_profile
from ..dimensions import DIMENSIONS, Published
from ..hub import reason
from ..methods import METHODS, Method
from ..models import CheckpointError
from ..tasks.table import TASKS
from .setting import Setting, Settings, ours

if TYPE_CHECKING:
    from ..runs import Run

DEFAULT = "not given; the default here"
WHERE_RUN = ("steps", "accumulation", "n_train", "n_validation", "n_test", "mixed_precision", "base_dtype",
             "gradient_checkpointing", "checkpoint_every")
WRITING = ("n_written", "num_beams", "length_penalty", "no_repeat_ngram_size")
STEP_COUNTS = ("K", "search_steps", "t_start", "t_end")  # method values that count steps where they are whole numbers
WRITTEN = {"tiny": 8}                                    # texts written at a shortened run's evaluation


@dataclass(frozen=True)
class Preset:
    """One cell of a paper's table, ready to be trained.

    name: paper/backbone/task; the paper's is the method's short name, the backbone's a key of `DIMENSIONS`.
    table: where the cell stands.  task: short name here.  seeds: that the number is over.
    settings: every value that was looked up or chosen, by the name it has here (of the method or of `TrainConfig`).
    reported: metric -> the number as it is printed there; only numbers that were found in a text or a repository.
    counts: parameters of the branches as printed, and as they are here.
    grid: values that the paper says it searched over, where it reports the best.
    differs: what of the paper's setting is not like this here.
    baselines: method -> what it is set to in the same table.
    train_rows: of the paper's split, where it is not all published ones.
    """

    name: str
    table: str
    task: str
    settings: Settings
    seeds: Setting
    reported: Mapping[str, str] = field(default_factory=dict)
    reported_source: str = ""
    counts: tuple[str, int] | None = None
    grid: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    differs: tuple[str, ...] = ()
    baselines: Mapping[str, Settings] = field(default_factory=dict)
    train_rows: int = 0

    @property
    def checkpoint(self) -> Published:
        return DIMENSIONS[self.name.split("/")[1]]

    @property
    def backbone(self) -> str:
        """The checkpoint's name on the hub."""
        return self.checkpoint.hub

    @property
    def stand_in(self) -> str:
        """The packaged model that comes nearest to the paper's."""
        return self.checkpoint.stand_in

    @property
    def method(self) -> Method:
        return self.configured()

    def configured(self, method: str | None = None, **changes: Any) -> Method:
        """The paper's method, or a baseline of its table, with some values changed.

        Raises:
            ValueError: the table has no such baseline whose setting is known, or a value is out of range.
        """
        own = self.name.split("/")[0]
        if method not in (None, own, *self.baselines):
            known = ", ".join([own, *self.baselines])
            raise ValueError(f"{self.name} has no setting for {method!r}; it has {known}")
        settings = self.settings if method in (None, own) else self.baselines[str(method)]
        usual = {f.name: f.default for f in dataclasses.fields(METHODS[method or own])}
        values = {name: s.value for name, s in settings.items() if name in usual}
        asked = changes.keys() | {name for name, value in values.items() if value != usual[name]}
        return METHODS[method or own].rebuilt({**values, **changes}, asked)  # a profile may set what is our default

    @property
    def training(self) -> dict[str, Any]:
        """All fields of `TrainConfig`, as `fit` takes them."""
        fields = {f.name for f in dataclasses.fields(TrainConfig)}
        return dataclasses.asdict(TrainConfig(**{n: s.value for n, s in self.settings.items() if n in fields}))

    @property
    def steps(self) -> int:
        """Optimizer steps on the published rows."""
        return TrainConfig(**self.training).total_steps(self.rows)

    @property
    def rows(self) -> int:
        """Training rows of the paper's split."""
        task = TASKS[self.task]
        return self.train_rows or TASKS[task.trained_on or self.task].rows["train"]

    def values(self) -> dict[str, Setting]:
        """Every value of the method and of the training, the ones left at a default included.

        What says how a run is carried out and not what it is (WHERE_RUN) is there only where it was set.
        """
        of = {**{f.name: getattr(self.method, f.name) for f in dataclasses.fields(self.method)}, **self.training}
        unused = {*WHERE_RUN, *(WRITING if TASKS[self.task].kind != "seq2seq" else ())} - self.settings.keys()
        return {name: self.settings.get(name, ours(value, DEFAULT)) for name, value in of.items()
                if name not in unused}

    @property
    def not_given(self) -> dict[str, Setting]:
        """What neither the paper nor its authors' scripts say, with our choice and the reason."""
        return {name: setting for name, setting in self.values().items() if setting.kind == "ours"}

    def arguments(self, profile: str | None = None, *, method: str | None = None, stand_in: bool = False,
                  backbone: str | None = None, **changes: Any) -> dict[str, Any]:
        """What `fit` is to be called with: `lt.fit(**preset.arguments(), seed=0)`.

        Args:
            profile: None trains as long as the paper; a profile's name shortens the training (steps, rows, longest
                row) and leaves rates and method values as they are, but for those that a length decides.
            method: a baseline of the same table instead.
            stand_in: the packaged model in place of the paper's.  backbone: another one, such as a local folder.
            changes: values of the method or of `TrainConfig` to change.

        Raises:
            ValueError: a value has no such name or is out of range, or the profile is unknown.
        """
        fields = {f.name for f in dataclasses.fields(self.configured(method))}
        if unknown := sorted(changes.keys() - fields - self.training.keys()):
            raise ValueError(f"{', '.join(unknown)}: no value of the method or of the training has this name; the "
                             f"method has {', '.join(sorted(fields))}")
        own = {name: value for name, value in changes.items() if name in fields}
        training = {**self.training, **(_shortened(self.training, profile) if profile else {})}
        training |= {name: value for name, value in changes.items() if name not in own}
        configured = self.configured(method, **own)
        if profile:
            configured = fit_to_profile(self._as_shares(configured, own), profile)
        used = self.stand_in if stand_in else backbone or self.backbone
        return {"method": configured, "task": self.task, "backbone": used, "profile": profile or "gpu",
                "adjust": False, "notes": self._notes(configured, profile, method, used, changes), **training}

    def fit(self, seed: int = 0, *, profile: str | None = None, method: str | None = None, stand_in: bool = False,
            backbone: str | None = None, cache: bool = True, **options: Any) -> Run:
        """Train the cell, or find the run that did; as `fit` and `arguments`.

        Raises:
            CheckpointError: the paper's checkpoint cannot be had here; the sentence says what else there is.
        """
        from ..experiment import fit

        passed = {name: options.pop(name) for name in ("callbacks", "progress", "store") if name in options}
        arguments = self.arguments(profile, method=method, stand_in=stand_in, backbone=backbone, **options)
        try:
            return fit(**arguments, seed=seed, cache=cache, **passed)
        except CheckpointError as error:
            if arguments["backbone"] != self.backbone:
                raise
            raise CheckpointError(self.missing(f'lt.preset("{self.name}").fit(stand_in=True)', error)) from error

    def missing(self, line: str, error: Exception) -> str:
        """What to do where the checkpoint cannot be had; `line` is what trains the stand-in."""
        return (f"{self.backbone}, the model of {self.name}, cannot be had here ({reason(error)}): name a folder "
                f"that holds it as the backbone, or train the packaged {self.stand_in} in its place, which is not "
                f"the paper's cell: {line}")

    def _as_shares(self, method: Method, changes: Mapping[str, Any]) -> Method:
        """The paper's step counts as shares of its own length: 500 of 26,290 steps are 1 of 30."""
        counted = {name: getattr(method, name) / self.steps for name in STEP_COUNTS if name not in changes
                   and isinstance(getattr(method, name, None), int) and getattr(method, name) > 0}
        return method.filled(**counted)

    def _notes(self, configured: Method, profile: str | None, method: str | None, used: str,
               changes: Mapping[str, Any]) -> list[str]:
        notes = [f"preset {self.name}: {self.table}"]
        if method not in (None, self.name.split("/")[0]):
            notes.append(f"the baseline {method} of that table")
        if used != self.backbone:
            notes.append(f"not the paper's cell: {used} in place of {self.backbone}")
        if profile:
            before = self.configured(method)
            moved = [f"{f.name} = {getattr(configured, f.name):g} instead of {getattr(before, f.name):g}"
                     for f in dataclasses.fields(configured) if f.name not in changes
                     and getattr(configured, f.name) != getattr(before, f.name)]
            notes.append(f"not the paper's length: as long as the profile {profile}, not {self.steps:,} steps"
                         + (f"; with it {', '.join(moved)}" if moved else ""))
        if changes:
            notes.append("changed: " + ", ".join(f"{name} = {value}" for name, value in changes.items()))
        return notes


def _shortened(training: Mapping[str, Any], profile: str) -> dict[str, Any]:
    if profile not in PROFILES:
        raise ValueError(f"unknown profile {profile!r}; choose among {', '.join(PROFILES)}")
    p = PROFILES[profile]
    smaller = {name: min(training[name], getattr(p, name)) for name in ("batch_size", "max_length")}
    return {**smaller, "steps": p.steps, "epochs": 0.0, "accumulation": 1, "n_train": p.n_train,
            "n_validation": p.n_validation, "n_test": p.n_test, "n_written": WRITTEN.get(profile, 64)}

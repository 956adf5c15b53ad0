"""How long and how fast a run trains: one validated configuration, three profiles.

`tiny` is what the tests run (seconds), `laptop` what a reader runs (half a minute a method on two cores), `gpu`
the papers' budget. A profile also sets the few method values that depend on the length of training, where they
were left alone; whatever was asked for stays, be it the paper's own value.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import Any

from ..errors import LARGEST, among, require, require_types, shown
from ..methods import Method
from ..methods.composition import compose

MOST_EPOCHS = 1_000_000
BASE_DTYPES = ("float32", "bfloat16", "4bit")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training.

    Args:
        steps: optimizer steps; `epochs` sets them from the rows instead, when above 0.
        batch_size: rows an optimizer step, over all micro-batches.  accumulation: micro-batches a step.
        lr: peak rate of A, B and whatever else trains; head_lr: the head's, lr where None.
        warmup: share of the steps over which the rate rises; it then falls linearly.
        max_grad_norm: gradient clipping; 0 switches it off.
        max_length: tokens a row.  n_train, n_validation, n_test: rows taken, all where None.
        eval_every: steps between evaluations on the validation rows; 0 evaluates at the end only.
        best: end with the weights of the best evaluation rather than the last ones.
        n_written: inputs that a text is written for and scored at an evaluation (slow), all where None.
        validation_from_train: where the published test rows have no labels (GLUE), cut validation rows out of train
            and test on the published validation rows; for whatever is chosen on validation rows.
        num_beams, length_penalty, no_repeat_ngram_size: how it is written; see `tasks.generation.Generation`.
        mixed_precision: "no" or "bf16".  gradient_checkpointing: recompute activations in the backward pass.
        base_dtype: how the frozen weights are held: "float32", "bfloat16", or "4bit" (NF4 through bitsandbytes,
            on a GPU). Branches and a new head are float32 whatever this says.
        label_smoothing: ε in [0, 1): the share of the training loss that asks for every class or word alike.
        checkpoint_every: steps between checkpoints; an interrupt always leaves one.

    Raises:
        ValueError: a value is out of range.
    """

    steps: int = 120
    epochs: float = 0.0
    batch_size: int = 16
    accumulation: int = 1
    lr: float = 1e-3
    head_lr: float | None = None
    weight_decay: float = 0.01
    warmup: float = 0.06
    max_grad_norm: float = 1.0
    max_length: int = 64
    n_train: int | None = None
    n_validation: int | None = None
    n_test: int | None = None
    eval_every: int = 0
    best: bool = False
    mixed_precision: str = "no"
    gradient_checkpointing: bool = False
    checkpoint_every: int = 0
    base_dtype: str = "float32"
    label_smoothing: float = 0.0
    n_written: int | None = 64
    num_beams: int = 1
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    validation_from_train: bool = False

    def __post_init__(self) -> None:
        require_types(self)
        require(self.steps > 0 and 0 <= self.epochs <= MOST_EPOCHS, f"steps must be above 0 and epochs from 0 to "
                                                                    f"{MOST_EPOCHS:,}")
        require(self.batch_size > 0 and self.accumulation > 0, "batch_size and accumulation must be above 0")
        require(self.accumulation <= self.batch_size, f"accumulation = {self.accumulation} is more micro-batches "
                                                      f"than the {self.batch_size} rows of a batch")
        require(self.lr > 0 and (self.head_lr is None or self.head_lr > 0), "lr and head_lr must be above 0")
        require(0 <= self.warmup < 1, f"warmup = {self.warmup} must be a share of the steps in [0, 1)")
        require(self.max_grad_norm >= 0 and self.weight_decay >= 0, "max_grad_norm and weight_decay must be ≥ 0")
        require(max(self.lr, self.head_lr or 0) * self.weight_decay <= LARGEST,
                "lr · weight_decay is no number that a weight can be multiplied by; lower one")
        require(self.mixed_precision in ("no", "bf16"),
                f"mixed_precision {shown(self.mixed_precision)} must be 'no' or 'bf16'")
        require(self.base_dtype in BASE_DTYPES, f"base_dtype {shown(self.base_dtype)} must be one of "
                                                f"{', '.join(BASE_DTYPES)}")
        require(self.n_written is None or self.n_written > 0, "n_written must be above 0, or None for all")
        require(0 <= self.label_smoothing < 1, f"label_smoothing = {self.label_smoothing} must lie in [0, 1)")
        require(self.max_length > 0, "max_length must be above 0")
        for name in ("n_train", "n_validation", "n_test"):
            n = getattr(self, name)
            require(n is None or n > 0, f"{name} = {n}; ask for at least one row, or None for all")
        require(self.num_beams > 0 and self.no_repeat_ngram_size >= 0, "num_beams must be above 0 and "
                                                                       "no_repeat_ngram_size 0 or more")
        require(self.eval_every >= 0 and self.checkpoint_every >= 0, "eval_every and checkpoint_every must be ≥ 0")
        require(not self.best or self.eval_every > 0, "best needs evaluations on the way: set eval_every")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a record."""
        return dataclasses.asdict(self)

    def total_steps(self, rows: int) -> int:
        """Optimizer steps for a training set of this many rows."""
        return max(1, round(self.epochs * self.steps_per_epoch(rows))) if self.epochs else self.steps

    def steps_per_epoch(self, rows: int) -> int:
        return -(-rows // self.batch_size)


PROFILES: dict[str, TrainConfig] = {
    "tiny": TrainConfig(steps=30, batch_size=16, lr=3e-3, max_length=32, n_train=480, n_validation=200, n_test=200),
    "laptop": TrainConfig(steps=140, batch_size=16, lr=2e-3, max_length=48, n_train=1920, n_validation=400,
                          n_test=800),
    "gpu": TrainConfig(steps=2000, batch_size=32, lr=4e-4, max_length=128, eval_every=200),
}

# method values that depend on how long a profile trains; the papers' own stay in the methods' files
SHORT_TRAINING: dict[str, dict[str, dict[str, Any]]] = {
    "tiny": {"salora": {"eta_c": 0.15, "t_start": 0.0, "t_end": 0.9},
             "autolora": {"search_steps": 0.4, "eta_beta": 0.01}},
    "laptop": {"salora": {"eta_c": 0.05, "t_start": 0.05, "t_end": 0.9},
               "autolora": {"search_steps": 0.25, "eta_beta": 0.01}},
    "gpu": {},
}
BY_LINK = ("eta_c",)  # rates that must reach their end within one link


def default_profile() -> str:
    """The profile named by LOWRANK_PROFILE, else "laptop"."""
    return os.environ.get("LOWRANK_PROFILE", "laptop")


def train_config(profile: str | None = None, **overrides: Any) -> TrainConfig:
    """A profile's training with some values changed.

    Raises:
        ValueError: unknown profile or unknown value, with the ones there are.
    """
    require(isinstance(profile, str | None), f"unknown profile {shown(profile)}: give its name")
    name = profile or default_profile()
    require(name in PROFILES, f"unknown profile {shown(name)}; choose among {', '.join(PROFILES)}")
    known = {f.name for f in dataclasses.fields(TrainConfig)}
    unknown = sorted(set(overrides) - known)
    require(not unknown, f"unknown training value {', '.join(unknown)}; there are "
                         f"{among(sorted(known), *unknown[:1])}")
    return dataclasses.replace(PROFILES[name], **overrides)


def fit_to_profile(method: Method, profile: str | None = None) -> Method:
    """The method with the values that this profile's length of training asks for, where they were left alone.

    In a composition each member gets its own; a link of a chain has a share of the steps only, so that the rate
    of its gates is as many times higher as there are links.
    """
    wanted = set_by_profile(method, profile)
    members = getattr(method, "members", (method,))
    return compose(*(m.changed(**wanted[m.name]) if m.name in wanted else m for m in members)) if wanted else method


def set_by_profile(method: Method, profile: str | None = None) -> dict[str, dict[str, Any]]:
    """What `fit_to_profile` sets: name of the method, or of the member -> its values."""
    table, links = SHORT_TRAINING.get(profile or default_profile(), {}), getattr(method, "links", 1)
    wanted = {m.name: {key: value * links if key in BY_LINK else value
                       for key, value in table.get(m.name, {}).items() if key not in m.given}
              for m in getattr(method, "members", (method,))}
    return {name: values for name, values in wanted.items() if values}

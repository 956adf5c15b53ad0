"""The training configuration, and three profiles of it.

`tiny` is for tests (seconds), `laptop` for readers (half a minute a method, two cores), `gpu` has the papers' budget.
A profile also sets the few method values that depend on the length of training, unless the user gave them.
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
    """The configuration of one training.

    Args:
        steps: optimizer steps; if `epochs` is above 0, it determines the steps instead.
        batch_size: examples in an optimizer step, over all micro-batches.  accumulation: micro-batches in a step.
        lr: peak learning rate of A, B and other parameters; head_lr: that of the head, lr if None.
        warmup: share of the steps over which the learning rate rises; it then falls linearly.
        max_grad_norm: gradient clipping; 0 switches it off.
        max_length: tokens in an example.  n_train, n_validation, n_test: examples to use, all if None.
        eval_every: steps between evaluations on the validation examples; 0 evaluates only at the end.
        best: keep the weights of the best evaluation instead of the last ones.
        n_written: inputs whose text is generated and scored at an evaluation (slow), all if None.
        validation_from_train: if the published test examples have no labels (GLUE), take validation examples from
            the training set and test on the published validation set, so that values can be tuned on the former.
        num_beams, length_penalty, no_repeat_ngram_size: see `tasks.generation.Generation`.
        mixed_precision: "no" or "bf16".  gradient_checkpointing: recompute activations in the backward pass.
        base_dtype: type of the frozen weights: "float32", "bfloat16", or "4bit" (NF4 of bitsandbytes, on a GPU).
            Branches and a new head are always float32.
        label_smoothing: ε in [0, 1), the share of the training loss that is uniform over classes or tokens.
        checkpoint_every: steps between checkpoints; an interrupt always writes one.

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
                                                      f"than the {self.batch_size} examples of a batch")
        require(self.lr > 0 and (self.head_lr is None or self.head_lr > 0), "lr and head_lr must be above 0")
        require(0 <= self.warmup < 1, f"warmup = {self.warmup} must be a share of the steps in [0, 1)")
        require(self.max_grad_norm >= 0 and self.weight_decay >= 0, "max_grad_norm and weight_decay must be ≥ 0")
        require(max(self.lr, self.head_lr or 0) * self.weight_decay <= LARGEST,
                "lr · weight_decay is too large to multiply a weight by; lower one of them")
        require(self.mixed_precision in ("no", "bf16"),
                f"mixed_precision {shown(self.mixed_precision)} must be 'no' or 'bf16'")
        require(self.base_dtype in BASE_DTYPES, f"base_dtype {shown(self.base_dtype)} must be one of "
                                                f"{', '.join(BASE_DTYPES)}")
        require(self.n_written is None or self.n_written > 0, "n_written must be above 0, or None for all")
        require(0 <= self.label_smoothing < 1, f"label_smoothing = {self.label_smoothing} must lie in [0, 1)")
        require(self.max_length > 0, "max_length must be above 0")
        for name in ("n_train", "n_validation", "n_test"):
            n = getattr(self, name)
            require(n is None or n > 0, f"{name} = {n}; ask for at least one example, or None for all")
        require(self.num_beams > 0 and self.no_repeat_ngram_size >= 0, "num_beams must be above 0 and "
                                                                       "no_repeat_ngram_size 0 or more")
        require(self.eval_every >= 0 and self.checkpoint_every >= 0, "eval_every and checkpoint_every must be ≥ 0")
        require(not self.best or self.eval_every > 0, "best needs evaluations on the way: set eval_every")

    def to_dict(self) -> dict[str, Any]:
        """Return the values as a dict for JSON."""
        return dataclasses.asdict(self)

    def total_steps(self, rows: int) -> int:
        """Return the number of optimizer steps for a training set of this many examples."""
        return max(1, round(self.epochs * self.steps_per_epoch(rows))) if self.epochs else self.steps

    def steps_per_epoch(self, rows: int) -> int:
        return -(-rows // self.batch_size)


PROFILES: dict[str, TrainConfig] = {
    "tiny": TrainConfig(steps=30, batch_size=16, lr=3e-3, max_length=32, n_train=480, n_validation=200, n_test=200),
    "laptop": TrainConfig(steps=140, batch_size=16, lr=2e-3, max_length=48, n_train=1920, n_validation=400,
                          n_test=800),
    "gpu": TrainConfig(steps=2000, batch_size=32, lr=4e-4, max_length=128, eval_every=200),
}

# method values that depend on the length of a profile's training; the methods' files have the papers' values
SHORT_TRAINING: dict[str, dict[str, dict[str, Any]]] = {
    "tiny": {"salora": {"eta_c": 0.5, "t_start": 0.0, "t_end": 0.4},
             "autolora": {"search_steps": 0.4, "eta_beta": 0.01}},
    "laptop": {"salora": {"eta_c": 0.15, "t_start": 0.05, "t_end": 0.35},
               "autolora": {"search_steps": 0.25, "eta_beta": 0.01}},
    "gpu": {},
}
BY_LINK = ("eta_c",)  # learning rates to multiply by the number of links of a chain


def default_profile() -> str:
    """Return the profile that the environment variable LOWRANK_PROFILE names, by default "laptop"."""
    return os.environ.get("LOWRANK_PROFILE", "laptop")


def train_config(profile: str | None = None, **overrides: Any) -> TrainConfig:
    """Return a profile's configuration with some values changed.

    Raises:
        ValueError: the profile or a value is unknown; lists the known ones.
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
    """Return the method with the values for this profile's length of training, except those that the user gave.

    A link of a chain has only a share of the steps, so learning rates of gates are multiplied by the number of links.
    """
    wanted = set_by_profile(method, profile)
    members = getattr(method, "members", (method,))
    return compose(*(m.changed(**wanted[m.name]) if m.name in wanted else m for m in members)) if wanted else method


def set_by_profile(method: Method, profile: str | None = None) -> dict[str, dict[str, Any]]:
    """Return what `fit_to_profile` sets: name of the method, or of each member -> its values."""
    table, links = SHORT_TRAINING.get(profile or default_profile(), {}), getattr(method, "links", 1)
    wanted = {m.name: {key: value * links if key in BY_LINK else value
                       for key, value in table.get(m.name, {}).items() if key not in m.given}
              for m in getattr(method, "members", (method,))}
    return {name: values for name, values in wanted.items() if values}

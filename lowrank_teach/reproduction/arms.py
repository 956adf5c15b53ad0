"""The studies: which configurations each one compares, on what, at which learning rates, over how many seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..experiments.fit import RunConfig
from ..integrations.peft_methods import AdaLoRA
from ..methods import COLA, AutoLoRA, DeltaLoRA, FullFineTuning, HeadOnly, LoRA, Method, SaLoRA
from ..methods.composition import compose
from ..tasks.table import TASKS
from ..training.config import PROFILES

if TYPE_CHECKING:
    from typing_extensions import Self


# ---- what a study is ----------------------------------------------------------------------------------------
# Configurations, seeds and tasks: each combination is one run. All share backbone, examples, their order and steps,
# so seeds pair them. `studies.Runner` trains a study, `results` reads what it left.
@dataclass(frozen=True)
class Arm:
    """A method with all its switches, and fields of `TrainConfig` in which it differs from the study's.

    short: the method with what a first round of rates asks for, whose training is shorter; None takes it as it is.
    """

    method: Method
    training: Mapping[str, Any] = field(default_factory=dict)
    short: Method | None = None


KEPT = 3   # learning rates of a first round that are tried in full
TASK, BACKBONE, PROFILE = "rt", "minilm-l3", "laptop"
TRAINING: dict[str, Any] = {"steps": 100}


@dataclass(frozen=True)
class Study:
    """The runs that answer one question.

    question: what is asked.  varies: what differs between configurations, for an axis.
    arms: label -> configuration.  tasks: name -> fields of `TrainConfig` that its examples ask for.
    backbone, profile, training, longest: of every run, as in `fit`.  seeds: how many, from 0.
    rates: learning rates to choose from on validation examples, for each task and configuration; none where empty.
    chosen_with: the seeds that a rate is chosen with.  rung: steps of a first round in which all rates are tried,
    of which the best three are tried in full (0: all are).  widen: add rates, each a factor of 2 beyond the last,
    until the best one lies inside the grid.
    rate_of: label -> the label whose chosen rate it takes, for controls that must differ in one thing alone.
    series: names of the history kept for the whole model.  sites: names kept by site, with their last values.
    """

    question: str
    varies: str
    arms: Mapping[str, Arm]
    tasks: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {TASK: {}})
    backbone: str = BACKBONE
    profile: str = PROFILE
    training: Mapping[str, Any] = field(default_factory=lambda: TRAINING)
    longest: int | None = None
    seeds: int = 5
    rates: Sequence[float] = ()
    chosen_with: Sequence[int] = (0, 1)
    rung: int = 0
    widen: bool = False
    rate_of: Mapping[str, str] = field(default_factory=dict)
    series: tuple[str, ...] = ("loss",)
    sites: tuple[str, ...] = ("cosine", "effective_rank", "norm")

    def changed(self, *, training: Mapping[str, Any] | None = None, **values: Any) -> Self:
        """Return the study with other values; None leaves one alone. A learning rate that is given is not chosen."""
        given = {name: value for name, value in values.items() if value is not None}
        rates = () if "lr" in (training or {}) else self.rates
        return replace(self, **{"rates": rates, **given, "training": {**self.training, **(training or {})}})

    def config(self, task: str, arm: str, seed: int, lr: float | None = None, **training: Any) -> RunConfig:
        """Return one run; lr: the one that was chosen, if there is a choice.  training: fields to change in it."""
        own = self.arms[arm]
        values = {**self.training, **self.tasks[task], **own.training, **({} if lr is None else {"lr": lr}),
                  **training}
        return RunConfig(own.method, task, self.backbone, self.profile, seed, values, longest=self.longest)

    def first_round(self, task: str, arm: str, seed: int, lr: float | None) -> RunConfig:
        """Return a run of the first round of rates: short, and without a look at the test examples."""
        whole, short = self.config(task, arm, seed, lr, steps=self.rung, n_test=1), self.arms[arm].short
        return replace(whole, method=short or whole.method)

    def choosing(self, arms: Iterable[str]) -> list[str]:
        """Return those configurations whose learning rate is chosen for some of `arms`, themselves or others."""
        return list(dict.fromkeys(self.rate_of.get(arm, arm) for arm in arms)) if self.rates else []

    def runs(self, seeds: int = 0) -> int:
        """Return how many runs that takes, those that choose a rate included; seeds: 0 takes the study's own."""
        of_one = len(self.rates) + (KEPT if self.rung else 0)
        tried = len(self.choosing(self.arms)) * of_one * len(self.chosen_with)
        return len(self.tasks) * (tried + len(self.arms) * (seeds or self.seeds))

    def plan(self, arms: Sequence[str], seeds: int) -> dict[str, list[RunConfig | None]]:
        """Return configuration -> its runs; None stands for one whose learning rate is chosen by the others."""
        choosing, found = self.choosing(arms), dict[str, list[RunConfig | None]]()
        first = self.first_round if self.rung else self.config
        for arm in dict.fromkeys([*arms, *choosing]):
            tried = self.chosen_with if arm in choosing else ()
            found[arm] = [first(task, arm, seed, rate) for task in self.tasks for rate in self.rates
                          for seed in tried]
            found[arm] += [None for _ in self.tasks for _ in range(KEPT) for _ in tried if self.rung]
            if arm in arms:
                rest = [seed for seed in range(seeds) if seed not in tried]
                found[arm] += [None if self.rates else self.config(task, arm, seed) for task in self.tasks
                               for seed in rest]
        return found


# ---- studies on one task -----------------------------------------------------------------------------------
# The papers' sweeps and ablations, and the controls they lack.
LR = PROFILES[PROFILE].lr
GATES = ("loss", "density", "lambda", "budget_penalty", "orth_A", "orth_B", "kept_density")
SIGMA = tuple(f"sigma.{i}" for i in range(24))


def salora(**switches: Any) -> SaLoRA:
    """Return SaLoRA with the rate and window of so short a training, and with gates that stay half shut."""
    return SaLoRA(**{"eta_c": 0.1, "t_start": 0.05, "t_end": 0.9, "init": "unit_rows", "after_window": "leave",
                     "orthogonality": "mean", "orthogonality_until": "end", **switches})


def cola(**switches: Any) -> COLA:
    """Return COLA with the start of A that its authors name, Gaussian, here of standard deviation 1/r."""
    return COLA(**{"init": "gaussian", **switches})


def autolora(**switches: Any) -> AutoLoRA:
    """Return AutoLoRA with the search and the rate of β that so short a training asks for."""
    return AutoLoRA(**{"search_steps": 0.25, "eta_beta": 0.01, **switches})


STUDIES: dict[str, Study] = {
    "chain": Study(
        "Does a longer chain reach more in the same epochs?", "chain length",
        {str(n): Arm(cola(chain=n)) for n in (1, 2, 3)}, sites=("norm", "effective_rank", *SIGMA)),
    "delta": Study(
        "Is Delta-LoRA more than LoRA, and more than its controls?", "method",
        {"LoRA": Arm(LoRA()), "Delta-LoRA λ = 0.5": Arm(DeltaLoRA()),
         "FT‡ (W_q, W_v)": Arm(FullFineTuning(trains="qv")), "LoRA, α × 1.5": Arm(LoRA(lora_alpha=24.0)),
         "LoRA, rate × 1.5": Arm(LoRA(), {"lr": 1.5 * LR, "head_lr": LR}),
         "LoRA, dropout 0.1": Arm(LoRA(lora_dropout=0.1)),
         "Delta-LoRA, dropout 0.1": Arm(DeltaLoRA(lora_dropout=0.1, allow_dropout=True))}),
    "salora_parts": Study(
        "What does each part of SaLoRA do?", "what is left out",
        {"all parts": Arm(salora()), "λ = 0": Arm(salora(lambda_max=0.0)), "β = 0": Arm(salora(beta=0.0)),
         "λ by SGD": Arm(salora(ascent="sgd")), "LoRA, all six": Arm(LoRA(sites="all"))}, series=GATES),
    "autolora_parts": Study(
        "What does each part of AutoLoRA's search do?", "what is changed",
        {"AutoLoRA": Arm(autolora()), "η = 0": Arm(autolora(hypergradient="first_order")),
         "no constraint": Arm(autolora(constraint="none")), "sigmoid": Arm(autolora(constraint="sigmoid")),
         "ranks dealt at random": Arm(autolora(shuffle_ranks=True)), "LoRA, r = 4": Arm(LoRA(r=4, lora_alpha=8.0))},
        sites=("rank",)),
    "delta_strong": Study(
        "The same with λ = 2, where the controls move further, too", "method",
        {"Delta-LoRA λ = 2": Arm(DeltaLoRA(lam=2.0)), "LoRA, α × 3": Arm(LoRA(lora_alpha=48.0)),
         "LoRA, rate × 3": Arm(LoRA(), {"lr": 3 * LR, "head_lr": LR})}),
    "step_down": Study(
        "How small may the second link be?", "rank of the second link",
        {str(r): Arm(cola(chain=2) if r == 8 else cola(ranks=(8, r))) for r in (2, 4, 6, 8)}),
    "wide": Study(
        "What does one LoRA of a chain's whole rank reach?", "rank",
        {str(r): Arm(cola(chain=1, r=r, lora_alpha=2.0 * r)) for r in (16, 24)},
        sites=("norm", "effective_rank", *SIGMA)),
    "salora_b": Study(
        "How few directions will do?", "target density b",
        {f"{b:g}": Arm(salora(b=b)) for b in (0.125, 0.25, 0.5, 0.75)}, series=GATES, sites=("rank",)),
    "salora_r": Study(
        "SaLoRA beside LoRA at every rank", "starting rank r",
        {**{f"SaLoRA {r}": Arm(salora(r=r, lora_alpha=2.0 * r)) for r in (2, 4, 8, 16)},
         **{f"LoRA {r}": Arm(LoRA(r=r, lora_alpha=2.0 * r, sites="all")) for r in (2, 4, 8, 16)}},
        sites=("rank",)),
    "delta_lam": Study(
        "How far may λ go?", "λ",
        {f"{lam:g}": Arm(DeltaLoRA(lam=lam)) for lam in (0.0, 0.5, 2.0, 5.0)}),
    "fine_tuning": Study(  # rates: the best of 1e-4, 3e-4, 1e-3 and 2e-3 on the validation rows of another seed
        "What does training W itself reach, and how far does it turn?", "what trains",
        {"full fine-tuning": Arm(FullFineTuning(), {"lr": 3e-4, "head_lr": LR}),
         "FT‡, cosine kept": Arm(FullFineTuning(trains="qv"))}),
    "delta_K": Study(
        "When should W start to move?", "K, as a share of the steps",
        {f"{K:g}": Arm(DeltaLoRA(lam=2.0, K=K)) for K in (0.0, 0.06, 0.25, 0.5)}),
    # both end with four directions a matrix; AdaLoRA's rate: the best of 2e-3, 6e-3 and 2e-2 on the validation rows
    # of two other seeds
    "adalora": Study(
        "Is learning the ranks on held-out rows better than dropping the least important directions?", "method",
        {"AutoLoRA": Arm(autolora()),
         "AdaLoRA, 8 to 4": Arm(AdaLoRA(r=8, target_r=4, sites="qv"), {"lr": 2e-2, "head_lr": LR}),
         "LoRA, r = 4": Arm(LoRA(r=4, lora_alpha=8.0))}, sites=("rank",)),
    # 16 directions a matrix are trained, by one link or by two, and half of them kept where there are gates; the
    # last arm trains only as many as the gates keep. A starts alike everywhere. A link has half of the steps, so
    # its gates have twice the rate.
    "composition": Study(
        "Is a chain of gated links more than the chain, or than the gates?", "method",
        {"COLA + SaLoRA": Arm(compose(COLA(chain=2), salora(eta_c=0.2))),
         "COLA": Arm(COLA(chain=2, sites="all", init="unit_rows")),
         "SaLoRA": Arm(salora(r=16, lora_alpha=32.0)),
         "COLA, r = 4": Arm(COLA(chain=2, r=4, lora_alpha=8.0, sites="all", init="unit_rows"))},
        series=(*GATES, "link"), sites=("rank", "norm", "effective_rank")),
}


# ---- studies over tasks ------------------------------------------------------------------------------------
# The studies over tasks: which methods stand side by side, on what, at which rates.
#
# Sized for a CPU: MiniLM-L3, 100 steps of 8 rows, 48 tokens a row at most. The papers' grids span a factor of 12
# (SaLoRA, 8e-5 to 1e-3) and 20 (COLA, 5e-5 to 1e-3) over epochs; so short a training asks for larger rates, and takes
# three that span a factor of 9. GLUE's published validation rows are the test rows; rates are chosen on rows that are
# cut from the training rows.
TASKS_TRAINING: dict[str, Any] = {"steps": 100, "batch_size": 8, "n_train": 1600, "n_validation": 200, "n_test": 400,
                            "validation_from_train": True}
SHORT = {"max_length": 32}   # tokens
TASKS_RATES = (7e-4, 2e-3, 6e-3)

TASK_STUDIES: dict[str, Study] = {
    "side_by_side": Study(
        "Which method is ahead, over tasks, each at its best rate?", "method",
        {"LoRA": Arm(LoRA()), "COLA": Arm(cola(chain=2)), "SaLoRA": Arm(salora()), "Delta-LoRA": Arm(DeltaLoRA()),
         "AutoLoRA": Arm(autolora()), "LoRA, α × 1.5": Arm(LoRA(lora_alpha=24.0)),
         "LoRA, all six": Arm(LoRA(sites="all")), "LoRA, r = 4": Arm(LoRA(r=4, lora_alpha=8.0)),
         "head only": Arm(HeadOnly())},
        tasks={"sst2": {}, "trec": SHORT, "rt": {}, "stsb": {}, "wic": {}, "mrpc": {}, "rte": {}, "cola": SHORT},
        training={**TASKS_TRAINING, "max_length": 48}, rates=TASKS_RATES, series=(), sites=(),
        # the first is what Delta-LoRA equals with K = 0, at the same rate; the second differs from LoRA in r alone
        rate_of={"LoRA, α × 1.5": "Delta-LoRA", "LoRA, r = 4": "LoRA"}),
}


# ---- tuned studies -----------------------------------------------------------------------------------------
# Each paper's own comparison, at its own share of the steps, both sides tuned: six rates or more a factor of 2 apart,
# chosen on validation examples with seeds that are not reported, in two rounds; GLUE's published validation examples
# are the test examples. A starts alike everywhere, and α/r is 2 but where it is what is asked about.
TUNING: dict[str, Any] = {"rates": (5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2), "chosen_with": (100, 101), "rung": 150,
                          "widen": True, "sites": ("rank",)}
TUNED: dict[str, Any] = {"batch_size": 16, "n_validation": 400, "n_test": None, "validation_from_train": True,
                         "max_length": 48}
TUNED_TASKS: dict[str, dict[str, Any]] = {"sst2": {}, "trec": SHORT, "rt": {}}


def windowed(**switches: Any) -> SaLoRA:
    """Return SaLoRA as in the paper, with gates that learn fast enough for a window of 240 steps."""
    return SaLoRA(**{"eta_c": 0.03, "t_start": 0.0, "t_end": 0.3, **switches})


EPOCHS: dict[str, Any] = {**TUNED, "steps": 625, "n_train": 2000}   # five epochs, as in COLA's paper
FOUR = LoRA(r=4, lora_alpha=8.0)
SEARCH: dict[str, Any] = {"search_steps": 150, "eta_beta": 0.01}

TASK_STUDIES |= {
    "tuned_salora": Study(
        "What do learned gates add to LoRA, at equal size and at equal rank?", "method",
        {"SaLoRA": Arm(windowed(), short=windowed(eta_c=0.15)), "LoRA, all six": Arm(LoRA(sites="all")),
         "LoRA, all six, r = 4": Arm(LoRA(r=4, lora_alpha=8.0, sites="all")),
         "a random half": Arm(windowed(prune="random")), "the likeliest half": Arm(windowed(prune="budget")),
         "β = 0": Arm(windowed(beta=0.0)), "λ = 0": Arm(windowed(lambda_max=0.0)),
         "gates left on": Arm(windowed(after_window="leave"), short=windowed(eta_c=0.15, after_window="leave")),
         "R summed": Arm(windowed(orthogonality="sum"), short=windowed(eta_c=0.15, orthogonality="sum"))},
        tasks=TUNED_TASKS, training={**TUNED, "steps": 800, "n_train": 12800}, series=GATES, **TUNING,
        rate_of=dict.fromkeys(("a random half", "the likeliest half", "β = 0", "λ = 0"), "SaLoRA")),
    "tuned_delta": Study(
        "Is Delta-LoRA more than LoRA with a larger α?", "method",
        {"LoRA": Arm(LoRA()), "Delta-LoRA, λ = 2": Arm(DeltaLoRA(lam=2.0, K=0.25)),
         "Delta-LoRA, λ = 2, K = 0": Arm(DeltaLoRA(lam=2.0, K=0)), "LoRA, α × 3": Arm(LoRA(lora_alpha=48.0)),
         "Delta-LoRA, λ = 0.5": Arm(DeltaLoRA(lam=0.5, K=0.06)), "LoRA, α × 1.5": Arm(LoRA(lora_alpha=24.0)),
         "FT‡ (W_q, W_v)": Arm(FullFineTuning(trains="qv")), "head only": Arm(HeadOnly())},
        tasks=TUNED_TASKS, training=EPOCHS, **TUNING,
        rate_of={"Delta-LoRA, λ = 2, K = 0": "LoRA, α × 3"}),   # the same function at every step
    "tuned_cola": Study(
        "Does a chain reach more than one LoRA, of its links' rank or of the whole chain's?", "method",
        {"LoRA": Arm(LoRA()), "COLA 2": Arm(COLA(chain=2)), "COLA 3": Arm(COLA(chain=3)),
         "LoRA, r = 16": Arm(LoRA(r=16, lora_alpha=32.0)), "LoRA, r = 24": Arm(LoRA(r=24, lora_alpha=48.0))},
        tasks=TUNED_TASKS, training=EPOCHS, **TUNING),
    "tuned_autolora": Study(
        "Are learned ranks better than the same ranks dealt at random, and than one rank for all?", "method",
        {"AutoLoRA": Arm(AutoLoRA(**SEARCH)), "LoRA, r = 4": Arm(FOUR),
         "ranks dealt at random": Arm(AutoLoRA(**SEARCH, shuffle_ranks=True)),
         "η = 0": Arm(AutoLoRA(**SEARCH, hypergradient="first_order")),
         "AdaLoRA, 8 to 4": Arm(AdaLoRA(r=8, target_r=4, sites="qv"))},
        tasks={"sst2": {}, "trec": SHORT}, training={**TUNED, "steps": 400, "n_train": 6400}, **TUNING,
        rate_of=dict.fromkeys(("ranks dealt at random", "η = 0"), "AutoLoRA")),
}


# ---- studies of texts --------------------------------------------------------------------------------------
# Which configurations write for which task, trained how, at which learning rates; made by `texts`.
TEXTS_BACKBONE, TEXTS_PROFILE = "smollm2-135m", "laptop"
# equal s = α/r everywhere but in the control; Delta-LoRA's closed form, since a small step of W rounds away in bf16
WRITERS: dict[str, Arm] = {
    "LoRA": Arm(LoRA(r=4, lora_alpha=8.0)),
    "Delta-LoRA": Arm(DeltaLoRA(r=4, lora_alpha=8.0, lam=2.0, form="lazy")),
    "AutoLoRA": Arm(AutoLoRA(r=8, lora_alpha=16.0, search_steps=8, eta_beta=0.02)),
    "LoRA, α × 3": Arm(LoRA(r=4, lora_alpha=24.0)),
}
TEXTS_TRAINING: dict[str, Any] = {"steps": 60, "batch_size": 8, "lr": 2e-3, "n_train": 8000, "n_validation": 64,
                                  "n_test": 64, "mixed_precision": "bf16"}
TEXTS_RATES = (7e-4, 2e-3, 6e-3, 1.8e-2, 5.4e-2)   # so short a training asks for large ones


@dataclass(frozen=True)
class TextStudy(Study):
    """A study whose runs write texts; a learning rate is chosen by the first score of validation inputs.

    licence: of the samples.  scores: names of scores in `metrics.py`.  inputs: written out.
    """

    licence: str = ""
    scores: tuple[str, ...] = ()
    inputs: int = 40


def _texts(task: str, licence: str, scores: tuple[str, ...], inputs: int, **values: Any) -> TextStudy:
    return TextStudy("Which method writes the better texts?", "method", WRITERS, {task: {}}, TEXTS_BACKBONE,
                     TEXTS_PROFILE, {**TEXTS_TRAINING, "max_length": TASKS[task].max_length}, chosen_with=(0,),
                     rate_of={"LoRA, α × 3": "Delta-LoRA"},   # what Delta-LoRA equals with K = 0, at the same rate
                     licence=licence, scores=scores, inputs=inputs, **values)


TEXT_STUDIES: dict[str, TextStudy] = {
    "e2e": _texts("e2e", "E2E NLG Challenge (Novikova et al. 2017), CC BY-SA 4.0",
                  ("bleu", "nist", "meteor", "rougeL", "cider", "ter"), 40, rates=TEXTS_RATES),
    "webnlg": _texts("webnlg", "WebNLG Challenge 2017 (Gardent et al. 2017), CC BY-NC-SA 4.0",
                     ("bleu", "meteor", "ter"), 32, seeds=1),
}

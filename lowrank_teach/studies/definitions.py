"""Which arms each study compares: the papers' sweeps and ablations, and the controls they lack.

An arm is a method with all its switches, and the training values that differ. All arms of a study share task,
backbone, rows, order of rows and steps; seeds pair them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..config import PROFILES
from ..methods import COLA, AutoLoRA, DeltaLoRA, FullFineTuning, LoRA, Method, SaLoRA, compose
from ..peft_backed import AdaLoRA


@dataclass(frozen=True)
class Arm:
    """A configuration, and fields of `TrainConfig` in which it differs from the study's."""

    method: Method
    training: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """Arms over seeds.

    question: what is asked.  varies: what differs between arms, for an axis.
    seeds: how many, from 0.  series: names of the history kept for the whole model.
    sites: names of the history kept by site, with their last values.
    """

    question: str
    varies: str
    arms: Mapping[str, Arm]
    seeds: int = 5
    series: tuple[str, ...] = ("loss",)
    sites: tuple[str, ...] = ("cosine", "effective_rank", "norm")

    def runs(self, seeds: int = 0) -> int:
        """How many that takes, with so many seeds; 0 takes the study's own."""
        return len(self.arms) * (seeds or self.seeds)


TASK, BACKBONE, PROFILE = "rt", "minilm-l3", "laptop"
TRAINING: dict[str, Any] = {"steps": 100}
LR = PROFILES[PROFILE].lr
GATES = ("loss", "density", "lambda", "budget_penalty", "orth_A", "orth_B", "kept_density")
SIGMA = tuple(f"sigma.{i}" for i in range(24))


def salora(**switches: Any) -> SaLoRA:
    """SaLoRA with the rate and window that so short a training asks for."""
    return SaLoRA(**{"eta_c": 0.1, "t_start": 0.05, "t_end": 0.9, **switches})


def autolora(**switches: Any) -> AutoLoRA:
    """AutoLoRA with the search and the rate of β that so short a training asks for."""
    return AutoLoRA(**{"search_steps": 0.25, "eta_beta": 0.01, **switches})


STUDIES: dict[str, Study] = {
    "chain": Study(
        "Does a longer chain reach more in the same epochs?", "chain length",
        {str(n): Arm(COLA(chain=n)) for n in (1, 2, 3)}, sites=("norm", "effective_rank", *SIGMA)),
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
        {str(r): Arm(COLA(chain=2) if r == 8 else COLA(ranks=(8, r))) for r in (2, 4, 6, 8)}),
    "wide": Study(
        "What does one LoRA of a chain's whole rank reach?", "rank",
        {str(r): Arm(COLA(chain=1, r=r, lora_alpha=2.0 * r)) for r in (16, 24)},
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

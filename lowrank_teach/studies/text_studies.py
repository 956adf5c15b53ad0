"""The studies of texts: which arms write for which task, trained how, at which rates. Made by `generation`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..methods import AutoLoRA, DeltaLoRA, LoRA, Method
from ..tasks import TASKS

BACKBONE, PROFILE = "smollm2-135m", "laptop"
# equal s = α/r everywhere but in the control; Delta-LoRA's closed form, since a small step of W rounds away in bf16
ARMS: dict[str, Method] = {
    "LoRA": LoRA(r=4, lora_alpha=8.0),
    "Delta-LoRA": DeltaLoRA(r=4, lora_alpha=8.0, lam=2.0, form="lazy"),
    "AutoLoRA": AutoLoRA(r=8, lora_alpha=16.0, search_steps=8, eta_beta=0.02),
    "LoRA, α × 3": LoRA(r=4, lora_alpha=24.0),
}
TRAINING: dict[str, Any] = {"steps": 60, "batch_size": 8, "lr": 2e-3, "n_train": 8000, "n_validation": 64,
                            "n_test": 64, "mixed_precision": "bf16"}
RATES = (7e-4, 2e-3, 6e-3, 1.8e-2, 5.4e-2)   # so short a training asks for large ones
RATE_OF = {"LoRA, α × 3": "Delta-LoRA"}   # what Delta-LoRA equals with K = 0, at the same rate


@dataclass(frozen=True)
class TextStudy:
    """What is made of one task.

    licence: of the samples.  scores: names of `text_metrics`.  inputs: written out.  seeds: how many.
    rates: a grid of learning rates, from which the first score of validation inputs chooses one, with the first seed;
    empty for that of TRAINING.
    """

    licence: str
    scores: tuple[str, ...]
    inputs: int
    seeds: int = 1
    rates: tuple[float, ...] = ()


TEXT_STUDIES = {
    "e2e": TextStudy("E2E NLG Challenge (Novikova et al. 2017), CC BY-SA 4.0",
                     ("bleu", "nist", "meteor", "rougeL", "cider", "ter"), inputs=40, seeds=5, rates=RATES),
    "webnlg": TextStudy("WebNLG Challenge 2017 (Gardent et al. 2017), CC BY-NC-SA 4.0",
                        ("bleu", "meteor", "ter"), inputs=32),
}


def settings(task: str, training: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[float, ...]]:
    """(fields of `TrainConfig`, rates to choose from) of a task's study; where an lr is given, there is no grid."""
    rates = () if "lr" in training else TEXT_STUDIES[task].rates
    found = {**TRAINING, "max_length": TASKS[task].max_length, **training}
    return found, rates or (found["lr"],)

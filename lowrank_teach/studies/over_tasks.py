"""The studies over tasks: which methods stand side by side, on what, at which rates.

Sized for a CPU: MiniLM-L3, 100 steps of 8 rows, 48 tokens a row at most. The papers' grids span a factor of 12
(SaLoRA, 8e-5 to 1e-3) and 20 (COLA, 5e-5 to 1e-3) over epochs; so short a training asks for larger rates, and takes
three that span a factor of 9. GLUE's published validation rows are the test rows; rates are chosen on rows that are
cut from the training rows.
"""

from __future__ import annotations

from typing import Any

from ..methods import COLA, DeltaLoRA, HeadOnly, LoRA
from .across import TaskStudy
from .definitions import BACKBONE, PROFILE, Arm, autolora, salora

TRAINING: dict[str, Any] = {"steps": 100, "batch_size": 8, "n_train": 1600, "n_validation": 200, "n_test": 400,
                            "validation_from_train": True}
SHORT = {"max_length": 32}   # tokens
RATES = (7e-4, 2e-3, 6e-3)

TASK_STUDIES: dict[str, TaskStudy] = {
    "side_by_side": TaskStudy(
        "Which method is ahead, over tasks, each at its best rate?",
        {"LoRA": Arm(LoRA()), "COLA": Arm(COLA(chain=2)), "SaLoRA": Arm(salora()), "Delta-LoRA": Arm(DeltaLoRA()),
         "AutoLoRA": Arm(autolora()), "LoRA, α × 1.5": Arm(LoRA(lora_alpha=24.0)),
         "LoRA, all six": Arm(LoRA(sites="all")), "LoRA, r = 4": Arm(LoRA(r=4, lora_alpha=8.0)),
         "head only": Arm(HeadOnly())},
        tasks={"sst2": {}, "trec": SHORT, "rt": {}, "stsb": {}, "wic": {}, "mrpc": {}, "rte": {}, "cola": SHORT},
        rates=RATES, backbone=BACKBONE, profile=PROFILE, training={**TRAINING, "max_length": 48},
        # the first is what Delta-LoRA equals with K = 0, at the same rate; the second differs from LoRA in r alone
        rate_of={"LoRA, α × 1.5": "Delta-LoRA", "LoRA, r = 4": "LoRA"}),
}

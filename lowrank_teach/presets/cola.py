"""COLA, chain of LoRA (Xia, Qin and Hazan 2024, arXiv 2401.04151): OPT-1.3B (table 1) and Llama2-7B (table 2) on
SuperGLUE prompts, in the setting of MeZO (Malladi et al. 2023), which the paper says it follows."""

from __future__ import annotations

from collections.abc import Mapping

from .cell import Preset
from .setting import Setting, code, ours, paper

MEZO = "MeZO's code (princeton-nlp/MeZO), whose setting the paper follows"
GRID = "the paper reports the best of a grid and not which point it was; ours is one inside it"

# task -> training rows after validation was cut off; gains that the text names, and scores
ROWS = {"sst2": 1000, "wsc": 454, "cb": 150, "wic": 1000, "boolq": 1000, "multirc": 1000, "rte": 1000}
REPORTED: dict[str, dict[str, dict[str, str]]] = {
    "opt-1.3b": {"wsc": {"test score gain (points)": "3.66"}, "boolq": {"test score gain (points)": "1.38"},
                 "rte": {"test score gain (points)": "1.66"}},
    "llama-2-7b": {"rte": {"test score": "85.70", "test score gain (points)": "3.61"},
                   "sst2": {"test score gain (points)": "0 (means stated equal)"}},
}
LORA: dict[str, Setting] = {
    "r": paper(8), "lora_alpha": paper(16.0), "sites": paper("qv"), "lora_dropout": code(0.0, MEZO),
    "init": code("kaiming", MEZO),
}
METHOD: dict[str, Setting] = {
    **LORA, "init": ours("gaussian", "\"Gaussian\", with no scale; ours is 1/r"),
    "chain": ours(2, "lengths 1, 2 and 3 are compared; that of the tables is not said, 2 is the one spelled out"),
    "knots": paper((), "length 2 ties after epoch 3 of 5, which the empty value comes to"),
    "keep_scaling": ours(True, "matters only where ranks step down; α/r is kept then"),
    "restart_schedule": ours(False, "one schedule is named, and only optimizer states are reset"),
    "reset_head_moments": ours(False, "there is no head in this setting"),
}
TRAINING: dict[str, Setting] = {
    "epochs": paper(5.0, "five in total, for every method"), "lr": ours(1e-4, GRID), "batch_size": ours(8, GRID),
    "weight_decay": ours(0.0, "not given; the default of transformers' Trainer, which MeZO uses"),
    "warmup": ours(0.0, "a linear schedule, no warm-up is named"),
    "max_length": code(2048, f"{MEZO}: nothing is cut"),
    "max_grad_norm": ours(1.0, "not given; the default of transformers' Trainer, which MeZO uses"),
    "n_train": paper(None, "1,000 / 500 / 1,000 rows by seed, smaller sets whole: the task's own rule"),
    "best": ours(False, "MeZO's code takes the best epoch back; with knots that is not defined"),
}
MEMORY: dict[str, Mapping[str, Setting]] = {
    "opt-1.3b": {},
    "llama-2-7b": {"base_dtype": ours("bfloat16", "so that 7B fits on one card; MeZO's code loads float16"),
                   "gradient_checkpointing": ours(True, "so that 7B fits on one card; changes no number")},
}


def _preset(backbone: str, task: str) -> Preset:
    table = {"opt-1.3b": "table 1, OPT-1.3B", "llama-2-7b": "table 2, Llama2-7B"}[backbone]
    reported = REPORTED[backbone].get(task, {})
    return Preset(
        f"cola/{backbone}/{task}", table, f"{task}-prompt", {**METHOD, **TRAINING, **MEMORY[backbone]},
        seeds=paper((0, 1, 2, 3, 4), "five; which ones is not given"),
        reported=reported, reported_source="text on " + table.split(",")[0] if reported else "",
        grid={"lr": (1e-3, 8e-4, 5e-4, 1e-4, 5e-5), "batch_size": (4, 8)}, baselines={"lora": LORA},
        train_rows=ROWS[task])


PRESETS = [_preset(backbone, task) for backbone in MEMORY for task in ROWS]

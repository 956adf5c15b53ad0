"""Low-rank adaptation to learn, check and extend: LoRA, COLA, SaLoRA, Delta-LoRA and AutoLoRA.

    import lowrank_teach as lt
    model, tokenizer = lt.load_backbone("minilm-l6", num_labels=2)
    adapters = lt.adapt(model, lt.COLA(r=8, lora_alpha=16, sites="qv"))
    run = lt.fit(lt.SaLoRA(r=8, b=0.5), task="rt", backbone="minilm-l6", profile="laptop", seed=0)

The public names are listed below in teaching order. Each is imported when it is first used, so that the core needs
only torch.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

# OpenMP's threads spin for milliseconds after every operation, on cores that another process could use (measured by
# `python tests/benchmarks busy`). These variables shorten that. OpenMP reads them when torch is imported; if torch is
# imported already, they affect only the processes that this one starts.
WAITING = {
    "GOMP_SPINCOUNT": "1000",   # GNU's OpenMP (Linux): iterations, tens of microseconds; its default is 300,000
    "KMP_BLOCKTIME": "1",       # LLVM's and Intel's OpenMP (macOS, Windows): milliseconds; their default is 200
}
WAITING_CHOICES = (*WAITING, "OMP_WAIT_POLICY", "KMP_LIBRARY")
if not any(name in os.environ for name in WAITING_CHOICES):
    os.environ.update(WAITING)

_WHERE = {
    # the layer, and the matrices it adapts (02)
    "LowRank": "lowrank", "Adapted": "lowrank", "select": "sites", "find_sites": "sites",
    "adapt": "adapters", "Adapters": "adapters", "adapters_of": "adaptable",
    # the methods, one paper each (02 to 06), and the baselines
    **dict.fromkeys(("METHODS", "Method", "Rule", "LoRA", "COLA", "SaLoRA", "DeltaLoRA", "AutoLoRA", "compose",
                     "Composed",
                     "HeadOnly", "FullFineTuning", "DyLoRA", "Houlsby", "Pfeiffer"), "methods"),
    **dict.fromkeys(("AdaLoRA", "PrefixTuning", "PromptTuning"), "integrations.peft_methods"),
    # models and tasks by short name
    "BACKBONES": "models.backbones", "load_backbone": "models.backbones", "TASKS": "tasks.table",
    "load_task": "tasks.load", "task_from_file": "tasks.own_file",
    # training, and stored runs
    "PROFILES": "training.config", "TrainConfig": "training.config", "train_config": "training.config",
    "Trainer": "training.trainer", "Callback": "training.callbacks", "fit": "experiments.fit",
    "Run": "experiments.runs", "Store": "experiments.runs", "compare": "experiments.compare",
    "table": "experiments.compare",
    # grids of runs
    "fit_many": "experiments.fit_many", "RunConfig": "experiments.fit", "grid": "experiments.fit",
    "sweep": "experiments.sweep",
    # the papers' settings, and the memory that a training needs
    "PRESETS": "reproduction.presets", "preset": "reproduction.presets", "plan_memory": "experiments.memory",
    # peft and transformers
    "save_peft": "integrations.peft_format", "load_peft": "integrations.peft_format",
    "LowRankTrainer": "integrations.hf_trainer",
}
_MODULES = {"gates": "gates", "measure": "analysis.measures", "plots": "analysis.plots",
            "figures": "reproduction.figures"}

__all__ = [*_WHERE, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f".{_MODULES[name]}", __name__)
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_WHERE[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)

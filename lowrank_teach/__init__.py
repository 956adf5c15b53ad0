"""Low-rank adaptation to learn, check and extend: LoRA, COLA, SaLoRA, Delta-LoRA and AutoLoRA.

    import lowrank_teach as lt
    model, tokenizer = lt.load_backbone("minilm-l6", num_labels=2)
    adapters = lt.adapt(model, lt.COLA(r=8, lora_alpha=16, sites="qv"))
    run = lt.fit(lt.SaLoRA(r=8, b=0.5), task="rt", backbone="minilm-l6", profile="laptop", seed=0)

The names below are the public ones, in teaching order; each is loaded when it is first used, so that the core
needs no more than torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from .waiting import wait_briefly

wait_briefly()

_WHERE = {
    # the layer, and where it goes (02)
    "LowRank": "lowrank", "Adapted": "lowrank", "select": "sites", "find_sites": "sites",
    "adapt": "adapters", "Adapters": "adapters", "adapters_of": "adaptable",
    # the methods, one paper each (02 to 06), and what they are compared with
    "METHODS": "methods", "Method": "methods", "Rule": "methods", "LoRA": "methods", "COLA": "methods",
    "SaLoRA": "methods", "DeltaLoRA": "methods", "AutoLoRA": "methods", "compose": "methods",
    "Composed": "methods", "HeadOnly": "methods",
    "FullFineTuning": "methods", "DyLoRA": "methods", "Houlsby": "methods", "Pfeiffer": "methods",
    "AdaLoRA": "peft_backed", "PrefixTuning": "peft_backed", "PromptTuning": "peft_backed",
    # models and tasks by short name
    "BACKBONES": "models", "load_backbone": "models", "TASKS": "tasks", "load_task": "tasks",
    # training, and what it leaves
    "PROFILES": "config", "TrainConfig": "config", "train_config": "config", "Trainer": "train",
    "Callback": "outcome", "fit": "experiment", "Run": "runs", "Store": "runs", "compare": "lineup",
    "table": "lineup",
    # grids of runs
    "fit_many": "many_runs", "RunConfig": "run_config", "grid": "run_config", "sweep": "sweeps",
    # the papers' cells, and what a training would hold in memory
    "PRESETS": "presets", "preset": "presets", "plan_memory": "memory",
    # into peft and transformers, and back
    "save_peft": "export", "load_peft": "export_load", "LowRankTrainer": "hf_trainer",
}
_MODULES = ("gates", "measure", "plots", "figures")

__all__ = [*_WHERE, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_WHERE[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)

"""What to call the runs of a sweep: by the values in which they differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..run_config import RunConfig


def varied(configs: Sequence[RunConfig]) -> list[str]:
    """Of each run the values in which runs of its method differ, such as "r=4, lr=0.001"."""
    plain = [_plain(config) for config in configs]
    found: dict[str, dict[str, set[str]]] = {}
    for config, values in zip(configs, plain, strict=True):
        for name, one in values.items():
            found.setdefault(config.method.name, {}).setdefault(name, set()).add(str(one))
    return [", ".join(f"{name}={one}" for name, one in values.items() if len(found[config.method.name][name]) > 1)
            for config, values in zip(configs, plain, strict=True)]


def labels(configs: Sequence[RunConfig]) -> list[str]:
    """Of each run method, task, seed, and what sets it apart, such as "lora, rt, seed 0, lr=0.001"."""
    several = len({config.backbone for config in configs}) > 1
    return [", ".join([config.label, *([config.backbone] if several else []), *([values] if values else [])])
            for config, values in zip(configs, varied(configs), strict=True)]


def _plain(config: RunConfig) -> dict[str, Any]:
    """All values of the method, those of a composition's members too, and of the training."""
    method = dict(config.described["method"])
    members = method.pop("members", [])
    return {name: one for values in (*members, method, config.described["training"]) for name, one in values.items()}

"""The methods side by side: the same task, backbone, seed and steps, one table. Taught in 00 and 07."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from ..analysis.style import METHOD_STYLE
from ..methods import COLA, AutoLoRA, DeltaLoRA, HeadOnly, LoRA, Method, SaLoRA
from .fit import fit
from .runs import Run

LINEUP: dict[str, Method] = {
    "head": HeadOnly(), "lora": LoRA(), "cola-2": COLA(chain=2), "cola-3": COLA(chain=3), "salora": SaLoRA(),
    "delta_lora": DeltaLoRA(), "autolora": AutoLoRA(),
}


def compare(task: str = "rt", backbone: str = "minilm-l6", profile: str | None = None, seed: int = 0, *,
            methods: Mapping[str, Method] | None = None,
            on_run: Callable[[str, Run], None] | None = None, **options: Any) -> dict[str, Run]:
    """Train each method of a line-up on the same task, or find the runs that did.

    Args:
        methods: label -> configuration; None takes LINEUP.  on_run: called as each run is done.
        options: passed on to `fit` (callbacks, cache, and fields of `TrainConfig`).
    """
    runs = {}
    for label, method in (methods or LINEUP).items():
        runs[label] = fit(method, task, backbone, profile, seed, **options)
        if on_run is not None:
            on_run(label, runs[label])
    return runs


def table(runs: Mapping[str, Run]) -> pd.DataFrame:
    """Return one row a run: headline metric on the test rows, parameters that trained, ranks left, seconds, memory.

    "ms a step" is the mean over the steps of the last stage; a search before it has its own column.
    """
    rows: list[dict[str, Any]] = []
    for label, run in runs.items():
        metric, value = run.score("test")
        ranks = list(run.ranks.values())
        rows.append({
            "method": label, metric: value, "validation": run.score("validation")[1],
            "trainable": run.parameters["trainable"],
            "ranks": "–".join(dict.fromkeys([str(min(ranks)), str(max(ranks))])) if ranks else "–",
            "sum of ranks": sum(ranks),
            "ms a step": 1000 * run.seconds["training"] / run.seconds["steps.training"],
            "search s": run.seconds.get("search", 0.0), "total s": run.seconds["total"]})
    return pd.DataFrame(rows).set_index("method")


def markdown(frame: pd.DataFrame) -> str:
    """Return the table as the page of measurements shows it: names spelled out, no timings of searches."""
    metric = frame.columns[0]
    lines = [f"| method | test {metric} | parameters trained | rank of a matrix | ms a step |",
             "|---|---|---|---|---|"]
    for label, row in frame.iterrows():
        name = METHOD_STYLE.get(str(label), (str(label),))[0]
        lines.append(f"| {name} | {row[metric]:.3f} | {int(row['trainable']):,} | {row['ranks']} | "
                     f"{row['ms a step']:.0f} |")
    return "\n".join(lines)

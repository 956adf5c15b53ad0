"""How long SaLoRA's gate window has to be on real text, beside the method's own two estimates.

For each target density b and rate eta_c: the step from which the expected density stays within 0.02 of b,
`shortest_window()` and `estimated_window()`. Writes figures/data/gate_window.json.

    python tests/benchmarks/gate_window.py
"""

from __future__ import annotations

import json
from pathlib import Path

import lowrank_teach as lt
from lowrank_teach.experiments.runs import machine

SETTINGS = [(0.5, 0.05), (0.25, 0.05), (0.125, 0.05), (0.5, 0.1), (0.25, 0.1), (0.125, 0.1)]
OUT = Path(__file__).resolve().parents[2] / "figures" / "data" / "gate_window.json"


def measure(b: float, eta_c: float) -> dict[str, float | None]:
    """One run whose window is as long as its own estimate."""
    method = lt.SaLoRA(b=b, eta_c=eta_c, t_start=0, t_end=1.0)
    run = lt.fit(method, task="rt", backbone="minilm-l3", profile="laptop", progress=False, adjust=False,
                 steps=method.estimated_window(), batch_size=8)
    steps, density = run.series("density")
    away = [step for step, C in zip(steps, density, strict=True) if abs(C - b) > 0.02]
    return {"b": b, "eta_c": eta_c, "shortest_window": method.shortest_window(),
            "estimated_window": method.estimated_window(), "density_at_the_end": density[-1],
            "within_0.02_from_step": away[-1] + 1 if away[-1] < steps[-1] else None}


def main() -> None:
    rows = []
    for b, eta_c in SETTINGS:
        rows.append(measure(b, eta_c))
        print(rows[-1], flush=True)
    OUT.write_text(json.dumps({"task": "rt", "backbone": "minilm-l3", "batch_size": 8, "seed": 0, "rows": rows,
                               "machine": machine()}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""What a move of a slider costs the kernel: the frame, its PNG and its sentence, for every explorer of the course.

    python tests/benchmarks/sliders.py [--moves 30] [--out figures/data/bench_sliders.json]

Every explorer stands on the numbers that 10 shows it with. The moves go through the range of each of its sliders;
median, upper quartile and slowest are printed, by the clock and of the process's own time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from lowrank_teach import explorers, playground, studies
from lowrank_teach.runs import machine
from lowrank_teach.widgets import Picture, tidy

AIM = 50   # milliseconds on two cores that nobody else uses
OUT = Path(__file__).resolve().parents[2] / "figures" / "data" / "bench_sliders.json"


def salora_runs() -> Picture:
    stored = studies.load("salora_b")
    density, lam = ({float(arm): stored.series(arm, name) for arm in stored.arms} for name in ("density", "lambda"))
    return explorers.SaloraRuns(density, lam, {float(arm): s for arm, s in stored.values().items()}, "test accuracy")


def pictures() -> dict[str, Callable[[], Picture]]:
    """Name of each explorer -> how 10 makes it."""
    stored = playground.load()
    return {
        "RankOfAPicture": explorers.RankOfAPicture,
        "CutNetwork": lambda: explorers.CutNetwork(stored.parts, stored.cut_scores, stored.cut_halves,
                                                   "test accuracy", block=playground.BLOCK),
        "Truncation": lambda: explorers.Truncation(stored.factors),
        "RankAlpha": lambda: explorers.RankAlpha(stored.curves, stored.losses, "validation loss"),
        "ColaChain": explorers.ColaChain,
        "HardConcreteGate": explorers.HardConcreteGate,
        "SaloraBudget": lambda: explorers.SaloraBudget(stored.log_theta, stored.sizes, stored.stretch),
        "SaloraRuns": salora_runs,
        "DeltaTrajectory": explorers.DeltaTrajectory,
        "RankThreshold": lambda: explorers.RankThreshold(stored.alphas),
        "RunBrowser": lambda: explorers.RunBrowser(explorers.runs.from_studies())}


def states(picture: Picture, moves: int) -> list[dict[str, float]]:
    """So many moves of each slider, over its whole range, from where the others start."""
    found = []
    for c in picture.controls:
        values = np.linspace(c.low, c.high, moves).round(10).tolist()
        found += [{**picture.start(), c.name: round(value) if c.whole else tidy(value)} for value in values]
    return found


def measure(picture: Picture, moves: int) -> dict[str, list[float]]:
    """Milliseconds of each move, by the clock and of this process."""
    clock, own = [], []
    picture.png(**picture.start())
    for state in states(picture, moves):
        start, busy = time.perf_counter(), time.process_time()
        picture.png(**state)
        picture.words(**state)
        clock.append(1000 * (time.perf_counter() - start))
        own.append(1000 * (time.process_time() - busy))
    return {"clock": clock, "own": own}


def summary(taken: dict[str, list[float]]) -> dict[str, float]:
    """Median, upper quartile and slowest by the clock; median of the process's own time."""
    return {"median": statistics.median(taken["clock"]), "q3": statistics.quantiles(taken["clock"], n=4)[2],
            "slowest": max(taken["clock"]), "own": statistics.median(taken["own"])}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moves", type=int, default=30, help="of each slider")
    parser.add_argument("--out", type=Path, default=OUT)
    chosen = parser.parse_args()
    print(f"{'explorer':18} {'median ms':>10} {'q3':>6} {'slowest':>8} {'own':>6}   (aim: {AIM} ms)")
    rows = {}
    for name, make in pictures().items():
        rows[name] = summary(measure(make(), chosen.moves))
        r = rows[name]
        print(f"{name:18} {r['median']:10.1f} {r['q3']:6.1f} {r['slowest']:8.1f} {r['own']:6.1f}"
              f"{'   over' if r['own'] > AIM else ''}", flush=True)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None   # what else the machine did meanwhile
    record = {"name": "bench_sliders", "machine": {**machine(), "threads": torch.get_num_threads(), "load": load},
              "settings": {"moves": chosen.moves, "aim": AIM}, "milliseconds": rows}
    chosen.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"wrote {chosen.out}")
    return int(any(row["own"] > AIM for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main())

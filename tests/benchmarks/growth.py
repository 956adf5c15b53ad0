"""How the time and the memory of a step grow with tokens, layers and r: slopes fitted over a few sizes each.

Time with tokens: the exponent p of time ∝ tokens^p, from a line through logarithms (1 is linear). All else: cost per
layer, per 8 ranks, per 1000 tokens, from a line. Of LoRA on W_q and W_v, beside `peft`'s, on random networks of the
backbone's shape.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import lowrank_teach as lt

from .candidates import backbone, peft_model, plain
from .harness import Row, Settings, Step, in_turn, quartiles, weighed

TITLE = "Growth"
TOKENS, LAYERS, RANKS = (16, 32, 64, 128), (2, 4, 6), (4, 16, 64)


def bench(s: Settings) -> tuple[list[Row], dict[str, Any]]:
    s = dataclasses.replace(s, rows=8, repeats=max(3, s.repeats // 2))
    rows, points = [], []
    for what, sizes in sweeps(s).items():
        for kind in KINDS:
            makers = {size: lambda kind=kind, at=at, n=n: KINDS[kind](at, n) for size, (at, n) in sizes.items()}
            costs = cost(makers, s)
            points += [{"what": what, "of": kind, "size": size, **found} for size, found in costs.items()]
            rows += slopes(what, kind, costs, s)
    return rows, {"points": points, "settings": {"rows": s.rows, "repeats": s.repeats}}


def sweeps(s: Settings) -> dict[str, dict[int, tuple[Settings, int]]]:
    """What grows -> size -> (settings, layers)."""
    like = backbone(s).config
    return {"tokens": {t: (dataclasses.replace(s, tokens=t), 2) for t in TOKENS if t <= like.max_position_embeddings},
            "layers": {n: (s, n) for n in LAYERS},
            "r": {r: (dataclasses.replace(s, r=r), 2) for r in RANKS if r <= like.hidden_size}}


def ours(s: Settings, layers: int) -> Step:
    model = backbone(s, layers)
    lt.adapt(model, lt.LoRA(r=s.r, lora_alpha=s.alpha), seed=0)
    return plain(model, s)


def theirs(s: Settings, layers: int) -> Step:
    return plain(peft_model(backbone(s, layers), s, "qv"), s)


KINDS: dict[str, Callable[[Settings, int], Step]] = {"LoRA": ours, "peft LoRA": theirs}


def cost(makers: dict[int, Callable[[], Step]], s: Settings) -> dict[int, dict[str, float]]:
    """Size -> milliseconds and megabytes of a step."""
    made = {size: weighed(make, s.device) for size, make in makers.items()}
    seconds = in_turn({str(size): step for size, (step, _) in made.items()}, s)
    return {size: {"ms": 1000 * quartiles(seconds[str(size)])["median"], "MB": peak / 1e6}
            for size, (_, peak) in made.items()}


def slopes(what: str, kind: str, costs: dict[int, dict[str, float]], s: Settings) -> list[Row]:
    """One row for time and one for memory."""
    per, times = {"tokens": ("1000 tokens", 1000 / s.rows), "layers": ("layer", 1), "r": ("8 ranks", 8)}[what]
    time, memory = ([cost[unit] for cost in costs.values()] for unit in ("ms", "MB"))
    return [Row(f"time with tokens, exponent: {kind}", exponent(list(costs), time), "power") if what == "tokens"
            else Row(f"time with {what}: {kind}", times * line(list(costs), time), f"ms/{per}"),
            Row(f"memory with {what}: {kind}", times * line(list(costs), memory), f"MB/{per}")]


def line(x: Sequence[float], y: Sequence[float]) -> float:
    """Slope of the least-squares line."""
    return float(np.polyfit(x, y, 1)[0])


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """p of the least-squares fit y ∝ x^p, through logarithms."""
    return line(np.log(x).tolist(), np.log(y).tolist())

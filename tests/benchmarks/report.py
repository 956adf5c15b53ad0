"""The table that `python tests/benchmarks` prints, and the records behind it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lowrank_teach.experiments.runs import machine

from .busy import WAYS
from .harness import Row, Settings

FIGURES = Path(__file__).resolve().parents[2] / "figures" / "data"


def print_rows(title: str, rows: Sequence[Row]) -> None:
    """A title, then a line a row: name, value, interval, aim, verdict; under a missed aim the reason."""
    width = max([len(row.name) for row in rows], default=0)
    print(f"\n{title}")
    for row in rows:
        interval = "" if row.low is None else f"[{number(row.low)}, {number(row.high or 0.0)}]"
        aim = "" if row.aim is None else f"aim {'≥' if row.least else '≤'} {number(row.aim)}  {row.verdict}"
        print(f"  {row.name:{width}}  {number(row.value):>8} {row.unit:10} {interval:18} {aim}".rstrip(), flush=True)
        if row.why and row.verdict == "missed":
            print(f"  {'':{width}}  {row.why}")


def number(value: float) -> str:
    """Two digits behind the point below ten, fewer above."""
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 1000 else f"{value:.0f}"


def summary(rows: Sequence[Row]) -> str:
    """How many aims were met, and which were not."""
    judged = [row for row in rows if row.aim is not None]
    named = {verdict: [row.name for row in judged if row.verdict == verdict]
             for verdict in ("within noise", "missed")}
    met = len(judged) - sum(map(len, named.values()))
    return "\n".join([f"{met} of {len(judged)} aims met",
                      *(f"{verdict}: {'; '.join(names)}" for verdict, names in named.items() if names)])


def load() -> float | None:
    """What else the machine does: processes that run or wait, over the last minute."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def store(name: str, s: Settings, rows: Sequence[Row], details: dict[str, Any], folder: Path,
          load_before: float | None) -> Path:
    """Write one record; details may add to the settings and stand beside the rows."""
    settings = {"backbone": s.backbone, "rows": s.rows, "tokens": s.tokens, "r": s.r, "repeats": s.repeats,
                "device": s.device, "dtype": s.dtype, "clock": "own" if s.own else "wall",
                **details.pop("settings", {})}
    record = {"name": f"bench_{name}",
              "machine": {**machine(), "threads": torch.get_num_threads(), "load": load_before},
              "settings": settings, **details, "table": [{**asdict(row), "verdict": row.verdict} for row in rows]}
    path = folder / f"bench_{name}{s.place}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


# ---- the page of the site -------------------------------------------------------------------------------------

LOOP, PEFT = "loop: LoRA qv", "peft LoRA qv"
SHOWN = (   # a step of, over, candidates and what they are divided by
    ("LoRA", "`peft`'s LoRA", ("LoRA qv",), PEFT),
    ("LoRA", "a frozen network's pass forward and back", ("LoRA qv",), "floor"),
    ("COLA", "`peft`'s LoRA", ("loop: COLA qv",), PEFT),
    ("SaLoRA, on the same matrices", "our LoRA", ("loop: SaLoRA qv",), LOOP),
    ("Delta-LoRA, in place; lazily", "our LoRA",
     ("loop: Delta-LoRA qv, in place", "loop: Delta-LoRA qv, lazy"), LOOP),
    ("AutoLoRA's search: first order; forward difference; central difference", "our LoRA",
     tuple(f"loop: AutoLoRA qv, {kind}" for kind in ("first_order", "forward_difference", "finite_difference")),
     LOOP),
    ("our LoRA, in the loop", "`peft`'s AdaLoRA", (LOOP,), "peft AdaLoRA qv"))


def page(folder: Path = FIGURES) -> str:
    """The page's table and sentence on speed, from the stored records."""
    def rows(name: str) -> dict[str, float]:
        record = json.loads((folder / f"bench_{name}.json").read_text(encoding="utf-8"))
        return {row["name"]: row["value"] for row in record["table"]}

    steps, replicas, busy = rows("steps"), rows("replicas"), rows("busy")
    lines = ["| a step of | over | ratio |", "|---|---|---|"]
    lines += [f"| {what} | {over} | {'; '.join(number(steps[f'{one} / {other}']) for one in ones)} |"
              for what, over, ones, other in SHOWN]
    delta, cola, unrolled = (number(steps[f"memory: loop: {label} / {PEFT}"]) for label in (
        "Delta-LoRA qv, in place", "COLA qv, past a knot", "AutoLoRA qv, unrolled"))
    theirs, ours = (number(busy[f"two at once / one alone, {way}"]) for way in WAYS)
    four, sixteen = (number(replicas[f"{R} × peft LoRA / {R} replicas in one pass"]) for R in (4, 16))
    return "\n".join([*lines, "", (
        f"Peak memory is that of `peft`'s LoRA, but for Delta-LoRA in place ({delta}) and COLA past a knot ({cola}), "
        "which keep W's bytes so that it can be given back exactly, and for AutoLoRA's exact hypergradient "
        f"({unrolled}). 4 and 16 replicas of LoRA in one process go {four} and {sixteen} times as fast as `peft`'s "
        f"steps one after another. A step takes {ours} times as long as alone while a second "
        f"training runs, as two notebooks do, and {theirs} times with torch's own way to wait; two cores can do 2.")])

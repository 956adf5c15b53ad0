"""How long a process takes until it can begin: to import the package, its layer, its training; `peft`; torch."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

from .harness import Row, Settings, of_many, quartiles

TITLE, ONCE = "Imports, each in a process of its own", True
LINES = {
    "import lowrank_teach": "import lowrank_teach",
    "the layer and a method": "import lowrank_teach as lt; lt.adapt, lt.LoRA",
    "all a training needs": "import lowrank_teach as lt; lt.adapt, lt.LoRA, lt.load_backbone, lt.Trainer, lt.fit",
    "import peft": "import peft",
    "import torch": "import torch",
}


def bench(s: Settings) -> tuple[list[Row], dict[str, Any]]:
    repeats = 1 if s.quick else 2
    seconds: dict[str, list[float]] = {name: [] for name in LINES}
    for _ in range(repeats + 1):
        for name, line in LINES.items():
            start = _clock(s)
            subprocess.run([sys.executable, "-c", line], check=True)
            seconds[name].append(_clock(s) - start)
    seconds = {name: taken[1:] for name, taken in seconds.items()}  # the first reads the files
    rows = [of_many(name, taken, "s") for name, taken in seconds.items()]
    for name in ("import lowrank_teach", "the layer and a method"):
        each = [a / b for a, b in zip(seconds[name], seconds["import peft"], strict=True)]
        rows.append(of_many(f"{name} / import peft", each, aim=1.0))
    return rows, {"settings": {"repeats": repeats, "lines": LINES},
                  "seconds": {name: quartiles(taken)["median"] for name, taken in seconds.items()}}


def _clock(s: Settings) -> float:
    """Seconds by the clock, or of the processes that were started."""
    times = os.times()
    return times.children_user + times.children_system if s.own else time.perf_counter()

"""What a move of a slider costs the kernel: the frame, its PNG and its sentence, for every explorer of the course.

Every explorer stands on the numbers that 10 shows it with; the one of 09, which is made of a reader's own run, on
random ones of the same size. The moves go through the range of each of its sliders. The
row is the median of the process's own time; median, upper quartile and slowest by the clock stand beside it.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lowrank_teach.analysis import style
from lowrank_teach.course.chapters import tagging
from lowrank_teach.course.chapters.playground import explorers
from lowrank_teach.course.explorer import Picture, tidy

from .harness import Row, Settings

TITLE, ONCE = "A move of a slider, the process's own time", True
AIM, MOVES = 50.0, 30   # milliseconds; moves of each slider


def entity_threshold(sentences: int = 200, words: int = 26) -> Picture:
    """On random tags and probabilities, of the size of 09's test rows."""
    g = np.random.default_rng(0)
    labels = ["O", *(f"{place}-{kind}" for kind in ("protein", "DNA", "RNA", "cell") for place in "BI")]
    found = g.dirichlet([3.0] + [0.3] * 8, size=(sentences, words))
    gold = [[labels[code] for code in codes] for codes in g.choice(9, p=[0.6] + [0.05] * 8, size=(sentences, words))]
    text = [["word" * int(length) for length in g.integers(1, 4, size=words)] for _ in range(sentences)]
    return tagging.EntityThreshold(list(found), text, gold, labels, range(12))


def pictures() -> dict[str, Callable[[], Picture]]:
    """Name of each explorer -> how 10 makes it."""
    return {**explorers(), "EntityThreshold": entity_threshold}


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


def plain_figure(times: int = 5) -> dict[str, float]:
    """Milliseconds that a figure of two lines takes, made anew: the unit in which this machine's speed cancels."""
    clock, own = [], []
    for _ in range(times):
        start, busy = time.perf_counter(), time.process_time()
        fig = Figure(figsize=(8, 3.2))
        for ax in fig.subplots(1, 2):
            ax.plot(range(50))
            ax.set(xlabel="x", ylabel="y", title="a line")
        fig.savefig(io.BytesIO(), format="png", dpi=style.DPI)
        clock.append(1000 * (time.perf_counter() - start))
        own.append(1000 * (time.process_time() - busy))
    return {"clock": statistics.median(clock), "own": statistics.median(own)}


def summary(taken: dict[str, list[float]]) -> dict[str, float]:
    """Median, upper quartile and slowest by the clock; median of the process's own time."""
    return {"median": statistics.median(taken["clock"]), "q3": statistics.quantiles(taken["clock"], n=4)[2],
            "slowest": max(taken["clock"]), "own": statistics.median(taken["own"])}


def bench(s: Settings) -> tuple[list[Row], dict[str, Any]]:
    moves = 3 if s.quick else MOVES
    taken = {name: summary(measure(make(), moves)) for name, make in pictures().items()}
    rows = [Row(name, found["own"], "ms", aim=AIM) for name, found in taken.items()]
    return rows, {"settings": {"moves": moves, "aim": AIM}, "milliseconds": taken}

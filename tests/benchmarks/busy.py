"""Two trainings at once, as two notebooks are, against one alone: as torch's threads wait, and as the package says.

Every training is a process of all threads, which stays. Which of the two was imported first, torch or the package,
decides how its threads wait (`lowrank_teach`). All times are of one step, by the clock; two trainings that
share the cores well take twice as long as one.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from lowrank_teach import WAITING, WAITING_CHOICES

from .harness import Row, Settings, in_turn, of_many, quartiles

TITLE = "Two trainings at once"
ONCE = True          # it is a CPU's question
STEPS = 4            # at a time
WAYS = {"torch's own waiting": "torch", "a moment awake": "lowrank_teach"}   # -> what is imported first


def bench(s: Settings) -> tuple[list[Row], dict[str, Any]]:
    """Two at once over one alone, for each way; and one way over the other."""
    s = dataclasses.replace(s, own=False)   # a process's own seconds say nothing about two
    with ExitStack() as stack:
        pairs = {way: [stack.enter_context(worker(first, s)) for _ in range(2)] for way, first in WAYS.items()}
        seconds = in_turn({f"{many}, {way}": partial(steps, pair[:number], STEPS)
                           for many, number in (("one", 1), ("two", 2)) for way, pair in pairs.items()}, s)
    seconds = {name: [taken / STEPS for taken in each] for name, each in seconds.items()}
    return rows(seconds), {"settings": {"words": WAITING, "steps": STEPS}, "milliseconds": {
        name: {part: 1000 * value for part, value in quartiles(each).items()} for name, each in seconds.items()}}


def rows(seconds: dict[str, list[float]]) -> list[Row]:
    def over(first: str, second: str, name: str, aim: float | None = None) -> Row:
        return of_many(name, [a / b for a, b in zip(seconds[first], seconds[second], strict=True)], aim=aim)

    theirs, ours = WAYS
    return [*(over(f"two, {way}", f"one, {way}", f"two at once / one alone, {way}", aim)
              for way, aim in ((theirs, None), (ours, 2.2))),
            over(f"two, {theirs}", f"two, {ours}", f"two at once: {theirs} / {ours}"),
            over(f"one, {ours}", f"one, {theirs}", f"one alone: {ours} / {theirs}", 1.05)]


@contextmanager
def worker(first: str, s: Settings) -> Iterator[subprocess.Popen]:
    """A training that is ready for its next steps, in a process that imports this first."""
    environment = {name: value for name, value in os.environ.items() if name not in WAITING_CHOICES}
    line = f"import {first}; from benchmarks.busy import serve; serve()"
    with subprocess.Popen([sys.executable, "-c", line, json.dumps(dataclasses.asdict(s))], text=True,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1],
                          env=environment) as process:
        steps([process], 2)
        try:
            yield process
        finally:
            process.kill()


def steps(workers: list[subprocess.Popen], number: int) -> None:
    """So many steps of each at once; returns when the last has taken them."""
    for process in workers:
        print(number, file=process.stdin, flush=True)
    for process in workers:
        if process.stdout.readline() != "done\n":
            raise RuntimeError(f"a training ended with status {process.wait()}")


def serve() -> None:
    """A worker's life, until nobody asks any more."""
    from .candidates import ours

    step = ours(Settings(**json.loads(sys.argv[1])), "qv")
    for line in sys.stdin:
        for _ in range(int(line)):
            step()
        print("done", flush=True)

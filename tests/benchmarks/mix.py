"""The mixes of processes and replicas that a sweep may choose, against steps of `peft`'s LoRA one after another.

`peft` steps here, on all threads; the mixes step LoRA runs of the package's loop in workers that stay. The choice is
made as a sweep makes it, from three steps of each mix, and judged on the repeats that follow. All times are of one
step of one run, by the clock.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

import lowrank_teach as lt
from lowrank_teach.sweeps.engine import usable_processes
from lowrank_teach.sweeps.mix import PASSES, Mix, choose, measure
from lowrank_teach.sweeps.mix import candidates as all_mixes
from lowrank_teach.sweeps.probe import probing

from .candidates import backbone, with_peft
from .harness import Row, Settings, Step, in_turn, of_many, quartiles
from .replicas import replica

TITLE = "Mix of processes and replicas"
ONCE = True          # it is a CPU's question
AIM = 1.3
PEFT = "sequential peft LoRA"


def bench(s: Settings) -> tuple[list[Row], dict[str, Any]]:
    """Speed of each mix over `peft`, and of the choice over `peft` and over one run after another."""
    s = dataclasses.replace(s, own=False)   # a process's own seconds say nothing about several
    many = PASSES[-1]
    mixes = all_mixes(10**6, usable_processes(), torch.get_num_threads(), None)
    with probing(partial(runs, s, many), max(mix.processes for mix in mixes)) as probe:
        first = measure(probe, mixes)
        assert first is not None
        steps: dict[str, Step] = {PEFT: several(with_peft(s, "qv"), many)}
        steps |= {str(mix): partial(probe.seconds, mix, 2) for mix in mixes}
        seconds = in_turn(steps, s)
    each = {PEFT: [taken / many for taken in seconds[PEFT]]}
    each |= {str(mix): [taken / many / mix.processes for taken in seconds[str(mix)]] for mix in mixes}
    return rows(each, mixes, choose(first)), {
        "milliseconds": {name: {part: 1000 * value for part, value in quartiles(taken).items()}
                         for name, taken in each.items()},
        "choice": str(choose(first)), "chosen from": {str(mix): 1000 * taken for mix, taken in first.items()}}


def rows(each: dict[str, list[float]], mixes: list[Mix], chosen: Mix) -> list[Row]:
    def over(first: str, second: Mix, name: str, aim: float | None = None) -> Row:
        ratios = [a / b for a, b in zip(each[first], each[str(second)], strict=True)]
        return of_many(f"{first} / {name}", ratios, aim=aim, least=True)

    return [*(over(PEFT, mix, str(mix)) for mix in mixes),
            over(PEFT, chosen, "what a sweep chooses", AIM),
            over(str(mixes[0]), chosen, "what a sweep chooses", 1.0)]


def runs(s: Settings, many: int, folder: Path) -> list[lt.Trainer]:
    """LoRA runs over one frozen network, in a worker; it writes nothing."""
    base = backbone(s)
    return [replica(s, base, i) for i in range(many)]


def several(step: Step, many: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(many):
            step()

    return run

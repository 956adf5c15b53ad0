"""Full fine-tuning cut to rank i, over seeds: stored numbers with their provenance.

For each seed a network is trained whole (`changes.fine_tune`), then scored with parts of every ΔW only: its first
i directions, all but the first i, or i drawn at random. Stored in figures/data/01_cuts.json; drawn by 01.

    cuts.load()      # what is stored
    cuts.train()     # again, here
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from . import measure
from .changes import FineTuned, fine_tune
from .comparison import made_on, read, write
from .config import train_config
from .course import references_folder
from .runs import machine
from .studies import Results
from .studies.definitions import BACKBONE, PROFILE, TASK

CUTS = (0, 1, 2, 4, 8, 16, 32, 64)
LR = 2e-4   # a tenth of LoRA's: every number of W moves
TRAINING: dict[str, Any] = {"steps": 100, "lr": LR, "weight_decay": 0.0}
FILE = "01_cuts.json"


def at_random(i: int, n: int, seed: int) -> list[int]:
    """i of n directions, drawn without looking at their weight."""
    return sorted(torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:i].tolist())


def arms(n: int, seed: int) -> dict[str, slice | list[int]]:
    """Name -> which of n directions are kept: "first 8", "rest 8" (all but these), "random 8", "all"."""
    return {**{f"first {i}": slice(i) for i in CUTS}, "all": slice(None),
            **{f"rest {i}": slice(i, None) for i in CUTS[1:]},
            **{f"random {i}": at_random(i, n, seed) for i in CUTS[1:]}}


def records(full: FineTuned, seed: int) -> list[dict[str, Any]]:
    """One dict an arm: scores on the test rows, and by site the rank that holds 90 % and the first 8's share."""
    n = max(len(found.s) for found in full.directions.values())
    shares = {name: measure.energy(found.s) for name, found in full.directions.items()}
    sites = {"energy_rank": {name: measure.energy_rank(found.s) for name, found in full.directions.items()},
             "energy_of_8": {name: round(float(share[7]), 4) for name, share in shares.items()}}
    return [{"arm": arm, "seed": seed, "test": full.score(keep), "sites": sites if arm == "all" else {}}
            for arm, keep in arms(n, seed).items()]


def train(seeds: Iterable[int] = range(5), folder: Path | str | None = None, *, task: str = TASK,
          backbone: str = BACKBONE, profile: str = PROFILE, on_seed: Callable[[int], None] | None = None,
          **training: Any) -> Results:
    """Train and cut, seed by seed; the file is written anew after each."""
    path = Path(folder or references_folder()) / FILE
    training = {**TRAINING, **training}
    about = {"name": "cuts", "question": "How many directions of a whole ΔW does the task need?", "task": task,
             "backbone": backbone, "profile": profile, "training": asdict(train_config(profile, **training)),
             "machine": machine()}
    found: list[dict[str, Any]] = []
    for seed in seeds:
        found += records(fine_tune(task, backbone, profile, seed, **training), seed)
        write(path, about, found)
        if on_seed is not None:
            on_seed(seed)
    return Results(about, found)


def line(found: Results) -> str:
    """One sentence on where the numbers come from."""
    a = found.about
    networks = len(found.values("loss")["all"])
    return (f"stored cuts: {networks} networks trained whole, {a['backbone']} on {a['task']}, "
            f"{a['training']['steps']} steps; {made_on(a['machine'])}")


def load(folder: Path | str | None = None) -> Results:
    """What is stored.

    Raises:
        FileNotFoundError: it has not been trained here.
    """
    path = Path(folder or references_folder()) / FILE
    return Results(*read(path, "the cuts have no numbers yet; train them: lowrank_teach.cuts.train()"))

"""Sweeps and ablations over seeds, stored with their provenance: what bands and verdicts are drawn from.

    found = studies.load("chain")
    found.values("accuracy")          # arm -> one number a seed
    studies.train("chain", seeds=[0])  # again, here; `lowrank-teach study chain` does the same
"""

from __future__ import annotations

from .definitions import STUDIES, Arm, Study
from .engine import Results, load, train

__all__ = ["STUDIES", "Arm", "Results", "Study", "load", "train"]

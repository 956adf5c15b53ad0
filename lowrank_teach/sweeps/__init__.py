"""Grids of runs: on the processes of one machine, or on a Ray cluster; resumable through the run store.

    runs = sweep(grid(["lora", "salora"], ["rt", "cola"], seeds=5, lr=[1e-3, 2e-3]))
"""

from __future__ import annotations

from .engine import SweepError, sweep
from .estimate import Estimate, estimate

__all__ = ["Estimate", "SweepError", "estimate", "sweep"]

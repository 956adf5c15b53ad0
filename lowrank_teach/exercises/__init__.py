"""Exercises whose solution is the library: the engine, and a file of tasks for each notebook."""

from __future__ import annotations

from . import autolora, cola, delta_lora, generation, ledger, lora, ranks, salora, side_by_side, tagging
from .engine import Exercise, Task, Verdict, exercise, reveal, solution

TASKS: dict[str, Task] = {**ranks.TASKS, **lora.TASKS, **cola.TASKS, **delta_lora.TASKS, **autolora.TASKS,
                          **salora.TASKS, **ledger.TASKS, **generation.TASKS, **tagging.TASKS, **side_by_side.TASKS}

__all__ = ["TASKS", "Exercise", "Task", "Verdict", "exercise", "reveal", "solution"]

"""Exercises whose solution is the library: the engine, and a file of tasks for each notebook."""

from __future__ import annotations

from . import lora
from .engine import Exercise, Task, Verdict, exercise, reveal, solution

TASKS: dict[str, Task] = {**lora.TASKS}

__all__ = ["TASKS", "Exercise", "Task", "Verdict", "exercise", "reveal", "solution"]

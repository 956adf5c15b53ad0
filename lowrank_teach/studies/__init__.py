"""Sweeps and ablations over seeds, stored with their provenance: what bands and verdicts are drawn from.

    found = studies.load("chain")
    found.values("accuracy")          # arm -> one number a seed
    studies.train("chain", seeds=[0])  # again, here; `lowrank-teach study chain` does it in out/studies

    found = studies.load_across("side_by_side")   # over tasks, each arm at the rate chosen on validation rows
    found.table()
"""

from __future__ import annotations

from pathlib import Path

from ..comparison import read
from .across import TaskStudy, path_of, train_across
from .definitions import STUDIES, Arm, Study
from .engine import Results, load, train
from .over_tasks import TASK_STUDIES
from .side_by_side import SideBySide

__all__ = ["STUDIES", "TASK_STUDIES", "Arm", "Results", "SideBySide", "Study", "TaskStudy", "load", "load_across",
           "train", "train_across"]


def load_across(name: str, folder: Path | str | None = None) -> SideBySide:
    """A stored study over tasks.

    Raises:
        KeyError: there is no such study.  FileNotFoundError: it has not been trained here.
    """
    if name not in TASK_STUDIES:
        raise KeyError(f"no study over tasks {name!r}; there are {', '.join(TASK_STUDIES)}")
    path = path_of(name, folder)
    missing = f"study {name!r} has no numbers yet; train it: lowrank-teach study {name} --folder {path.parent}"
    return SideBySide(*read(path, missing))

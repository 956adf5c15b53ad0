"""Claims over tasks: differences of the study `side_by_side`, paired by task and seed.

Every task weighs the same. The interval is over seeds, of which each gives one number over all tasks: it says what
another draw of seeds would change on these tasks, not what other tasks would.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .. import studies
from .evidence import FromRuns
from .rows import Compared, Folder
from .verdicts import Evidence, of_every

STUDY = "side_by_side"
GLUE = ("sst2", "stsb", "mrpc", "rte", "cola")   # of its tasks

Found = studies.SideBySide
Numbers = Callable[[Found], Evidence]


def on_average(first: str, second: str) -> FromRuns:
    """first − second: the mean over tasks, in points."""
    def numbers(found: Found) -> Evidence:
        ours = {arm: found.average(arm) for arm in (first, second)}
        return Evidence(found.difference(first, second), ours, setting(found, found.tasks))

    return _over(first, second, numbers)


def ahead_on_most(first: str, second: str) -> FromRuns:
    """Tasks on which the first is ahead (a tie is half a task), less half of the tasks: 0 for two equal methods.

    A task on which the two tie at every seed says nothing and is not counted: there, both are at chance.
    """
    def numbers(found: Found) -> Evidence:
        counted = found.telling(first, second)
        wins = found.ahead(first, second, counted)
        return Evidence([n - len(counted) / 2 for n in wins], {f"ahead on, of {len(counted)} tasks": wins},
                        setting(found, counted))

    return _over(first, second, numbers)


def ahead_on_every(first: str, second: str, tasks: Sequence[str]) -> FromRuns:
    """The least difference over tasks, in points, as `of_every`. Shown are the seeds of the lowest task."""
    def numbers(found: Found) -> Evidence:
        counted = found.telling(first, second, tasks)
        by_task = {task: found.differences(first, second, task) for task in counted}
        if not by_task:
            return Evidence((), {}, setting(found, tasks))
        worst, interval = of_every(by_task)
        shown = by_task[worst][:min(map(len, by_task.values()))]   # fewer than five on any task give no verdict
        return Evidence(shown, {f"lowest, on {worst}": shown}, setting(found, counted), interval)

    return _over(first, second, numbers)


def average_claim(where: str, statement: str, first: str, second: str, says: str = "–", note: str = "") -> Compared:
    """first > second on average over the tasks."""
    return Compared(where, statement, on_average(first, second), says=says, unit="points over tasks", scale=1.0,
                    note=note)


def most_claim(where: str, statement: str, first: str, second: str, says: str = "–", note: str = "") -> Compared:
    """first > second on more than half of the tasks."""
    return Compared(where, statement, ahead_on_most(first, second), says=says, unit="tasks", scale=1.0, note=note)


def every_claim(where: str, statement: str, first: str, second: str) -> Compared:
    """first > second on every one of GLUE's tasks."""
    return Compared(where, statement, ahead_on_every(first, second, GLUE), unit="points, lowest task", scale=1.0)


def setting(found: Found, tasks: Sequence[str]) -> str:
    """What was trained on what, in a few words."""
    about = found.about
    return (f"{about['backbone']} on {', '.join(tasks)}, {about['training']['steps']} steps, rates "
            "chosen on validation rows")


def _over(first: str, second: str, numbers: Numbers) -> FromRuns:
    def measure(folder: Folder) -> Evidence:
        return numbers(studies.load_across(STUDY, folder))

    return FromRuns(((STUDY, first), (STUDY, second)), measure)

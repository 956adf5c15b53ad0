"""Rows are checked before anything is trained on them: a bad cell found in an hour's run costs the hour.

They are checked in the order of their file, and a refusal names the row as its owner numbers it: a frame's index is
the row's number in the file, or the file's name and that number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lowrank_teach.methods.checks import require

if TYPE_CHECKING:
    from lowrank_teach.tasks import Task

REPAIR = "drop or repair the row"
HIDDEN = "-1 in every row marks hidden labels: this split cannot be used"


class CellError(ValueError):
    """A cell that cannot be used; the message names its column and row, not yet the task and the split."""


def check_rows(frame: pd.DataFrame, task: Task, split: str) -> None:
    """Refuse rows that cannot be trained on or scored.

    frame: the rows of one split. task: names the columns and the classes. split: only for the message.
    Raises ValueError, naming task, split, column and the first bad row, for an empty set, a missing column,
    text that is not a string, and labels that are missing or out of range.
    """
    where = f"{task.name}, {split}"
    require(len(frame) > 0, f"{where}: the set is empty; at least one row is needed")
    for column in (*task.text, task.label):
        require(column in frame.columns,
                f"{where}: no column '{column}'; the file has {list(frame.columns)}: rename one")
    try:
        for column in task.text:
            if task.kind == "tagging":
                cells(frame, column, is_text_list, f"tokens must be a list of strings, at least one; {REPAIR}")
            else:
                strings(frame, column)
        _check_labels(frame, task)
    except CellError as error:
        require(False, f"{where}, {error}")


def cells(frame: pd.DataFrame, column: str, good: Callable[[Any], bool], advice: str) -> list[Any]:
    """The values of a column, all of them good.

    Raises:
        CellError: names the column, the first row that is not, and its value.  KeyError: no such column.
    """
    values = frame[column].tolist()
    for row, value in zip(frame.index, values, strict=True):
        if not good(value):
            raise CellError(f"column '{column}', {_place(row)}: {value!r:.80}: {advice}")
    return values


def strings(frame: pd.DataFrame, *columns: str) -> list[list[str]]:
    """The values of each column, all of them strings; as `cells`."""
    return [cells(frame, column, _is_text, f"text must be a string; {REPAIR}") for column in columns]


def has_no_labels(frame: pd.DataFrame, label: str) -> bool:
    """Whether a published test set keeps its labels to itself: every one is -1 or nothing."""
    return len(frame) > 0 and all(map(_is_hidden, frame[label]))


def _place(row: Any) -> str:
    file, number = row if isinstance(row, tuple) else ("", row)
    return f"row {number}{f' of {file}' if file else ''} (the first is row 0)"


def _check_labels(frame: pd.DataFrame, task: Task) -> None:
    n = len(task.labels)
    if task.kind == "seq2seq":
        cells(frame, task.label, _is_text, f"the text to write must be a string; {REPAIR}")
    elif task.kind == "regression":
        if has_no_labels(frame, task.label):
            raise CellError(f"column '{task.label}': {HIDDEN}")
        cells(frame, task.label, _is_score, f"a score must be a finite number; {REPAIR}")
    elif task.kind in ("classification", "choice"):
        advice = f"labels must be 0 to {n - 1} ({', '.join(task.labels[:6])}{' …' if n > 6 else ''})"
        if has_no_labels(frame, task.label):
            advice += f"; {HIDDEN}"
        cells(frame, task.label, lambda v: is_code(v, n), advice)
    else:
        known = set(task.labels)

        def good(tags: Any) -> bool:
            return is_list(tags) and all(t in known if isinstance(t, str) else is_code(t, n) for t in tags)

        tags = cells(frame, task.label, good, f"each tag must be one of {n}: {', '.join(task.labels[:5])} …")
        for row, words, marks in zip(frame.index, frame[task.text[0]], tags, strict=True):
            if len(words) != len(marks):
                raise CellError(f"{_place(row)}: {len(words)} tokens but {len(marks)} tags; repair the row")


def codes_for_tags(frame: pd.DataFrame, task: Task) -> pd.DataFrame:
    """Tagging files carry names (B-person) or codes; here all become codes, and arrays plain lists."""
    if task.kind != "tagging":
        return frame
    code = {name: i for i, name in enumerate(task.labels)}
    tags = [[code[t] if isinstance(t, str) else int(t) for t in row] for row in frame[task.label]]
    tokens = [list(row) for row in frame[task.text[0]]]
    return frame.assign(**{task.label: tags, task.text[0]: tokens})


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_list(value: Any, least: int = 1) -> bool:
    """Whether a cell holds a list of at least so many."""
    return isinstance(value, list | tuple | np.ndarray) and len(value) >= least


def is_text_list(value: Any, least: int = 1) -> bool:
    """Whether a cell holds a list of at least so many strings."""
    return is_list(value, least) and all(isinstance(item, str) for item in value)


def _is_hidden(value: Any) -> bool:
    if is_list(value, 0):
        return all(map(_is_hidden, value))
    return value is None or value is pd.NA or (isinstance(value, str) and not value) or value in (-1, -1.0) or (
        value != value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and bool(np.isfinite(value))


def _is_score(value: Any) -> bool:
    return _is_number(value) and not isinstance(value, bool)


def is_code(value: Any, n: int) -> bool:
    """Whether a cell holds a whole number from 0 to n - 1."""
    return _is_number(value) and float(value).is_integer() and 0 <= int(value) < n

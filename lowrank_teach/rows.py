"""Rows are checked before anything is trained on them: a bad cell found in an hour's run costs the hour."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from lowrank_teach.tasks import Task


def check_rows(frame: pd.DataFrame, task: Task, split: str) -> None:
    """Refuse rows that cannot be trained on or scored.

    frame: the rows of one split. task: names the columns and the classes. split: only for the message.
    Raises ValueError, naming task, split, column and the first bad row, for an empty set, a missing column,
    text that is not a string, and labels that are missing or out of range.
    """
    where = f"{task.name}, {split}"
    if len(frame) == 0:
        raise ValueError(f"{where}: the set is empty; at least one row is needed")
    for column in (*task.text, task.label):
        if column not in frame.columns:
            raise ValueError(f"{where}: no column '{column}'; the file has {list(frame.columns)}: rename one")
    for column in task.text:
        good = _is_token_list if task.kind == "tagging" else _is_text
        _refuse_first(frame[column], good, where, "text must be a string; drop or repair the row")
    _check_labels(frame, task, where)


def _check_labels(frame: pd.DataFrame, task: Task, where: str) -> None:
    labels, n = frame[task.label], len(task.labels)
    if task.kind == "seq2seq":
        _refuse_first(labels, _is_text, where, "the text to write must be a string; drop or repair the row")
    elif task.kind == "regression":
        _refuse_first(labels, _is_score, where, "a score must be a finite number; drop or repair the row")
    elif task.kind in ("classification", "choice"):
        advice = f"labels must be 0 to {n - 1} ({', '.join(task.labels[:6])}{' …' if n > 6 else ''})"
        if len(labels) and (labels == -1).all():
            advice += "; -1 marks hidden labels: this split cannot be used"
        _refuse_first(labels, lambda v: _is_code(v, n), where, advice)
    else:
        known = set(task.labels)

        def good(tags: Any) -> bool:
            return _is_list(tags) and all(t in known if isinstance(t, str) else _is_code(t, n) for t in tags)

        _refuse_first(labels, good, where, f"each tag must be one of {n}: {', '.join(task.labels[:5])} …")
        for row, (tokens, tags) in enumerate(zip(frame[task.text[0]], labels, strict=True)):
            if len(tokens) != len(tags):
                raise ValueError(f"{where}, row {row}: {len(tokens)} tokens but {len(tags)} tags; repair the row")


def codes_for_tags(frame: pd.DataFrame, task: Task) -> pd.DataFrame:
    """Tagging files carry names (B-person) or codes; here all become codes, and arrays plain lists."""
    if task.kind != "tagging":
        return frame
    code = {name: i for i, name in enumerate(task.labels)}
    tags = [[code[t] if isinstance(t, str) else int(t) for t in row] for row in frame[task.label]]
    tokens = [list(row) for row in frame[task.text[0]]]
    return frame.assign(**{task.label: tags, task.text[0]: tokens})


def _refuse_first(column: pd.Series, good: Any, where: str, advice: str) -> None:
    for row, value in enumerate(column):
        if not good(value):
            raise ValueError(f"{where}, column '{column.name}', row {row}: {value!r:.80}: {advice}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple | np.ndarray) and len(value) > 0


def _is_token_list(value: Any) -> bool:
    return _is_list(value) and all(isinstance(token, str) for token in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and bool(np.isfinite(value))


def _is_score(value: Any) -> bool:
    return _is_number(value) and not isinstance(value, bool)


def _is_code(value: Any, n: int) -> bool:
    return _is_number(value) and float(value).is_integer() and 0 <= int(value) < n

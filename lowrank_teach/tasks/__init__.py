"""Tasks by short name: which columns are text, what is predicted, how it is scored, where the rows come from.

Rows are looked for in one order everywhere: (1) a local folder, (2) packaged text, (3) the hub; the first that
has the task is used and named in `TaskData.source`. A new task is one more row of the table `TASKS`, and, if
its rows ride in a package, a reader in `corpora.py`. Tokenising and padding stand in `features.py`.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

import pandas as pd

from lowrank_teach import corpora
from lowrank_teach.errors import sentence
from lowrank_teach.features import Collate, encode
from lowrank_teach.methods.checks import among, require, require_kind, require_seed, shown
from lowrank_teach.rows import CellError, check_rows, codes_for_tags, has_no_labels

from .prepare import validation_cut_from_train
from .sources import SPLITS, find
from .table import TASKS
from .task import Task, TaskData

__all__ = ["TASKS", "Collate", "Task", "TaskData", "encode", "load_task", "task_here"]


def require_task(name: str) -> None:
    """Refuse a name that no row of the table has.

    Raises:
        ValueError: names those that are near, and some or all of the others.
    """
    require_kind("name", name, str, "the short name of a task, such as 'rt'")
    near = get_close_matches(name, TASKS, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    require(name in TASKS, f"no task {shown(name)}: {hint}tasks: {among(list(TASKS), name)}")


def load_task(
    name: str,
    *,
    n_train: int | None = None,
    n_validation: int | None = None,
    n_test: int | None = None,
    seed: int = 0,
    validation_from_train: bool = False,
) -> TaskData:
    """The rows of a task, checked, in a fixed order.

    name: a key of `TASKS`.
    n_train, n_validation, n_test: keep this many rows (all, if there are fewer). Rows stand in the order of a
        hash of their text, so the first 400 are the same everywhere and are part of the first 1,600.
    seed: only decides the rows of tasks whose published setting draws them by seed (SuperGLUE); elsewhere runs
        that differ in seed share their rows, so that they can be compared in pairs.
    validation_from_train: where no test rows have labels, cut validation rows out of train, the same for every
        seed, and make the published validation rows the test.
    Raises ValueError for an unknown task and for rows that cannot be used (task, split, column and row are
    named), FileNotFoundError where a file is missing or no source has the task, AssetError where packaged
    text cannot be fetched.
    """
    require_task(name)
    task = TASKS[name]
    wanted = dict(zip(SPLITS, (n_train, n_validation, n_test), strict=True))
    for split, n in wanted.items():
        whole = n is None or (isinstance(n, int) and not isinstance(n, bool))
        require(whole and (n is None or n >= 1), f"{name}: n_{split} = {shown(n)}; ask for a whole number of rows, "
                                                 "at least one, or None for all")
    require_seed(seed)
    found, place = find(task)
    frames = _prepared(found, task)
    unlabelled = [split for split in found if split not in frames]
    published = {split: len(frame) for split, frame in frames.items()}
    frames = _resplit(frames, task, seed)
    cut = validation_from_train and "test" not in frames
    if cut:
        frames = validation_cut_from_train(frames, task.text)
    counts = {split: len(frame) for split, frame in frames.items()}
    for split, frame in frames.items():
        require(len(frame) > 0, f"{name}, {split}: none of {sum(published.values())} rows falls into this set; more "
                                "are needed")
        frames[split] = _first(_in_fixed_order(frame, task), wanted[split], task)
    source = _describe(task, place, frames, counts, published)
    for split in unlabelled:
        source += f"; the {split} rows have no labels and are passed over"
    if cut:
        source += "; validation rows are cut from the training rows, published validation rows are the test"
    if task.trained_on:
        other = load_task(task.trained_on, n_train=n_train, n_validation=n_validation, seed=seed,
                          validation_from_train=validation_from_train)
        frames = _with_training_rows(frames, task, other)
        source += f"; trained on {task.trained_on}: {other.source}"
    _check_classes(frames["train"], task)
    _check_scored(frames, task)
    return TaskData(task, frames["train"], frames["validation"], frames.get("test"), source)


def all_rows(task: Task, folder: Path | None = None) -> corpora.Splits:
    """Every row that a task has labels of, as it prepares them and seed 0 splits them; raises as `load_task`.

    folder: of local rows, in the place of LOWRANK_TEACH_DATA.
    """
    return _resplit(_prepared(find(task, folder)[0], task), task, seed=0)


def task_here(wanted: str, packaged: str) -> tuple[str, str]:
    """(a task, why): the wanted one where its rows can be had, else one whose text is packaged."""
    try:
        find(TASKS[wanted])
    except FileNotFoundError:
        return packaged, f"no rows of {wanted} here (LOWRANK_TEACH_DATA names no folder that has them)"
    return wanted, f"the rows of {wanted} are here"


def _prepared(frames: corpora.Splits, task: Task) -> corpora.Splits:
    unlabelled = _unlabelled(frames, task)
    return {split: _ready(frame, task, split) for split, frame in frames.items() if split not in unlabelled}


def _unlabelled(frames: corpora.Splits, task: Task) -> list[str]:
    """"test", where its labels are hidden as the benchmarks publish it, or left out."""
    test, others = frames.get("test"), [frame for split, frame in frames.items() if split != "test"]
    if test is None or not others:
        return []
    hidden = has_no_labels(test, task.label) if task.label in test else any(task.label in one for one in others)
    return ["test"] if hidden else []


def _ready(frame: pd.DataFrame, task: Task, split: str) -> pd.DataFrame:
    """Rows with the task's columns, checked while each still has its place in the file."""
    where = f"{task.name}, {split}"
    try:
        frame = frame if task.prepare is None else task.prepare(frame)
    except CellError as error:
        raise ValueError(sentence(f"{where}, {error}")) from None
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(sentence(f"{where}: its columns {list(frame.columns)} are not those of the published set "
                                  f"({type(error).__name__}: {error}); rename or repair them")) from error
    check_rows(frame, task, split)
    return codes_for_tags(frame, task).reset_index(drop=True)


def _resplit(frames: corpora.Splits, task: Task, seed: int) -> corpora.Splits:
    try:
        return frames if task.resplit is None else task.resplit(frames, seed)
    except KeyError as missing:
        raise FileNotFoundError(f"{task.name}: no {missing.args[0]} rows, and those of {' and '.join(frames)} alone "
                                "do not give all sets; add their file") from None


def _with_training_rows(frames: corpora.Splits, task: Task, other: TaskData) -> corpora.Splits:
    """The other task's training rows, each a group of its own, in a part that bears its name."""
    taken = {"train": other.train, "validation": other.validation} | {
        split: frame for split, frame in frames.items() if split != "train"}
    beside = {task.group: other.task.text[0], task.part: ""}
    for split in ("train", "validation"):
        for column, like in beside.items():
            if column and column not in taken[split]:
                taken[split] = taken[split].assign(**{column: taken[split][like] if like else task.trained_on})
    return taken


def _first(frame: pd.DataFrame, n: int | None, task: Task) -> pd.DataFrame:
    """The first n rows, and the rest of the group that the last of them belongs to."""
    if n is None or n >= len(frame):
        return frame
    if task.group:
        while n < len(frame) and frame[task.group].iloc[n] == frame[task.group].iloc[n - 1]:
            n += 1
    return frame.head(n)


def _in_fixed_order(frame: pd.DataFrame, task: Task) -> pd.DataFrame:
    by = (task.group,) if task.group else task.text  # a group stays together
    columns = [frame[column].map(lambda v: v if isinstance(v, str) else " ".join(v)) for column in by]
    order = [corpora.stable_hash(task.name, *texts) for texts in zip(*columns, strict=True)]
    ranked = frame.assign(_order=pd.array(order, dtype="UInt64")).sort_values("_order", kind="stable")
    return ranked.drop(columns="_order").reset_index(drop=True)


def _check_classes(train: pd.DataFrame, task: Task) -> None:
    if task.kind in ("classification", "choice") and train[task.label].nunique() < 2:
        raise ValueError(
            f"{task.name}, train: all {len(train)} rows have {task.label} = {train[task.label].iloc[0]}; nothing "
            "can be learned from one class: take more rows, or repair the file"
        )


def _check_scored(frames: corpora.Splits, task: Task) -> None:
    for split in ("validation", "test"):
        require(task.kind != "regression" or len(frames.get(split, "two")) > 1,
                f"{task.name}, {split}: 1 row, and a correlation needs two or more: raise n_{split}, or add rows")


def _describe(task: Task, place: str, frames: corpora.Splits, counts: dict[str, int],
              published: dict[str, int]) -> str:
    parts = []
    for split, frame in frames.items():
        text = f"{split} {len(frame):,}"
        if len(frame) < counts[split]:
            text += f" of {counts[split]:,}"
        parts.append(text)
    other = [f"{split} {n:,} (published: {task.rows[split]:,})" for split, n in published.items()
             if n != task.rows.get(split, n)]
    notes = [f"this copy has {', '.join(other)}"] if other else []
    notes += [task.deviation] if task.deviation else []
    notes += [note for rows, note in task.copies if rows.items() <= published.items()]
    if task.resplit is not None and "train" not in published:
        notes.append("no train file: its rows are cut out of the test rows")
    return "; ".join([f"rows from {place}: {', '.join(parts)}", *notes])

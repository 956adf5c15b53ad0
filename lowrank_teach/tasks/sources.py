"""Where the rows of a task are looked for, in this order: a local folder, packaged text, the hub."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from lowrank_teach import corpora
from lowrank_teach.cache import data_folder
from lowrank_teach.errors import sentence, shown
from lowrank_teach.hub import cache_only_if_offline, reason

from .table import TASKS
from .task import Task

SPLITS = ("train", "validation", "test")
PART = re.compile(r"-\d+-of-(\d+)")   # in the name of one file of several
EXPORT = "refs/convert/parquet"  # the branch where the hub keeps what it converted


def find(task: Task, folder: Path | None = None) -> tuple[corpora.Splits, str]:
    """The published rows by split, and where they are from; a frame's index says each row's place in its file.

    folder: of local rows, in the place of LOWRANK_TEACH_DATA.

    Raises:
        FileNotFoundError: no source has them.  ValueError: a file cannot be read.
    """
    if task.derived is not None:
        return task.derived(), task.origin
    if (folder := folder or data_folder()) is not None and (place := folder / (task.folder or task.name)).is_dir():
        return _from_folder(task, place), f"the local folder {folder.name}/{place.name}"
    if task.reader is not None:
        return task.reader(), f"packaged text, {task.origin}"
    return _from_hub(task)


def files_read(task: Task, folder: Path) -> list[Path]:
    """The files of a task's local folder that its rows are read from."""
    return [file for split in SPLITS for file in _files(folder, task.files.get(split, split))]


def _from_folder(task: Task, folder: Path) -> corpora.Splits:
    frames = {}
    for split in SPLITS:
        name = task.files.get(split, split)
        files = _files(folder, name)
        if not files:
            if split == "test" or task.resplit is not None:  # its rule makes them from what is there
                continue
            hub = f" or unset LOWRANK_TEACH_DATA for the hub's {'/'.join(task.hub)}" if task.hub else ""
            raise FileNotFoundError(f"{task.name}, {split}: no file {folder / name}.parquet, {name}-*.parquet or "
                                    f"{name}.jsonl: add it{hub}")
        try:
            frames[split] = _read(files, folder.parent)
        except ValueError as error:
            raise ValueError(sentence(f"{task.name}, {split}: {error}")) from error
    if not frames:
        raise FileNotFoundError(f"{task.name}: no train, validation or test.parquet in {folder}")
    return frames


def _files(folder: Path, name: str) -> list[Path]:
    """The files of one split, however a set is published: one, a number of parts, or a folder of parts."""
    layouts = (f"{name}.parquet", f"{name}-*.parquet", f"{name}/*.parquet", f"{name}.json", f"{name}.jsonl")
    return next((found for layout in layouts if (found := sorted(folder.glob(layout)))), [])


def _read(files: Sequence[Path], root: Path) -> pd.DataFrame:
    """Rows of one or more files, indexed by the file's name below a folder and the row's number in it.

    Raises:
        FileNotFoundError: a part is missing of as many as the names say.  ValueError: the parts' columns differ.
    """
    counts = [int(count[1]) for file in files if (count := PART.search(file.stem))]
    if counts and len(counts) < max(counts):
        raise FileNotFoundError(f"{files[0].parent} has {len(counts)} of the {max(counts)} parts that the name of "
                                f"{files[0].name} speaks of; add the others")
    frames = [_read_one(file) for file in files]
    for file, frame in zip(files, frames, strict=True):
        if set(frame) != set(frames[0]):
            odd = ", ".join(sorted(map(str, set(frame) ^ set(frames[0])))[:4])
            raise ValueError(f"{file} and {files[0].name} are parts of one split and have other columns ({odd}); "
                             "give all parts the same")
    return pd.concat(frames, keys=[file.relative_to(root).as_posix() for file in files], names=["file", "row"])


def _read_one(file: Path) -> pd.DataFrame:
    try:
        frame = pd.read_parquet(file) if file.suffix == ".parquet" else _json_rows(file)
    except Exception as error:  # pyarrow raises many kinds
        raise ValueError(f"{file} is no readable {file.suffix[1:]} file ({reason(error)})") from error
    return frame.reset_index(drop=list(frame.index.names) == [None])


def _json_rows(file: Path) -> pd.DataFrame:
    """A list of objects, or an object a line; values stay what they are."""
    text = file.read_text(encoding="utf-8")
    listed = text.lstrip().startswith("[")
    # not by splitlines: a string in JSON may hold U+2028 and other ends of a line
    rows = json.loads(text) if listed else [json.loads(line) for line in text.split("\n") if line.strip()]
    if odd := [i for i, row in enumerate(rows) if not isinstance(row, dict)]:
        raise ValueError(f"row {odd[0]} is {shown(rows[odd[0]])}, and each must be an object with the columns as "
                         "keys")
    return pd.DataFrame(rows, dtype=object)


def _from_hub(task: Task) -> tuple[corpora.Splits, str]:
    if task.hub is None:
        raise FileNotFoundError(_three_ways(task, "it has no hub copy"))
    try:
        with cache_only_if_offline():
            frames = _exported(task) if task.exported else _loaded(task)
    except Exception as error:  # no network, no such repository, no `datasets`: all have the same three ways out
        raise FileNotFoundError(_three_ways(task, reason(error))) from error
    return frames, f"the hub, {'/'.join(task.hub)}"


def _loaded(task: Task) -> corpora.Splits:
    """A repository of files that `datasets` reads."""
    import datasets

    datasets.disable_progress_bars()
    there = datasets.load_dataset(*task.hub)  # type: ignore[misc]
    return {split: there[name].to_pandas() for split, name in _on_hub(task).items()}


def _exported(task: Task) -> corpora.Splits:
    """The hub's own export of a repository that is a script: CONFIGURATION/SPLIT/0000.parquet, on a branch."""
    place, name = _snapshot(task)
    return {split: _shards(place / name / there) for split, there in _on_hub(task).items()}


def _snapshot(task: Task) -> tuple[Path, str]:
    """The export's folder in the hub's cache, which is named by its commit, and the configuration in it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    assert task.hub is not None
    repository, name = task.hub if len(task.hub) == 2 else (task.hub[0], "default")
    wanted = [f"{name}/{there}/*" for there in _on_hub(task).values()]
    return Path(snapshot_download(repository, repo_type="dataset", revision=EXPORT, allow_patterns=wanted)), name


def commit_on_hub(task: Task) -> str | None:
    """The commit of the rows that the hub has, or its cache; None where neither can be had."""
    try:
        with cache_only_if_offline():
            if task.exported:
                return _snapshot(task)[0].name
            import datasets

            return datasets.load_dataset_builder(*task.hub).hash  # type: ignore[misc]
    except Exception:  # as in `_from_hub`, which says why
        return None


def _shards(folder: Path) -> pd.DataFrame:
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise FileNotFoundError(f"the export has no {folder.parent.name}/{folder.name}/*.parquet")
    return _read(files, folder.parent.parent)


def _on_hub(task: Task) -> dict[str, str]:
    """The splits that have labels there; where the table counts rows, it says which splits there are."""
    there = [s for s in SPLITS if s in task.rows] or ["train", "validation"]
    return {split: task.hub_splits.get(split, task.files.get(split, split)) for split in there}


def _three_ways(task: Task, why: str) -> str:
    folder = task.folder or task.name
    files = ", ".join(f"{folder}/{task.files.get(s, s)}.parquet" for s in ("train", "validation"))
    packaged = ", ".join(name for name, other in TASKS.items() if other.reader is not None)
    extra = "with a network and pip install 'lowrank-teach[lab]'"
    on_hub = f"{'/'.join(task.hub)}, {extra}" if task.hub else "no copy that loads without a script"
    return (
        f"no rows for '{task.name}' ({why}). Three ways: (1) set LOWRANK_TEACH_DATA to a folder that has "
        f"{files}; (2) take a task whose text is packaged: {packaged}; (3) the hub: {on_hub}"
    )

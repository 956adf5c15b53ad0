"""Where the rows of a task are looked for, in this order: a local folder, packaged text, the hub."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd

from lowrank_teach import corpora
from lowrank_teach.hub import cache_only_if_offline, reason

from .table import TASKS
from .task import Task

SPLITS = ("train", "validation", "test")
EXPORT = "refs/convert/parquet"  # the branch where the hub keeps what it converted


def find(task: Task) -> tuple[corpora.Splits, str]:
    """The published rows by split, and where they are from.

    Raises:
        FileNotFoundError: no source has them.  ValueError: a file cannot be read.
    """
    if task.derived is not None:
        return task.derived(), task.origin
    folder = os.environ.get("LOWRANK_TEACH_DATA")
    if folder:
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"LOWRANK_TEACH_DATA is {folder}, which is no folder; correct or unset it")
        place = Path(folder) / (task.folder or task.name)
        if place.is_dir():
            return _from_folder(task, place), f"the local folder {place.parent.name}/{place.name}"
    if task.reader is not None:
        return task.reader(), f"packaged text, {task.origin}"
    return _from_hub(task)


def _from_folder(task: Task, folder: Path) -> corpora.Splits:
    frames = {}
    for split in SPLITS:
        path = folder / f"{task.files.get(split, split)}.parquet"
        if not path.is_file():
            if split == "test" or task.resplit is not None:  # its rule makes them from what is there
                continue
            hub = f" or unset LOWRANK_TEACH_DATA for the hub's {'/'.join(task.hub)}" if task.hub else ""
            raise FileNotFoundError(f"{task.name}, {split}: no file {path}; each split is one parquet file: add it"
                                    f"{hub}")
        try:
            frames[split] = pd.read_parquet(path)
        except Exception as error:  # pyarrow raises many kinds
            raise ValueError(f"{task.name}, {split}: {path} is no readable parquet file ({error})") from error
    if not frames:
        raise FileNotFoundError(f"{task.name}: no train, validation or test.parquet in {folder}")
    return frames


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
    return pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)


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

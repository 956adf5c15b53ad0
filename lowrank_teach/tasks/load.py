"""Load a task: find its published rows (a local folder, packaged text, the hub), check and prepare them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

import pandas as pd

from ..errors import among, require, require_kind, require_seed, sentence, shown
from ..models.backbones import cache_only_if_offline, reason
from ..models.packaged import data_folder
from . import readers
from .readers import TRANSFERS, Transfer, prompts, stable_hash, validation_cut_from_train
from .table import TASKS
from .task import Splits, Task, TaskData
from .tokenize import CellError, check_rows, codes_for_tags, has_no_labels, strings

# ---- where the rows are looked for -------------------------------------------------------------------------
# Where the rows of a task are looked for, in this order: a local folder, packaged text, the hub.
SPLITS = ("train", "validation", "test")
PART = re.compile(r"-\d+-of-(\d+)")   # in the name of one file of several
EXPORT = "refs/convert/parquet"  # the branch where the hub keeps what it converted


def find(task: Task, folder: Path | None = None) -> tuple[Splits, str]:
    """The published rows by split, and where they are from; a frame's index says each row's place in its file.

    folder: of local rows, in the place of LOWRANK_TEACH_DATA.

    Raises:
        FileNotFoundError: no source has them.  ValueError: a file cannot be read.
    """
    if task.derived is not None:
        return task.derived(), task.origin
    if task.made_of:
        return zero_shot(task.name), task.origin
    if (folder := folder or data_folder()) is not None and (place := folder / (task.folder or task.name)).is_dir():
        return _from_folder(task, place), f"the local folder {folder.name}/{place.name}"
    if task.reader is not None:
        return task.reader(), f"packaged text, {task.origin}"
    return _from_hub(task)


def files_read(task: Task, folder: Path) -> list[Path]:
    """The files of a task's local folder that its rows are read from."""
    return [file for split in SPLITS for file in _files(folder, task.files.get(split, split))]


def _from_folder(task: Task, folder: Path) -> Splits:
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


def _from_hub(task: Task) -> tuple[Splits, str]:
    if task.hub is None:
        raise FileNotFoundError(_three_ways(task, "it has no hub copy"))
    try:
        with cache_only_if_offline():
            frames = _exported(task) if task.exported else _loaded(task)
    except Exception as error:  # no network, no such repository, no `datasets`: all have the same three ways out
        raise FileNotFoundError(_three_ways(task, reason(error))) from error
    return frames, f"the hub, {'/'.join(task.hub)}"


def _loaded(task: Task) -> Splits:
    """A repository of files that `datasets` reads."""
    import datasets

    datasets.disable_progress_bars()
    there = datasets.load_dataset(*task.hub)  # type: ignore[misc]
    return {split: there[name].to_pandas() for split, name in _on_hub(task).items()}


def _exported(task: Task) -> Splits:
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


# ---- the examples of a task --------------------------------------------------------------------------------
# Tasks by short name: which columns are text, what is predicted, how it is scored, where the rows come from.
#
# Rows are looked for in one order everywhere: (1) a local folder, (2) packaged text, (3) the hub; the first that
# has the task is used and named in `TaskData.source`. A new task is one more row of the table `TASKS`, and, if
# its rows ride in a package, a reader in `readers.py`. Tokenising and padding stand in `tokenize.py`.
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


def all_rows(task: Task, folder: Path | None = None) -> Splits:
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


def _prepared(frames: Splits, task: Task) -> Splits:
    unlabelled = _unlabelled(frames, task)
    return {split: _ready(frame, task, split) for split, frame in frames.items() if split not in unlabelled}


def _unlabelled(frames: Splits, task: Task) -> list[str]:
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


def _resplit(frames: Splits, task: Task, seed: int) -> Splits:
    try:
        return frames if task.resplit is None else task.resplit(frames, seed)
    except KeyError as missing:
        raise FileNotFoundError(f"{task.name}: no {missing.args[0]} rows, and those of {' and '.join(frames)} alone "
                                "do not give all sets; add their file") from None


def _with_training_rows(frames: Splits, task: Task, other: TaskData) -> Splits:
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
    order = [readers.stable_hash(task.name, *texts) for texts in zip(*columns, strict=True)]
    ranked = frame.assign(_order=pd.array(order, dtype="UInt64")).sort_values("_order", kind="stable")
    return ranked.drop(columns="_order").reset_index(drop=True)


def _check_classes(train: pd.DataFrame, task: Task) -> None:
    if task.kind in ("classification", "choice") and train[task.label].nunique() < 2:
        raise ValueError(
            f"{task.name}, train: all {len(train)} rows have {task.label} = {train[task.label].iloc[0]}; nothing "
            "can be learned from one class: take more rows, or repair the file"
        )


def _check_scored(frames: Splits, task: Task) -> None:
    for split in ("validation", "test"):
        require(task.kind != "regression" or len(frames.get(split, "two")) > 1,
                f"{task.name}, {split}: 1 row, and a correlation needs two or more: raise n_{split}, or add rows")


def _describe(task: Task, place: str, frames: Splits, counts: dict[str, int],
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


# ---- style transfer: sentences to be rewritten -------------------------------------------------------------


def load_transfer(name: str, direction: str | None = None, n: int | None = None) -> pd.DataFrame:
    """Sentences to rewrite: source, references (a list, at times empty), wanted, direction, instruction.

    name: a key of `TRANSFERS`.  direction: such as "negative to positive"; both where None.
    n: of each direction at most so many, in the order of a hash of their text.
    wanted is the code of the style to write, as the task `TRANSFERS[name].classifier` numbers its classes.

    Raises:
        ValueError: no such name or direction, n below 1.  FileNotFoundError: no source has the rows.
    """
    if name not in TRANSFERS:
        near = get_close_matches(name, TRANSFERS, n=2, cutoff=0.4)
        raise ValueError(f"no style transfer '{name}': {f'did you mean {near[0]}? ' if near else ''}there are "
                         f"{', '.join(TRANSFERS)}")
    one = TRANSFERS[name]
    if direction not in (None, *one.directions):
        raise ValueError(f"{name}: no direction '{direction}'; there are '{one.directions[0]}' and "
                         f"'{one.directions[1]}'")
    if n is not None and n < 1:
        raise ValueError(f"{name}: n = {n}; ask for at least one sentence, or None for all")
    frame = one.reader() if one.reader else _of_test_rows(one)
    frame["direction"] = frame["wanted"].map(one.direction)
    frame["instruction"] = frame["wanted"].map(one.instruction)
    order = [stable_hash(name, text) for text in frame["source"]]
    frame = frame.assign(_order=pd.array(order, dtype="UInt64")).sort_values("_order", kind="stable")
    parts = [frame[frame["direction"] == d].head(n or len(frame)) for d in one.directions if direction in (None, d)]
    return pd.concat(parts, ignore_index=True).drop(columns="_order")


def zero_shot(name: str) -> Splits:
    """The test set of a model tuned on `alpaca`: one row a human rewrite; those of one sentence share `of`."""
    frame = load_transfer(name)
    frame = frame.assign(text=prompts(frame), of=frame["direction"] + ": " + frame["source"], part=frame["direction"])
    return {"test": frame.explode("references", ignore_index=True).rename(columns={"references": "output"})}


def _of_test_rows(one: Transfer) -> pd.DataFrame:
    """The test rows of the transfer's own task, each with its rewrite where there are such."""
    test = load_task(one.classifier).test
    assert test is not None  # its split is our own, or Yelp's
    references: list[list[str]] = [[] for _ in range(len(test))]
    if one.rewrites:
        references = [[text] for text in _rewrites(one, test)]
    return pd.DataFrame({"source": test["text"], "references": references, "wanted": 1 - test["label"]})


def _rewrites(one: Transfer, test: pd.DataFrame) -> pd.Series:
    if "reference" not in test:
        raise ValueError(f"{one.name}: the test rows of '{one.classifier}' need a column 'reference', a rewrite of "
                         "each by a human (Li et al. 2018); this copy has none")
    try:
        strings(find(TASKS[one.classifier])[0]["test"], "reference")  # in the file's own rows
    except CellError as error:
        raise ValueError(sentence(f"{one.name}, {error}")) from None
    return test["reference"]

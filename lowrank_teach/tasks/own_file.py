"""A task of one's own file: CSV, TSV, JSON Lines or Parquet, read by `datasets`, checked, and put among the tasks.

    task = lt.task_from_file("reviews.csv", text="review", label="verdict")
    lt.fit(lt.SaLoRA(b=0.5), task.name)
"""

from __future__ import annotations

import csv
import tempfile
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import among, require, shown
from ..models.backbones import reason
from .readers import stable_hash
from .table import is_packaged, put_in_table
from .task import Splits, Task

READERS = {".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
MOST_CLASSES = 200
# where the shares of the texts end, without a file of test rows and with one
SHARES = {"train": 0.8, "validation": 0.9, "test": 1.0}, {"train": 0.9, "validation": 1.0}
NAMED = 3   # examples in a message


def task_from_file(path: Path | str, text: str | Sequence[str] = "text", label: str = "label", *,
                   test: Path | str | None = None, encoding: str = "utf-8", max_length: int = 128) -> Task:
    """Make a classification task of a file, and put it among the tasks, by the file's name.

    Args:
        path: of a .csv, .tsv, .jsonl, .json or .parquet file.
        text: its column of texts, or the two columns of a pair.  label: its column of classes.
        test: a file of test rows with the same columns; None cuts a tenth of the texts out of `path`.
        encoding: of CSV and TSV.  max_length: tokens that are read of a text (or pair).

    A hash of the text decides whether a row trains (80 %), validates (10 %) or tests, so that equal texts stay
    together; with a file of test rows nine tenths train. The task's `deviation`, which every run prints and keeps,
    says what was found: texts that occur more than once, texts with two labels, test texts that are trained on, and
    classes without a training row.

    Raises:
        FileNotFoundError: no such file.  ValueError: it cannot be read, a column is missing, a row has no text or no
        label, there is one class, or there are too many to be classes.
    """
    columns = (text,) if isinstance(text, str) else tuple(text)
    require(1 <= len(columns) <= 2 and label not in columns,
            f"text = {shown(text)}, label = {shown(label)}; name one column of texts or two, and another of classes")
    files = {"rows": Path(path), **({} if test is None else {"test": Path(test)})}
    frames = {part: _labelled(file, columns, label, encoding) for part, file in files.items()}
    labels = _classes([name for frame in frames.values() for name in frame["label"]], files["rows"].name, label)
    splits = partial(_splits, tuple(files.values()), columns, label, encoding, labels)
    found = splits()
    for split, rows in found.items():
        require(len(rows) > 0, f"{files['rows'].name} has {len(frames['rows'])} rows, and none falls into "
                               f"{split}; add rows")
    task = Task(files["rows"].name, "classification", columns, "label", labels, ("accuracy", "macro_f1"), max_length,
                f"which {label} has the {' and the '.join(columns)}?", f"the file {files['rows'].name}",
                _findings(found, columns, labels, own_test=test is not None), derived=splits)
    require(not is_packaged(task.name), f"{task.name} is the name of a task already; rename the file")
    put_in_table({task.name: task})
    return task


def _labelled(file: Path, text: tuple[str, ...], label: str, encoding: str) -> pd.DataFrame:
    """The text columns and "label", all of them strings that are not empty; the index is the row in the file."""
    frame = _read(file, encoding)
    require(len(frame) > 0, f"{file.name} has no rows")
    for column in (*text, label):
        require(column in frame, f"{file.name} has no column {shown(column)}; it has {among(list(frame), column)}")
        empty = [row for row, value in enumerate(frame[column]) if value is None or value != value
                 or not str(value).strip()]
        require(not empty, f"{file.name}, column '{column}': {len(empty)} of {len(frame):,} rows are empty "
                           f"({_some(empty, 'row')}; the first is row 0): fill or remove them")
    for column in text:
        odd = next((row for row, value in enumerate(frame[column]) if not isinstance(value, str)), None)
        require(odd is None, f"{file.name}, column '{column}', row {odd}: a text must be a string; name another "
                               "column")
    return pd.DataFrame({**{column: frame[column] for column in text}, "label": [_name(v) for v in frame[label]]})


def _read(file: Path, encoding: str) -> pd.DataFrame:
    """All rows of a file; a cell of CSV stays the string that it is ("NA", "null" and "007" too)."""
    require(file.suffix.lower() in READERS, f"{file.name} is no {', '.join(READERS)} file; save it as one of them")
    if not file.is_file():
        raise FileNotFoundError(f"no file {file}")
    require(file.stat().st_size > 0, f"{file.name} is empty")
    about = file.stat()
    return _read_once(file.resolve(), encoding, about.st_mtime_ns, about.st_size)


@lru_cache(maxsize=4)
def _read_once(file: Path, encoding: str, *changed: int) -> pd.DataFrame:
    import datasets

    kind, options = READERS[file.suffix.lower()], {}
    if kind == "csv":
        between = "\t" if file.suffix.lower() == ".tsv" else ","
        text = datasets.Value("string")
        options = {"sep": between, "keep_default_na": False, "encoding": encoding,
                   "features": datasets.Features(dict.fromkeys(_header(file, encoding, between), text))}
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as scratch:
        try:
            return datasets.load_dataset(kind, data_files=str(file), split="train", cache_dir=scratch,
                                         keep_in_memory=True, **options).to_pandas()
        except Exception as error:   # its readers raise many kinds; the cause says what is wrong
            if "corresponds to no data" in str(error):
                return pd.DataFrame()
            raise ValueError(f"{file.name} is no readable {file.suffix[1:]} file "
                             f"({reason(error.__cause__ or error)})") from error


def _header(file: Path, encoding: str, between: str) -> list[str]:
    """The names of a CSV's columns, once the whole file is known to be text of this encoding.

    Raises:
        ValueError: it is not, names the line; or two columns have one name.
    """
    data = file.read_bytes()
    try:
        data.decode(encoding)
    except LookupError:
        raise ValueError(f"no encoding {shown(encoding)}; such as utf-8, cp1252, latin-1, utf-16") from None
    except UnicodeDecodeError as error:
        line = data[:error.start].count(b"\n") + 1
        raise ValueError(f"{file.name}, line {line}: not {encoding}; save the file as UTF-8, or name its encoding, "
                         "often cp1252") from None
    with file.open(encoding=encoding, newline="") as opened:
        names = next(csv.reader(opened, delimiter=between), [])
    twice = [name for name, count in Counter(names).items() if count > 1]
    require(not twice, f"{file.name} has two columns with the name {shown(twice[0] if twice else '')}; rename one")
    return names


def _name(value: object) -> str:
    """A class as a string; 1.0, which an empty cell elsewhere makes of 1, is 1."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def _classes(values: Sequence[str], file: str, label: str) -> tuple[str, ...]:
    """The classes in the order of their names, of numbers by size."""
    def order(name: str) -> tuple[int, float, str]:
        try:
            return 0, float(name), name
        except ValueError:
            return 1, 0.0, name

    found = sorted(set(values), key=order)
    require(len(found) > 1, f"{file}, column '{label}': all rows are of the class {shown(found[0])}; nothing can be "
                            "learned from one class")
    require(len(found) <= min(MOST_CLASSES, len(values) // 2),
            f"{file}, column '{label}': {len(found)} values in {len(values):,} rows ({', '.join(found[:NAMED])}, …) "
            "are scores or texts rather than classes; name the column of the classes")
    return tuple(found)


def _splits(files: tuple[Path, ...], text: tuple[str, ...], label: str, encoding: str,
            labels: tuple[str, ...]) -> Splits:
    code = {name: i for i, name in enumerate(labels)}
    frames = [_labelled(file, text, label, encoding) for file in files]
    coded = [frame.assign(label=[code.get(name, -1) for name in frame["label"]]) for frame in frames]
    share = np.array([stable_hash("own file", key) / 2**64 for key in coded[0][text[0]]])
    parts, start = {}, 0.0
    for split, end in SHARES[len(files) - 1].items():
        parts[split] = coded[0][(start <= share) & (share < end)].reset_index(drop=True)
        start = end
    return parts if len(files) == 1 else {**parts, "test": coded[1]}


def _findings(splits: Splits, text: tuple[str, ...], labels: tuple[str, ...], *, own_test: bool) -> str:
    """What a reader of the scores should know of the rows, in clauses."""
    rows = pd.concat(splits.values(), ignore_index=True)
    keys = [tuple(row) for row in rows[list(text)].itertuples(index=False)]
    seen = Counter(keys)
    both = Counter(key for key, _ in set(zip(keys, rows["label"], strict=True)))
    trained = {tuple(row) for row in splits["train"][list(text)].itertuples(index=False)}
    leaked = sum(tuple(row) in trained for row in splits["test"][list(text)].itertuples(index=False))
    without = [name for code, name in enumerate(labels) if code not in set(splits["train"]["label"])]
    largest = rows["label"].value_counts(normalize=True)
    found = ["test rows from a file of their own, own split of the rest" if own_test else "own split by text"]
    found.append(f"{100 * largest.iloc[0]:.0f} % of the rows are of the class {shown(labels[largest.index[0]])}")
    if repeated := sum(count > 1 for count in seen.values()):
        found.append(f"{repeated:,} texts occur more than once")
    if torn := sum(count > 1 for count in both.values()):
        found.append(f"{torn:,} texts have two labels, so that no model can be right everywhere")
    if leaked:
        found.append(f"{leaked:,} of {len(splits['test']):,} test texts are training texts, too: the test score is "
                     "too high until they are removed")
    if without:
        found.append(f"no training row of {_some(without, 'class')}")
    return "; ".join(found)


def _some(found: Sequence[object], what: str) -> str:
    """Such as "row 3, 5, 8, …"."""
    return f"{what} {', '.join(str(one) for one in found[:NAMED])}{', …' if len(found) > NAMED else ''}"

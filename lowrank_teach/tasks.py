"""Tasks by short name: which columns are text, what is predicted, how it is scored, where the rows come from.

Rows are looked for in one order everywhere: (1) a local folder, (2) packaged text, (3) the hub; the first that
has the task is used and named in `TaskData.source`. A new task is one more row of the table `TASKS`, and, if
its rows ride in a package, a reader in `corpora.py`. Tokenising and padding stand in `features.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

import pandas as pd

from lowrank_teach import corpora
from lowrank_teach.features import Collate, encode
from lowrank_teach.hub import cache_only_if_offline, reason
from lowrank_teach.rows import check_rows, codes_for_tags

__all__ = ["TASKS", "Collate", "Task", "TaskData", "encode", "load_task"]

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Task:
    """One task. The fields up to `max_length` are what training and scoring need, the rest is where from."""

    name: str
    kind: str  # 'classification', 'regression', 'tagging' or 'seq2seq'
    text: tuple[str, ...]  # one text column, or the two of a pair; tagging: the column of token lists
    label: str  # column: class code, score, list of tag codes, or the text to write
    labels: tuple[str, ...]  # class or tag names in code order; () for a score or a text
    metrics: tuple[str, ...]  # the first is the headline; see metrics.METRICS
    max_length: int  # tokens
    description: str
    origin: str  # who made the rows
    deviation: str = ""  # how the rows differ from the published set
    prompt: str = "{0}"  # seq2seq: what stands around the text
    max_target: int = 32  # seq2seq: tokens to write at most
    reader: Callable[[], corpora.Splits] | None = field(default=None, repr=False)
    hub: tuple[str, str] | None = None  # repository and configuration
    files: Mapping[str, str] = field(default_factory=dict)  # split -> its name in a folder or on the hub
    rows: Mapping[str, int] = field(default_factory=dict)  # split -> rows of the published set


@dataclass
class TaskData:
    """The rows of one task. `test` is None where the published test set has no labels."""

    task: Task
    train: pd.DataFrame
    validation: pd.DataFrame
    test: pd.DataFrame | None
    source: str  # one line: where the rows are from, how many, and how they differ


def _glue(
    name: str,
    text: tuple[str, ...],
    labels: tuple[str, ...],
    metrics: tuple[str, ...],
    rows: tuple[int, int],
    description: str,
    max_length: int = 128,
    files: dict[str, str] | None = None,
    deviation: str = "",
) -> Task:
    kind = "classification" if labels else "regression"
    return Task(
        name, kind, text, "label", labels, metrics, max_length, description, "GLUE (Wang et al. 2019)", deviation,
        hub=("nyu-mll/glue", name), files=files or {},
        rows=dict(zip(("train", "validation"), rows, strict=True)),
    )  # fmt: skip


_PAIR, _ACC, _ACC_F1 = ("sentence1", "sentence2"), ("accuracy",), ("accuracy", "f1")
_TREC_NOTE = "distinct questions of the training part only, own split"
_TABLE = [
    # ---- packaged text
    Task("rt", "classification", ("text",), "label", ("rotten", "fresh"), ("accuracy", "macro_f1"), 64,
         "is a film critic's sentence for or against the film?", "Rotten Tomatoes snippets",
         "own split by film: no film of train is in validation or test", reader=corpora.rotten_tomatoes),
    Task("trec", "classification", ("text",), "label", corpora.TREC_COARSE, ("accuracy", "macro_f1"), 32,
         "what kind of answer does a question ask for? (6 classes)", "TREC (Li & Roth 2002)", _TREC_NOTE,
         reader=lambda: corpora.trec(fine=False)),
    Task("trec-fine", "classification", ("text",), "label", corpora.TREC_FINE, ("accuracy", "macro_f1"), 32,
         "the same, 50 classes with a long tail", "TREC (Li & Roth 2002)", _TREC_NOTE,
         reader=lambda: corpora.trec(fine=True)),
    Task("bbc-match", "classification", ("headline", "lead"), "label", ("other", "same"), ("accuracy", "f1"), 96,
         "do headline and first paragraph belong to one article?", "BBC news (Greene & Cunningham 2006)",
         "labels are built, not annotated: negatives come from the same split and category",
         reader=corpora.bbc_match),
    Task("wnut16", "tagging", ("tokens",), "tags", corpora.WNUT_TAGS, ("entity_f1",), 96,
         "people, places, products … in tweets (10 entity types)", "WNUT 2016 (Ritter et al.)",
         "distinct tweets of the training part only, own split", reader=corpora.wnut16),
    Task("bbc-headline", "seq2seq", ("lead",), "headline", (), ("perplexity", "rouge1", "rouge2", "rougeL"), 128,
         "write the headline for a first paragraph", "BBC news (Greene & Cunningham 2006)",
         "own pairing of an article's first paragraph and headline", "{0}\nHeadline:", 24,
         reader=corpora.bbc_articles),
    # ---- GLUE, from a local folder or the hub (test sets have no public labels)
    _glue("cola", ("sentence",), ("unacceptable", "acceptable"), ("mcc", "accuracy"), (8551, 1043),
          "is the sentence grammatical English?", 64),
    _glue("sst2", ("sentence",), ("negative", "positive"), _ACC, (67349, 872), "sentiment of a film review phrase",
          64),
    _glue("mrpc", _PAIR, ("not_equivalent", "equivalent"), _ACC_F1, (3668, 408), "do two sentences say the same?"),
    _glue("stsb", _PAIR, (), ("spearman", "pearson"), (5749, 1500), "how similar are two sentences, 0 to 5?"),
    _glue("qqp", ("question1", "question2"), ("different", "duplicate"), _ACC_F1, (363846, 40430),
          "do two questions ask the same?"),
    _glue("mnli", ("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), _ACC, (392702, 9815),
          "does the first sentence imply the second?", files={"validation": "validation_matched"},
          deviation="a small copy of train may have lost its full stops; validation is the matched one"),
    _glue("qnli", ("question", "sentence"), ("entailment", "not_entailment"), _ACC, (104743, 5463),
          "does the sentence answer the question?"),
    _glue("rte", _PAIR, ("entailment", "not_entailment"), _ACC, (2490, 277),
          "does the first text imply the second?", 192),
    # ---- later tasks: one row each (and a reader in corpora.py where a package carries the rows)
]  # fmt: skip
TASKS: dict[str, Task] = {task.name: task for task in _TABLE}


def load_task(
    name: str,
    *,
    n_train: int | None = None,
    n_validation: int | None = None,
    n_test: int | None = None,
    seed: int = 0,
) -> TaskData:
    """The rows of a task, checked, in a fixed order.

    name: a key of `TASKS`.
    n_train, n_validation, n_test: keep this many rows (all, if there are fewer). Rows stand in the order of a
        hash of their text, so the first 400 are the same everywhere and are part of the first 1,600.
    seed: a run's seed may be passed and changes nothing: runs that differ in seed share their rows, so that
        they can be compared in pairs.
    Raises ValueError for an unknown task and for rows that cannot be used (task, split, column and row are
    named), FileNotFoundError where a file is missing or no source has the task, AssetError where packaged
    text cannot be fetched.
    """
    if name not in TASKS:
        near = get_close_matches(name, TASKS, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(f"no task '{name}': {hint}tasks: {', '.join(TASKS)}")
    task = TASKS[name]
    wanted = dict(zip(SPLITS, (n_train, n_validation, n_test), strict=True))
    for split, n in wanted.items():
        if n is not None and n < 1:
            raise ValueError(f"{name}: n_{split} = {n}; ask for at least one row, or None for all")
    frames, place = _find(task)
    counts = {split: len(frame) for split, frame in frames.items()}
    for split, frame in frames.items():
        check_rows(frame, task, split)
        ordered = _in_fixed_order(codes_for_tags(frame, task), task)
        frames[split] = ordered.head(wanted[split]) if wanted[split] else ordered
    _check_classes(frames["train"], task)
    source = _describe(task, place, frames, counts)
    return TaskData(task, frames["train"], frames["validation"], frames.get("test"), source)


def _in_fixed_order(frame: pd.DataFrame, task: Task) -> pd.DataFrame:
    columns = [frame[column].map(lambda v: v if isinstance(v, str) else " ".join(v)) for column in task.text]
    order = [corpora.stable_hash(task.name, *texts) for texts in zip(*columns, strict=True)]
    ranked = frame.assign(_order=pd.array(order, dtype="UInt64")).sort_values("_order", kind="stable")
    return ranked.drop(columns="_order").reset_index(drop=True)


def _check_classes(train: pd.DataFrame, task: Task) -> None:
    if task.kind == "classification" and train[task.label].nunique() < 2:
        raise ValueError(
            f"{task.name}, train: all {len(train)} rows have {task.label} = {train[task.label].iloc[0]}; nothing "
            "can be learned from one class: take more rows, or repair the file"
        )


def _describe(task: Task, place: str, frames: corpora.Splits, counts: dict[str, int]) -> str:
    parts = []
    for split, frame in frames.items():
        text = f"{split} {len(frame):,}"
        if len(frame) < counts[split]:
            text += f" of {counts[split]:,}"
        if counts[split] != task.rows.get(split, counts[split]):
            text += f" (published: {task.rows[split]:,})"
        parts.append(text)
    return f"rows from {place}: {', '.join(parts)}" + (f"; {task.deviation}" if task.deviation else "")


# ---- the three sources, in order ------------------------------------------------------------------------

def _find(task: Task) -> tuple[corpora.Splits, str]:
    folder = os.environ.get("LOWRANK_TEACH_DATA")
    if folder:
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"LOWRANK_TEACH_DATA is {folder}, which is no folder; correct or unset it")
        place = Path(folder) / task.name
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
            if split == "test":
                continue
            raise FileNotFoundError(f"{task.name}, {split}: no file {path}; each split is one parquet file")
        try:
            frames[split] = pd.read_parquet(path)
        except Exception as error:  # pyarrow raises many kinds
            raise ValueError(f"{task.name}, {split}: {path} is no readable parquet file ({error})") from error
    return frames


def _from_hub(task: Task) -> tuple[corpora.Splits, str]:
    if task.hub is None:
        raise FileNotFoundError(_three_ways(task, "it has no hub copy"))
    try:
        import datasets

        datasets.disable_progress_bars()
        where = {split: task.files.get(split, split) for split in ("train", "validation")}
        with cache_only_if_offline():
            frames = {s: datasets.load_dataset(*task.hub, split=name).to_pandas() for s, name in where.items()}
    except Exception as error:  # no network, no such repository, no `datasets`: all have the same three ways out
        raise FileNotFoundError(_three_ways(task, reason(error))) from error
    return frames, f"the hub, {'/'.join(task.hub)}"


def _three_ways(task: Task, why: str) -> str:
    files = ", ".join(f"{task.name}/{task.files.get(s, s)}.parquet" for s in ("train", "validation"))
    packaged = ", ".join(name for name, other in TASKS.items() if other.reader is not None)
    extra = "with a network and pip install 'lowrank-teach[lab]'"
    on_hub = f"{'/'.join(task.hub)}, {extra}" if task.hub else "no copy"
    return (
        f"no rows for '{task.name}' ({why}). Three ways: (1) set LOWRANK_TEACH_DATA to a folder that has "
        f"{files}; (2) take a task whose text is packaged: {packaged}; (3) the hub: {on_hub}"
    )

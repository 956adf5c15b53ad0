"""What a task is: one row of the table, and the rows of data it stands for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pandas as pd

Splits = dict[str, pd.DataFrame]


@dataclass(frozen=True)
class Task:
    """One task. The fields up to `max_length` are what training and scoring need, the rest is where from."""

    name: str
    kind: str  # 'classification', 'regression', 'tagging', 'seq2seq', or 'choice': words scored by a causal model
    text: tuple[str, ...]  # one text column, or the two of a pair; tagging: the column of token lists
    label: str  # column: class code, score, list of tag codes, or the text to write
    labels: tuple[str, ...]  # class or tag names in code order; () for a score or a text
    metrics: tuple[str, ...]  # the first is the headline; see metrics.METRICS
    max_length: int  # tokens
    description: str
    origin: str  # who made the rows
    deviation: str = ""  # how the rows differ from the published set, wherever they are from
    copies: tuple[tuple[Mapping[str, int], str], ...] = ()  # rows by split of a known copy, and how it differs
    prompt: str = "{0}"  # seq2seq: what stands around the text
    max_target: int = 32  # seq2seq: tokens to write at most
    words: tuple[str, ...] = ()  # choice: what the model would write for each class
    prepare: Callable[[pd.DataFrame], pd.DataFrame] | None = field(default=None, repr=False)  # to these columns
    resplit: Callable[[Splits, int], Splits] | None = field(default=None, repr=False)  # by seed
    group: str = ""  # column: rows that are scored together (references of one input, answers to one question)
    part: str = ""  # column: scores are also given for each of its values
    reader: Callable[[], Splits] | None = field(default=None, repr=False)  # of packaged text
    asset: str = ""  # the packaged text that `reader` reads
    derived: Callable[[], Splits] | None = field(default=None, repr=False)  # of no file of its own
    made_of: str = ""  # task whose test rows it is made of, each to be rewritten: a key of `readers.TRANSFERS`
    trained_on: str = ""  # task whose training rows it takes (and its validation rows, where it has none)
    hub: tuple[str, ...] | None = None  # repository, and configuration where it has several
    hub_splits: Mapping[str, str] = field(default_factory=dict)  # split -> its name there, where it is another
    exported: bool = False  # the repository is a script: the hub's own parquet export of it is read
    folder: str = ""  # where it is not the name: of the local copy
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

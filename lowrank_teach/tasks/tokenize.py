"""Rows to numbers: tokenise once, pad each batch to its longest row.

A label of -100 is left out of the loss: padding, all but the first piece of a word in tagging, and the prompt
in front of the text a causal model has to write.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from ..errors import require

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .task import Task


IGNORED = -100
BESIDE = ("choices", "group", "part", "reference", "words")  # of a feature: for scoring, never given to the model
Feature = dict[str, Any]


def encode(
    frame: pd.DataFrame, task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int | None = None,
    *, causal: bool = False,
) -> list[Feature]:  # fmt: skip
    """Tokenise all rows, without padding.

    frame: rows as `load_task` gives them. max_length: tokens at most; None means the task's own.
    causal: for a decoder-only model: prompt and target in one sequence, the prompt's labels -100.
    Returns one dict a row: input_ids, attention_mask, token_type_ids where the tokenizer has them, and labels
    (a class code, a score, a tag code a token, or the ids to write). No row is longer than max_length. Texts to
    classify are cut at the tokenizer's `truncation_side`; tags, prompts and targets by rules of their own.
    Raises ValueError for causal=True on a task that writes no text, for a max_length that has no room for what
    must stay, and for a tokenizer that cannot be used for this kind of task.
    """
    length = task.max_length if max_length is None else max_length
    if causal and task.kind not in ("seq2seq", "choice"):
        raise ValueError(f"'{task.name}' is a {task.kind} task: causal=True is for tasks that write text")
    require(length > 0, f"max_length = {length} must be above 0")
    rows = _encoded(frame, task, tokenizer, length, causal)
    longest = max((len(row["input_ids"]) for row in rows), default=0)
    require(longest <= length, f"max_length = {length} has no room for a text beside the tokens that this tokenizer "
                               f"puts around one (a row has {longest}): raise it")
    for key, column in (("group", task.group), ("part", task.part)):
        if column:
            for row, value in zip(rows, frame[column], strict=True):
                row[key] = str(value)
    return rows


def _encoded(frame: pd.DataFrame, task: Task, tokenizer: Any, length: int, causal: bool) -> list[Feature]:
    if task.kind == "tagging":
        return _encode_tags(frame, task, tokenizer, length)
    pairs = zip(frame[task.text[0]], frame[task.label], strict=True)
    if task.kind == "choice":
        return [_choice_row(text, label, task, tokenizer, length) for text, label in pairs]
    if task.kind == "seq2seq":
        make = _causal_row if causal else _seq2seq_row
        return [{**make(text, target, task, tokenizer, length), "reference": target} for text, target in pairs]
    texts = [frame[column].tolist() for column in task.text]
    rows = _rows(tokenizer(*texts, truncation=True, max_length=length))
    for row in rows:
        if not row["input_ids"]:  # an empty text, from a tokenizer that puts nothing around one (GPT-2's)
            row |= {"input_ids": [tokenizer.eos_token_id], "attention_mask": [1]}
    number = float if task.kind == "regression" else int
    for row, label in zip(rows, frame[task.label], strict=True):
        row["labels"] = number(label)
    return rows


def _rows(batch: Any) -> list[Feature]:
    """A dict of lists -> a list of dicts."""
    return [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]


def _encode_tags(frame: pd.DataFrame, task: Task, tokenizer: Any, length: int) -> list[Feature]:
    """The first piece of a word carries its tag. `words` are the places of the words that have a piece within
    `length`; `reference` has the tags of all, so that what was cut off is scored as missed.
    """
    require(getattr(tokenizer, "is_fast", True), "this tokenizer does not say which word a piece is from, and a tag "
                                                 "belongs to a word: take the fast tokenizer of the model")
    tokens = [list(words) for words in frame[task.text[0]]]
    with _cut_at_the_end(tokenizer):  # else the first piece that is left of a word could be one of its middle
        batch = tokenizer(tokens, is_split_into_words=True, truncation=True, max_length=length)
    rows = _rows(batch)
    for i, (row, tags) in enumerate(zip(rows, frame[task.label], strict=True)):
        words = batch.word_ids(i)
        first = [w is not None and (p == 0 or words[p - 1] != w) for p, w in enumerate(words)]
        row["labels"] = [tags[w] if here else IGNORED for w, here in zip(words, first, strict=True)]
        row["words"] = [w for w, here in zip(words, first, strict=True) if here]
        row["reference"] = [task.labels[tag] for tag in tags]
    return rows


def _seq2seq_row(text: str, target: str, task: Task, tokenizer: Any, length: int) -> Feature:
    """Prompt and target apart. Where room is short the text in the prompt gives way: the cue at its end stays."""
    row = dict(tokenizer(task.prompt.format(text), verbose=False))
    while (over := len(row["input_ids"]) - length) > 0:
        _require_text(text, task, length)
        text = _without(text, over, tokenizer)
        row = dict(tokenizer(task.prompt.format(text), verbose=False))
    with _cut_at_the_end(tokenizer):
        row["labels"] = tokenizer(text_target=target, truncation=True, max_length=task.max_target)["input_ids"]
    return row


def _causal_row(text: str, target: str, task: Task, tokenizer: Any, length: int) -> Feature:
    """[prompt, target, end]; only target and end are learned. Where room is short the text in the prompt gives way; a
    target that would leave nothing of it is cut to half of the row.
    """
    end = tokenizer.eos_token_id
    require(end is not None, "this tokenizer has no token that ends a text, so a model could not learn to stop: set "
                             "its eos_token")
    whole = joined(task.prompt.format(text), " " + target, tokenizer)
    wanted = min(len(whole.ids) - whole.start + 1, task.max_target)
    if whole.start + wanted > length <= joined(task.prompt.format(""), " " + target, tokenizer).start + wanted:
        wanted = min(wanted, max(length // 2, 1))
    while (over := whole.start + wanted - length) > 0:
        _require_text(text, task, length)
        text = _without(text, over, tokenizer)
        whole = joined(task.prompt.format(text), " " + target, tokenizer)
    return _learned(whole.ids[:whole.start], [*whole.ids[whole.start:whole.start + wanted - 1], end])


def _choice_row(text: str, label: int, task: Task, tokenizer: Any, length: int) -> Feature:
    """[prompt, word of the right class]; only the word is learned. `choices` has the tokens of every class's word.

    The prompt is what all classes have in common: a token that has its last letters and a word's first is the
    word's. Where room is short its beginning gives way: the question stands at the end.
    """
    whole = [joined(text, word, tokenizer) for word in task.words]
    start = min(_shared(*(one.ids for one in whole)), *(one.start for one in whole))
    words = [one.ids[start:] for one in whole]
    room, head = length - max(map(len, words)), whole[0].head
    require(room > head, f"'{task.name}': max_length = {length} has no room for a prompt beside its answer: raise it")
    prompt = whole[0].ids[:start]
    if start > room:
        prompt = prompt[:head] + prompt[start - room + head:]
    return {**_learned(prompt, words[int(label)]), "choices": words}


def _learned(prompt: list[int], wanted: list[int]) -> Feature:
    """A row for a causal model of which only the second part is learned."""
    ids = prompt + wanted
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [IGNORED] * len(prompt) + wanted}


def _require_text(text: str, task: Task, length: int) -> None:
    require(bool(text), f"'{task.name}': max_length = {length} has no room for the words that stand around a text, "
                        f"{task.prompt.format('…')!r:.80}: raise it")


class Joined(NamedTuple):
    """Two texts tokenised as one: its tokens, how many the tokenizer puts in front of any text, and how many stand
    before the first that has a letter of the second text."""

    ids: list[int]
    head: int
    start: int


def joined(prompt: str, target: str, tokenizer: Any) -> Joined:
    """A prompt and what follows it as a model reads them: tokenised at once, without what closes a text.

    Tokenised apart, the two would not give the tokens of the text: some tokenizers put a space before any text
    (Llama 2's, T5's), and some have tokens that reach over the boundary. Such a token belongs to the target: who
    only has the prompt cannot know it.
    """
    if not getattr(tokenizer, "is_fast", False):
        return _joined_without_offsets(prompt, target, tokenizer)
    whole = tokenizer(prompt + target, return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False)
    own = [i for i, added in enumerate(whole["special_tokens_mask"]) if not added]
    if not own:
        return Joined([], 0, 0)
    start = next((i for i in own if whole["offset_mapping"][i][1] > len(prompt)), own[-1] + 1)
    return Joined(whole["input_ids"][:own[-1] + 1], own[0], start)


def _joined_without_offsets(prompt: str, target: str, tokenizer: Any) -> Joined:
    """Of a tokenizer written in Python: the target begins where the tokens are no more those of the prompt alone."""
    bare = tokenizer(prompt + target, add_special_tokens=False, verbose=False)["input_ids"]
    ids = tokenizer(prompt + target, verbose=False)["input_ids"]
    head = next((i for i in range(len(ids) - len(bare) + 1) if ids[i:i + len(bare)] == bare), 0)
    ids = ids[:head + len(bare)]
    return Joined(ids, head, _shared(ids, tokenizer(prompt, verbose=False)["input_ids"]) if target else len(ids))


def _shared(*rows: list[int]) -> int:
    """How many tokens all rows begin with."""
    return next((i for i, tokens in enumerate(zip(*rows, strict=False)) if len(set(tokens)) > 1), min(map(len, rows)))


def _without(text: str, over: int, tokenizer: Any) -> str:
    """A text without its last `over` tokens, and without a letter that would lose a part of itself."""
    if getattr(tokenizer, "is_fast", False):
        pieces = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        spans = pieces["offset_mapping"]
        return text[:spans[-over][0]] if over < len(spans) else ""

    def count(letters: int) -> int:
        return len(tokenizer(text[:letters], add_special_tokens=False, verbose=False)["input_ids"])

    most = count(len(text)) - over
    return text[:max(bisect.bisect_right(range(len(text)), most, key=count) - 1, 0)]


@contextmanager
def _cut_at_the_end(tokenizer: Any) -> Iterator[None]:
    """What is too long loses its end for a while, whatever side the tokenizer's configuration names."""
    side = getattr(tokenizer, "truncation_side", "right")
    tokenizer.truncation_side = "right"
    try:
        yield
    finally:
        tokenizer.truncation_side = side


def prompt_of(row: Feature) -> list[int]:
    """The tokens of a causal row in front of what is to be written."""
    return [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label == IGNORED]


class Collate:
    """A list of features -> one batch of tensors, padded on the right to the longest row.

    tokenizer: for its pad token. task: its kind says what labels are. causal: as in `encode`.
    Calling it gives input_ids, attention_mask (and token_type_ids), each (B, T) int64, and labels: (B,) int64
    for classes, (B,) float32 for scores, (B, T') int64 padded with -100 for tags and texts.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, task: Task, causal: bool = False) -> None:
        if causal and task.kind not in ("seq2seq", "choice"):
            raise ValueError(f"'{task.name}' is a {task.kind} task: causal=True is for tasks that write text")
        pad = tokenizer.pad_token_id
        self.fill = {"input_ids": 0 if pad is None else pad, "labels": IGNORED}  # all else is filled with 0
        self.label_type = torch.float32 if task.kind == "regression" else torch.int64

    def __call__(self, features: list[Feature]) -> dict[str, torch.Tensor]:
        return {name: self._column(name, [row[name] for row in features]) for name in features[0]
                if name not in BESIDE}

    def _column(self, name: str, values: list[Any]) -> torch.Tensor:
        kind = self.label_type if name == "labels" else torch.int64
        if not isinstance(values[0], list):
            return torch.tensor(values, dtype=kind, device="cpu")  # (B,)
        longest = max(len(row) for row in values)
        padded = [row + [self.fill.get(name, 0)] * (longest - len(row)) for row in values]
        return torch.tensor(padded, dtype=kind, device="cpu")  # (B, T)


# ---- checks of the cells of a table ------------------------------------------------------------------------
# Rows are checked before anything is trained on them: a bad cell found in an hour's run costs the hour.
#
# They are checked in the order of their file, and a refusal names the row as its owner numbers it: a frame's index is
# the row's number in the file, or the file's name and that number.
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

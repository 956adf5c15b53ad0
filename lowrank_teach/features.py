"""Rows to numbers: tokenise once, pad each batch to its longest row.

A label of -100 is left out of the loss: padding, all but the first piece of a word in tagging, and the prompt
in front of the text a causal model has to write.
"""

# B batch, T tokens of the longest row in the batch

from __future__ import annotations

import bisect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
import torch

from lowrank_teach.methods.checks import require

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lowrank_teach.tasks import Task

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

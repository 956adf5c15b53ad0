"""Rows to numbers: tokenise once, pad each batch to its longest row.

A label of -100 is left out of the loss: padding, all but the first piece of a word in tagging, and the prompt
in front of the text a causal model has to write.
"""

# B batch, T tokens of the longest row in the batch

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

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
    (a class code, a score, a tag code a token, or the ids to write).
    Raises ValueError for causal=True on a task that writes no text.
    """
    length = max_length or task.max_length
    if causal and task.kind not in ("seq2seq", "choice"):
        raise ValueError(f"'{task.name}' is a {task.kind} task: causal=True is for tasks that write text")
    rows = _encoded(frame, task, tokenizer, length, causal)
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
    tokens = [list(words) for words in frame[task.text[0]]]
    batch = tokenizer(tokens, is_split_into_words=True, truncation=True, max_length=length)
    rows = _rows(batch)
    for i, (row, tags) in enumerate(zip(rows, frame[task.label], strict=True)):
        words = batch.word_ids(i)
        first = [w is not None and (p == 0 or words[p - 1] != w) for p, w in enumerate(words)]
        row["labels"] = [tags[w] if here else IGNORED for w, here in zip(words, first, strict=True)]
        row["words"] = [w for w, here in zip(words, first, strict=True) if here]
        row["reference"] = [task.labels[tag] for tag in tags]
    return rows


def _fitted(text: str, task: Task, tokenizer: Any, room: int) -> str:
    """The prompt with its text cut so that the whole has at most about `room` tokens: the cue at its end stays."""
    overhead = len(tokenizer(task.prompt.format(""))["input_ids"])
    pieces = tokenizer(
        text, add_special_tokens=False, truncation=True, max_length=max(room - overhead, 1),
        return_offsets_mapping=True,
    )  # fmt: skip
    end = pieces["offset_mapping"][-1][1] if pieces["offset_mapping"] else 0
    return task.prompt.format(text[:end])


def _seq2seq_row(text: str, target: str, task: Task, tokenizer: Any, length: int) -> Feature:
    row = dict(tokenizer(_fitted(text, task, tokenizer, length), truncation=True, max_length=length))
    row["labels"] = tokenizer(text_target=target, truncation=True, max_length=task.max_target)["input_ids"]
    return row


def _causal_row(text: str, target: str, task: Task, tokenizer: Any, length: int) -> Feature:
    """[prompt, target, end]; only target and end are learned. The prompt gives way where room is short."""
    end = tokenizer.eos_token_id
    wanted = tokenizer(" " + target, add_special_tokens=False)["input_ids"]
    wanted = [*wanted[: task.max_target - 1], end]
    prompt = tokenizer(_fitted(text, task, tokenizer, length - len(wanted)))["input_ids"]
    if prompt and prompt[-1] == end:  # a few tokenizers close every text
        prompt = prompt[:-1]
    ids = prompt + wanted
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [IGNORED] * len(prompt) + wanted}


def _choice_row(text: str, label: int, task: Task, tokenizer: Any, length: int) -> Feature:
    """[prompt, word of the right class]; only the word is learned. `choices` has the tokens of every class's word."""
    words = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in task.words]
    room = length - max(map(len, words))
    prompt = tokenizer(text)["input_ids"]
    if prompt and prompt[-1] == tokenizer.eos_token_id:
        prompt = prompt[:-1]
    prompt = prompt[-room:]  # what gives way is the beginning: the question stands at the end
    ids = prompt + words[int(label)]
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [IGNORED] * len(prompt) + words[int(label)],
            "choices": words}


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

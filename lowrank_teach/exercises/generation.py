"""The exercises of 08: what a causal row learns, BLEU's matches, a field left out, a score drawn anew."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from .. import slots, texts
from ..features import IGNORED, encode
from ..tasks import Task as TextTask
from .engine import Task

# T tokens of a row, N texts, R draws

Ids = Sequence[int]


class Numbers:
    """A tokenizer of numbers between blanks, so that a row's tokens can be given as they are."""

    def __init__(self, end: int) -> None:
        self.eos_token_id = end

    def __call__(self, text: str, *, max_length: int | None = None, **_: Any) -> dict[str, Any]:
        found = list(re.finditer(r"\d+", text))[:max_length]
        return {"input_ids": [int(one[0]) for one in found], "offset_mapping": [one.span() for one in found]}


_ROWS = TextTask("numbers", "seq2seq", ("prompt",), "target", (), (), 64, "numbers after numbers", "made up")


def causal_row(prompt: Ids, target: Ids, end: int) -> np.ndarray:
    """Tokens and labels (2, T) of one row for a causal model, by the library's `encode`."""
    frame = pd.DataFrame({"prompt": [" ".join(map(str, prompt))], "target": [" ".join(map(str, target))]})
    row = encode(frame, _ROWS, Numbers(end), causal=True)[0]  # type: ignore[arg-type]
    return np.array([row["input_ids"], row["labels"]])


def _labels(change: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Callable[..., np.ndarray]:
    """The library's row with its labels changed: (tokens, labels) -> labels."""

    def wrong(prompt: Ids, target: Ids, end: int) -> np.ndarray:
        tokens, labels = causal_row(prompt, target, end)
        return np.array([tokens, change(tokens, labels)])

    return wrong


def matched_words(text: str, references: Sequence[str]) -> np.ndarray:
    """Words of a text that BLEU finds in its references, and words written: sacrebleu's counts."""
    counts = texts.statistics("bleu", [text], [references])[0]
    return np.array([counts[0], counts[4]])


def _matched(known: Callable[[str, list[Counter[str]]], float]) -> Callable[..., np.ndarray]:
    """Another rule of how often a word may count: (word, counts by reference) -> times."""

    def wrong(text: str, references: Sequence[str]) -> np.ndarray:
        by_reference = [Counter(one.split()) for one in references]
        words = Counter(text.split())
        return np.array([sum(min(n, known(word, by_reference)) for word, n in words.items()), words.total()])

    return wrong


def missing_values(text: str, values: Sequence[str]) -> np.ndarray:
    """Of each value 1 where the text does not say it, else 0: the library's rule."""
    wanted = {f"field {i}": [value] for i, value in enumerate(values)}
    lacks = slots.check(text, " | ".join(f"{field} : {value}" for field, [value] in wanted.items()), wanted).missing
    return np.array([float(field in lacks) for field in wanted])


def resampled_scores(edits: np.ndarray, lengths: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Edit rate of each draw (R,) of texts: edits (N,), reference lengths (N,), draws (R, N) of text numbers."""
    return texts.resampled("ter", np.stack([edits, lengths], axis=1), draws)


_PLAIN = "Blue Spice, near Public Square, serves french food by the river."
_VALUES = ["Blue Spice", "pub", "French", "riverside", "Public Square"]
_EDITS, _LENGTHS = np.array([1.0, 8.0, 0.0, 6.0]), np.array([4.0, 20.0, 9.0, 7.0])
_DRAWS = np.array([[0, 1, 2, 3], [0, 0, 1, 3], [2, 2, 1, 0]])


TASKS: dict[str, Task] = {
    "causal_row": Task(
        causal_row, lambda: [([5, 6, 7], [8, 9], 2), ([3], [4, 4, 8, 1], 2)],
        "tokens: prompt, target, end; labels: −100 for every token of the prompt, then the target and the end",
        [("the prompt is learned, too: its labels must be −100", _labels(lambda tokens, labels: tokens)),
         ("0 is a token like any other; the number that is left out is −100",
          _labels(lambda tokens, labels: np.where(labels == IGNORED, 0, labels))),
         ("that is shifted: tokens and labels stand one above the other, and the model itself compares each label "
          "with what it said one place before", _labels(lambda tokens, labels: np.append(labels[1:], IGNORED))),
         ("the end is not learned: a model that never saw it does not stop",
          _labels(lambda tokens, labels: np.append(labels[:-1], IGNORED))),
         ("that learns the prompt and leaves the target out",
          _labels(lambda tokens, labels: np.where(labels == IGNORED, tokens, IGNORED)))],
        (encode,), shapes="the row has prompt, target and one token for the end"),
    "matched_words": Task(
        matched_words, lambda: [("the the the the pub pub", ["the river", "the pub the"]),
                                ("a a pub pub by the the sea a", ["a pub by a river", "the sea the a"])],
        "each word of the text counts at most as often as it stands in the one reference that has it most often",
        [("a word counts as often as it is written: repeating one good word would win",
          _matched(lambda word, refs: np.inf if any(word in one for one in refs) else 0)),
         ("the references are added up: the most in any one of them is what counts",
          _matched(lambda word, refs: sum(one[word] for one in refs))),
         ("that looks at the first reference alone", _matched(lambda word, refs: refs[0][word])),
         ("that counts different words: a word may count twice if a reference has it twice",
          _matched(lambda word, refs: float(any(word in one for one in refs)))),
         ("that is upside down: first the matches, then the words written",
          lambda text, references: matched_words(text, references)[::-1])],
        (texts._bleu,)),
    "missing_values": Task(
        missing_values, lambda: [(_PLAIN, _VALUES), ("A cheap Pub in the city centre.", ["pub", "heap", "city"])],
        "1 for each value that does not stand in the text as a whole word, whether in capitals or not",
        [("capitals: \"french\" says French",
          lambda text, values: np.array([float(re.search(rf"\b{v}\b", text) is None) for v in values])),
         ("\"Public\" does not say pub: look for whole words (\\b in a regular expression)",
          lambda text, values: np.array([float(v.lower() not in text.lower()) for v in values])),
         ("that is upside down: 1 is for what is missing", lambda text, values: 1 - missing_values(text, values))],
        (slots.check, slots._check_fields)),
    "resampled_scores": Task(
        resampled_scores, lambda: [(_EDITS, _LENGTHS, _DRAWS)],
        "for each row of draws: the edits of the texts drawn, added up, over their lengths, added up",
        [("a mean of each text's own rate: a corpus score adds up first and divides then",
          lambda edits, lengths, draws: (edits / lengths)[draws].mean(1)),
         ("upside down: edits over length",
          lambda edits, lengths, draws: 1 / resampled_scores(edits, lengths, draws)),
         ("the lengths were not drawn: edits and lengths belong to the same texts",
          lambda edits, lengths, draws: edits[draws].sum(1) / lengths.sum()),
         ("that is one set of texts over and over: use the row numbers in draws",
          lambda edits, lengths, draws: np.full(len(draws), edits.sum() / lengths.sum()))],
        (texts.resampled,)),
}

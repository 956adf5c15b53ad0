"""The exercises of 09: where labels go, F1 of entities, a threshold, and what a transfer accuracy is worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from .. import entities
from ..features import IGNORED, _encode_tags, encode
from ..style_transfer import score_transfer
from ..tasks import TASKS as ALL_TASKS
from .engine import Task

# T pieces of a sentence, W words

Span = tuple[int, int, str]


class _Batch(dict):
    """What a tokenizer returns for one sentence, with the cut into pieces given."""

    def __init__(self, word_of: Sequence[int | None]) -> None:
        super().__init__(input_ids=[[0] * len(word_of)], attention_mask=[[1] * len(word_of)])
        self.word_of = list(word_of)

    def word_ids(self, sentence: int) -> list[int | None]:
        """Of every piece the number of its word."""
        return self.word_of


def align_labels(word_of: Sequence[int | None], tags: Sequence[int]) -> list[int]:
    """Labels (T,) as the library's `encode` gives them for pieces that belong to these words."""
    task = ALL_TASKS["wnut16"]
    frame = pd.DataFrame({task.text[0]: [[str(i) for i in range(len(tags))]], task.label: [list(tags)]})
    tokenizer: Any = lambda *_, **__: _Batch(word_of)  # noqa: E731
    return encode(frame, task, tokenizer)[0]["labels"]


def entity_f1(gold: Sequence[Span], found: Sequence[Span]) -> float:
    """F1 by the library, of entities given as (start, end, type)."""
    right = len(set(gold) & set(found))
    return float(entities.f1(np.array([right, len(set(found)), len(set(gold))])))


def precision_recall(confidence: np.ndarray, right: np.ndarray, annotated: int, threshold: float) -> list[float]:
    """[precision, recall] of the entities whose confidence is at least the threshold."""
    return list(entities.Curve(confidence, right, annotated).at(threshold)[:2])


@dataclass(frozen=True)
class _Known:
    """A classifier that has been asked before."""

    codes: dict[str, int]
    accuracy: float = 1.0

    def predict(self, texts: Sequence[str]) -> list[int]:
        """The code of each text."""
        return [self.codes[text] for text in texts]


def transfer_gain(texts: Sequence[str], after: Sequence[int], before: Sequence[int], wanted: Sequence[int]
                  ) -> list[float]:
    """[accuracy of the texts, the same of the sources], by the library's `score_transfer`."""
    sources = [f"source {i}" for i in range(len(texts))]
    codes = dict(zip([*sources, *texts], [*before, *after], strict=True))
    frame = pd.DataFrame({"source": sources, "written": list(texts), "wanted": list(wanted),
                          "references": [[] for _ in texts]})
    scores = score_transfer(frame, _Known(codes))
    return [scores["accuracy"], scores["source_accuracy"]]


def _relabelled(change: Callable[[int, int | None, list[int]], int]) -> Callable[..., list[int]]:
    """A mistake in the label of a piece: (label, its word, tags) -> label."""
    return lambda word_of, tags: [change(label, word, list(tags))
                                  for label, word in zip(align_labels(word_of, tags), word_of, strict=True)]


def _last_piece(word_of: Sequence[int | None], tags: Sequence[int]) -> list[int]:
    return align_labels(word_of[::-1], tags)[::-1]


def _spans(change: Callable[[Span], Any]) -> Callable[..., float]:
    """A mistake that sees less of an entity than it is."""
    return lambda gold, found: entity_f1([change(s) for s in gold], [change(s) for s in found])


def _words_of(spans: Sequence[Span]) -> list[Span]:
    return [(i, i + 1, kind) for start, end, kind in spans for i in range(start, end)]


def _one_side(which: int) -> Callable[..., float]:
    """Precision (0) or recall (1) alone."""
    return lambda gold, found: len(set(gold) & set(found)) / len((found, gold)[which])


_GOLD: list[Span] = [(0, 2, "DNA"), (4, 5, "protein"), (7, 9, "protein"), (11, 12, "RNA"), (14, 15, "protein"),
                     (17, 19, "DNA")]
_FOUND: list[Span] = [(0, 2, "DNA"), (4, 6, "protein"), (7, 9, "DNA"), (14, 15, "protein"), (17, 19, "RNA")]
_CONFIDENCE, _RIGHT = np.array([0.9, 0.8, 0.6, 0.6, 0.4]), np.array([True, True, False, True, True])
_TEXTS, _WANTED = ["good food !", "bad food .", "", "fine .", "ugly .", "cold ."], [1, 1, 1, 0, 0, 0]
_AFTER, _BEFORE = [1, 0, 1, 1, 0, 0], [0, 0, 0, 1, 0, 1]

TASKS: dict[str, Task] = {
    "align_labels": Task(
        align_labels, lambda: [([None, 0, 1, 1, 2, None], [0, 3, 4]), ([None, 0, 0, 0, 1, 2, 2, None], [5, 6, 0])],
        "walk over the pieces: the first of each word gets the word's tag, every other piece and [CLS], [SEP] get "
        "-100",
        [("every piece has its word's tag: then a word counts once for each piece, and B- begins twice",
          _relabelled(lambda label, word, tags: IGNORED if word is None else tags[word])),
         ("the pieces after the first have O (0): they are to be left out (-100), not to be learned as outside",
          _relabelled(lambda label, word, tags: 0 if word is not None and label == IGNORED else label)),
         ("[CLS] and [SEP] have O (0): they are no words, leave them out with -100",
          _relabelled(lambda label, word, tags: 0 if word is None else label)),
         ("the tag stands on the last piece of each word; here it stands on the first", _last_piece)],
        (_encode_tags,), "labels is as long as word_of: one number a piece"),
    "entity_f1": Task(
        entity_f1, lambda: [(_GOLD, _FOUND), (_FOUND, _GOLD)],
        "right are those in both lists with start, end and type the same; F1 = 2 · right / (annotated + found)",
        [("the type is not looked at", _spans(lambda s: s[:2])),
         ("only the start is looked at: an entity that ends elsewhere is wrong, too",
          _spans(lambda s: (s[0], s[2]))),
         ("that counts words, not entities: half an entity is no entity",
          lambda gold, found: entity_f1(_words_of(gold), _words_of(found))),
         ("that is precision alone: what was missed costs nothing there", _one_side(0)),
         ("that is recall alone: what was invented costs nothing there", _one_side(1))],
        (entities.counts, entities.f1)),
    "precision_recall": Task(
        precision_recall, lambda: [(_CONFIDENCE, _RIGHT, 8, 0.6), (_CONFIDENCE, _RIGHT, 6, 0.8)],
        "keep what is at least so sure; precision: share of the kept that is right; recall: share of the annotated "
        "that is kept and right",
        [("precision is over what is kept, not over all that was predicted",
          lambda c, r, n, t: [precision_recall(c, r & (c >= t), n, 0.0)[0], precision_recall(c, r, n, t)[1]]),
         ("recall is over all annotated entities, not only over those that were predicted",
          lambda c, r, n, t: precision_recall(c, r, int(r.sum()), t)),
         ("“at least” includes the threshold itself: use ≥", lambda c, r, n, t: precision_recall(c, r, n, t + 1e-6)),
         ("the two stand the wrong way round: precision first", lambda *a: precision_recall(*a)[::-1])],
        (entities.Curve,)),
    "transfer_gain": Task(
        transfer_gain, lambda: [(_TEXTS, _AFTER, _BEFORE, _WANTED)],
        "two shares: of the written texts, and of the sources, that the classifier takes for the wanted style; an "
        "empty text is never a success",
        [("an empty text has no style, whatever the classifier says about it: count it as a failure",
          lambda texts, after, before, wanted: transfer_gain([t or "?" for t in texts], after, before, wanted)),
         ("the style is to be the wanted one: you count where it stayed",
          lambda texts, after, before, wanted: transfer_gain(texts, after, before, [1 - w for w in wanted])),
         ("the wrong way round: first the written texts, then the sources",
          lambda *a: transfer_gain(*a)[::-1]),
         ("the second is the gain; return the sources' own share, so that both can be seen",
          lambda *a: [transfer_gain(*a)[0], transfer_gain(*a)[0] - transfer_gain(*a)[1]])],
        (score_transfer,)),
}

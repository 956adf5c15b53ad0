"""Entities in tagged sentences: spans, what is wrong with a wrong one, F1 by type with an interval, a threshold.

A tagger gives every word a BIO tag: B-protein begins a protein, I-protein goes on with it, O is outside. What counts
is the whole entity: its type and both of its ends (the scoring of CoNLL and JNLPBA). Spans are read by seqeval, as
in `metrics`; here is what a single F1 hides. Numbers and words only: no model. Taught in 09.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Tags = Sequence[str]
RIGHT, WRONG_TYPE, WRONG_BORDER, WRONG_BOTH = "right", "wrong type", "wrong border", "wrong type and border"
MISSED, INVENTED = "missed", "invented"
OUTCOMES = (RIGHT, WRONG_TYPE, WRONG_BORDER, WRONG_BOTH, MISSED, INVENTED)


@dataclass(frozen=True, order=True)
class Entity:
    """Words start … end − 1 of a sentence, and their type."""

    start: int
    end: int
    kind: str

    def shared(self, other: Entity) -> int:
        """How many words both cover."""
        return max(0, min(self.end, other.end) - max(self.start, other.start))


@dataclass(frozen=True)
class Match:
    """An annotated entity and the predicted one that it is held against; one of the two may be None."""

    gold: Entity | None
    predicted: Entity | None

    @property
    def outcome(self) -> str:
        """One of OUTCOMES."""
        if self.gold is None or self.predicted is None:
            return MISSED if self.gold else INVENTED
        border = (self.gold.start, self.gold.end) == (self.predicted.start, self.predicted.end)
        if self.gold.kind == self.predicted.kind:
            return RIGHT if border else WRONG_BORDER
        return WRONG_TYPE if border else WRONG_BOTH


def kinds_of(labels: Tags) -> list[str]:
    """The types of entity behind a task's tags, in their order."""
    return list(dict.fromkeys(label[2:] for label in labels if label != "O"))


def entities(tags: Tags) -> list[Entity]:
    """The entities of one sentence, from left to right.

    An I- that follows no entity of its type begins one, as in the official scripts.

    Raises:
        ImportError: seqeval is not installed.
    """
    try:
        from seqeval.metrics.sequence_labeling import get_entities
    except ImportError as error:
        raise ImportError("entities are read by seqeval: pip install 'lowrank-teach[lab]'") from error
    return [Entity(start, last + 1, kind) for kind, start, last in get_entities(list(tags))]


def compare(gold: Sequence[Entity], predicted: Sequence[Entity]) -> list[Match]:
    """Every entity of both sides once, from left to right: equal spans are paired first, then what overlaps most.

    nervaluate pairs otherwise (it may hold two predicted entities against one annotated) and does not give the pairs.
    """
    pairs = [((g.start, g.end) != (p.start, p.end), -g.shared(p), g.kind != p.kind, g, p)
             for g in gold for p in predicted if g.shared(p)]
    left, right, found = set(gold), set(predicted), []
    for *_, g, p in sorted(pairs):
        if g in left and p in right:
            found.append(Match(g, p))
            left.remove(g)
            right.remove(p)
    found += [Match(g, None) for g in left] + [Match(None, p) for p in right]
    return sorted(found, key=lambda match: (match.gold or match.predicted, match.predicted is None))


def remarks(gold: Tags, predicted: Tags) -> tuple[list[tuple[int, int, str, str]], list[tuple[int, int, str, str]]]:
    """(start, end, type, remark) of the annotated entities ("missed", or nothing) and of the predicted ones."""
    matches = compare(entities(gold), entities(predicted))
    missed = [(m.gold, MISSED if m.predicted is None else "") for m in matches if m.gold]
    found = [(m.predicted, m.outcome) for m in matches if m.predicted]
    first, second = ([(e.start, e.end, e.kind, remark) for e, remark in sorted(side)] for side in (missed, found))
    return first, second


def outcomes(gold: Sequence[Tags], predicted: Sequence[Tags]) -> dict[str, int]:
    """Outcome -> how often, over N sentences of tags."""
    counted = dict.fromkeys(OUTCOMES, 0)
    for g, p in zip(gold, predicted, strict=True):
        for match in compare(entities(g), entities(p)):
            counted[match.outcome] += 1
    return counted


def confusion(gold: Sequence[Tags], predicted: Sequence[Tags], kinds: Sequence[str]) -> np.ndarray:
    """Counts (K + 1, K + 1): row the annotated type, column the predicted one; last row invented, last column missed.

    Borders need not be right here, overlap is enough.
    """
    table = np.zeros((len(kinds) + 1, len(kinds) + 1), dtype=int)
    place = {kind: i for i, kind in enumerate(kinds)}
    for g, p in zip(gold, predicted, strict=True):
        for match in compare(entities(g), entities(p)):
            row = place[match.gold.kind] if match.gold else len(kinds)
            table[row, place[match.predicted.kind] if match.predicted else len(kinds)] += 1
    return table


# ---- F1 ----------------------------------------------------------------------------------------------------------


def counts(gold: Sequence[Tags], predicted: Sequence[Tags], kinds: Sequence[str]) -> np.ndarray:
    """(N, K, 3): of each sentence and type how many entities are right, predicted, annotated. A sum gives any F1."""
    table = np.zeros((len(gold), len(kinds), 3), dtype=int)
    place = {kind: i for i, kind in enumerate(kinds)}
    for n, (g, p) in enumerate(zip(gold, predicted, strict=True)):
        wanted, found = set(entities(g)), set(entities(p))
        for column, group in enumerate((wanted & found, found, wanted)):
            for entity in group:
                table[n, place[entity.kind], column] += 1
    return table


def f1(counted: np.ndarray) -> np.ndarray:
    """F1 (…) of counts (…, 3): 2 · right / (predicted + annotated); 0 where there is neither."""
    total = counted[..., 1] + counted[..., 2]
    return np.divide(2.0 * counted[..., 0], total, out=np.zeros(total.shape), where=total > 0)


def interval(counted: np.ndarray, level: float = 0.95, *, resamples: int = 1000, seed: int = 0) -> np.ndarray:
    """(K + 1, 2): the middle `level` of F1 over resampled sentences, by type and, last, over all types.

    counted: (N, K, 3) from `counts`. Sentences are drawn with replacement, N of N: the percentile bootstrap. It says
    how far another sample of sentences would move the score of *this* network, not what another seed would do.
    """
    n = len(counted)
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)       # (R, N)
    sums = np.einsum("rn,nkc->rkc", draws, counted)                                            # (R, K, 3)
    scores = np.concatenate([f1(sums), f1(sums.sum(1))[:, None]], axis=1)                      # (R, K + 1)
    return np.quantile(scores, [(1 - level) / 2, (1 + level) / 2], axis=0).T


def token_accuracy(gold: Sequence[Tags], predicted: Sequence[Tags]) -> float:
    """Share of words with the right tag: high for a tagger that only ever says O."""
    same = [a == b for g, p in zip(gold, predicted, strict=True) for a, b in zip(g, p, strict=True)]
    return float(np.mean(same))


# ---- how sure ----------------------------------------------------------------------------------------------------


def predicted_tags(probabilities: Sequence[np.ndarray], labels: Tags) -> list[list[str]]:
    """The likeliest tag of every word; probabilities: (W, C) a sentence."""
    return [[labels[i] for i in p.argmax(1)] for p in probabilities]


def confidences(probabilities: np.ndarray, labels: Tags) -> dict[Entity, float]:
    """Every predicted entity of a sentence -> the probability of its least certain word. probabilities: (W, C)."""
    best = probabilities.max(1)                                                                # (W,)
    tags = predicted_tags([probabilities], labels)[0]
    return {entity: float(best[entity.start:entity.end].min()) for entity in entities(tags)}


def at_threshold(sure: Mapping[Entity, float], threshold: float) -> list[Entity]:
    """The entities that are at least so sure."""
    return [entity for entity, confidence in sure.items() if confidence >= threshold]


@dataclass(frozen=True)
class Curve:
    """Precision, recall and F1 of a tagger that keeps entities from a threshold on.

    confidence (P,), descending, and right (P,), of every predicted entity; annotated: how many there are to find.
    """

    confidence: np.ndarray
    right: np.ndarray
    annotated: int

    def at(self, threshold: float) -> tuple[float, float, float]:
        """(precision, recall, F1) at one threshold; precision is 1 where nothing is left to be wrong."""
        kept = self.confidence >= threshold
        true, found = int(self.right[kept].sum()), int(kept.sum())
        return (true / found if found else 1.0, true / max(self.annotated, 1),
                float(f1(np.array([true, found, self.annotated]))))


def curve(probabilities: Sequence[np.ndarray], gold: Sequence[Tags], labels: Tags) -> Curve:
    """The curve of N sentences: probabilities (W, C) each, and their annotated tags."""
    pairs, annotated = [], 0
    for p, tags in zip(probabilities, gold, strict=True):
        wanted = set(entities(tags))
        annotated += len(wanted)
        pairs += [(sure, entity in wanted) for entity, sure in confidences(p, labels).items()]
    pairs.sort(reverse=True)
    return Curve(np.array([sure for sure, _ in pairs]), np.array([hit for _, hit in pairs], dtype=bool), annotated)

"""Answers to the exercises of 09."""

import numpy as np


def _labels(word_of, tags, rest=-100, special=-100):
    before, out = None, []
    for word in word_of:
        out.append(special if word is None else tags[word] if word != before else rest)
        before = word
    return out


def _f1(gold, found):
    gold, found = set(gold), set(found)
    return 2 * len(gold & found) / (len(gold) + len(found))


def _both(confidence, right, annotated, threshold):
    kept = confidence >= threshold
    return [(right & kept).sum() / kept.sum(), (right & kept).sum() / annotated]


def _words(spans):
    return {(i, kind) for start, end, kind in spans for i in range(start, end)}


def _share(codes, wanted):
    return float(np.mean([code == want for code, want in zip(codes, wanted, strict=True)]))


def _gain(texts, after, before, wanted):
    hits = [bool(t) and code == want for t, code, want in zip(texts, after, wanted, strict=True)]
    return [float(np.mean(hits)), _share(before, wanted)]


def _entities(tags, own_type=True, begins=True, last=True, stray=True):
    """Spans of BIO tags; each switch off is a mistake."""
    found, start = [], None
    for i, tag in enumerate([*tags, "O"] if last else tags):
        inside = start is not None and tag[:2] == "I-" and (tag[2:] == tags[start][2:] or not own_type)
        inside = inside or (start is not None and not begins and tag[2:] == tags[start][2:] and tag != "O")
        if start is not None and not inside:
            found.append((start, i, tags[start][2:]))
            start = None
        if not inside and (tag[:2] == "B-" or (stray and tag[:2] == "I-")):
            start = i
    return found


WRONG = {
    "read_entities": {
        "at the end of the sentence is lost": lambda tags: _entities(tags, last=False),
        "two neighbours of one type": lambda tags: _entities(tags, begins=False),
        "of another type does not go on": lambda tags: _entities(tags, own_type=False),
        "the word after the last one": lambda tags: [(s, e - 1, kind) for s, e, kind in _entities(tags)],
        "follows no entity of its type": lambda tags: _entities(tags, stray=False),
        "B- always begins": lambda tags: [],
        "returned nothing": lambda tags: None,
    },
    "align_labels": {
        "every piece has its word's tag": lambda word_of, tags: [-100 if w is None else tags[w] for w in word_of],
        "after the first have O": lambda word_of, tags: _labels(word_of, tags, rest=0),
        "they are no words": lambda word_of, tags: _labels(word_of, tags, special=0),
        "on the last piece": lambda word_of, tags: _labels(word_of[::-1], tags)[::-1],
        "returned shape": lambda word_of, tags: list(tags),
        "returned nothing": lambda word_of, tags: None,
    },
    "entity_f1": {
        "type is not looked at": lambda gold, found: _f1([s[:2] for s in gold], [s[:2] for s in found]),
        "only the start": lambda gold, found: _f1([(s[0], s[2]) for s in gold], [(s[0], s[2]) for s in found]),
        "counts words": lambda gold, found: _f1(_words(gold), _words(found)),
        "precision alone": lambda gold, found: len(set(gold) & set(found)) / len(found),
        "recall alone": lambda gold, found: len(set(gold) & set(found)) / len(gold),
        "start, end and type": lambda gold, found: 0.123,
    },
    "precision_recall": {
        "over what is kept": lambda c, r, n, t: [(r & (c >= t)).sum() / len(c), (r & (c >= t)).sum() / n],
        "over all annotated": lambda c, r, n, t: [_both(c, r, n, t)[0], (r & (c >= t)).sum() / r.sum()],
        "use ≥": lambda c, r, n, t: [r[c > t].mean(), r[c > t].sum() / n],
        "precision first": lambda *a: _both(*a)[::-1],
        "returned nothing": lambda *a: None,
    },
    "transfer_gain": {
        "count it as a failure": lambda t, after, before, wanted: [_share(after, wanted), _share(before, wanted)],
        "you count where it stayed": lambda t, after, before, wanted: _gain(t, after, before,
                                                                            [1 - w for w in wanted]),
        "first the written texts": lambda *a: _gain(*a)[::-1],
        "the second is the gain": lambda *a: [_gain(*a)[0], _gain(*a)[0] - _gain(*a)[1]],
        "two shares": lambda *a: [0.0, 0.0],
    },
}
RIGHT = {
    "read_entities": _entities,
    "align_labels": _labels,
    "entity_f1": _f1,
    "precision_recall": _both,
    "transfer_gain": _gain,
}

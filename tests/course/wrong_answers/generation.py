"""Answers to the exercises of 08."""

import re
from collections import Counter

import numpy as np

OUT = -100


def _row(prompt, target, end):
    return np.array([[*prompt, *target, end], [OUT] * len(prompt) + [*target, end]])


def _matches(text, references):
    best = Counter()
    for one in references:
        best |= Counter(one.split())
    return np.array([(Counter(text.split()) & best).total(), len(text.split())])


def _total(counters):
    whole = Counter()
    for one in counters:
        whole += one
    return whole


def _counted(text, allowed):
    return np.array([(Counter(text.split()) & allowed).total(), len(text.split())])


def _missing(text, values, flags=re.I):
    return np.array([float(not re.search(rf"\b{re.escape(v)}\b", text, flags)) for v in values])


def _rates(edits, lengths, draws):
    return np.array([edits[d].sum() / lengths[d].sum() for d in draws])


WRONG = {
    "causal_row": {
        "prompt is learned": lambda p, t, e: np.array([[*p, *t, e]] * 2),
        "0 is a token": lambda p, t, e: np.array([[*p, *t, e], [0] * len(p) + [*t, e]]),
        "that is shifted": lambda p, t, e: np.array([[*p, *t, e], [OUT] * (len(p) - 1) + [*t, e, OUT]]),
        "does not stop": lambda p, t, e: np.array([[*p, *t, e], [OUT] * len(p) + [*t, OUT]]),
        "leaves the target out": lambda p, t, e: np.array([[*p, *t, e], [*p] + [OUT] * (len(t) + 1)]),
        "returned shape (2, 5)": lambda p, t, e: np.array([[*p, *t], [OUT] * len(p) + [*t]]),
        "returned nothing": lambda p, t, e: None,
    },
    "matched_words": {
        "repeating one good word": lambda text, refs: np.array(
            [sum(any(w in one.split() for one in refs) for w in text.split()), len(text.split())]),
        "added up": lambda text, refs: _counted(text, _total(Counter(one.split()) for one in refs)),
        "first reference alone": lambda text, refs: _counted(text, Counter(refs[0].split())),
        "counts different words": lambda text, refs: _counted(text, Counter(set(" ".join(refs).split()))),
        "upside down": lambda text, refs: _matches(text, refs)[::-1],
        "still the stub": lambda text, refs: (_ for _ in ()).throw(NotImplementedError),
        "returned nothing": lambda text, refs: None,
    },
    "missing_values": {
        "capitals": lambda text, values: _missing(text, values, 0),
        "whole words": lambda text, values: np.array([float(v.lower() not in text.lower()) for v in values]),
        "1 is for what is missing": lambda text, values: 1 - _missing(text, values),
        "returned shape (1,)": lambda text, values: _missing(text, values).sum(),
        "returned nothing": lambda text, values: None,
    },
    "resampled_scores": {
        "divides then": lambda e, n, draws: np.array([np.mean(e[d] / n[d]) for d in draws]),
        "edits over length": lambda e, n, draws: 1 / _rates(e, n, draws),
        "lengths were not drawn": lambda e, n, draws: np.array([e[d].sum() / n.sum() for d in draws]),
        "over and over": lambda e, n, draws: np.full(len(draws), e.sum() / n.sum()),
        "returned shape (1,)": lambda e, n, draws: np.mean(_rates(e, n, draws)),
        "returned nothing": lambda e, n, draws: None,
    },
}
RIGHT = {"causal_row": _row, "matched_words": _matches, "missing_values": _missing, "resampled_scores": _rates}

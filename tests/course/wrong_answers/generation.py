"""Answers to the exercises of 08."""

import re
from collections import Counter

import numpy as np

OUT = -100


def _row(prompt, target, end):
    return np.array([[*prompt, *target, end], [OUT] * len(prompt) + [*target, end]])


def _groups(text, n):
    words = text.split()
    return Counter(tuple(words[i:i + n]) for i in range(len(words) - n + 1))


def _matches(text, references, n):
    best = Counter()
    for one in references:
        best |= _groups(one, n)
    return _counted(text, best, n)


def _total(counters):
    whole = Counter()
    for one in counters:
        whole += one
    return whole


def _counted(text, allowed, n):
    return np.array([(_groups(text, n) & allowed).total(), _groups(text, n).total()])


def _next(logits, done, end):
    return [end if over else int(row[-1].argmax()) for row, over in zip(logits, done, strict=True)]


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
    "next_tokens": {
        "first place of each row": lambda logits, done, end: _next(logits[:, :1], done, end),
        "has ended goes on": lambda logits, done, end: logits[:, -1].argmax(-1),
        "upside down": lambda logits, done, end: _next(logits, ~done, end),
        "least likely": lambda logits, done, end: _next(-logits, done, end),
        "reads the first place, and a text": lambda logits, done, end: logits[:, 0].argmax(-1),
        "returned shape (4, 5)": lambda logits, done, end: logits.argmax(-1),
        "returned nothing": lambda logits, done, end: None,
    },
    "matched_groups": {
        "repeating a good one": lambda text, refs, n: np.array(
            [sum(k for g, k in _groups(text, n).items() if any(g in _groups(one, n) for one in refs)),
             _groups(text, n).total()]),
        "added up": lambda text, refs, n: _counted(text, _total(_groups(one, n) for one in refs), n),
        "first reference alone": lambda text, refs, n: _counted(text, _groups(refs[0], n), n),
        "counts different groups": lambda text, refs, n: np.array(
            [sum(any(g in _groups(one, n) for one in refs) for g in _groups(text, n)), _groups(text, n).total()]),
        "counts single words": lambda text, refs, n: _matches(text, refs, 1),
        "upside down": lambda text, refs, n: _matches(text, refs, n)[::-1],
        "still the stub": lambda text, refs, n: (_ for _ in ()).throw(NotImplementedError),
        "returned nothing": lambda text, refs, n: None,
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
RIGHT = {"causal_row": _row, "next_tokens": _next, "matched_groups": _matches, "missing_values": _missing,
         "resampled_scores": _rates}

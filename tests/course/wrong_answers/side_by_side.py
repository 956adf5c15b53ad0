"""Answers to the exercises of 07."""

import numpy as np
from scipy.stats import t


def _order(rates, scores, losses):
    return rates[np.lexsort([losses.mean(1), -scores.mean(1)])]


def _boot(table, seeds, examples):
    return table[seeds[:, :, None], examples[:, None, :]].mean((1, 2))


def _tost(mean, error, df, margin):
    return max(t.cdf((mean - margin) / error, df), t.sf((mean + margin) / error, df))


def _best(by, test):
    return test[np.arange(len(test)), by.argmax(1)]


WRONG = {
    "order_rates": {
        "the best one comes first": lambda r, s, c: _order(r, s, c)[::-1],
        "take the mean over seeds": lambda r, s, c: r[np.lexsort([c.mean(1), -s.max(1)])],
        "the lower mean loss decides": lambda r, s, c: r[np.lexsort([-c.mean(1), -s.mean(1)])],
        "ranks by loss alone": lambda r, s, c: r[c.mean(1).argsort()],
        "return the rates": lambda r, s, c: np.lexsort([c.mean(1), -s.mean(1)]),
        "returned nothing": lambda r, s, c: None,
    },
    "bootstrap_means": {
        "draw the examples, too": lambda d, s, e: np.array([d[rows].mean() for rows in s]),
        "draw the seeds, too": lambda d, s, e: np.array([d[:, columns].mean() for columns in e]),
        "take its mean": lambda d, s, e: d[s[:, :, None], e[:, None, :]].sum((1, 2)),
        "the mean of the whole table": lambda d, s, e: d.mean() + np.zeros(len(s)),
        "stopped with IndexError": lambda d, s, e: np.array([d[rows, columns].mean()
                                                             for rows, columns in zip(s, e, strict=True)]),
        "returned nothing": lambda d, s, e: None,
    },
    "p_unequal": {
        "a large answer does not show that there is none": lambda m, e, df, margin: t.sf(abs(m) / e, df),
        "equality needs the margin": lambda m, e, df, margin: 2 * t.sf(abs(m) / e, df),
        "the larger of the two": lambda m, e, df, margin: min(
            t.cdf((m - margin) / e, df), t.sf((m + margin) / e, df)),
        "the larger one alone counts": lambda m, e, df, margin: 2 * _tost(m, e, df, margin),
        "1 minus what is asked": lambda m, e, df, margin: 1 - _tost(m, e, df, margin),
        "returned nothing": lambda m, e, df, margin: None,
    },
    "reported_score": {
        "the best on test": lambda validation, test: test.max(1),
        "it is too high": lambda validation, test: validation.max(1),
        "validates worst": lambda validation, test: _best(-validation, test),
        "one run was chosen for all rows": lambda validation, test: test[:, validation.mean(0).argmax()],
        "returned shape (4,)": lambda validation, test: test.max(0),
        "returned nothing": lambda validation, test: None,
    },
}
RIGHT = {"order_rates": _order, "bootstrap_means": _boot, "p_unequal": _tost, "reported_score": _best}

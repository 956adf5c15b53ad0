"""Answers to the exercises of 07."""

import numpy as np


def _best(by, test):
    return test[np.arange(len(test)), by.argmax(1)]


def _integral(n, z, pdf, cdf):
    return float((z * n * pdf * cdf ** (n - 1)).sum() * (z[1] - z[0]))


def _over_tasks(a, b):
    return np.array([100 * np.mean([a[task][seed] - b[task][seed] for task in a]) for seed in sorted(a["rt"])])


def _ahead(a, b, tie=0.5):
    return np.array([sum(1 if a[t][seed] > b[t][seed] else tie if a[t][seed] == b[t][seed] else 0 for t in a)
                     for seed in sorted(a["rt"])])


WRONG = {
    "reported_score": {
        "the best on test": lambda validation, test: test.max(1),
        "it is too high": lambda validation, test: validation.max(1),
        "validates worst": lambda validation, test: _best(-validation, test),
        "one run was chosen for all rows": lambda validation, test: test[:, validation.mean(0).argmax()],
        "returned shape (4,)": lambda validation, test: test.max(0),
        "returned nothing": lambda validation, test: None,
    },
    "expected_best": {
        "the exponent is n − 1": lambda n, z, pdf, cdf: (z * n * pdf * cdf**n).sum() * (z[1] - z[0]),
        "the factor n is missing": lambda n, z, pdf, cdf: _integral(n, z, pdf, cdf) / n,
        "a sum is no integral": lambda n, z, pdf, cdf: (z * n * pdf * cdf ** (n - 1)).sum(),
        "z is missing": lambda n, z, pdf, cdf: (n * pdf * cdf ** (n - 1)).sum() * (z[1] - z[0]),
        "returned nothing": lambda n, z, pdf, cdf: None,
    },
    "difference_over_tasks": {
        "multiply by 100": lambda a, b: _over_tasks(a, b) / 100,
        "second − first": lambda a, b: _over_tasks(b, a),
        "take their mean": lambda a, b: 3 * _over_tasks(a, b),
        "pairs by place": lambda a, b: 100 * np.mean(
            [np.array(list(a[t].values())) - np.array(list(b[t].values())) for t in a], 0),
        "returned shape (1,)": lambda a, b: _over_tasks(a, b).mean(),
        "stopped with TypeError": lambda a, b: [x - y for x, y in zip(a.values(), b.values(), strict=True)],
    },
    "tasks_ahead": {
        "not zero": lambda a, b: _ahead(a, b, 0),
        "not one": lambda a, b: _ahead(a, b, 1),
        "behind": lambda a, b: 3 - _ahead(a, b),
        "a share": lambda a, b: _ahead(a, b) / 3,
        "returned shape (1,)": lambda a, b: _ahead(a, b).mean(),
        "returned nothing": lambda a, b: None,
    },
}
RIGHT = {"reported_score": lambda validation, test: _best(validation, test), "expected_best": _integral,
         "difference_over_tasks": _over_tasks, "tasks_ahead": _ahead}

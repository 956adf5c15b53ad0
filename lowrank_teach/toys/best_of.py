"""What choosing does to a comparison: runs of one method that differ by chance, and the best of them reported.

    validation score  =  √shared · run  +  √(1 − shared) · noise of the validation rows
    test score        =  √shared · run  +  √(1 − shared) · noise of the test rows

In units of one standard deviation of a run's score. What a run has in both splits (its start, its order of rows) is
`shared`; the rest belongs to the rows of one split. No run is better than another by its configuration. Taught in 07.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from scipy.stats import norm

# R repetitions of a comparison, n learning rates, m seeds of each
WAYS = ("best on test", "best on validation", "by validation, then new seeds")
REACH, CELLS = 8.0, 4000   # of the integral: from −8 to 8 standard deviations


def expected_best(n: int) -> float:
    """Mean of the largest of n standard normal numbers: ∫ z · n φ(z) Φ(z)^(n − 1) dz.

    Raises:
        ValueError: n is below 1.
    """
    if n < 1:
        raise ValueError(f"the best of {n} runs: there must be one at least")
    z = np.linspace(-REACH, REACH, CELLS + 1)
    return float(np.sum(z * n * norm.pdf(z) * norm.cdf(z) ** (n - 1)) * (z[1] - z[0]))


def draw(repetitions: int, rates: int, seeds: int, seed: int = 0) -> np.ndarray:
    """Standard normal numbers (3, R, n, m): of the run, of its validation rows, of its test rows."""
    return np.random.default_rng(seed).standard_normal((3, repetitions, rates, seeds))


def scores(drawn: np.ndarray, shared: float) -> tuple[np.ndarray, np.ndarray]:
    """Validation and test score of each rate, (R, n) each: the mean over its seeds.

    Args: drawn (3, R, n, m), as `draw` gives them; shared: the share of the variance that both splits see, 0 to 1.
    """
    run, validation, test = drawn.mean(3)                                               # (R, n) each
    own, rows = math.sqrt(shared), math.sqrt(1 - shared)
    return own * run + rows * validation, own * run + rows * test


def reported(by: np.ndarray, test: np.ndarray) -> np.ndarray:
    """The test score that is reported (R,): of the rate that is best by `by` (R, n), which may be `test` itself."""
    return np.take_along_axis(test, by.argmax(1, keepdims=True), 1)[:, 0]


def ways(validation: np.ndarray, test: np.ndarray, fresh: np.ndarray) -> Mapping[str, np.ndarray]:
    """Way of choosing -> what is reported (R,).

    Args: scores of the rates (R, n); fresh: of other seeds at the chosen rate (R,); here every rate has the same.
    """
    return dict(zip(WAYS, (reported(test, test), reported(validation, test), fresh), strict=True))


def expected(rates: int, seeds: int, shared: float) -> dict[str, float]:
    """Way of choosing -> how much it adds on average to what a method without a grid reports."""
    gain = expected_best(rates) / math.sqrt(seeds)
    return dict(zip(WAYS, (gain, shared * gain, 0.0), strict=True))

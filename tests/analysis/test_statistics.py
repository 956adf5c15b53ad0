"""Intervals over seeds and examples: they hold the truth as often as they say, on tables like our records."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from lowrank_teach.analysis.statistics import paired_mean, t_interval


@pytest.mark.parametrize(("S", "E", "spreads"), [
    (5, 872, (0.004, 0.1, 0.25)), (5, 500, (0.01, 0.1, 0.25)), (10, 872, (0.004, 0.1, 0.25)),
    (5, 872, (0, 0.15, 0.25))])
def test_a_paired_mean_holds_the_truth_as_often_as_it_says(S, E, spreads):
    """Within 2 points of its level; over 1,500 tables it was 93.4 to 96.5 %. The limits add four standard errors."""
    draw = np.random.default_rng(0)
    of_seed, of_example, rest = spreads
    tables = (draw.normal(0, of_seed, (S, 1)) + draw.normal(0, of_example, (1, E)) + draw.normal(0, rest, (S, E))
              for _ in range(300))
    found = [paired_mean(table) for table in tables]
    for level in (0.95, 0.9):
        inside = np.mean([low <= 0 <= high for low, high in (one.interval(level) for one in found)])
        assert abs(inside - level) < 0.02 + 4 * (level * (1 - level) / 300) ** 0.5


def test_a_paired_mean_of_one_example_is_students():
    d = [0.4, -0.1, 0.3, 0.2, 0.25]
    found, wanted = paired_mean([[x] for x in d]), ttest_1samp(d, 0)
    assert found.interval() == pytest.approx(t_interval(d))
    assert found.p_value() == pytest.approx(wanted.pvalue)
    low, high = found.interval(0.9)
    assert low > -high
    assert found.p_unequal(high + 1e-9) < 0.05 < found.p_unequal(high - 1e-9)   # where the 90 % interval just fits
    low = paired_mean([[x + 1] for x in d]).interval()[0]
    above, below = (paired_mean([[sign * (x + 1)] for x in d]) for sign in (1, -1))
    for one in (above, below):   # where the 95 % interval lies just beyond the margin
        assert one.p_value(low - 1e-9) < 0.05 < one.p_value(low + 1e-9)
        assert one.p_value(2.0) == 1.0


def test_a_table_that_says_nothing_is_refused():
    for bad in ([[0.1, 0.2]], [[0.1], [math.nan]], [0.1, 0.2]):
        with pytest.raises(ValueError, match="needs a table of finite differences"):
            paired_mean(bad)


def tables(true: float, S: int = 5, E: int = 872, count: int = 600):
    """Tables of differences of two methods, as scattered as those of our records, around a true difference."""
    draw = np.random.default_rng(1)
    for _ in range(count):
        yield true + draw.normal(0, 0.004, (S, 1)) + draw.normal(0, 0.1, (1, E)) + draw.normal(0, 0.25, (S, E))


def rate(found, level: float) -> tuple[float, float]:
    """How often something was found, and four standard errors of that."""
    found = list(found)
    return float(np.mean(found)), 4 * (level * (1 - level) / len(found)) ** 0.5


def test_a_planted_difference_is_found_and_a_planted_null_is_not():
    """Two-sided at 5 %; the detectable difference is found in four of five cases."""
    found, error = rate((paired_mean(table).p_value() < 0.05 for table in tables(0.0)), 0.05)
    assert found < 0.07 + error
    able = np.median([paired_mean(table).detectable() for table in tables(0.0, count=100)])
    found, error = rate((paired_mean(table).p_value() < 0.05 for table in tables(able)), 0.8)
    assert 0.75 - error < found < 0.88 + error


def test_equality_is_claimed_wrongly_in_one_of_twenty_cases_at_most():
    """A true difference of exactly the margin is the hardest case; none at all is recognised where it can be."""
    margin = 0.02
    found, error = rate((paired_mean(table).p_unequal(margin) < 0.05 for table in tables(margin)), 0.05)
    assert found < 0.07 + error
    found, _ = rate((paired_mean(table).p_unequal(margin) < 0.05 for table in tables(0.0)), 0.05)
    assert found > 0.9

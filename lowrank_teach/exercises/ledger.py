"""The exercises of 11: differences by seed, the interval of their mean, the verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ..claims import judge, percentile_interval
from ..claims.verdicts import HOLDS, OPPOSITE
from ..studies import Results
from .engine import Task

Scores = Mapping[int, float]


def paired_differences(first: Scores, second: Scores) -> np.ndarray:
    """first − second on each seed that both have, in the order of the seeds (the library's Results)."""
    records = [{"arm": arm, "seed": seed, "test": {"score": score}}
               for arm, scores in (("first", first), ("second", second)) for seed, score in scores.items()]
    return np.array(Results({}, records).differences("first", "second", "score"))


def bootstrap_interval(differences: Sequence[float], draws: np.ndarray) -> np.ndarray:
    """Low and high end: the middle 95 % of the means of resampled differences."""
    return np.array(percentile_interval(differences, draws))


def judge_intervals(intervals: Sequence[tuple[float, float]], sides: Sequence[str]) -> np.ndarray:
    """For each interval and its claimed side: 1 for holds, −1 for opposite, 0 for neither."""
    numbers = {HOLDS: 1.0, OPPOSITE: -1.0}
    return np.array([numbers.get(judge(*pair), 0.0) for pair in zip(intervals, sides, strict=True)])


def _by_place(first: Scores, second: Scores) -> np.ndarray:
    return np.array([a - b for a, b in zip(first.values(), second.values(), strict=False)])


def _sorted_scores(first: Scores, second: Scores) -> np.ndarray:
    """The library's, on scores that were sorted on both sides first."""
    return paired_differences(dict(zip(sorted(first), sorted(first.values()), strict=True)),
                              dict(zip(sorted(second), sorted(second.values()), strict=True)))


def _spread(differences: Sequence[float], root: bool) -> np.ndarray:
    """mean ± 1.96 sd, or ± 1.96 sd / √n."""
    d = np.asarray(differences, dtype=float)
    half = 1.96 * d.std(ddof=1) / (math.sqrt(len(d)) if root else 1.0)
    return np.array([d.mean() - half, d.mean() + half])


def _level(level: float) -> object:
    return lambda d, draws: np.array(percentile_interval(d, draws, level))


_A = {0: 0.71, 1: 0.74, 2: 0.70, 3: 0.73, 4: 0.75}
_B = {3: 0.72, 0: 0.72, 4: 0.71, 1: 0.70, 2: 0.705}
_INTERVALS = [(0.2, 1.0), (-1.0, -0.2), (-0.1, 1.0), (-1.0, 0.1)] * 2
_D = [1.0, 2.5, -0.5, 3.0, 0.2]


def _draws(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(n, size=(500, n))


TASKS: dict[str, Task] = {
    "paired_differences": Task(
        paired_differences, lambda: [(_A, _B), ({7: 0.5, 1: 0.75, 3: 0.5}, {1: 0.25, 7: 0.625, 9: 1.0})],
        "keep the seeds that both have, in rising order, and take first − second on each",
        [("that pairs by place: the seeds stand in another order in the second", _by_place),
         ("that is second − first: the claim is about first − second", lambda a, b: -paired_differences(a, b)),
         ("the sign is gone: a difference against the claim must stay negative",
          lambda a, b: np.abs(paired_differences(a, b))),
         ("sorting the scores breaks the pairs: a seed's two runs belong together", _sorted_scores),
         ("that is unpaired: one difference of two means, so nothing is left to resample",
          lambda a, b: np.array([np.mean(list(a.values())) - np.mean(list(b.values()))]))],
        (Results.differences,)),
    "bootstrap_interval": Task(
        bootstrap_interval, lambda: [(_D, _draws(5)), ([0.1, 0.4, 0.2, 0.9, 0.3, 0.35], _draws(6))],
        "take the differences that each row of draws names, one mean a row, then the 2.5 % and 97.5 % points",
        [("that leaves 5 % on each side, or out on one side only: 95 % leaves 2.5 % on each", _level(0.9)),  # type: ignore[list-item]
         ("that is the spread of single differences: the interval is of their mean, √n times narrower",
          lambda d, draws: _spread(d, root=False)),
         ("that assumes a normal mean: use the draws", lambda d, draws: _spread(d, root=True)),
         ("those are points of single differences: take a mean of each row first",
          lambda d, draws: np.quantile(np.asarray(d)[draws], [0.025, 0.975])),
         ("those are all of the means, from the least to the largest", _level(1.0)),  # type: ignore[list-item]
         ("that is centred on zero: the interval lies around the mean of the differences",
          lambda d, draws: bootstrap_interval(d, draws) - np.mean(d))],
        (percentile_interval,)),
    "judge_intervals": Task(
        judge_intervals, lambda: [(_INTERVALS, list(">>>><<<<"))],
        "1 if the whole interval is on the claimed side, −1 if the whole of it is on the other, else 0",
        [("for the side \"<\" the verdicts are the other way round",
          lambda intervals, sides: judge_intervals(intervals, [">"] * len(sides))),
         ("an interval that holds zero decides nothing, wherever its middle is",
          lambda intervals, sides: judge_intervals([((a + b) / 2,) * 2 for a, b in intervals], sides)),
         ("an interval wholly on the other side is evidence too: −1",
          lambda intervals, sides: judge_intervals(intervals, sides).clip(min=0)),
         ("that is upside down: 1 is for the claimed side",
          lambda intervals, sides: -judge_intervals(intervals, sides))],
        (judge,)),
}

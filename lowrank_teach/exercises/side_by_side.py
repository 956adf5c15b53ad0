"""The exercises of 07: what is reported after a choice, the best of n, differences over tasks, tasks ahead."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.stats import norm

from ..studies import SideBySide
from ..studies.side_by_side import POINTS
from ..toys import best_of
from .engine import Task

# R comparisons, n runs to choose from
Scores = Mapping[str, Mapping[int, float]]   # task -> seed -> score, of 1 at most


def reported_score(validation: np.ndarray, test: np.ndarray) -> np.ndarray:
    """The test score (R,) of the run that validates best, in each row of (R, n)."""
    return best_of.reported(validation, test)


def expected_best(n: int, z: np.ndarray, pdf: np.ndarray, cdf: np.ndarray) -> float:
    """Mean of the largest of n standard normal numbers; z, pdf, cdf are for those who compute it."""
    return best_of.expected_best(n)


def difference_over_tasks(first: Scores, second: Scores) -> np.ndarray:
    """first − second, one a seed: the mean over tasks, in points (the library's SideBySide)."""
    return np.array(_pair(first, second).difference("first", "second"))


def tasks_ahead(first: Scores, second: Scores) -> np.ndarray:
    """Tasks on which the first is ahead, one count a seed; a tie is one half."""
    return np.array(_pair(first, second).ahead("first", "second"))


def _pair(first: Scores, second: Scores) -> SideBySide:
    return SideBySide({}, [{"arm": arm, "task": task, "seed": seed, "test": {"score": score}}
                           for arm, tasks in (("first", first), ("second", second))
                           for task, seeds in tasks.items() for seed, score in seeds.items()])


def _by_place(first: Scores, second: Scores) -> np.ndarray:
    """The library's, where seeds are thrown away and scores stand by their place."""
    numbered = [{task: dict(enumerate(seeds.values())) for task, seeds in one.items()} for one in (first, second)]
    return difference_over_tasks(*numbered)


def _ties(first: Scores, second: Scores, push: float) -> np.ndarray:
    """The library's, with every tie broken."""
    return tasks_ahead({task: {seed: score + push for seed, score in seeds.items()}
                        for task, seeds in first.items()}, second)


_VALIDATION = np.random.default_rng(0).normal(size=(6, 4))
_TEST = 0.5 * _VALIDATION + np.random.default_rng(1).normal(size=(6, 4))
_Z = np.linspace(-8, 8, 1601)


def _normal(n: int) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    pdf = norm.pdf(_Z)
    return n, _Z, pdf, norm.cdf(_Z)


_FIRST = {"rt": {0: 0.71, 1: 0.74, 2: 0.70}, "trec": {2: 0.80, 0: 0.75, 1: 0.77}, "wic": {0: 0.52, 1: 0.5, 2: 0.5}}
_SECOND = {"rt": {0: 0.70, 1: 0.75, 2: 0.68}, "trec": {0: 0.81, 1: 0.76, 2: 0.80}, "wic": {0: 0.5, 1: 0.5, 2: 0.5}}

TASKS: dict[str, Task] = {
    "reported_score": Task(
        reported_score, lambda: [(_VALIDATION, _TEST)],
        "in each row find the run with the best validation score, and return that run's test score",
        [("that is the best on test: the test rows chose the run, and then judged it",
          lambda validation, test: best_of.reported(test, test)),
         ("that is the validation score: it chose the run, so it is too high; report its test score",
          lambda validation, test: best_of.reported(validation, validation)),
         ("that is the run that validates worst", lambda validation, test: best_of.reported(-validation, test)),
         ("one run was chosen for all rows: each row is a comparison of its own (axis 1)",
          lambda validation, test: test[:, validation.mean(0).argmax()])],
        (best_of.reported,)),
    "expected_best": Task(
        expected_best, lambda: [_normal(3), _normal(10)],
        "sum z · n · pdf · cdf^(n − 1) over the grid, times the distance of two grid points",
        [("the exponent is n − 1: one of the n is the largest, the other n − 1 lie below it",
          lambda n, *_: n / (n + 1) * best_of.expected_best(n + 1)),
         ("the factor n is missing: each of the n can be the largest",
          lambda n, *_: best_of.expected_best(n) / n),
         ("the distance of two grid points is missing: a sum is no integral yet",
          lambda n, z, *_: best_of.expected_best(n) / (z[1] - z[0])),
         ("z is missing: that is the density's whole mass, one", lambda n, *_: 1.0)],
        (best_of.expected_best,)),
    "difference_over_tasks": Task(
        difference_over_tasks, lambda: [(_FIRST, _SECOND)],
        "for each seed take first − second on every task, then the mean over tasks, times 100",
        [("scores are of 1: a point is a hundredth, so multiply by 100",
          lambda a, b: difference_over_tasks(a, b) / POINTS),
         ("that is second − first", lambda a, b: -difference_over_tasks(a, b)),
         ("that is the sum over tasks: take their mean", lambda a, b: len(a) * difference_over_tasks(a, b)),
         ("that pairs by place: the seeds stand in another order", _by_place)],
        (SideBySide.difference, SideBySide.differences)),
    "tasks_ahead": Task(
        tasks_ahead, lambda: [(_FIRST, _SECOND)],
        "for each seed count the tasks with first > second, and one half for each tie",
        [("a tie counts one half, not zero", lambda a, b: _ties(a, b, -1e-9)),
         ("a tie counts one half, not one", lambda a, b: _ties(a, b, 1e-9)),
         ("that counts the tasks on which the first is behind", lambda a, b: tasks_ahead(b, a)),
         ("that is a share: count tasks", lambda a, b: tasks_ahead(a, b) / len(a))],
        (SideBySide.ahead,)),
}

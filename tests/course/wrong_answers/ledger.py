"""Answers to the exercises of 11."""

import numpy as np


def _differences(a, b):
    return np.array([a[s] - b[s] for s in sorted(set(a) & set(b))])


def _interval(d, draws, tail=0.025, centre=0.0):
    return np.quantile(np.asarray(d)[draws].mean(1), [tail, 1 - tail]) - centre


def _judge(intervals, sides, half=1.0):
    """1, −1 or 0 for each; half 0 shrinks every interval to its middle."""
    said = []
    for (low, high), side in zip(intervals, sides, strict=True):
        middle = (low + high) / 2
        low, high = middle + half * (low - middle), middle + half * (high - middle)
        said.append(0 if low <= 0 <= high else 1 if (low > 0) == (side == ">") else -1)
    return np.array(said)


WRONG = {
    "paired_differences": {
        "pairs by place": lambda a, b: np.array([x - y for x, y in zip(a.values(), b.values(), strict=False)]),
        "second − first": lambda a, b: -_differences(a, b),
        "sign is gone": lambda a, b: abs(_differences(a, b)),
        "sorting the scores": lambda a, b: np.sort(list(a.values())) - np.sort(list(b.values())),
        "returned shape (1,)": lambda a, b: np.mean(list(a.values())) - np.mean(list(b.values())),
        "stopped with KeyError": lambda a, b: np.array([a[s] - b[s] for s in sorted(a)]),
        "still the stub": lambda a, b: (_ for _ in ()).throw(NotImplementedError),
        "returned nothing": lambda a, b: None,
    },
    "bootstrap_interval": {
        "leaves 2.5 % on each": lambda d, draws: _interval(d, draws, 0.05),
        "√n times narrower": lambda d, draws: np.mean(d) + 1.96 * np.std(d, ddof=1) * np.array([-1, 1]),
        "use the draws": lambda d, draws: np.mean(d) + 1.96 * np.std(d, ddof=1) / len(d) ** 0.5 * np.array([-1, 1]),
        "mean of each row": lambda d, draws: np.quantile(np.asarray(d)[draws].ravel(), [0.025, 0.975]),
        "least to the largest": lambda d, draws: _interval(d, draws, 0.0),
        "centred on zero": lambda d, draws: _interval(d, draws, centre=np.mean(d)),
        "returned shape": lambda d, draws: np.asarray(d)[draws].mean(1),
        "returned nothing": lambda d, draws: None,
    },
    "judge_intervals": {
        "other way round": lambda intervals, sides: _judge(intervals, ">" * len(sides)),
        "holds zero decides nothing": lambda intervals, sides: _judge(intervals, sides, half=0.0),
        "evidence too": lambda intervals, sides: _judge(intervals, sides).clip(min=0),
        "upside down": lambda intervals, sides: -_judge(intervals, sides),
        "returned nothing": lambda intervals, sides: None,
    },
}
RIGHT = {"paired_differences": _differences, "bootstrap_interval": _interval, "judge_intervals": _judge}

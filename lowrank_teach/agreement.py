"""Do several lists of ranks agree on which matrix needs much? Correlations, and what chance gives. Used by 06."""

from __future__ import annotations

import numpy as np
import pandas as pd

# a table has a row for each matrix and a column for each list (seed, task)


def mean_correlation(lists: pd.DataFrame) -> float:
    """Mean of Pearson's correlations between all pairs of columns; pairs with a constant list are left out.

    nan where no pair is left.
    """
    pairwise = lists.corr().to_numpy()
    return float(pd.Series(pairwise[np.triu_indices(len(pairwise), 1)]).mean())


def by_chance(lists: pd.DataFrame, draws: int = 300, seed: int = 0) -> tuple[float, float]:
    """The 95 % range of `mean_correlation` if each list's ranks were dealt to the matrices at random."""
    draw = np.random.default_rng(seed)
    dealt = [mean_correlation(lists.apply(lambda column: draw.permutation(column))) for _ in range(draws)]
    low, high = pd.Series(dealt).quantile([0.025, 0.975])
    return float(low), float(high)

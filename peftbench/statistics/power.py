"""How many seeds it would take to tell two methods apart."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from peftbench.statistics.scores import Array

POWER = 0.80
MOST_SEEDS = 1000  # more are named as "more than"
FEW_SEEDS = 3  # two show their spread to within a factor of 30 only


def seeds_to_tell(
    difference: float, variance: float, datasets: int, alpha: float, power: float = POWER
) -> int | None:
    """Seeds of each method with which a two-sided t-test at `alpha` has `power`.

    Args:
        difference: of the means over the data sets; the true one is taken to be that.
        variance: of that difference with one seed of each method.
        datasets: behind the means, each with `2 (n - 1)` degrees of freedom.
        alpha: level of the test, already divided by the number of tests.

    Returns:
        At least `least_seeds`; `MOST_SEEDS + 1` for more than can be named; `None` for equal means.
    """
    if difference == 0.0:
        return None
    ratio = variance / difference**2
    enough = np.nonzero(_seeds() >= ratio * _factors(datasets, alpha, power))[0]
    seeds = int(_seeds()[enough[0]]) if len(enough) else MOST_SEEDS + 1
    return max(seeds, least_seeds(datasets, alpha))


def least_seeds(datasets: int, alpha: float) -> int:
    """Fewest seeds with which the clearest exchange of runs has a p-value of at most `alpha`."""
    seeds = FEW_SEEDS
    while math.log(2) - datasets * math.log(math.comb(2 * seeds, seeds)) > math.log(alpha):
        seeds += 1
    return seeds


@lru_cache(maxsize=64)
def _factors(datasets: int, alpha: float, power: float) -> Array:
    """(t of the level + t of the power) squared, for every number of seeds."""
    from scipy.special import stdtrit

    freedom = 2 * datasets * (_seeds() - 1)
    return np.asarray((stdtrit(freedom, 1 - alpha / 2) + stdtrit(freedom, power)) ** 2)


def _seeds() -> Array:
    return np.arange(2, MOST_SEEDS + 1, dtype=float)

"""Ranks over data sets: Friedman's test, pairwise Wilcoxon tests, and methods they cannot part.

All take the means over seeds as a frame, labels (rows) x data sets (columns), without a hole. A
data set is one observation here, so that the claims are about new data sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from peftbench.statistics.scores import Array

ALPHA = 0.05
EXACT_UP_TO = 50  # data sets; with more, the normal approximation is as good
TIE = 1e-12  # scores nearer than this are equal: their difference is rounding


@dataclass(frozen=True)
class Friedman:
    """Test of all methods being alike; no p-value for fewer than 3 methods or 2 data sets."""

    statistic: float | None
    p: float | None
    methods: int
    datasets: int


def average_ranks(means: pd.DataFrame) -> pd.Series[float]:
    """Mean rank over data sets by label, the best first; rank 1 is the best, ties share theirs."""
    ranks = means.round(12).rank(axis=0, ascending=False, method="average").mean(axis=1)
    order = sorted(ranks.index, key=lambda label: (ranks[label], label))
    return ranks.loc[order]


def friedman(means: pd.DataFrame) -> Friedman:
    """Friedman's rank test with its correction for ties (Demšar, 2006, §3.2.2)."""
    from scipy.special import chdtrc  # `scipy.stats` takes a second to import

    methods, datasets = means.shape
    rounded = means.round(12)
    differs = bool((rounded.nunique(axis=0) > 1).any())
    if methods < 3 or datasets < 2 or not differs:
        return Friedman(None, None, methods, datasets)
    alike = np.stack([_alike(column) for column in rounded.to_numpy(float).T])
    ties = float((alike * alike - 1).sum())  # a group of t ties adds t (t^2 - 1)
    correction = 1 - ties / (methods * (methods * methods - 1) * datasets)
    sums = np.sum([_ranks(column) for column in rounded.to_numpy(float).T], axis=0)
    scale = 12.0 / (methods * datasets * (methods + 1))
    statistic = (scale * float((sums**2).sum()) - 3 * datasets * (methods + 1)) / correction
    return Friedman(statistic, float(chdtrc(methods - 1, statistic)), methods, datasets)


def _alike(values: Array) -> Array:
    """How many values (n,) are the same as each, with itself."""
    alike: Array = (values[:, None] == values).sum(axis=1)
    return alike


def _ranks(values: Array) -> Array:
    """Ranks of values (n,), the least first from 1; ties share theirs."""
    below = (values < values[:, None]).sum(axis=1)
    ranks: Array = below + (_alike(values) + 1) / 2
    return ranks


def holm(p: Sequence[float] | Array) -> Array:
    """Adjusted p-values (n,) of one family (Holm, 1979): reject where one is at most the level.

    The chance of any false rejection is then at most the level, however the tests depend on
    each other.
    """
    values = np.asarray(p, dtype=float)
    order = np.argsort(values, kind="stable")
    factors = len(values) - np.arange(len(values))
    adjusted = np.empty(len(values))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(values[order] * factors))
    return adjusted


def signed_rank_p(difference: Sequence[float] | Array) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test of paired differences (datasets,).

    Data sets without a difference do not count. Exact with ties as well, up to `EXACT_UP_TO`
    data sets, by the distribution of the sum of the observed ranks over all signs.
    """
    values = np.asarray(difference, dtype=float)
    values = np.round(values[np.abs(values) > TIE], 12)
    if len(values) == 0:
        return 1.0
    if len(values) > EXACT_UP_TO:
        from scipy import stats

        return float(stats.wilcoxon(values, method="asymptotic").pvalue)
    doubled = np.rint(2 * _ranks(np.abs(values))).astype(int)  # whole, with ties too
    total = int(doubled.sum())
    ways = np.zeros(total + 1)  # of each doubled sum of positive ranks, as a probability
    ways[0] = 1.0
    for rank in doubled:
        ways[rank:] = ways[rank:] + ways[: total + 1 - rank]
        ways /= 2.0
    positive = int(doubled[values > 0].sum())
    return float(min(1.0, 2 * ways[: min(positive, total - positive) + 1].sum()))


def smallest_signed_rank_p(datasets: int) -> float:
    """The p-value where one method wins on every data set: 2 / 2^datasets."""
    return min(1.0, 2.0 ** (1 - datasets))


def pairwise(means: pd.DataFrame) -> pd.DataFrame:
    """One row a pair of methods, the one of better average rank first.

    Columns: `first`, `second`, `wins`, `ties`, `losses` of the first over data sets, `difference`
    of the means, `p` of Wilcoxon's signed-rank test, `p_holm` of the family of all pairs.
    """
    order = list(average_ranks(means).index)
    rows = []
    for first, second in combinations(order, 2):
        difference = (means.loc[first] - means.loc[second]).to_numpy(float)
        wins, losses = int(np.sum(difference > TIE)), int(np.sum(difference < -TIE))
        rows.append(
            {
                "first": first,
                "second": second,
                "wins": wins,
                "ties": len(difference) - wins - losses,
                "losses": losses,
                "difference": float(difference.mean()),
                "p": signed_rank_p(difference),
            }
        )
    names = ["first", "second", "wins", "ties", "losses", "difference", "p"]
    out = pd.DataFrame(rows, columns=names)
    return out.assign(p_holm=holm(out["p"].to_numpy(float)))


def groups(means: pd.DataFrame, tests: pd.DataFrame, alpha: float = ALPHA) -> list[tuple[str, ...]]:
    """Bars of a critical-difference diagram: neighbours in rank of which no two can be told apart.

    Each is as long as can be, has two methods or more, and is in the order of the ranks. `tests`
    comes from `pairwise(means)`. A bar does not say that its methods are equal, and two methods
    without a common bar may still not differ, so read the tests beside it.
    """
    order = [str(label) for label in average_ranks(means).index]
    apart = {
        frozenset((str(first), str(second)))
        for first, second, p in zip(tests["first"], tests["second"], tests["p_holm"], strict=True)
        if p <= alpha
    }
    bars: list[tuple[str, ...]] = []
    reached = 0
    for start in range(len(order)):
        end = start + 1
        while end < len(order) and not any(
            frozenset((order[i], order[end])) in apart for i in range(start, end)
        ):
            end += 1
        if end - start > 1 and end > reached:
            bars.append(tuple(order[start:end]))
            reached = end
    return bars


def win_rates(means: pd.DataFrame) -> pd.DataFrame:
    """Share of the data sets on which the row beats the column, ties as half; NaN on the diagonal.

    In the order of the average ranks.
    """
    order = list(average_ranks(means).index)
    values = means.loc[order].to_numpy(float)
    difference = values[:, None, :] - values[None, :, :]
    rates = ((difference > TIE) + 0.5 * (np.abs(difference) <= TIE)).mean(axis=-1)
    np.fill_diagonal(rates, np.nan)
    return pd.DataFrame(rates, index=order, columns=order)

"""The best method over seeds and its equals, without the p-values that do not decide it.

The exchange test of a pair is dear, and a large suite has many pairs. Who is told from the best
hangs on few: p-values are at least those of Welch's test, which is cheap, and Holm's correction is
monotone. A pair that it keeps with the least p-values of all is kept; a pair with the best that it
rejects although all pairs without the best are given 1 is rejected.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from peftbench.statistics import best, ranks, scores
from peftbench.statistics.intervals import SEEDS

AT_ONCE = 200  # pairs that are tested together: 32 MB for each of their numbers


def leaders(
    table: pd.DataFrame,
    *,
    alpha: float = ranks.ALPHA,
    permutations: int = best.PERMUTATIONS,
    seed: int = 0,
) -> best.Best | None:
    """What `best.not_distinguishable` finds over seeds, but for `p_holm`, which is empty."""
    kept, _ = scores.complete(table)
    if kept.empty:
        return None
    means = scores.means(kept)
    overall = means.mean(axis=1)
    order = [str(x) for x in sorted(means.index, key=lambda name: (-overall[name], name))]
    pairs = list(combinations(order, 2))
    least = best.smallest_exchange_p(kept, permutations)
    smallest = min(1.0, least * len(pairs)) if pairs else 1.0
    told = _told_from_best(kept, order[0], pairs, alpha, permutations, seed)
    return best.Best(
        best=order[0],
        members=tuple(name for name in order if name not in told),
        conclusive=smallest <= alpha,
        over=SEEDS,
        p_holm={},
        smallest=smallest,
        datasets=means.shape[1],
        seeds=int(scores.counts(kept).to_numpy().min()),
        alpha=alpha,
        means={name: float(overall[name]) for name in order},
        needed=best.needed(kept, overall, order, alpha),
    )


def _told_from_best(
    kept: pd.DataFrame,
    first: str,
    pairs: Sequence[tuple[str, str]],
    alpha: float,
    permutations: int,
    seed: int,
) -> set[str]:
    """Methods that the runs tell from `first`, the best."""
    if not pairs:
        return set()
    unequal = best.unequal_p(kept, pairs)
    low = np.maximum(unequal, 1 / (permutations + 1))  # bounds of each p-value
    high = np.ones(len(pairs))
    of_best = np.array([first in pair for pair in pairs])
    order = np.argsort(low, kind="stable")
    while True:
        told, at_most = (
            {name for name, p in best.against_best(first, pairs, bound).items() if p <= alpha}
            for bound in (high, low)
        )
        unsure = (low < high) & (ranks.holm(low) <= alpha)
        if (unsure & of_best).any():  # others are asked where these do not suffice
            unsure &= of_best
        asked = order[unsure[order]][:AT_ONCE]
        if told == at_most or not len(asked):
            return at_most
        chosen = [pairs[i] for i in asked]
        exchanged = best.exchange_p(kept, chosen, permutations=permutations, seed=seed)
        low[asked] = high[asked] = np.maximum(exchanged, unequal[asked])

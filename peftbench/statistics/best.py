"""Methods that cannot be distinguished from the best, in place of one bold number.

The best is the method with the highest mean over data sets. Another method is distinguishable from
it where a two-sided test of the pair rejects at 5 % after Holm's correction over *all pairs* of
methods. All pairs, although only those with the best are looked at: which method is best is known
from the same scores, so that the best and the worst of equal methods would be compared, the pair
that differs most of all. So the chance that any two equal methods are told apart is at most 5 %.

Two claims, two tests:

- over seeds (on these data sets): the runs of both methods are exchanged inside each data set, a
  permutation test that is exact for any number of seeds and any distribution.
- over data sets (on new ones of the kind): Wilcoxon's signed-rank test of the means over seeds.

Where even the clearest result could not reach 5 %, nothing can be told, which is not the same as
no difference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from peftbench.statistics import ranks, scores
from peftbench.statistics.intervals import DATASETS, SEEDS
from peftbench.statistics.scores import Array

PERMUTATIONS = 20_000
TIE = 1e-12  # statistics nearer than this are equal


@dataclass(frozen=True)
class Best:
    """The best method and those not distinguishable from it."""

    best: str
    members: tuple[str, ...]  # the best first, then by mean; all methods where `told` is false
    told: bool  # whether the runs suffice to tell any two methods apart
    over: str  # `SEEDS` or `DATASETS`: what the claim is about
    p_holm: dict[str, float]  # of every other method against the best
    smallest: float  # adjusted p-value of the clearest result that so many runs could give
    datasets: int
    seeds: int  # of the method and data set that have fewest
    alpha: float = ranks.ALPHA


def not_distinguishable(
    table: pd.DataFrame,
    *,
    over: str = SEEDS,
    alpha: float = ranks.ALPHA,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Best | None:
    """The best method of a frame of scores and its equals; `None` where no method is complete.

    Methods without a score on every data set are not compared (`scores.complete` names them).
    See the module for the definition.
    """
    kept, _ = scores.complete(table)
    if kept.empty:
        return None
    means = scores.means(kept)
    overall = means.mean(axis=1)
    order = [str(x) for x in sorted(means.index, key=lambda name: (-overall[name], name))]
    best = order[0]
    fewest = int(scores.counts(kept).to_numpy().min())
    pairs = list(combinations(order, 2))
    if over == DATASETS:
        values = means.to_numpy(float)
        place = {str(name): i for i, name in enumerate(means.index)}
        p = [ranks.signed_rank_p(values[place[a]] - values[place[b]]) for a, b in pairs]
        least = ranks.smallest_signed_rank_p(means.shape[1])
    elif over == SEEDS:
        p = list(exchange_p(kept, pairs, permutations=permutations, seed=seed))
        least = _smallest_exchange_p(kept, permutations)
    else:
        raise ValueError(f"over is {over!r}, neither {SEEDS!r} nor {DATASETS!r}")
    against = against_best(best, pairs, p)
    smallest = min(1.0, least * len(pairs)) if pairs else 1.0
    return Best(
        best=best,
        members=(best, *(name for name in order[1:] if against[name] > alpha)),
        told=smallest <= alpha,
        over=over,
        p_holm=against,
        smallest=smallest,
        datasets=means.shape[1],
        seeds=fewest,
        alpha=alpha,
    )


def against_best(
    best: str, pairs: Sequence[tuple[str, str]], p: Sequence[float] | Array
) -> dict[str, float]:
    """P-value of each other method against the best, after Holm's correction over all pairs."""
    return {
        second if first == best else first: float(value)
        for (first, second), value in zip(pairs, ranks.holm(p), strict=True)
        if best in (first, second)
    }


def exchange_p(
    table: pd.DataFrame,
    pairs: Sequence[tuple[str, str]],
    *,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Array:
    """Two-sided p-value of each pair, (pairs,): same distribution of scores on every data set.

    The statistic is the difference of the means over data sets; runs are exchanged between the two
    methods inside each data set. Of `permutations` drawn exchanges b are as extreme, and
    p = (b + 1) / (permutations + 1), which keeps the level exactly (Phipson & Smyth, 2010).
    """
    datasets = sorted(set(table["dataset"]))
    runs = scores.samples(table, datasets)
    sizes = {label: tuple(map(len, parts)) for label, parts in runs.items()}
    out = np.ones(len(pairs))
    for shape in sorted({(sizes[a], sizes[b]) for a, b in pairs}):
        members = [i for i, (a, b) in enumerate(pairs) if (sizes[a], sizes[b]) == shape]
        pooled = np.array([_pooled(runs[pairs[i][0]], runs[pairs[i][1]]) for i in members])
        own, drawn = _signs(*shape, permutations, np.random.default_rng(seed))
        observed = np.abs(pooled @ own)
        extreme = np.abs(drawn @ pooled.T) >= observed - TIE
        out[members] = (extreme.sum(axis=0) + 1) / (permutations + 1)
    return out


def _pooled(first: Sequence[Array], second: Sequence[Array]) -> Array:
    """Runs of both methods, data set after data set, as deviations from their common mean."""
    parts = [np.concatenate(pair) for pair in zip(first, second, strict=True)]
    return np.concatenate([part - part.mean() for part in parts])


def _signs(
    first: Sequence[int],
    second: Sequence[int],
    permutations: int,
    generator: np.random.Generator,
) -> tuple[Array, Array]:
    """Weights of the pooled runs in the difference of means: as run, (runs,), and exchanged."""
    as_run, exchanged = [], []
    for n, m in zip(first, second, strict=True):
        share = np.concatenate([np.full(n, 1 / n), np.full(m, -1 / m)]) / len(first)
        order = np.argsort(generator.random((permutations, n + m)), axis=-1)
        as_run.append(share)
        exchanged.append(share[order])
    return np.concatenate(as_run), np.concatenate(exchanged, axis=-1)


def _smallest_exchange_p(table: pd.DataFrame, permutations: int) -> float:
    """The least p-value of any pair: both directions of the clearest of all exchanges."""
    number = scores.counts(table)
    ways = []
    for a, b in combinations(number.index, 2):
        pair = zip(number.loc[a], number.loc[b], strict=True)
        log_ways = sum(math.log(math.comb(int(n + m), int(n))) for n, m in pair)
        ways.append(2.0 * math.exp(-log_ways))
    return max(min(ways, default=1.0), 1 / (permutations + 1))

"""Methods that cannot be distinguished from the best, in place of one bold number.

The best is the method with the highest mean over data sets. Another method is distinguishable from
it where a two-sided test of the pair rejects at 5 % after Holm's correction over *all pairs* of
methods. All pairs, although only those with the best are looked at: which method is best is known
from the same scores, so that the best and the worst of equal methods would be compared, the pair
that differs most of all. So the chance that any two equal methods are told apart is at most 5 %.

Two claims, two tests:

- over seeds (on these data sets): the runs of both methods are exchanged inside each data set, a
  permutation test that is exact for any number of seeds and any distribution. The statistic is the
  difference of the means divided by its standard error, so that methods which win on different data
  sets by much are told apart by their means too (Chung & Romano, 2013). Methods of equal means
  whose seeds spread differently and askew would be told apart too often (8 % of suites of 4 data
  sets and 5 seeds), so that Welch's t-test, corrected for skewness, has to reject as well.
- over data sets (on new ones of the kind): Wilcoxon's signed-rank test of the means over seeds.

Where even the clearest result could not reach 5 %, nothing can be told, which is not the same as
no difference.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pandas as pd

from peftbench.statistics import power, ranks, scores
from peftbench.statistics.intervals import DATASETS, MOST_SKEW_T, SEEDS
from peftbench.statistics.scores import Array

PERMUTATIONS = 20_000
ROWS_AT_ONCE = 2_000  # exchanges that are drawn together
NUMBERS_AT_ONCE = 1 << 15  # of exchanges, that are added up together: 256 kB
TIE = 1e-9  # statistics nearer than this, or this share of them, are equal
NO_SPREAD = 1e-6  # added to standard errors: seeds that all agree would divide by zero


@dataclass(frozen=True)
class Best:
    """The best method and those not distinguishable from it."""

    best: str
    members: tuple[str, ...]  # the best first, then by mean; all where not `conclusive`
    conclusive: bool  # whether the runs suffice to tell any two methods apart
    over: str  # what the claim is about: `SEEDS`, `DATASETS`, or one of `new_images`
    p_holm: dict[str, float]  # of every other method against the best
    smallest: float  # adjusted p-value of the clearest result that so many runs could give
    datasets: int
    seeds: int  # of the method and data set that have fewest
    alpha: float = ranks.ALPHA
    means: dict[str, float] = field(default_factory=dict)  # over data sets, of every method
    # Seeds each that would tell the best from another method, were the difference the one that is
    # seen (`power.seeds_to_tell`); `None` for equal means, or where no run shows how seeds differ.
    # Of a claim about new images, images in place of seeds.
    needed: dict[str, int | None] = field(default_factory=dict)
    images: int | None = None  # different test images, of a claim about new ones
    splits: int = 1

    @property
    def least(self) -> int:
        """Fewest seeds of each with which any two methods could be told apart."""
        return power.least_seeds(self.datasets, self.alpha / max(1, _pairs(len(self.means))))


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
        exchanged = exchange_p(kept, pairs, permutations=permutations, seed=seed)
        p = list(np.maximum(exchanged, unequal_p(kept, pairs)))
        least = smallest_exchange_p(kept, permutations)
    else:
        raise ValueError(f"over is {over!r}, neither {SEEDS!r} nor {DATASETS!r}")
    against = against_best(best, pairs, p)
    smallest = min(1.0, least * len(pairs)) if pairs else 1.0
    return Best(
        best=best,
        members=(best, *(name for name in order[1:] if against[name] > alpha)),
        conclusive=smallest <= alpha,
        over=over,
        p_holm=against,
        smallest=smallest,
        datasets=means.shape[1],
        seeds=fewest,
        alpha=alpha,
        means={name: float(overall[name]) for name in order},
        needed=needed(kept, overall, order, alpha),
    )


def needed(
    kept: pd.DataFrame, overall: pd.Series[float], order: Sequence[str], alpha: float
) -> dict[str, int | None]:
    """`Best.needed`, from the spread of seeds inside each method and data set.

    A method with one seed on a data set is taken to spread as the others do there, or as runs do
    on the mean of the data sets.
    """
    grouped = kept.groupby(["label", "dataset"])["score"]
    variance = grouped.var(ddof=1).unstack().loc[list(order)]
    freedom = (grouped.count() - 1).unstack().loc[list(order)]
    pooled = (variance * freedom).sum() / freedom.sum().replace(0, np.nan)
    if pooled.isna().all():
        return dict.fromkeys(order[1:])
    spread = variance.fillna(pooled).fillna(pooled.mean()).sum(axis=1) / len(pooled) ** 2
    best = order[0]
    return {
        other: power.seeds_to_tell(
            float(overall[best] - overall[other]),
            float(spread[best] + spread[other]),
            len(pooled),
            alpha / _pairs(len(order)),
        )
        for other in order[1:]
    }


def _pairs(methods: int) -> int:
    return methods * (methods - 1) // 2


def against_best(
    best: str, pairs: Sequence[tuple[str, str]], p: Sequence[float] | Array
) -> dict[str, float]:
    """P-value of each other method against the best, after Holm's correction over all pairs.

    p: (pairs,), in the order of `pairs`.
    """
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

    The statistic is the difference of the means over data sets divided by its standard error over
    seeds, or the difference itself where some method has a single seed. Of `permutations` drawn
    exchanges b are as extreme, and p = (b + 1) / (permutations + 1), which keeps the level exactly
    (Phipson & Smyth, 2010).
    """
    datasets = sorted(set(table["dataset"]))
    runs = scores.samples(table, datasets)
    sizes = {label: tuple(map(len, parts)) for label, parts in runs.items()}
    out = np.ones(len(pairs))
    for shape in sorted({(sizes[a], sizes[b]) for a, b in pairs}):
        members = [i for i, (a, b) in enumerate(pairs) if (sizes[a], sizes[b]) == shape]
        generator = np.random.default_rng(seed)
        tasks = []
        for d, (n, m) in enumerate(zip(*shape, strict=True)):
            pooled = np.array(
                [np.concatenate([runs[pairs[i][0]][d], runs[pairs[i][1]][d]]) for i in members]
            )
            pooled -= pooled.mean(axis=1, keepdims=True)
            tasks.append(_Exchanges.of(pooled, n, _drawn(generator, permutations, n, m)))
        studentised = min(min(counts) for counts in shape) > 1
        observed = _statistic(*_observed(tasks), studentised)
        extreme = np.zeros(len(members))
        for difference, error in _blocks(tasks, permutations):
            drawn = _statistic(difference, error, studentised)
            extreme += (drawn >= observed * (1 - TIE) - TIE).sum(axis=0)
        out[members] = (extreme + 1) / (permutations + 1)
    return out


def _drawn(generator: np.random.Generator, permutations: int, n: int, m: int) -> Array:
    """Whether each run belongs to the first method, (permutations, n + m): n of each row, drawn.

    Those with the n least of random numbers.
    """
    first = np.empty((permutations, n + m), bool)
    for start in range(0, permutations, ROWS_AT_ONCE):  # which stay in the cache
        block = first[start : start + ROWS_AT_ONCE]
        numbers = generator.random(block.shape)
        np.less_equal(numbers, np.partition(numbers, n - 1, axis=-1)[:, n - 1 : n], out=block)
    return first


def unequal_p(table: pd.DataFrame, pairs: Sequence[tuple[str, str]]) -> Array:
    """Two-sided p-value of each pair, (pairs,): same mean over the data sets, whatever the spreads.

    Welch's t-test with Satterthwaite's degrees of freedom and Johnson's correction for skewness
    (1978); 0 where some data set has a single seed or no seeds differ, which leaves the decision to
    the exchange test.
    """
    from scipy.special import stdtr

    runs = scores.samples(table, sorted(set(table["dataset"])))
    out = np.zeros(len(pairs))
    if not pairs:
        return out
    first, second = ([pair[side] for pair in pairs] for side in (0, 1))
    known = {label: _Moments.of(parts) for label, parts in runs.items()}
    # (pairs, 2 x data sets) each, those of the first method and then those of the second
    number, mean, variance, cube = (
        np.concatenate(
            [np.array([getattr(known[x], name) for x in side]) for side in (first, second)], axis=1
        )
        for name in ("number", "mean", "variance", "cube")
    )
    total = variance.sum(axis=1)
    asked = (number.min(axis=1, initial=2) > 1) & (total > NO_SPREAD**2)
    number, mean, variance, cube, total = (
        values[asked] for values in (number, mean, variance, cube, total)
    )
    freedom = total**2 / (variance**2 / (number - 1)).sum(axis=1)
    signs = np.repeat([1.0, -1.0], variance.shape[1] // 2)
    t = _in_turn(signs * mean) / np.sqrt(total)
    skewness = _in_turn(signs * cube / number**2) / total**1.5
    t += skewness * (1 + 2 * np.minimum(np.abs(t), MOST_SKEW_T) ** 2) / 6
    out[asked] = 2 * stdtr(freedom, -np.abs(t))
    return out


@dataclass(frozen=True)
class _Moments:
    """Of the runs of one method, (data sets,) each; zero where they have no meaning."""

    number: Array
    mean: Array
    variance: Array  # of the mean
    cube: Array  # third central moment

    @classmethod
    def of(cls, parts: Sequence[Array]) -> _Moments:
        return cls(
            np.array([len(one) for one in parts], float),
            np.array([one.mean() if len(one) else 0.0 for one in parts]),
            np.array([one.var(ddof=1) / len(one) if len(one) > 1 else 0.0 for one in parts]),
            np.array([np.mean((one - one.mean()) ** 3) if len(one) else 0.0 for one in parts]),
        )


def _in_turn(values: Array) -> Array:
    """Sums of rows, (rows,), each value added to those before it."""
    total: Array = np.zeros(len(values))
    for column in values.T:
        total = total + column
    return total


@dataclass(frozen=True)
class _Exchanges:
    """The exchanges of the runs on one data set; three seeds of each method have twenty.

    The first of them is that which was observed.
    """

    difference: Array  # (exchanges, pairs) of the means
    error: Array  # (exchanges, pairs) its squared standard error
    which: np.ndarray  # (permutations,) the exchange that was drawn

    @classmethod
    def of(cls, pooled: Array, n: int, drawn: Array) -> _Exchanges:
        """Of the runs of both methods (pairs, n + m), whose mean is 0, and of who is of the first.

        drawn: (permutations, n + m).
        """
        m = pooled.shape[1] - n
        observed = np.repeat([[True, False]], [n, m], axis=1)
        keys = _keys(np.concatenate([observed, drawn]))
        _, places, which = np.unique(keys, return_index=True, return_inverse=True)
        order = np.argsort(places, kind="stable")  # as they first occur
        first = np.concatenate([observed, drawn])[places[order]].astype(float)
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        total = first @ pooled.T  # the sum of all is zero
        squares = first @ (pooled**2).T
        all_squares = (pooled**2).sum(axis=1)
        error = np.zeros_like(total)
        if n > 1 and m > 1:
            error += np.maximum(squares - total**2 / n, 0) / (n - 1) / n
            error += np.maximum(all_squares - squares - total**2 / m, 0) / (m - 1) / m
        return cls(total / n + total / m, error, rank[which[1:]])


def _keys(rows: npt.NDArray[np.bool_]) -> np.ndarray:
    """One value for each row of bits, (rows,); a number where they fit into one, to be sorted."""
    packed = np.packbits(rows, axis=1)
    width = packed.shape[1]
    for size in (1, 2, 4, 8):
        if width <= size:
            wide = np.pad(packed, ((0, 0), (0, size - width)))
            return np.ascontiguousarray(wide).view(f"u{size}")[:, 0]
    return np.ascontiguousarray(packed).view(f"V{width}")[:, 0]


def _observed(tasks: Sequence[_Exchanges]) -> tuple[Array, Array]:
    """Differences of means and their squared standard errors, (pairs,) each, over all data sets."""
    difference = np.sum([one.difference[0] for one in tasks], axis=0)
    return difference, np.sum([one.error[0] for one in tasks], axis=0)


def _blocks(tasks: Sequence[_Exchanges], permutations: int) -> Iterator[tuple[Array, Array]]:
    """The same of the drawn exchanges, (rows, pairs) each, so many rows as the cache holds.

    They are overwritten by the next.
    """
    pairs = tasks[0].difference.shape[1]
    rows = max(1, NUMBERS_AT_ONCE // pairs)
    drawn, difference, error = np.empty((3, rows, pairs))
    for start in range(0, permutations, rows):
        at = slice(start, min(start + rows, permutations))
        number = at.stop - at.start
        for total, name in ((difference, "difference"), (error, "error")):
            total[:number] = 0.0
            for one in tasks:
                known = getattr(one, name)
                total[:number] += np.take(
                    known, one.which[at], axis=0, out=drawn[:number], mode="clip"
                )
        yield difference[:number], error[:number]


def _statistic(difference: Array, error: Array, studentised: bool) -> Array:
    """Of differences of means and their squared standard errors over all data sets."""
    size: Array = np.abs(difference)
    return size / (np.sqrt(error) + NO_SPREAD) if studentised else size


def smallest_exchange_p(table: pd.DataFrame, permutations: int) -> float:
    """The least p-value of any pair: both directions of the clearest of all exchanges."""
    number = scores.counts(table)
    ways = []
    for a, b in combinations(number.index, 2):
        pair = zip(number.loc[a], number.loc[b], strict=True)
        log_ways = sum(math.log(math.comb(int(n + m), int(n))) for n, m in pair)
        ways.append(2.0 * math.exp(-log_ways))
    return max(min(ways, default=1.0), 1 / (permutations + 1))

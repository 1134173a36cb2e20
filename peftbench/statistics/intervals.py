"""Intervals of an average over data sets, which say what they are intervals over.

Three seeds are few. A percentile bootstrap of three values shows too little spread, and misses the
truth in a fifth of the cases where it promises a twentieth. The intervals here are Student's, with
the degrees of freedom that the runs have, moved towards the longer tail (Johnson, 1978) and a
little wider than for normal scores, because the scores of seeds may be skewed. How often they hold
in simulations, with normal and with skewed scores, is in `coverage.csv` and beside every interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from peftbench.statistics.coverage import Coverage, coverage
from peftbench.statistics.scores import Array

# What a claim is about, and so what would be new if everything were done again.
SEEDS = "seeds"  # these data sets, other seeds
DATASETS = "seeds and data sets"  # other data sets of the kind as well
NOTHING = "nothing"  # a single seed: it does not show how much seeds differ

Indices = npt.NDArray[np.int_]

LEVEL = 0.95
RESAMPLES = 2000

# Student's interval of skewed scores covers less than it says. This share of the error rate is
# given away for that, all of it up to so many degrees of freedom and less with more, and less with
# several data sets, whose estimated degrees of freedom leave room already. Three seeds on one data
# set: 97 % of normal and 92.5 % of exponential scores, in place of 95 % and 88 %.
SKEW_SHARE = 0.52
SKEW_FREEDOM = 16.0
SKEW_PARTS = 1.5  # power of the number of data sets that the share is divided by
MOST_SKEW_T = 6.0  # the correction for skewness is a series in t, and useless far out
# Adding up data sets with few runs each, the spread of the sum is underestimated by so much.
SEVERAL_SETS = 1.28
NORMAL_RUNS = 6  # so many runs say as much of the share of wins as normal theory does
LEAST_WINS_VARIANCE = 0.2  # of what methods of that share of wins have by seeds alone


@dataclass(frozen=True)
class Interval:
    """An estimate and its interval; no bounds where `over` is `NOTHING`."""

    estimate: float
    low: float | None
    high: float | None
    over: str  # what the claim is about: `SEEDS`, `DATASETS`, `NOTHING`, or one of `new_images`
    datasets: int
    seeds: int  # of the data set that has fewest
    level: float = LEVEL
    holds: Coverage | None = None  # how often, in simulations of so many data sets and seeds
    splits: int = 1  # of a data set
    images: int | None = None  # different ones that were tested; `None` where they are not counted


@dataclass(frozen=True)
class _Spread:
    """Independent parts of the variance of an estimate, each with its degrees of freedom.

    Leading axes are estimates of their own, so that simulations need no loop.
    """

    variances: Array  # (..., parts)
    freedoms: Array  # (parts,)
    cubes: Array  # third central moment of the estimate, (...)

    def ends(self, level: float) -> tuple[Array, Array]:
        """What to add to the estimate for both ends; zeros where the runs do not differ."""
        from scipy.special import stdtrit

        total = self.variances.sum(axis=-1)
        spread = total > 0.0
        safe = np.where(spread, total, 1.0)
        # Satterthwaite's: at least that of the part with fewest, at most the sum of all
        least = (self.variances**2 / self.freedoms).sum(axis=-1)
        freedom = np.where(spread, safe**2 / np.where(spread, least, 1.0), 1.0)
        t = stdtrit(freedom, (1 + _confidence(level, freedom, len(self.freedoms))) / 2)
        shift = self.cubes / safe**1.5 * (1 + 2 * np.minimum(t, MOST_SKEW_T) ** 2) / 6
        deviation = np.sqrt(np.where(spread, total, 0.0))
        return np.minimum(0.0, deviation * (shift - t)), np.maximum(0.0, deviation * (shift + t))


def mean_interval(
    samples: Sequence[Array],
    *,
    over: str = SEEDS,
    weights: Sequence[float] | None = None,
    strata: Sequence[str] | None = None,
    level: float = LEVEL,
) -> Interval:
    """Interval of the weighted mean of the means of the data sets; scores are fractions.

    Over seeds, the variance is that of seeds inside each data set. With `over=DATASETS` it is that
    of the means of data sets (inside their `strata` where given), which holds the variance of their
    seeds already. One data set, or strata that have one each, say nothing about others: then the
    interval is over seeds, and says so.

    Args:
        samples: scores of each data set, one array a data set, (seeds,).
        over: `SEEDS` for a claim about these data sets, `DATASETS` for one about new ones.
        weights: of the data sets, adding up to one; equal unless given.
        strata: group of each data set, such as the group means of VTAB are made of.
        level: share of the cases in which the interval holds the truth.
    """
    number = len(samples)
    share = np.full(number, 1 / number) if weights is None else np.asarray(weights, dtype=float)
    centres = np.array([one.mean() for one in samples])
    groups = _members(number, strata)
    fewest = min(map(len, samples))
    claim = _claim(fewest, min(map(len, groups)), over)
    estimate = float(share @ centres)
    if claim == NOTHING:
        return Interval(estimate, None, None, NOTHING, number, fewest, level)
    low, high = mean_bounds(samples, share, groups if claim == DATASETS else None, level)
    shape = (min(map(len, groups)) if claim == DATASETS else number, fewest)
    known = coverage("mean", claim, *shape) if level == LEVEL else None
    return Interval(estimate, float(low), float(high), claim, number, fewest, level, known)


def mean_bounds(
    samples: Sequence[Array],
    share: Array,
    groups: Sequence[Indices] | None = None,
    level: float = LEVEL,
) -> tuple[Array, Array]:
    """Both ends of the interval of many means at once, (...).

    Args:
        samples: scores of each data set, (..., seeds) each.
        share: weights of the data sets, adding up to one.
        groups: indices of the data sets of each stratum, for a claim about new data sets; `None`
            for one about these.
        level: share of the cases in which the interval holds the truth.
    """
    centres = np.stack([one.mean(axis=-1) for one in samples], axis=-1)
    if groups is None:
        spread = _over_seeds(samples, share)
    else:
        parts = [(share[g] ** 2).sum() * centres[..., g].var(axis=-1, ddof=1) for g in groups]
        cubes = sum((share[g] ** 3).sum() * _cube(centres[..., g]) for g in groups)
        freedoms = np.array([len(g) - 1.0 for g in groups])
        spread = _Spread(np.stack(parts, axis=-1), freedoms, np.asarray(cubes))
    return _around(centres @ share, spread.ends(level), samples)


def interquartile_mean_interval(
    samples: Sequence[Array],
    *,
    over: str = SEEDS,
    level: float = LEVEL,
) -> Interval:
    """Interval of the interquartile mean of all runs, whose scores are (seeds,) of each data set.

    For the arguments see `mean_interval`.
    The quarter of the runs with the lowest scores and the quarter with the highest do not count
    (rounded down; Agarwal et al., 2021, §4.3, arXiv 2108.13264). The variance is that of the
    scores brought in to the ends of the middle half (Tukey & McLaughlin, 1963), inside data sets
    or between their means.
    """
    number = len(samples)
    runs = np.sort(np.concatenate(samples))
    cut = len(runs) // 4
    middle = runs[cut : len(runs) - cut]
    estimate = float(middle.mean())
    fewest = min(map(len, samples))
    claim = _claim(fewest, number, over)
    if claim == NOTHING:
        return Interval(estimate, None, None, NOTHING, number, fewest, level)
    winsorised = [np.clip(one, middle[0], middle[-1]) for one in samples]
    share = np.array([len(one) for one in samples]) / len(middle)
    if claim == DATASETS:
        centres = np.array([one.mean() for one in winsorised])
        variance = float((share**2).sum() * centres.var(ddof=1))
        spread = _Spread(np.array([variance]), np.array([number - 1.0]), np.zeros(()))
    else:
        inside = [int(np.sum((one >= middle[0]) & (one <= middle[-1]))) for one in samples]
        spread = _over_seeds(winsorised, share)
        spread = _Spread(spread.variances, np.maximum(1.0, np.array(inside) - 1.0), spread.cubes)
    low, high = _around(np.asarray(estimate), spread.ends(level), samples)
    known = coverage("interquartile mean", claim, number, fewest) if level == LEVEL else None
    return Interval(estimate, float(low), float(high), claim, number, fewest, level, known)


def improvement_interval(
    first: Sequence[Array],
    second: Sequence[Array],
    *,
    over: str = SEEDS,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Probability that a run of the first method beats one of the second on the same data set.

    Mean over data sets of the share of pairs of runs that the first wins, a tie being half a win
    (Agarwal et al., 2021, §4.3). Both methods have the data sets in the same order.

    Three runs of each method give ten shares, which no interval by ranks can turn into 95 %. Over
    seeds the width is therefore that of normal theory: the generalised interval of P(X > Y)
    (Weerahandi & Johnson, 1992), which is exact for normal scores of one data set. Its centre goes
    over from normal theory to the share of wins as runs are added. Over data sets, the shares are
    the observations of Student's interval; where they hardly differ, as when one method wins all,
    their variance is at least a fifth of what seeds alone would give it. With one seed a data set
    is won or lost: the interval is Clopper and Pearson's.

    Args:
        first, second: scores of each data set, one array a data set, (seeds,).
        over: `SEEDS` for a claim about these data sets, `DATASETS` for one about new ones.
        level: share of the cases in which the interval holds the truth.
        resamples: draws of the generalised interval.
        seed: of the draws.
    """
    shares = np.array([_win_share(a, b) for a, b in zip(first, second, strict=True)])
    estimate = float(shares.mean())
    number, fewest = len(shares), min(map(len, [*first, *second]))
    claim = _claim(fewest, number, over)
    if claim == NOTHING:
        return Interval(estimate, None, None, NOTHING, number, fewest, level)
    if fewest == 1:
        low, high = _clopper_pearson(float(shares.sum()), number, level)
    elif claim == DATASETS:
        low, high = _of_shares(shares, first, second, level)
    else:
        low, high = _generalised(first, second, shares, level, resamples, seed)
    known = coverage("improvement", claim, number, fewest) if level == LEVEL else None
    return Interval(estimate, low, high, claim, number, fewest, level, known)


def _win_share(first: Array, second: Array) -> float:
    """Share of the pairs of runs that the first wins, a tie being half a win."""
    a, b = first[:, None], second[None, :]
    return float(np.mean((a > b) + 0.5 * (a == b)))


def _generalised(
    first: Sequence[Array],
    second: Sequence[Array],
    shares: Array,
    level: float,
    resamples: int,
    seed: int,
) -> tuple[float, float]:
    """Bounds of the mean over data sets of P(X > Y), over seeds; both variances are taken equal.

    Where all runs of both methods agree, their difference has no spread, and wins are certain.
    """
    from scipy.special import expit, logit, ndtr

    freedoms = tuple(len(a) + len(b) - 2 for a, b in zip(first, second, strict=True))
    scales, noise = _draws(freedoms, resamples, seed)
    draws = np.empty((resamples, len(shares)))
    pairs = 0
    for d, (a, b) in enumerate(zip(first, second, strict=True)):
        difference = a.mean() - b.mean()
        squares = ((a - a.mean()) ** 2).sum() + ((b - b.mean()) ** 2).sum()
        deviation = np.sqrt(squares / freedoms[d])
        size = difference / deviation if deviation > 0 else float(np.sign(difference)) * 1e9
        error = np.sqrt(1 / len(a) + 1 / len(b))
        draws[:, d] = ndtr((size * scales[:, d] + error * noise[:, d]) / np.sqrt(2))
        pairs += len(a) * len(b)
    tiny = 1e-9
    drawn = logit(np.clip(draws.mean(axis=1), tiny, 1 - tiny))
    tail = (1 - level) / 2
    low, middle, high = np.quantile(drawn, [tail, 0.5, 1 - tail])
    # so many pairs tell no share that is nearer to 0 or 1
    edge = 0.5 / (pairs + 1)
    middle = np.clip(middle, logit(edge), -logit(edge))
    normal = logit(np.clip(np.median(draws, axis=0).mean(), edge, 1 - edge))
    estimate = float(shares.mean())
    counted = logit((estimate * pairs + 0.5) / (pairs + 1))
    runs = sum(min(len(a), len(b)) for a, b in zip(first, second, strict=True))
    centre = (NORMAL_RUNS * normal + runs * counted) / (NORMAL_RUNS + runs)
    stretch = SEVERAL_SETS if len(shares) > 1 else 1.0
    ends = expit(centre + stretch * (np.array([low, high]) - middle))
    return min(float(ends[0]), estimate), max(float(ends[1]), estimate)


@lru_cache(maxsize=32)
def _draws(freedoms: tuple[int, ...], resamples: int, seed: int) -> tuple[Array, Array]:
    """Relative deviations and normal errors, (resamples, data sets) each, in a Latin hypercube.

    Each column holds every quantile once, so that the same seed does not give every pair of
    methods the same random error.
    """
    from scipy.special import chdtri, ndtri

    generator = np.random.default_rng(seed)
    places = (np.arange(resamples) + 0.5) / resamples
    scales = [
        np.sqrt(generator.permutation(chdtri(freedom, places)) / freedom) for freedom in freedoms
    ]
    noise = [generator.permutation(ndtri(places)) for _ in freedoms]
    return np.stack(scales, axis=1), np.stack(noise, axis=1)


def _of_shares(
    shares: Array, first: Sequence[Array], second: Sequence[Array], level: float
) -> tuple[float, float]:
    """Bounds of the mean share of wins on new data sets, from one share of each data set."""
    number = len(shares)
    estimate = float(shares.mean())
    likely = (shares.sum() + 0.5) / (number + 1)
    # variance of the share of wins of n and m runs of equal methods: (n + m + 1) / (12 n m)
    by_seeds = np.mean(
        [(len(a) + len(b) + 1) / (3 * len(a) * len(b)) for a, b in zip(first, second, strict=True)]
    )
    least = LEAST_WINS_VARIANCE * float(by_seeds) * likely * (1 - likely)
    variance = max(float(shares.var(ddof=1)), least) / number
    spread = _Spread(np.array([variance]), np.array([number - 1.0]), np.zeros(()))
    low, high = spread.ends(level)
    return max(0.0, estimate + float(low)), min(1.0, estimate + float(high))


def _clopper_pearson(wins: float, number: int, level: float) -> tuple[float, float]:
    """Bounds of a share of which `wins` of `number` are seen; ties count half."""
    from scipy.special import betaincinv

    tail = (1 - level) / 2
    low = 0.0 if wins <= 0 else float(betaincinv(wins, number - wins + 1, tail))
    high = 1.0 if wins >= number else float(betaincinv(wins + 1, number - wins, 1 - tail))
    return low, high


def _claim(fewest: int, datasets: int, over: str) -> str:
    """What can be claimed: one data set does not stand for others, nor one seed for seeds."""
    if over not in (SEEDS, DATASETS):
        raise ValueError(f"over is {over!r}, neither {SEEDS!r} nor {DATASETS!r}")
    if over == DATASETS and datasets > 1:
        return DATASETS
    return SEEDS if fewest > 1 else NOTHING


def _over_seeds(samples: Sequence[Array], share: Array) -> _Spread:
    """Spread of the weighted mean of the data sets, from seeds inside each."""
    number = np.array([one.shape[-1] for one in samples], dtype=float)
    squares = np.stack([one.var(axis=-1, ddof=1) for one in samples], axis=-1)
    cubes = np.stack([_cube(one) for one in samples], axis=-1)
    return _Spread(share**2 * squares / number, number - 1, cubes @ (share**3 / number**2))


def _cube(values: Array) -> Array:
    """Third central moment, over the last axis."""
    return np.asarray(((values - values.mean(axis=-1, keepdims=True)) ** 3).mean(axis=-1))


def _confidence(level: float, freedom: Array, parts: int) -> Array:
    """Level for normal scores at which skewed ones have about `level`; see `SKEW_SHARE`."""
    share = SKEW_SHARE / parts**SKEW_PARTS * np.minimum(1.0, SKEW_FREEDOM / freedom)
    return np.asarray(level + (1 - level) * share)


def _around(
    estimate: Array, ends: tuple[Array, Array], samples: Sequence[Array]
) -> tuple[Array, Array]:
    """The ends; shares stay between 0 and 1."""
    low, high = estimate + ends[0], estimate + ends[1]
    lowest = np.min([one.min(axis=-1) for one in samples], axis=0)
    highest = np.max([one.max(axis=-1) for one in samples], axis=0)
    shares = (lowest >= 0.0) & (highest <= 1.0)
    return np.where(shares, np.maximum(low, 0.0), low), np.where(
        shares, np.minimum(high, 1.0), high
    )


def _members(number: int, strata: Sequence[str] | None) -> list[Indices]:
    """Indices of the data sets of each stratum; one stratum where none are named."""
    if strata is None:
        return [np.arange(number)]
    return [
        np.array([i for i, name in enumerate(strata) if name == one]) for one in sorted(set(strata))
    ]

"""Bootstrap intervals of an average over data sets, which say what they are intervals over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from peftbench.statistics.scores import Array

# What a claim is about, and so what is drawn anew.
SEEDS = "seeds"  # these data sets, other seeds
DATASETS = "seeds and data sets"  # other data sets of the kind as well
NOTHING = "nothing"  # a single seed: there is nothing to draw from

Indices = npt.NDArray[np.int_]

LEVEL = 0.95
RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """An estimate and its percentile bootstrap interval; no bounds where `over` is `NOTHING`."""

    estimate: float
    low: float | None
    high: float | None
    over: str  # what was drawn anew: `SEEDS`, `DATASETS` or `NOTHING`
    datasets: int
    seeds: int  # of the data set that has fewest
    level: float = LEVEL


def mean_interval(
    samples: Sequence[Array],
    *,
    over: str = SEEDS,
    weights: Sequence[float] | None = None,
    strata: Sequence[str] | None = None,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Interval of the weighted mean of the means of the data sets; scores are fractions.

    Seeds are drawn with replacement inside each data set (a stratified bootstrap; Agarwal et al.,
    2021, §4.1, arXiv 2108.13264), and with `over=DATASETS` the data sets are drawn first, inside
    their `strata` where given, with new seeds for each draw. Deviations are widened by
    sqrt(n / (n - 1)), without which three seeds would show two thirds of their variance.

    Args:
        samples: scores of each data set, one array a data set, (seeds,).
        over: `SEEDS` for a claim about these data sets, `DATASETS` for one about new ones.
        weights: of the data sets, adding up to one; equal unless given. A drawn data set takes
            the weight of the place it is drawn for.
        strata: group of each data set, such as the group means of VTAB are made of.
        level: share of the bootstrap distribution inside.
        resamples: number of draws.
        seed: of the draws.
    """
    share = np.full(len(samples), 1 / len(samples)) if weights is None else np.asarray(weights)

    def statistic(drawn: Array) -> Array:
        return np.asarray(np.nanmean(drawn, axis=-1) @ share)

    return _interval(samples, statistic, over, strata, level, resamples, seed)


def interquartile_mean_interval(
    samples: Sequence[Array],
    *,
    over: str = SEEDS,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Interval of the interquartile mean of all runs; see `mean_interval` for the arguments.

    The quarter of the runs with the lowest scores and the quarter with the highest do not count
    (rounded down; Agarwal et al., 2021, §4.3).
    """
    return _interval(samples, interquartile_means, over, None, level, resamples, seed)


def interquartile_means(drawn: Array) -> Array:
    """Interquartile mean of each (data sets, seeds) in the last two axes; NaN stands for no run."""
    flat = np.sort(drawn.reshape(*drawn.shape[:-2], -1), axis=-1)  # NaN goes last
    number = np.sum(~np.isnan(flat), axis=-1)
    cut = number // 4
    sums = np.cumsum(np.nan_to_num(flat), axis=-1)
    sums = np.concatenate([np.zeros((*sums.shape[:-1], 1)), sums], axis=-1)
    upper = np.take_along_axis(sums, (number - cut)[..., None], axis=-1)
    lower = np.take_along_axis(sums, cut[..., None], axis=-1)
    return np.asarray((upper - lower)[..., 0] / (number - 2 * cut))


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
    (Agarwal et al., 2021, §4.3). Both methods have the data sets in the same order; seeds of the
    two are drawn on their own, data sets together.
    """
    estimate = float(
        np.mean([_win_share(a, b) for a, b in zip(first, second, strict=True)], dtype=float)
    )
    fewest = min(map(len, [*first, *second]))
    resampled = _resampled(fewest, len(first), over)
    if resampled == NOTHING:
        return Interval(estimate, None, None, NOTHING, len(first), fewest, level)
    generator = np.random.default_rng(seed)
    places = _places(len(first), None, resampled, resamples, generator)
    drawn = _win_share(_draw(first, places, generator), _draw(second, places, generator))
    low, high = _bounds(np.nanmean(drawn, axis=-1), level)
    return Interval(estimate, low, high, resampled, len(first), fewest, level)


def _win_share(first: Array, second: Array) -> Array:
    """Share of pairs that the first wins, over the last axes (..., n) and (..., m)."""
    a, b = first[..., :, None], second[..., None, :]
    wins = np.where(np.isnan(a + b), np.nan, (a > b) + 0.5 * (a == b))
    return np.asarray(np.nanmean(wins, axis=(-2, -1)))


def _interval(
    samples: Sequence[Array],
    statistic: Callable[[Array], Array],
    over: str,
    strata: Sequence[str] | None,
    level: float,
    resamples: int,
    seed: int,
) -> Interval:
    """`statistic` maps (..., data sets, seeds), NaN where there is no run, to (...)."""
    observed = _padded(samples)
    estimate = float(statistic(observed))
    fewest = min(map(len, samples))
    resampled = _resampled(fewest, len(samples), over)
    if resampled == NOTHING:
        return Interval(estimate, None, None, NOTHING, len(samples), fewest, level)
    generator = np.random.default_rng(seed)
    places = _places(len(samples), strata, resampled, resamples, generator)
    drawn = _draw([_widened(one) for one in samples], places, generator)
    if resampled == DATASETS:
        drawn += _widening(samples, strata)[places][..., None]
    low, high = _bounds(np.clip(statistic(drawn), 0.0, 1.0), level)
    return Interval(estimate, low, high, resampled, len(samples), fewest, level)


def _resampled(fewest: int, datasets: int, over: str) -> str:
    """What can be drawn anew: one data set does not stand for others, nor one seed for seeds."""
    if over not in (SEEDS, DATASETS):
        raise ValueError(f"over is {over!r}, neither {SEEDS!r} nor {DATASETS!r}")
    if over == DATASETS and datasets > 1:
        return DATASETS
    return SEEDS if fewest > 1 else NOTHING


def _padded(samples: Sequence[Array]) -> Array:
    """(data sets, most seeds) with NaN after the last run of a data set."""
    out = np.full((len(samples), max(map(len, samples))), np.nan)
    for row, one in zip(out, samples, strict=True):
        row[: len(one)] = one
    return out


def _places(
    number: int,
    strata: Sequence[str] | None,
    over: str,
    resamples: int,
    generator: np.random.Generator,
) -> Indices:
    """(resamples, data sets): the data set that stands in each place."""
    places = np.broadcast_to(np.arange(number), (resamples, number)).copy()
    if over != DATASETS:
        return places
    for members in _members(number, strata):
        places[:, members] = generator.choice(members, (resamples, len(members)))
    return places


def _draw(samples: Sequence[Array], places: Indices, generator: np.random.Generator) -> Array:
    """(resamples, data sets, seeds): runs drawn with replacement from the data set of a place."""
    observed = _padded(samples)
    number = np.array([len(one) for one in samples])[places][..., None]
    shape = (*places.shape, observed.shape[1])
    chosen = np.minimum((generator.random(shape) * number).astype(int), number - 1)
    drawn = observed[places[..., None], chosen]
    drawn[np.arange(shape[-1]) >= number] = np.nan
    return np.asarray(drawn)


def _widened(sample: Array) -> Array:
    """Scores of one data set, whose deviations from their mean grow by sqrt(n / (n - 1))."""
    n = len(sample)
    if n < 2:
        return sample
    return np.asarray(sample.mean() + (sample - sample.mean()) * np.sqrt(n / (n - 1)))


def _widening(samples: Sequence[Array], strata: Sequence[str] | None) -> Array:
    """What to add to each data set so that the means deviate by sqrt(n / (n - 1)) more."""
    centres = np.array([one.mean() for one in samples])
    out = np.zeros(len(samples))
    for members in _members(len(samples), strata):
        n = len(members)
        if n > 1:
            deviation = centres[members] - centres[members].mean()
            out[members] = deviation * (np.sqrt(n / (n - 1)) - 1)
    return out


def _members(number: int, strata: Sequence[str] | None) -> list[Indices]:
    """Indices of the data sets of each stratum; one stratum where none are named."""
    if strata is None:
        return [np.arange(number)]
    return [
        np.array([i for i, name in enumerate(strata) if name == one]) for one in sorted(set(strata))
    ]


def _bounds(values: Array, level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)

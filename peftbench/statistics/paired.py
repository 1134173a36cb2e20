"""Methods of one's own data set that were tested on the same images, and who is told from the best.

Which method is better on new images is asked image by image, so that images that are easy or hard
for both say nothing. A method is told from the best where the test of the pair rejects at 5 % after
Holm's correction over all pairs, as in `best`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from peftbench.statistics import images, power, ranks
from peftbench.statistics.best import Best, against_best
from peftbench.statistics.new_images import (
    IMAGES,
    IMAGES_SEEDS,
    IMAGES_SPLITS,
    ImageScores,
    Spread,
    between_seeds,
    spread,
)
from peftbench.statistics.scores import Array

EQUAL = 1e-9  # means over runs that are nearer than this are equal but for rounding


@dataclass(frozen=True)
class PairTest:
    """How much better the first of two methods is, and how likely that is chance."""

    difference: float
    variance: float
    images: int  # that both were tested on; 0 where they are not known
    p: float  # two-sided
    least: float = 0.0  # p-value of the clearest result that so many images or splits could give
    first_only: int = 0  # images on which the first is right in more of its runs
    second_only: int = 0


@dataclass(frozen=True, eq=False)
class Cells:
    """What the runs of one method scored on each image of each split, in the mean, (M,)."""

    key: npt.NDArray[np.int64]  # of split and image, rising
    value: Array
    weight: Array
    stratum: npt.NDArray[np.int64]
    of: ImageScores

    @classmethod
    def from_scores(cls, scores: ImageScores) -> Cells:
        """Means over the runs of each split."""
        key = (scores.split.astype(np.int64) << 32) | scores.image
        known, first, place = np.unique(key, return_index=True, return_inverse=True)
        value = np.bincount(place, scores.value) / np.bincount(place)
        return cls(known, value, scores.weight[first], scores.stratum[first], scores)

    def minus(self, other: Cells) -> ImageScores | None:
        """Differences of the means where both have any; `None` where there is none."""
        key, mine, theirs = np.intersect1d(
            self.key, other.key, assume_unique=True, return_indices=True
        )
        if not len(key):
            return None
        split, image = key >> 32, key & (2**32 - 1)
        weight = self.weight[mine]
        _, place = np.unique(split, return_inverse=True)
        weight = weight / np.bincount(place, weight)[place]  # of the images that both have
        value = self.value[mine] - other.value[theirs]
        return ImageScores(split, split, image, value, weight, self.stratum[mine], self.of.total)


def compare(first: Cells, second: Cells, *, exact: bool) -> PairTest | None:
    """The difference of two methods on the same images of the same splits.

    The p-value is that of a t-test with the variance of `new_images.spread`, with as many degrees
    of freedom as images differ, less one; with `exact` it is at least that of McNemar's exact test,
    where an image counts once, for the method that is right on it in more of its splits. `None`
    where no split has both.

    Args:
        first: what one method scored on single images.
        second: the same of the other one.
        exact: whether every image counts alike, as in top-1 accuracy.
    """
    from scipy.special import stdtr

    paired = first.minus(second)
    if paired is None:
        return None
    known = spread(paired)
    variance = known.variance
    if known.splits == 1:  # means over seeds do not show how seeds differ
        variance += between_seeds(first.of) + between_seeds(second.of)
    lead = np.bincount(np.unique(paired.image, return_inverse=True)[1], paired.value)
    wins, losses = int((lead > EQUAL).sum()), int((lead < -EQUAL).sum())
    p = images.exact_sign_p(wins, losses)
    if wins + losses > 1 and variance > 0:
        t = abs(known.mean) / math.sqrt(variance)
        by_variance = float(2 * stdtr(wins + losses - 1, -t))
        p = max(p, by_variance) if exact else by_variance
    least = min(1.0, 2.0 * 0.5**known.images)
    return PairTest(known.mean, variance, known.images, min(1.0, p), least, wins, losses)


@dataclass(frozen=True)
class Evidence:
    """What is known of one method on one data set, from most to least: only the mean is sure."""

    mean: float  # over runs
    of_splits: Mapping[int, float] = field(default_factory=dict)  # means over the runs of each
    ratio: float = 0.0  # tested to trained images of a split
    spread: Spread | None = None  # of scores that are means over images
    cells: Cells | None = None  # where single images are known
    seeds: int = 1  # fewest of a split


Rival = Mapping[str, Evidence]  # a method that is compared with others, by data set


def leaders(rivals: Mapping[str, Rival], *, exact: bool, alpha: float = ranks.ALPHA) -> Best | None:
    """The best of several methods, and those that their test images do not tell from it.

    Every pair is compared on the same images where they are known, by two independent intervals
    where only these are, else by how the difference varies between splits (`resampled_test`).
    `None` for no method at all.

    Args:
        rivals: by label; all on the same data sets.
        exact: whether every image counts alike, as in top-1 accuracy.
        alpha: level of all tests together, after Holm's correction over all pairs.
    """
    if not rivals:
        return None
    means = {
        name: sum(one.mean for one in rival.values()) / len(rival) for name, rival in rivals.items()
    }
    order = sorted(rivals, key=lambda name: (-means[name], name))
    pairs = list(combinations(order, 2))
    tests = [_pair(rivals[a], rivals[b], exact) for a, b in pairs]
    smallest = min(1.0, min((test.least for test in tests), default=1.0) * len(pairs))
    against = against_best(order[0], pairs, [test.p for test in tests])
    with_best = {b: test for (a, b), test in zip(pairs, tests, strict=True) if a == order[0]}
    every = [one for rival in rivals.values() for one in rival.values()]
    splits = min(max(1, len(one.of_splits)) for one in every)
    seeds = min(one.seeds for one in every)
    return Best(
        best=order[0],
        members=(order[0], *(name for name in order[1:] if against[name] > alpha)),
        conclusive=smallest <= alpha,
        over=IMAGES_SPLITS if splits > 1 else IMAGES_SEEDS if seeds > 1 else IMAGES,
        p_holm=against,
        smallest=smallest,
        datasets=len(next(iter(rivals.values()))),
        seeds=seeds,
        alpha=alpha,
        means={name: means[name] for name in order},
        needed={
            name: images_to_tell(test, alpha / max(1, len(pairs)))
            for name, test in with_best.items()
        },
        images=min((one.spread.images for one in every if one.spread), default=0),
        splits=splits,
    )


def _pair(first: Rival, second: Rival, exact: bool) -> PairTest:
    """Of one data set, the comparison itself; of several, that of the means over them."""
    parts = [_test(first[name], second[name], exact) for name in first]
    if len(parts) == 1:
        return parts[0]
    difference = sum(one.difference for one in parts) / len(parts)
    variance = sum(one.variance for one in parts) / len(parts) ** 2
    pictures = sum(one.images for one in parts)
    untold = any(one.least >= 1 for one in parts)
    p = 1.0 if untold else _normal_p(difference, variance)
    return PairTest(difference, variance, pictures, p, max(one.least for one in parts))


def _test(first: Evidence, second: Evidence, exact: bool) -> PairTest:
    if first.cells is not None and second.cells is not None:
        found = compare(first.cells, second.cells, exact=exact)
        if found is not None:
            return found
    if first.spread is not None and second.spread is not None:
        return _apart(first.spread, second.spread)
    return resampled_test(first, second)


def resampled_test(first: Evidence, second: Evidence) -> PairTest:
    """Nadeau & Bengio's corrected t-test (2003) of the differences on the splits that both have.

    One split tells nothing.
    """
    from scipy.special import stdtr

    both = sorted(first.of_splits.keys() & second.of_splits.keys())
    lead = np.array([first.of_splits[name] - second.of_splits[name] for name in both])
    if len(both) < 2:
        return PairTest(first.mean - second.mean, 0.0, 0, 1.0, 1.0)
    ratio = max(first.ratio, second.ratio)
    variance = (1 / len(both) + ratio) * float(lead.var(ddof=1))
    difference = float(lead.mean())
    p = 1.0
    if variance > 0:
        p = float(2 * stdtr(len(both) - 1, -abs(difference) / math.sqrt(variance)))
    return PairTest(difference, variance, 0, p, 0.0)


def _apart(first: Spread, second: Spread) -> PairTest:
    """As if the two had been tested on images of their own, which tells fewer apart."""
    difference, variance = first.mean - second.mean, first.variance + second.variance
    number = min(first.images, second.images)
    least = min(1.0, 2.0 * 0.5**number)
    return PairTest(difference, variance, number, _normal_p(difference, variance), least)


def _normal_p(difference: float, variance: float) -> float:
    if variance <= 0:
        return 1.0
    return 2 * NormalDist().cdf(-abs(difference) / math.sqrt(variance))


def images_to_tell(test: PairTest, alpha: float) -> int | None:
    """Test images with which such a test at `alpha` has the usual power; `None` for equal means.

    The true difference is taken to be the one that is seen.
    """
    if test.difference == 0.0 or test.images == 0:
        return None
    normal = NormalDist()
    factor = (normal.inv_cdf(1 - alpha / 2) + normal.inv_cdf(power.POWER)) ** 2
    return math.ceil(test.images * factor * test.variance / test.difference**2)

"""What a method will do on new images of a data set: intervals over images, splits and seeds.

A user's own data set is small, and its test images are the largest source of chance: of 100
images at 90 %, a standard error of 3 points. Runs come as what they said of single images, so that
an image that several runs were tested on counts as one image. The variance of the mean score is
put together of

- images: the sum over all runs of what an image adds to the mean, its variance over images;
- splits: by how much splits differ beyond what their images explain, and with a single split by
  how much seeds do (Cameron, Gelbach & Miller, 2011, of crossed clusters);
- `SHARED` of what one pass over all images would leave, for what all splits have in common: they
  were drawn of the same images, and nothing inside one data set shows how much that matters
  (Bengio & Grandvalet, 2004).

The interval is Wilson's for as many independent images as would leave that variance. In 108
simulations of 4,000 data sets of 60 to 300 images it held in 93.0 to 97.6 %, 95.3 % on average, and
in more than 97 % only of 60 images (`tests/statistics/simulate_new_images.py`). Degrees of freedom
for the splits, which are few, and more than `SHARED` made it hold in up to 99 %: how splits differ
is most often chance. With one split and one seed it is Wilson's interval.

Where only the scores of whole runs are known, there is Nadeau & Bengio's corrected resampled t.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from peftbench.statistics.intervals import LEVEL, NOTHING, Interval
from peftbench.statistics.scores import Array

IMAGES = "images"  # new images, these trained models
IMAGES_SEEDS = "images and seeds"  # these splits
IMAGES_SPLITS = "images and splits"  # with the seeds of the runs on each
SHARED = 0.1
ROUNDING = 1e-12

Codes = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ImageScores:
    """What the runs of one method scored on single images: one entry an image and run, (M,).

    The score of a run is the sum of `weight` times `value` over its images.
    """

    split: Codes  # number of the split that was drawn
    run: Codes  # number of the run, over all splits
    image: Codes  # number of the image; the same image has it in every split
    value: Array  # 1 for a hit, 0 for a miss; of a pair of methods their difference
    weight: Array  # of the image in the score of its run; one image's share where all count alike
    stratum: Codes  # images that are alike but for chance: the class, where classes count alike
    total: int  # images of the data set, whatever the split

    @property
    def splits(self) -> int:
        """How many splits were tested."""
        return len(np.unique(self.split))

    @property
    def images(self) -> int:
        """How many different images were tested."""
        return len(np.unique(self.image))

    @property
    def seeds(self) -> int:
        """Fewest runs of a split."""
        of_run = dict(zip(self.run.tolist(), self.split.tolist(), strict=True))
        return int(min(np.unique(list(of_run.values()), return_counts=True)[1]))


@dataclass(frozen=True)
class Spread:
    """A mean score and its variance over new images, splits and seeds."""

    mean: float
    variance: float
    images: int
    splits: int
    seeds: int


def spread(tested: ImageScores) -> Spread:
    """The mean over runs of a method's score, and its variance."""
    runs, run = np.unique(tested.run, return_inverse=True)
    splits, split_of_entry = np.unique(tested.split, return_inverse=True)
    pictures, image = np.unique(tested.image, return_inverse=True)
    part = tested.value * tested.weight
    score = _sums(run, part)
    mean = float(score.mean())
    _, stratum = np.unique(tested.stratum, return_inverse=True)
    level = _sums(stratum, part) / _sums(stratum, tested.weight)
    left = tested.weight * (tested.value - level[stratum])  # of each image, beside its stratum
    of_image = _sums(image, left) / len(runs)
    number = len(pictures)
    variance = float((of_image**2).sum()) * number / max(1, number - 1)
    split = np.zeros(len(runs), np.int64)
    split[run] = split_of_entry
    if len(splits) > 1:
        once = float(_sums(run, left**2).mean()) * _share_tested(tested)
        cells = np.unique(image * len(splits) + split_of_entry, return_inverse=True)[1]
        of_cell = _sums(cells, left) / len(runs)
        variance += SHARED * once
        variance += max(0.0, _between_splits(score, split, mean) - float((of_cell**2).sum()))
    elif len(runs) > 1:
        variance += _between_seeds(tested, score, run, image)
    return Spread(mean, variance, number, len(splits), tested.seeds)


def _sums(codes: Codes, values: Array) -> Array:
    """Of each code from 0 on, the sum of its values; both are (M,)."""
    return np.bincount(codes, values).astype(float)


def _share_tested(tested: ImageScores) -> float:
    """Which share of the data set one split tests."""
    first = tested.run == tested.run[0]
    return min(1.0, float(first.sum()) / max(1, tested.total))


def _between_splits(score: Array, split: Codes, mean: float) -> float:
    """Variance of the mean of the splits by how they differ; each as heavy as it has runs."""
    share = np.bincount(split) / len(split)
    of_split = _sums(split, score) / np.bincount(split)
    number = len(share)
    return float((share**2 * (of_split - mean) ** 2).sum()) * number / (number - 1)


def between_seeds(tested: ImageScores) -> float:
    """What the seeds of a single split add to the variance of the mean score; 0 of one seed."""
    runs, run = np.unique(tested.run, return_inverse=True)
    if len(runs) < 2:
        return 0.0
    image = np.unique(tested.image, return_inverse=True)[1]
    return _between_seeds(tested, _sums(run, tested.value * tested.weight), run, image)


def _between_seeds(tested: ImageScores, score: Array, run: Codes, image: Codes) -> float:
    """Variance by how seeds differ on the same images, beyond what single images explain."""
    seeds, number = len(score), int(image.max()) + 1
    grid = np.full((seeds, number), np.nan)
    grid[run, image] = tested.value * tested.weight * number
    if np.isnan(grid).any() or number < 2:  # of other images: they are no repetitions
        return 0.0
    rest = grid - grid.mean(axis=0) - (score - score.mean())[:, None]
    interaction = float((rest**2).sum()) / ((seeds - 1) * (number - 1))
    return max(0.0, float(score.var(ddof=1)) / seeds - interaction / (number * seeds))


def interval(known: Spread, level: float = LEVEL) -> Interval:
    """Wilson's interval for as many independent images as would leave this variance."""
    chance = known.mean * (1 - known.mean)
    number = float(known.images)
    if known.variance > ROUNDING and chance > ROUNDING:  # else all runs hit all images, or none
        number = chance / known.variance
    low, high = wilson(known.mean, number, level)
    over = IMAGES_SPLITS if known.splits > 1 else IMAGES_SEEDS if known.seeds > 1 else IMAGES
    return Interval(
        known.mean, low, high, over, 1, known.seeds, level, None, known.splits, known.images
    )


def wilson(share: float, number: float, level: float = LEVEL) -> tuple[float, float]:
    """Both ends of Wilson's score interval (1927) of a share that was seen in so many images."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    scale = 1 + z * z / number
    centre = (share + z * z / (2 * number)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / number + z * z / (4 * number * number))
    return max(0.0, centre - half), min(1.0, centre + half)


def of_counts(
    scores: Mapping[int, Sequence[float]], tested: int, total: int, *, once: bool
) -> Spread:
    """The spread where single images are not known: they are taken to be hit always or never.

    That is the most that images can add, so that intervals are rather too wide.

    Args:
        scores: by split, the accuracy of each of its runs.
        tested: images that a split tests.
        total: images of the data set.
        once: whether no image is in the test part of two splits, as with folds.
    """
    number, share = len(scores), tested / total
    of_split = np.array([np.mean(one) for one in scores.values()])
    mean = float(np.mean([value for one in scores.values() for value in one]))
    chance = mean * (1 - mean)
    pictures = min(total, number * tested)
    # of random parts, images that are tested in several of them count more
    variance = chance / (pictures if once else total / (1 + (1 - share) / (number * share)))
    if number > 1:
        between = float(of_split.var(ddof=1)) / number
        variance += SHARED * chance / total
        variance += max(0.0, between - chance / (number * tested))
    elif min(map(len, scores.values())) > 1:
        (runs,) = scores.values()
        variance += float(np.var(runs, ddof=1)) / len(runs)
    return Spread(mean, variance, pictures, number, min(map(len, scores.values())))


def resampled(scores: Sequence[float], ratio: float, level: float = LEVEL) -> Interval:
    """Nadeau & Bengio's corrected resampled t interval (2003) of the scores of several splits.

    For scores that are no mean over images. The variance of scores that are drawn of the same
    images is 1 / splits + tested / trained times that between the splits.

    Args:
        scores: mean over the runs of each split.
        ratio: of the images that a split tests to those that it trains on.
    """
    from scipy.special import stdtrit

    number, mean = len(scores), float(np.mean(scores))
    if number < 2:
        return Interval(mean, None, None, NOTHING, 1, 1, level, None, number)
    variance = (1 / number + ratio) * float(np.var(scores, ddof=1))
    half = float(stdtrit(number - 1, (1 + level) / 2)) * math.sqrt(variance)
    low, high = max(0.0, mean - half), min(1.0, mean + half)
    return Interval(mean, low, high, IMAGES_SPLITS, 1, 1, level, None, number)

"""Promises of intervals over new images, splits and seeds of one's own data set."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats
from simulate_new_images import PROTOCOLS, SETS, Design, coverage, scores_of, simulate

from peftbench.statistics.new_images import (
    IMAGES,
    IMAGES_SEEDS,
    IMAGES_SPLITS,
    SHARED,
    ImageScores,
    interval,
    of_counts,
    resampled,
    spread,
    wilson,
)

Z2 = stats.norm.ppf(0.975) ** 2


def image_scores(runs: list[tuple[int, list[int], str]], total: int = 100) -> ImageScores:
    """Of (split, images, hits as "101") of each run, all images alike."""
    parts = []
    for number, (split, image, text) in enumerate(runs):
        count = len(image)
        hit = np.array([letter == "1" for letter in text], float)
        same = np.full(count, 1)
        parts.append((same * split, same * number, np.array(image), hit, same / count, same * 0))
    return ImageScores(
        *(np.concatenate(column) for column in zip(*parts, strict=True)), total=total
    )


@pytest.mark.parametrize(("right", "number"), [(9, 10), (0, 7), (97, 97), (64, 97), (1, 120)])
def test_one_run_has_wilsons_interval(right: int, number: int) -> None:
    hits = "1" * right + "0" * (number - right)
    found = interval(spread(image_scores([(0, list(range(number)), hits)])))
    expected = stats.binomtest(right, number).proportion_ci(0.95, method="wilson")
    # the variance of a sample has the divisor n - 1, as if one image fewer had been tested
    if 0 < right < number:
        assert wilson(right / number, number) == pytest.approx(tuple(expected))
        fewer = wilson(right / number, number - 1)
        assert (found.low, found.high) == pytest.approx(fewer)
    else:
        assert (found.low, found.high) == pytest.approx(tuple(expected))
    assert (found.estimate, found.over) == (pytest.approx(right / number), IMAGES)
    assert (found.images, found.splits, found.seeds) == (number, 1, 1)


def test_an_image_counts_once_however_many_seeds_agree_on_it() -> None:
    image, hits = list(range(20)), "1" * 15 + "0" * 5
    one, three = (spread(image_scores([(0, image, hits)] * seeds)) for seeds in (1, 3))
    assert three.variance == pytest.approx(one.variance) == pytest.approx(0.75 * 0.25 / 19)
    assert interval(three).over == IMAGES_SEEDS and three.seeds == 3


def test_seeds_that_differ_beyond_single_images_widen_the_interval() -> None:
    image = list(range(20))
    # the seeds score 1 and 0.5: the mean over seeds is 1 on half of the images, else 0.5
    found = spread(image_scores([(0, image, "1" * 20), (0, image, "1" * 10 + "0" * 10)]))
    images = 0.25**2 * 20 / 19 / 20
    # seeds differ by 0.5, a variance of 0.125, half of it for the mean of two; image by image the
    # second differs from the first by 0 or -1, around -0.5: 20 x 2 x 0.25^2 / 19, over 20 x 2
    seeds = 0.125 / 2 - 20 * 2 * 0.25**2 / 19 / 40
    assert found.variance == pytest.approx(images + seeds)


def test_folds_are_one_pass_over_all_images_and_what_folds_share() -> None:
    runs = [(k, list(range(10 * k, 10 * k + 10)), "1" * 8 + "0" * 2) for k in range(5)]
    found = spread(image_scores(runs, total=50))
    assert found.mean == pytest.approx(0.8)
    # equal folds differ by nothing; the share of a pass is 10 of 50 images five times
    assert found.variance == pytest.approx(0.16 / 49 + SHARED * 0.16 / 50)
    assert (found.images, found.splits, interval(found).over) == (50, 5, IMAGES_SPLITS)


def test_folds_that_differ_by_more_than_their_images_widen_the_interval() -> None:
    hits = ["1" * 10, "1" * 10, "1" * 5 + "0" * 5, "0" * 10]
    runs = [(k, list(range(10 * k, 10 * k + 10)), text) for k, text in enumerate(hits)]
    found = spread(image_scores(runs, total=40))
    chance = 0.625 * 0.375
    between = np.var([1, 1, 0.5, 0], ddof=1) / 4
    images = chance / 39
    assert found.variance == pytest.approx(images + SHARED * chance / 40 + between - chance / 40)


def test_an_image_that_several_splits_test_counts_once() -> None:
    # the same 10 of 50 images in both splits, with the same hits: no more is known than by one
    image, hits = list(range(10)), "1" * 8 + "0" * 2
    found = spread(image_scores([(0, image, hits), (1, image, hits)], total=50))
    assert found.images == 10
    assert found.variance == pytest.approx(0.16 / 9 + SHARED * 0.16 / 50)
    # half of the images are in both splits: they count twice, the others once
    half = spread(image_scores([(0, image, "1" * 10), (1, list(range(5, 15)), "1" * 10)], total=50))
    assert (half.images, half.variance) == (15, pytest.approx(0))


def test_classes_that_count_alike_have_the_variance_of_each_class() -> None:
    # 30 images of one class with 24 hits, 10 of the other with 5
    label = np.repeat([0, 1], [30, 10])
    hit = np.array([1] * 24 + [0] * 6 + [1] * 5 + [0] * 5, float)
    weight = 1 / np.array([30, 10])[label] / 2
    zeros = np.zeros(40, int)
    found = spread(ImageScores(zeros, zeros, np.arange(40), hit, weight, label, total=200))
    assert found.mean == pytest.approx((0.8 + 0.5) / 2)
    delta = (0.8 * 0.2 / 30 + 0.5 * 0.5 / 10) / 4
    assert found.variance == pytest.approx(delta * 40 / 39)


def test_scores_alone_give_the_same_interval_for_folds_and_a_wider_one_for_seeds() -> None:
    runs = [(k, list(range(10 * k, 10 * k + 10)), "1" * (5 + k) + "0" * (5 - k)) for k in range(5)]
    exact = spread(image_scores(runs, total=50))
    scores = {k: [(5 + k) / 10] for k in range(5)}
    known = of_counts(scores, 10, 50, once=True)
    assert known.mean == pytest.approx(exact.mean) == pytest.approx(0.7)
    assert known.variance == pytest.approx(exact.variance, rel=0.03)  # 49 and 50 in a divisor
    image = list(range(20))
    seeds = spread(image_scores([(0, image, "1" * 20), (0, image, "1" * 10 + "0" * 10)]))
    assert of_counts({0: [1.0, 0.5]}, 20, 100, once=False).variance > seeds.variance
    single = of_counts({0: [0.75]}, 20, 100, once=False)
    assert interval(single).low == pytest.approx(wilson(0.75, 20)[0])


def test_random_splits_by_scores_alone_count_images_that_several_test() -> None:
    # 5 splits of a fifth: an image is tested once on average, with the variance 0.8 of a binomial
    known = of_counts({k: [0.8] for k in range(5)}, 20, 100, once=False)
    assert known.variance == pytest.approx(0.16 / 100 * (1 + 0.8 / (5 * 0.2) + SHARED))


def test_other_scores_have_the_corrected_resampled_t_interval() -> None:
    scores = [0.70, 0.74, 0.66, 0.78, 0.72]
    found = resampled(scores, 20 / 80)
    half = stats.t.ppf(0.975, 4) * math.sqrt((1 / 5 + 20 / 80) * np.var(scores, ddof=1))
    assert (found.low, found.high) == pytest.approx((0.72 - half, 0.72 + half))
    assert found.over == IMAGES_SPLITS
    assert resampled([0.7], 0.25).low is None


def test_the_simulated_accuracy_is_that_on_new_images() -> None:
    design = dataclasses.replace(SETS[3], splits=1)
    few, many = (dataclasses.replace(design, images=images, noise=0.0) for images in (40, 4000))
    # with very many images, the hits on the test images are the accuracy
    simulated = simulate(many, 5)
    mask = simulated.tested[:, 0]
    share = [hit[on].mean() for hit, on in zip(simulated.hits[:, 0, 0], mask, strict=True)]
    assert np.mean(share) == pytest.approx(simulated.truth.mean(), abs=0.02)  # 3 sigma of 4,000
    assert simulate(few, 200).truth.mean() < simulated.truth.mean()  # fewer images train worse


@pytest.mark.slow
@pytest.mark.parametrize(
    ("splits", "seeds", "folds"), [(1, 1, False), (1, 3, False), *PROTOCOLS], ids=str
)
def test_intervals_hold_in_93_to_97_percent_of_simulated_data_sets(
    splits: int, seeds: int, folds: bool
) -> None:
    shares = {}
    for known in SETS:
        design = dataclasses.replace(known, splits=splits, seeds=seeds, folds=folds)
        shares[design] = coverage(design, 300, seed=7)
    assert 0.93 <= np.mean(list(shares.values())) <= 0.97
    assert all(0.9 <= share <= 0.99 for share in shares.values()), shares


@pytest.mark.slow
@pytest.mark.parametrize(
    ("known", "splits", "seeds", "folds"),
    [
        (SETS[4], 10, 1, False),
        (SETS[11], 10, 1, False),
        (SETS[8], 3, 1, True),
        (SETS[0], 10, 1, True),
        (SETS[1], 5, 1, True),
    ],
)
def test_intervals_hold_as_often_where_few_simulations_came_out_furthest_from_it(
    known: Design, splits: int, seeds: int, folds: bool
) -> None:
    design = dataclasses.replace(known, splits=splits, seeds=seeds, folds=folds)
    # of 4,000 data sets a share of 95 % is known to within 0.7 points
    assert 0.923 <= coverage(design, 4000, seed=50) <= 0.98


@pytest.mark.slow
def test_intervals_of_the_mean_per_class_hold_as_often() -> None:
    designs = [
        dataclasses.replace(known, first=0.3, splits=5, folds=True)
        for known in SETS
        if known.images >= 120 and known.dimensions < 100
    ]
    held, sets = 0, 400
    for design in designs:
        simulated = simulate(design, sets, 3)
        found = [spread(scores_of(simulated, i, per_class=True)) for i in range(sets)]
        truth = np.mean([one.mean for one in found])  # over 400 data sets, to within 0.2 points
        bounds = [interval(one) for one in found]
        held += sum(one.low <= truth <= one.high for one in bounds)
    assert 0.93 <= held / sets / len(designs) <= 0.97

"""Promises of comparisons of methods on the same images of one's own data set."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats
from simulate_new_images import Design, Simulated, scores_of, simulate

from peftbench.statistics.images import mcnemar
from peftbench.statistics.new_images import ImageScores, of_counts, spread
from peftbench.statistics.paired import Cells, Evidence, compare, leaders, resampled_test


def one_split(texts: list[str], per_class: bool = False) -> ImageScores:
    """Of hits as "101", one text a seed, on the same images."""
    count = len(texts[0])
    image = np.tile(np.arange(count), len(texts))
    hit = np.array([letter == "1" for letter in "".join(texts)], float)
    label = (image >= count * 3 // 4).astype(int) if per_class else np.zeros_like(image)
    weight = 1 / np.bincount(label)[label] * len(texts) / len(np.unique(label))
    run = np.repeat(np.arange(len(texts)), count)
    return ImageScores(np.zeros_like(run), run, image, hit, weight, label, total=5 * count)


def pair(first: ImageScores, second: ImageScores, exact: bool = True):
    return compare(Cells.from_scores(first), Cells.from_scores(second), exact=exact)


def test_two_methods_on_one_split_have_at_least_mcnemars_p() -> None:
    first, second = "1" * 30 + "1" * 9 + "0" * 11, "1" * 30 + "0" * 9 + "1" * 2 + "0" * 9
    found = pair(one_split([first]), one_split([second]))
    assert found is not None
    hits = [np.array([letter == "1" for letter in text]) for text in (first, second)]
    exact = mcnemar(*hits)
    assert exact.p == pytest.approx(2 * (1 + 11 + 55) / 2**11)  # 2 of 11 or fewer, twice
    difference = hits[0].astype(float) - hits[1]
    t = stats.ttest_1samp(difference, 0).statistic
    assert found.difference == pytest.approx(7 / 50)
    assert found.variance == pytest.approx(difference.var(ddof=1) / 50)
    assert found.p == pytest.approx(max(exact.p, 2 * stats.t.sf(t, 10)))
    back = pair(one_split([second]), one_split([first]))
    assert back is not None and (back.p, back.difference) == (found.p, -found.difference)


def test_methods_that_never_differ_and_ones_that_always_do() -> None:
    same = pair(one_split(["1100"]), one_split(["1100"]))
    assert same is not None and (same.p, same.difference) == (1.0, 0.0)
    apart = pair(one_split(["1" * 12]), one_split(["0" * 12]))
    assert apart is not None and apart.p == pytest.approx(2 / 2**12) == apart.least


def test_an_image_counts_once_however_often_it_was_tested() -> None:
    first, second = "1" * 6 + "0" * 4, "0" * 6 + "0" * 4
    once = pair(one_split([first]), one_split([second]))
    thrice = pair(one_split([first] * 3), one_split([second] * 3))
    assert once is not None and thrice is not None
    assert thrice.p == pytest.approx(once.p) and thrice.p >= 2 / 2**6


def test_seeds_that_differ_make_a_difference_less_sure() -> None:
    count = 60
    second = one_split(["1" * 30 + "0" * 30] * 2)
    calm = one_split(["1" * 42 + "0" * 18] * 2)
    wild = one_split(["1" * 60, "1" * 24 + "0" * 36])  # 0.7 in the mean as well
    steady, unsteady = pair(calm, second), pair(wild, second)
    assert steady is not None and unsteady is not None
    assert steady.difference == pytest.approx(unsteady.difference) == pytest.approx(0.2)
    assert unsteady.variance > steady.variance + 0.02 and unsteady.p > 0.05 > steady.p
    assert steady.images == count


def test_only_images_and_splits_that_both_have_are_compared() -> None:
    first, second = one_split(["1110"]), one_split(["1100"])
    elsewhere = dataclasses.replace(second, split=second.split + 1)
    assert pair(first, elsewhere) is None
    part = dataclasses.replace(second, image=second.image + 2)  # images 2 and 3 are shared
    found = pair(first, part)
    assert found is not None and found.images == 2
    assert found.difference == pytest.approx((1 - 1 + 0 - 1) / 2)


def test_a_score_that_weighs_classes_alike_is_tested_by_its_own_difference() -> None:
    # of 40 images 30 are of the first class; the second method has 3 hits less there and 3 more in
    # the other class: as many hits, and 0.1 and 0.3 of the classes
    first = "1" * 30 + "1" * 3 + "0" * 7
    second = "1" * 27 + "0" * 3 + "1" * 6 + "0" * 4
    found = pair(one_split([first], True), one_split([second], True), exact=False)
    assert found is not None
    assert found.difference == pytest.approx((0.1 - 0.3) / 2)
    parts = [np.repeat([1.0, 0.0], [3, 27]), np.repeat([-1.0, 0.0], [3, 7])]
    variance = sum(part.var() / len(part) for part in parts) / 4 * 40 / 39
    assert found.variance == pytest.approx(variance)
    assert found.p == pytest.approx(2 * stats.t.sf(0.1 / math.sqrt(variance), 5))


def test_other_scores_are_compared_by_the_corrected_resampled_t_test() -> None:
    first = Evidence(0.72, {0: 0.70, 1: 0.74, 2: 0.72, 9: 0.1}, ratio=0.25)
    second = Evidence(0.68, {0: 0.69, 1: 0.70, 2: 0.65, 8: 0.9}, ratio=0.25)
    found = resampled_test(first, second)
    lead = np.array([0.01, 0.04, 0.07])
    t = lead.mean() / math.sqrt((1 / 3 + 0.25) * lead.var(ddof=1))
    assert found.difference == pytest.approx(0.04)
    assert found.p == pytest.approx(2 * stats.t.sf(t, 2))
    alone = resampled_test(Evidence(0.9, {0: 0.9}), Evidence(0.1, {0: 0.1}))
    assert (alone.p, alone.least) == (1.0, 1.0)


def evidence(scores: ImageScores) -> Evidence:
    known = spread(scores)
    return Evidence(known.mean, {}, 0.25, known, Cells.from_scores(scores), known.seeds)


def test_only_who_is_told_from_every_other_method_is_alone_at_the_front() -> None:
    base = "1" * 40 + "0" * 40
    rivals = {
        "good": {"pets": evidence(one_split(["1" * 62 + "0" * 18]))},
        "near": {"pets": evidence(one_split(["1" * 60 + "0" * 20]))},
        "poor": {"pets": evidence(one_split([base]))},
    }
    found = leaders(rivals, exact=True)
    assert found is not None
    # good has 2 images more than near, and 22 more than poor; p is 0.5 and 2 / 2^22
    assert (found.best, found.members, found.conclusive) == ("good", ("good", "near"), True)
    assert found.p_holm["poor"] < 0.001 and found.p_holm["near"] == pytest.approx(0.5)
    assert (found.images, found.splits, found.seeds, found.over) == (80, 1, 1, "images")
    needed = found.needed["near"]
    # (z of 5 % / 3 pairs + z of 80 %)^2 times the variance of one image over the difference squared
    factor = (stats.norm.ppf(1 - 0.05 / 6) + stats.norm.ppf(0.8)) ** 2
    lead = np.repeat([1.0, 0.0], [2, 78])
    assert needed == math.ceil(factor * lead.var(ddof=1) / 0.025**2)
    del rivals["near"]
    alone = leaders(rivals, exact=True)
    assert alone is not None and alone.members == ("good",)


def test_so_few_images_that_nothing_could_be_told_are_no_result() -> None:
    rivals = {
        "a": {"pets": evidence(one_split(["11111"]))},
        "b": {"pets": evidence(one_split(["00000"]))},
    }
    found = leaders(rivals, exact=True)
    assert found is not None and not found.conclusive and found.members == ("a", "b")
    assert found.smallest == pytest.approx(2 / 2**5)
    assert leaders({}, exact=True) is None


def test_where_single_images_are_not_known_two_intervals_decide() -> None:
    def known(share: float) -> Evidence:
        return Evidence(share, {0: share}, 0.25, of_counts({0: [share]}, 100, 500, once=False))

    found = leaders({"a": {"x": known(0.9)}, "b": {"x": known(0.6)}}, exact=True)
    assert found is not None and found.members == ("a",)
    z = 0.3 / math.sqrt(0.9 * 0.1 / 100 + 0.6 * 0.4 / 100)
    assert found.p_holm["b"] == pytest.approx(2 * stats.norm.sf(z))
    near = leaders({"a": {"x": known(0.9)}, "b": {"x": known(0.85)}}, exact=True)
    assert near is not None and near.members == ("a", "b")


def test_over_two_data_sets_the_mean_of_the_differences_is_tested() -> None:
    first = {"x": evidence(one_split(["1" * 45 + "0" * 5])), "y": evidence(one_split(["10" * 25]))}
    second = {
        "x": evidence(one_split(["1" * 25 + "0" * 25])),
        "y": evidence(one_split(["01" * 25])),
    }
    found = leaders({"a": first, "b": second}, exact=True)
    assert found is not None and found.datasets == 2
    parts = [np.repeat([1.0, 0.0], [20, 30]), np.tile([1.0, -1.0], 25)]
    variance = sum(part.var(ddof=1) / 50 for part in parts) / 4
    assert found.means["a"] - found.means["b"] == pytest.approx(0.2)
    assert found.p_holm["b"] == pytest.approx(2 * stats.norm.sf(0.2 / math.sqrt(variance)))


def halves(design: Design, sets: int, seed: int) -> tuple[Simulated, Simulated]:
    """Two methods of one accuracy: the same images and splits, whose noise is drawn for each."""
    both = simulate(dataclasses.replace(design, seeds=2 * design.seeds), sets, seed)
    mine, theirs = both.hits[:, :, : design.seeds], both.hits[:, :, design.seeds :]
    return dataclasses.replace(both, hits=mine), dataclasses.replace(both, hits=theirs)


@pytest.mark.slow
@pytest.mark.parametrize(
    "design",
    [
        Design(120, 20, 2, 0.3, splits=1),
        Design(120, 20, 2, 0.3, splits=1, seeds=3),
        Design(120, 20, 2, 0.3, splits=5, folds=True),
        Design(300, 50, 2, 0.2, splits=5, folds=True),
        Design(120, 20, 2, 0.3, splits=5),
        Design(200, 5, 1, 0.5, splits=5, seeds=2),
    ],
    ids=str,
)
def test_equal_methods_are_told_apart_in_at_most_5_percent(design: Design) -> None:
    sets = 1000
    first, second = halves(design, sets, 5)
    told = 0
    for number in range(sets):
        found = pair(scores_of(first, number), scores_of(second, number))
        assert found is not None
        told += found.p <= 0.05
    assert told / sets <= 0.06  # 5 % and what 1,000 draws leave

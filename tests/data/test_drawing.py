"""Promises of drawn splits and folds: shares of each class, groups that are never torn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from peftbench.data import drawing
from peftbench.data.splits import stratified_split
from peftbench.errors import DataError

PROBLEMS = range(30)


def problem(seed: int, grouped: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Classes of unequal size, and groups of one to twelve images that may span classes."""
    generator = np.random.default_rng(seed)
    sizes = generator.integers(6, 60, size=generator.integers(2, 6))
    labels = generator.permutation(np.repeat(np.arange(len(sizes)), sizes))
    if not grouped:
        return labels, np.arange(len(labels))
    groups = np.zeros(len(labels), np.int64)
    order = np.argsort(labels, kind="stable") if seed % 2 else np.arange(len(labels))
    start = number = 0
    while start < len(labels):
        size = generator.integers(1, 13) if generator.random() < 0.4 else 1
        groups[order[start : start + size]] = number
        start, number = start + size, number + 1
    return labels, groups


@pytest.mark.parametrize("seed", PROBLEMS)
def test_without_groups_a_split_is_what_it_always_was(seed: int) -> None:
    labels, alone = problem(seed, grouped=False)
    drawn = drawing.split(labels, alone, 0.1, 0.2, np.random.default_rng(seed))
    before = stratified_split(labels, 0.1, 0.2, np.random.default_rng(seed))
    for part in ("train", "val", "test"):
        assert np.array_equal(getattr(drawn, part), getattr(before, part))


@pytest.mark.parametrize("seed", PROBLEMS)
def test_a_split_tears_no_group_and_trains_every_class(seed: int) -> None:
    labels, groups = problem(seed)
    drawn = drawing.split(labels, groups, 0.1, 0.2, np.random.default_rng(seed))
    parts = [drawn.train, drawn.val, drawn.test]
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    of_groups = [set(groups[part].tolist()) for part in parts]
    assert (
        not of_groups[0] & of_groups[1] | of_groups[0] & of_groups[2] | of_groups[1] & of_groups[2]
    )
    assert set(labels[drawn.train].tolist()) == set(labels.tolist())
    # the largest group may be too much for a part by all but one of its images
    largest = int(np.bincount(groups).max())
    for part, share in ((drawn.val, 0.1), (drawn.test, 0.2)):
        assert abs(len(part) - share * len(labels)) <= largest + len(np.unique(labels))
    again = drawing.split(labels, groups, 0.1, 0.2, np.random.default_rng(seed))
    assert np.array_equal(again.test, drawn.test)


def test_groups_of_two_leave_the_shares_as_they_are() -> None:
    # 2 classes of 50 images; of each, 10 pairs and 30 single ones: val 5 and test 10 of each
    labels = np.repeat([0, 1], 50)
    groups = np.concatenate([np.repeat(np.arange(10), 2), np.arange(10, 40)])
    groups = np.concatenate([groups, groups + 40])
    drawn = drawing.split(labels, groups, 0.1, 0.2, np.random.default_rng(0))
    for part, each in ((drawn.train, 35), (drawn.val, 5), (drawn.test, 10)):
        assert np.bincount(labels[part]).tolist() == [each, each]


def test_a_class_of_one_group_is_trained_on_and_one_of_two_is_trained_on_and_tested() -> None:
    # class 0 is copies of one picture, class 1 of two, class 2 has ten pictures
    labels = np.array([0] * 6 + [1] * 6 + [2] * 10)
    groups = np.array([0] * 6 + [1] * 3 + [2] * 3 + list(range(3, 13)))
    for seed in range(20):
        drawn = drawing.split(labels, groups, 0.1, 0.2, np.random.default_rng(seed))
        assert {0, 1, 2} == set(labels[drawn.train].tolist())
        assert 0 not in labels[drawn.test] and 0 not in labels[drawn.val]


def test_pairs_are_tested_about_as_often_as_single_images() -> None:
    # 40 images, of which two are a pair: an image is in test in 8 of 40 draws
    labels, groups = np.zeros(40, np.int64), np.array([0, 0, *range(1, 39)])
    draws = [drawing.split(labels, groups, 0.1, 0.2, np.random.default_rng(i)) for i in range(500)]
    share = np.mean([0 in drawn.test for drawn in draws])
    assert 0.15 < share < 0.25  # 5 sigma are 0.09


def test_fractions_that_leave_nothing_are_refused_with_groups_as_well() -> None:
    labels, groups = np.repeat([0, 1], 10), np.repeat(np.arange(10), 2)
    with pytest.raises(DataError, match="leave nothing to train on"):
        drawing.split(labels, groups, 0.5, 0.5, np.random.default_rng(0))


@pytest.mark.parametrize("seed", PROBLEMS)
def test_folds_without_groups_are_as_even_as_those_of_scikit_learn(seed: int) -> None:
    labels, alone = problem(seed, grouped=False)
    fold = drawing.folds(labels, alone, 5, np.random.default_rng(seed))
    theirs = np.zeros_like(fold)
    for number, (_, rows) in enumerate(
        StratifiedKFold(5, shuffle=True, random_state=seed).split(labels, labels)
    ):
        theirs[rows] = number
    for assigned in (fold, theirs):
        sizes = np.bincount(assigned, minlength=5)
        assert sizes.max() - sizes.min() <= 1
        for label in np.unique(labels):
            counts = np.bincount(assigned[labels == label], minlength=5)
            assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("seed", PROBLEMS)
def test_folds_tear_no_group(seed: int) -> None:
    labels, groups = problem(seed)
    fold = drawing.folds(labels, groups, 5, np.random.default_rng(seed))
    assert set(fold.tolist()) <= set(range(5))
    for group in np.unique(groups):
        assert len(set(fold[groups == group].tolist())) == 1


def unevenness(labels: np.ndarray, fold: np.ndarray, number: int = 5) -> float:
    """Mean over classes of the standard deviation of the share of the class in each fold."""
    shares = [
        np.bincount(fold[labels == label], minlength=number) / (labels == label).sum()
        for label in np.unique(labels)
    ]
    return float(np.std(shares, axis=1).mean())


def test_grouped_folds_are_as_even_as_those_of_scikit_learn() -> None:
    ours, theirs = [], []
    for seed in PROBLEMS:
        labels, groups = problem(seed)
        fold = drawing.folds(labels, groups, 5, np.random.default_rng(seed))
        ours.append(unevenness(labels, fold))
        other = np.zeros_like(fold)
        splitter = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
        for number, (_, rows) in enumerate(splitter.split(labels, labels, groups)):
            other[rows] = number
        theirs.append(unevenness(labels, other))
    assert np.mean(ours) <= np.mean(theirs)

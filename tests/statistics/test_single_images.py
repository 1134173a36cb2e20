"""Promises of what is computed from the predictions of single images."""

from __future__ import annotations

import numpy as np
import pytest

from peftbench.statistics.images import (
    agreement,
    calibration_bins,
    calibration_error,
    confidence_weighted,
    ensembles,
    error_overlap,
    exact_sign_p,
    majority_vote,
    mcnemar,
)


def hits(text):
    return np.array([letter == "1" for letter in text])


def test_mcnemars_test_counts_images_on_which_one_method_is_right():
    found = mcnemar(hits("1111100110"), hits("0000100111"))
    assert (found.first_only, found.second_only, found.images) == (4, 1, 10)
    # two-sided binomial of 5 with 1 or fewer: 2 (1 + 5) / 2^5
    assert found.p == pytest.approx(12 / 32)
    assert exact_sign_p(0, 10) == pytest.approx(2 / 1024)
    assert exact_sign_p(3, 3) == 1.0 and exact_sign_p(0, 0) == 1.0


def test_seeds_of_one_image_count_once():
    first = np.array([hits("110"), hits("110"), hits("000")])  # right in 2, 2 and 0 of 3
    second = np.array([hits("010"), hits("010"), hits("000")])  # right in 0, 2 and 0 of 3
    found = mcnemar(first, second)
    assert (found.first_only, found.second_only) == (1, 0) and found.p == 1.0
    # 1 of 3 seeds against 2 of 6 is the same share
    uneven = mcnemar(np.array([[True], [False], [False]]), np.array([[True], [False]] * 3)[:6])
    assert (uneven.first_only, uneven.second_only) == (0, 1)  # 1/3 against 3/6
    equal = mcnemar(np.array([[True], [False], [False]]), np.array([[True]] * 2 + [[False]] * 4))
    assert (equal.first_only, equal.second_only) == (0, 0)
    with pytest.raises(ValueError, match="3 images of the first method, 1 of the second"):
        mcnemar(first, np.array([[True]]))


def test_equal_methods_differ_no_more_often_than_stated():
    generator = np.random.default_rng(0)
    right = generator.random((2, 300, 60)) < 0.7
    wins = np.sum(right[0] & ~right[1], axis=1)
    losses = np.sum(right[1] & ~right[0], axis=1)
    wrong = sum(
        exact_sign_p(int(w), int(lost)) <= 0.05 for w, lost in zip(wins, losses, strict=True)
    )
    assert wrong <= 24  # 15 of 300 at exactly 5 %, sd 3.8


def test_agreement_is_over_predictions_and_overlap_over_errors():
    same = agreement({"x": np.array([0, 1, 2, 3]), "y": np.array([0, 1, 0, 0])})
    assert same.loc["x", "y"] == 0.5 and np.isnan(same.loc["x", "x"])
    seeds = agreement({"x": np.array([[0, 1], [0, 2]]), "y": np.array([[0, 1], [1, 1]])})
    assert seeds.loc["x", "x"] == 0.5  # its two runs share one of two classes
    assert seeds.loc["x", "y"] == 0.5  # first runs agree on both, second runs on none
    # wrong: first 2 3, second 3 4; both 3, either 2 3 4
    assert error_overlap(hits("1001"), hits("1100")) == pytest.approx(1 / 3)
    assert np.isnan(error_overlap(hits("11"), hits("11")))


def test_ensembles_break_ties_in_a_stated_way():
    classes = np.array([[1, 2, 5], [1, 0, 4], [0, 2, 3]])
    sure = np.array([[0.3, 0.3, 0.4], [0.3, 0.9, 0.8], [0.9, 0.3, 0.8]])
    # votes: 1 twice; 2 twice; one each, where 4 and 3 have 0.8 and 3 is lower
    assert majority_vote(classes, sure).tolist() == [1, 2, 3]
    # sums: class 1 has 0.6 and 0 has 0.9; class 2 has 0.6 and 0 has 0.9; 3 as above
    assert confidence_weighted(classes, sure).tolist() == [0, 0, 3]
    table = ensembles(
        {"x": classes[:1], "y": classes[1:2], "z": classes[2:]},
        {"x": sure[:1], "y": sure[1:2], "z": sure[2:]},
        np.array([1, 2, 5]),
    )
    row = table.iloc[0]
    assert row["best_single"] == 1.0 and row["oracle"] == 1.0  # x is always right
    assert row["mean_single"] == pytest.approx(5 / 9)
    assert row["majority_vote"] == pytest.approx(2 / 3) and row["confidence_weighted"] == 0.0


def test_three_weak_methods_that_err_apart_are_better_together():
    labels = np.zeros(3, dtype=int)
    classes = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]])  # each wrong on an image of its own
    assert (majority_vote(classes, np.ones((3, 3))) == labels).all()


def test_calibration_bins_are_closed_above_and_give_the_error_of_the_record():
    bins = calibration_bins([0.1, 0.5, 0.6, 1.0], [False, True, False, True], bins=2)
    assert bins["images"].tolist() == [2, 2]
    assert bins["confidence"].tolist() == pytest.approx([0.3, 0.8])
    assert bins["accuracy"].tolist() == pytest.approx([0.5, 0.5])
    # (2 x 0.2 + 2 x 0.3) / 4
    assert calibration_error(bins) == pytest.approx(0.25)
    empty = calibration_bins([0.0], [True], bins=2)
    assert empty["images"].tolist() == [1, 0] and np.isnan(empty["accuracy"][1])

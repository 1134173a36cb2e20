"""Confusions, precision and recall of the page, against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from peftbench.report.page.images import counting


@pytest.mark.parametrize(("classes", "images"), [(2, 5), (12, 97), (200, 400)])
def test_counts_and_shares_are_those_of_scikit_learn(classes: int, images: int) -> None:
    generator = np.random.default_rng(classes)
    labels = generator.integers(0, classes, images)
    said = np.where(generator.random(images) < 0.6, labels, generator.integers(0, classes, images))
    matrix = counting.confusions(labels.astype(np.int32), said.astype(np.int32), classes)
    np.testing.assert_array_equal(matrix, confusion_matrix(labels, said, labels=range(classes)))
    each = counting.per_class(matrix)
    precision, recall, _, count = precision_recall_fscore_support(
        labels, said, labels=range(classes), zero_division=np.nan
    )
    assert each.images == tuple(count)
    for ours, theirs in ((each.precision, precision), (each.recall, recall)):
        none_as_nan = [np.nan if value is None else value for value in ours]
        np.testing.assert_allclose(none_as_nan, theirs, rtol=1e-12)
    full = {(true, other): number for true, other, number in counting.cells(matrix)}
    assert sum(full.values()) == images
    assert all(matrix[place] == number for place, number in full.items())


def test_the_most_confident_images_come_first_and_equal_ones_in_their_order() -> None:
    confidence = np.array([0.2, 0.9, 0.5, 0.9, 0.5])
    assert counting.by_confidence(confidence, np.array([1, 1, 1, 0, 1], dtype=bool)) == [1, 2, 4, 0]


def test_each_confusion_has_its_first_picture_before_any_has_its_second() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2])
    said = np.array([1, 1, 1, 0, 1, 0])  # 0 for 1 three times; 1 for 0 and 2 for 0 once; one right
    confidence = np.array([0.1, 0.3, 0.2, 0.9, 1.0, 0.4])
    assert counting.in_cells(labels, said, confidence, 2) == [1, 3, 5, 2]


def test_the_majority_is_that_of_training_and_is_scored_on_test() -> None:
    labels = np.array([0, 1, 1, 1, 2])
    # 7 of class 2 trained, so that saying 2 is right for one of five
    assert counting.majority(np.array([3, 5, 7]), labels) == counting.LargestClass(2, 0.2)
    assert counting.majority(np.array([5, 5, 1]), labels) == counting.LargestClass(0, 0.2)
    assert counting.majority(np.array([0, 0, 0]), labels) is None

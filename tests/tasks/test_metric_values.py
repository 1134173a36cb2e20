"""What a run may be judged by, against scikit-learn and counts by hand."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from peftbench.errors import ConfigError
from peftbench.tasks import CLASSIFICATION, judged_by

Rows = dict[str, np.ndarray]
METRICS = {metric.name: metric for metric in CLASSIFICATION.scores}
EXACT = 1e-9


def rows_of(logits: np.ndarray, labels: np.ndarray) -> Rows:
    return dict(CLASSIFICATION.rows(logits.astype(np.float32), labels))


def stored(rows: Rows) -> Rows:
    """As a file has them: four rows, probabilities in float32."""
    return {name: rows[name].astype(kind) for name, kind in CLASSIFICATION.stored.items()}


def case(seed: int) -> tuple[Rows, int]:
    """Images of some of up to eight classes, unequal ones, predicted better than by chance."""
    generator = np.random.default_rng(seed)
    classes, count = int(generator.integers(1, 9)), int(generator.integers(1, 80))
    labels = generator.choice(classes, count, p=generator.dirichlet(np.full(classes, 0.4)))
    logits = generator.normal(size=(count, classes)) + 1.5 * np.eye(classes)[labels]
    return rows_of(logits, labels), classes


@pytest.mark.parametrize("seed", range(40))
def test_means_over_classes_are_those_of_scikit_learn(seed: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rows, classes = case(seed)
    labels, predicted = rows["labels"], rows["classes"]
    found = CLASSIFICATION.metrics(rows, classes)
    with warnings.catch_warnings():  # of classes without an image, and of one class alone
        warnings.simplefilter("ignore")
        balanced = metrics.balanced_accuracy_score(labels, predicted)
        f1 = metrics.f1_score(labels, predicted, average="macro")
    assert found["mean_per_class"] == pytest.approx(balanced, abs=EXACT)
    assert found["f1_macro"] == pytest.approx(f1, abs=EXACT)
    assert found["top1"] == pytest.approx(metrics.accuracy_score(labels, predicted), abs=EXACT)
    for name in ("top1", "mean_per_class", "f1_macro"):
        assert METRICS[name].of(stored(rows)) == found[name]
        assert METRICS[name].rounding(stored(rows)) == 0


@pytest.mark.parametrize("steps", [None, 1, 4], ids=["distinct", "many ties", "some ties"])
@pytest.mark.parametrize("seed", range(20))
def test_the_area_under_the_curve_is_that_of_scikit_learn(seed: int, steps: int | None) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(seed)
    count = int(generator.integers(2, 60))
    labels = generator.permutation(np.arange(count) < generator.integers(1, count)).astype(int)
    scores = generator.normal(size=count) + labels
    scores = scores if steps is None else np.round(scores * steps) / steps
    rows = rows_of(np.stack([np.zeros(count), scores], axis=1), labels)
    found = CLASSIFICATION.metrics(rows, 2)["auroc"]
    assert found == pytest.approx(metrics.roc_auc_score(labels, scores), abs=EXACT)
    probability = np.where(rows["classes"] == 1, rows["confidence"], 1 - rows["confidence"])
    assert found == pytest.approx(metrics.roc_auc_score(labels, probability), abs=EXACT)
    again = METRICS["auroc"].of(stored(rows))
    assert abs(again - found) <= METRICS["auroc"].rounding(stored(rows)) + EXACT


def test_f1_of_six_images_by_hand() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2])
    predicted = np.array([0, 0, 3, 1, 0, 0])
    rows = {"labels": labels, "classes": predicted}
    # class 0: 2 hits of 3 images, given 4 times: 4/7; class 1: 1 of 2, given once: 2/3; class 2:
    # no hit: 0; class 3 has no image and is given once: 0; class 4 does not occur
    assert METRICS["f1_macro"].of(rows) == pytest.approx((4 / 7 + 2 / 3) / 4)
    # recall over the three classes that have images: 2/3, 1/2, 0
    assert METRICS["mean_per_class"].of(rows) == pytest.approx((2 / 3 + 1 / 2) / 3)


def test_the_area_under_the_curve_counts_pairs_by_hand() -> None:
    # the second class: 0.9, 0.4; the first: 0.4, 0.2, 0.95
    # 0.9 is above two of three, 0.4 above one and equal to one: (2 + 1 + 1/2) / 6
    probability = np.array([0.9, 0.4, 0.4, 0.2, 0.95])
    logits = np.stack([np.zeros(5), np.log(probability / (1 - probability))], axis=1)
    rows = rows_of(logits, np.array([1, 1, 0, 0, 0]))
    assert METRICS["auroc"].of(rows) == pytest.approx(3.5 / 6)
    assert METRICS["auroc"].of(stored(rows)) == pytest.approx(3.5 / 6)
    # which of the classes is the second makes no difference
    other = rows_of(logits[:, ::-1], np.array([0, 0, 1, 1, 1]))
    assert METRICS["auroc"].of(other) == pytest.approx(3.5 / 6)


def test_what_is_sure_beyond_rounding_is_still_in_order() -> None:
    # 1 / (1 + e^-d) is 1 in float64 for 40 and 50, and in float32 for 20 too
    sure = np.array([20.0, 40.0, 50.0, 60.0])
    rows = rows_of(np.stack([np.zeros(4), sure], axis=1), np.array([0, 0, 1, 1]))
    assert METRICS["auroc"].of(rows) == 1.0
    # a file shows four ties of four pairs, and says by how much it may be off
    assert METRICS["auroc"].of(stored(rows)) == 0.5
    assert METRICS["auroc"].rounding(stored(rows)) == 0.5


def test_only_two_classes_have_an_area_under_the_curve() -> None:
    logits = np.random.default_rng(0).normal(size=(6, 3))
    three = CLASSIFICATION.metrics(rows_of(logits, np.arange(6) % 3), 3)
    assert three.keys() == {"top1", "mean_per_class", "f1_macro", "loss", "ece", "num_images"}
    two = CLASSIFICATION.metrics(rows_of(logits[:, :2], np.arange(6) % 2), 2)
    assert two.keys() == three.keys() | {"auroc"}
    # and two of them without images of both have none
    one = CLASSIFICATION.metrics(rows_of(logits[:, :2], np.ones(6, dtype=int)), 2)
    assert one.keys() == three.keys()
    assert np.isnan(METRICS["auroc"].of(rows_of(logits[:, :2], np.ones(6, dtype=int))))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, "top1"),
        ({"selection": {"rule": "last", "every": 1, "first": 1}}, "top1"),
        ({"selection": {"rule": "last", "metric": "f1_macro"}}, "f1_macro"),
        ({"task": "classification", "selection": {"metric": "auroc"}}, "auroc"),
    ],
)
def test_a_record_says_what_its_run_is_judged_by(spec: dict[str, Any], expected: str) -> None:
    assert judged_by(spec) == METRICS[expected]


def test_an_unknown_metric_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"Unknown selection.metric 'f1_marco'. Did you mean: f1_macro"
    ):
        CLASSIFICATION.metric("f1_marco")
    assert CLASSIFICATION.metric(None) == CLASSIFICATION.score == METRICS["top1"]

"""Predictions and the numbers computed from them, against arithmetic done by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from peftbench.tasks import CLASSIFICATION
from peftbench.tasks.classification import calibration_error, softmax

# Six images of three classes. Probabilities of each image; the predicted one is in brackets:
#   label 0: [0.50] 0.30  0.20   hit
#   label 0:  0.25 [0.58] 0.17   miss
#   label 1:  0.12 [0.78] 0.10   hit
#   label 1: [0.52] 0.38  0.10   miss
#   label 1:  0.05 [0.90] 0.05   hit
#   label 2:  0.05  0.37 [0.58]  hit
PROBABILITIES = np.array(
    [
        [0.50, 0.30, 0.20],
        [0.25, 0.58, 0.17],
        [0.12, 0.78, 0.10],
        [0.52, 0.38, 0.10],
        [0.05, 0.90, 0.05],
        [0.05, 0.37, 0.58],
    ]
)
LABELS = np.array([0, 0, 1, 1, 1, 2])
LOGITS = np.log(PROBABILITIES).astype(np.float32)
EXAMPLE = CLASSIFICATION.rows(LOGITS, LABELS)
ROUNDING = 1e-6  # of float32 logits


def test_predictions_are_classes_confidences_and_margins() -> None:
    assert softmax(LOGITS) == pytest.approx(PROBABILITIES, abs=ROUNDING)
    assert EXAMPLE["classes"].tolist() == [0, 1, 1, 0, 1, 2]
    assert EXAMPLE["confidence"] == pytest.approx([0.5, 0.58, 0.78, 0.52, 0.9, 0.58], abs=ROUNDING)
    assert EXAMPLE["margin"] == pytest.approx([0.2, 0.33, 0.66, 0.14, 0.85, 0.21], abs=ROUNDING)


def test_metrics_of_six_images() -> None:
    found = CLASSIFICATION.metrics(EXAMPLE, num_classes=3)
    # 4 of 6
    assert found["top1"] == 4 / 6
    # class 0: 1 of 2, class 1: 2 of 3, class 2: 1 of 1
    assert found["mean_per_class"] == pytest.approx((1 / 2 + 2 / 3 + 1) / 3)
    # -log of 0.50, 0.25, 0.78, 0.38, 0.90, 0.58
    product = 0.50 * 0.25 * 0.78 * 0.38 * 0.90 * 0.58
    assert found["loss"] == pytest.approx(-math.log(product) / 6, abs=ROUNDING)
    # 15 bins of width 1/15 = 0.0667; (0.4667, 0.5333] holds 0.50 (hit) and 0.52 (miss):
    #   accuracy 1/2, confidence 0.51, gap 0.01, 2 images
    # (0.5333, 0.6] holds 0.58 (miss) and 0.58 (hit): accuracy 1/2, gap 0.08, 2 images
    # (0.7333, 0.8] holds 0.78 (hit): gap 0.22; (0.8667, 0.9333] holds 0.90 (hit): gap 0.10
    expected = (2 * 0.01 + 2 * 0.08 + 0.22 + 0.10) / 6
    assert found["ece"] == pytest.approx(expected, abs=ROUNDING)
    assert found["num_images"] == 6


def test_a_class_without_images_does_not_enter_the_mean_of_classes() -> None:
    found = CLASSIFICATION.metrics(EXAMPLE, num_classes=5)
    assert found["mean_per_class"] == pytest.approx((1 / 2 + 2 / 3 + 1) / 3)


def test_the_smaller_class_wins_a_tie() -> None:
    tie = CLASSIFICATION.rows(np.zeros((1, 3), dtype=np.float32), np.array([2]))
    assert tie["classes"].tolist() == [0]
    assert tie["margin"].tolist() == [0.0]


def test_a_hopeless_prediction_costs_a_finite_loss() -> None:
    # exp(-1000) is 0 in float64; the loss stops at -log(2.2e-308)
    wrong = CLASSIFICATION.rows(np.array([[1000.0, 0.0]], dtype=np.float32), np.array([1]))
    found = CLASSIFICATION.metrics(wrong, 2)
    assert found["loss"] == pytest.approx(-math.log(np.finfo(np.float64).tiny))


def test_confidence_zero_and_one_have_a_bin() -> None:
    error = calibration_error(np.array([0.0, 1.0]), np.array([False, True]))
    assert error == 0.0
    # bin edges belong to the bin below them, as in (0.2, 0.4]
    assert calibration_error(np.array([0.4, 0.3]), np.array([True, False]), bins=5) == (
        pytest.approx(abs(0.5 - 0.35))
    )

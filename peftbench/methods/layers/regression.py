"""Multinomial logistic regression on features, by scikit-learn."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from peftbench.methods.layers.solvable import Solvable

STRENGTHS = tuple(10.0**power for power in range(-4, 1))  # values of C that are tried
FOLDS = 5
MOST_VALIDATED = 2000  # images that cross-validation sees; C times their number stays the same
MOST_STEPS = 1000  # of L-BFGS
STEPS_TO_CHOOSE = 100  # which decide between strengths that differ by a factor of ten
LARGE = 4_000_000  # numbers, from which on more threads than one are worth their meeting
UNSEEN = -30.0  # below the least logit at the mean features, of a class without an image


@dataclass(frozen=True)
class Solution:
    """logits = weight x + bias."""

    weight: np.ndarray  # (classes, D) float64
    bias: np.ndarray  # (classes,) float64


def logistic_regression(given: Solvable, strength: float | None) -> Solution:
    """The optimum on standardised features, in terms of the features themselves.

    Args:
        strength: C of scikit-learn; `None`: of `STRENGTHS` the one with the highest mean
            log-likelihood over `FOLDS` stratified folds.
    """
    features = given.features.astype(np.float64)
    mean, deviation = features.mean(0), features.std(0)
    deviation[deviation == 0] = 1.0
    rows = (features - mean) / deviation
    seen, labels = np.unique(given.labels, return_inverse=True)
    weight = np.zeros((given.num_classes, rows.shape[1]))
    bias = np.zeros(given.num_classes)
    if len(seen) > 1:
        # |W| is the same in any basis of the space that the rows span, which is often smaller
        rotated, basis = _rotated(rows)
        weights = None if given.class_weights is None else given.class_weights[seen]
        chosen = _chosen(rotated, labels, weights) if strength is None else strength
        inner, bias[seen] = _solved(rotated, labels, weights, chosen)
        weight[seen] = inner @ basis
    lacking = np.setdiff1d(np.arange(given.num_classes), seen)
    bias[lacking] = bias[seen].min() + UNSEEN
    weight /= deviation
    return Solution(weight, bias - weight @ mean)


def _rotated(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`rows` (N, D) as (N, R) in an orthonormal basis (R, D) of what they span."""
    left, values, basis = np.linalg.svd(rows, full_matrices=False)
    kept = values > values[0] * 1e-10
    return left[:, kept] * values[kept], basis[kept]


def _chosen(rows: np.ndarray, labels: np.ndarray, weights: np.ndarray | None) -> float:
    """C of the highest mean log-likelihood of left-out rows, scaled to their number."""
    from sklearn.model_selection import StratifiedKFold

    picked = _sample(labels)
    inner_rows, names = rows[picked], labels[picked]
    divided, inner_labels, counts = np.unique(names, return_inverse=True, return_counts=True)
    if len(divided) < 2:
        return 1.0 / len(rows)
    weights = None if weights is None else weights[divided]
    folds = StratifiedKFold(min(FOLDS, int(counts.min())))
    cuts = list(folds.split(inner_rows, inner_labels))
    totals = []
    for strength in STRENGTHS:
        likelihoods = []
        for train, left_out in cuts:
            kept = inner_rows[train], inner_labels[train]
            weight, bias = _solved(*kept, weights, strength, STEPS_TO_CHOOSE)
            logits = inner_rows[left_out] @ weight.T + bias
            top = logits.max(1, keepdims=True)
            total = top[:, 0] + np.log(np.exp(logits - top).sum(1))
            wanted = inner_labels[left_out]
            gained = logits[np.arange(len(wanted)), wanted] - total
            likelihoods.append(np.average(gained, weights=_of_rows(weights, wanted)))
        totals.append(np.mean(likelihoods))
    trained = len(cuts[0][0])
    return float(STRENGTHS[int(np.argmax(totals))] * trained / len(rows))


def _sample(labels: np.ndarray) -> np.ndarray:
    """Rows to validate with: of each class all, or every so many and two at least.

    A class of one image is left out: none of it could be held back.
    """
    stride = -(-len(labels) // MOST_VALIDATED)
    parts = []
    for label in range(labels.max() + 1):
        own = np.flatnonzero(labels == label)
        if len(own) >= 2:
            parts.append(own[::stride] if len(own) >= 2 * stride else own[:2])
    return np.sort(np.concatenate(parts)) if parts else np.arange(0)


def _solved(
    rows: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray | None,
    strength: float,
    steps: int = MOST_STEPS,
) -> tuple[np.ndarray, np.ndarray]:
    """Weight (classes, R) and bias (classes,) of the optimum."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    model = LogisticRegression(C=strength, max_iter=steps)
    threads = 1 if rows.size < LARGE else None
    with warnings.catch_warnings(), threadpool_limits(threads):
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(rows, labels, sample_weight=_of_rows(weights, labels))
    if len(model.coef_) == 1:  # two classes, of which scikit-learn keeps the second
        half = model.coef_[0] / 2, model.intercept_[0] / 2
        return np.stack([-half[0], half[0]]), np.array([-half[1], half[1]])
    return model.coef_, model.intercept_


def _of_rows(weights: np.ndarray | None, labels: np.ndarray) -> np.ndarray | None:
    return None if weights is None else weights[labels]

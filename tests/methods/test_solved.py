"""Heads that take no steps: what they compute, held against scikit-learn and hand calculations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from support.tiny_backbones import anatomy_of, fresh
from torch import nn

from peftbench.artefacts import task_file
from peftbench.methods import METHODS, Tuned, apply, discover
from peftbench.methods.layers import regression
from peftbench.methods.layers.neighbours import LEAST_SHARE, NearestNeighbours
from peftbench.methods.layers.solvable import Solvable

discover()


def cloud(
    counts: tuple[int, ...], width: int = 5, seed: int = 0, num_classes: int | None = None
) -> Solvable:
    """Classes of so many points, around means that lie near one another."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    means = generator.normal(size=(len(counts), width))
    features = means[labels] + 1.5 * generator.normal(size=(len(labels), width))
    scaled = (features * np.linspace(0.1, 40, width) + 7).astype(np.float32)
    return Solvable(scaled, labels, num_classes or len(counts))


def solved_linear(name: str, given: Solvable, **options: float) -> nn.Linear:
    head = nn.Linear(given.features.shape[1], given.num_classes).double()
    METHODS[name](**options).solve(head, given)
    return head


def probabilities(head: nn.Module, features: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return head(torch.tensor(features, dtype=torch.float64)).softmax(1).numpy()


def test_majority_gives_each_class_its_share_whatever_the_image() -> None:
    given = cloud((6, 3, 1), num_classes=4)
    head = solved_linear("majority", given)
    found = probabilities(head, given.features)
    np.testing.assert_allclose(found, np.tile([0.6, 0.3, 0.1, 1e-6], (10, 1)), rtol=0, atol=2e-6)


@pytest.mark.parametrize("strength", [1e-3, 0.1, 10.0])
@pytest.mark.parametrize("counts", [(30, 20, 25), (40, 30)])
def test_logistic_is_the_optimum_of_scikit_learn_on_standardised_features(
    strength: float, counts: tuple[int, ...]
) -> None:
    given = cloud(counts)
    expected = make_pipeline(
        StandardScaler(), LogisticRegression(C=strength, tol=1e-10, max_iter=10_000)
    ).fit(given.features.astype(np.float64), given.labels)
    found = probabilities(solved_linear("logistic", given, C=strength), given.features)
    wanted = expected.predict_proba(given.features.astype(np.float64))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-3)


def test_logistic_weighs_classes_as_scikit_learn_does() -> None:
    given = cloud((60, 8, 15))
    weights = len(given.labels) / (3 * np.bincount(given.labels))
    weighted = Solvable(given.features, given.labels, 3, weights)
    scaled = StandardScaler().fit_transform(given.features.astype(np.float64))
    model = LogisticRegression(C=0.1, class_weight="balanced", tol=1e-10, max_iter=10_000)
    expected = model.fit(scaled, given.labels).predict_proba(scaled)
    found = probabilities(solved_linear("logistic", weighted, C=0.1), given.features)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-3)


def test_more_features_than_images_have_the_same_optimum() -> None:
    given = cloud((9, 8, 7), width=60)
    scaled = StandardScaler().fit_transform(given.features.astype(np.float64))
    model = LogisticRegression(C=0.1, tol=1e-10, max_iter=10_000).fit(scaled, given.labels)
    found = probabilities(solved_linear("logistic", given, C=0.1), given.features)
    np.testing.assert_allclose(found, model.predict_proba(scaled), rtol=0, atol=2e-3)


def test_the_strength_is_that_of_the_best_likelihood_of_left_out_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = cloud((40, 35, 45), width=8, seed=3)
    scaled = StandardScaler().fit_transform(given.features.astype(np.float64))
    likelihoods = [
        cross_val_score(
            LogisticRegression(C=strength, tol=1e-8, max_iter=10_000),
            scaled,
            given.labels,
            cv=StratifiedKFold(5),
            scoring="neg_log_loss",
        ).mean()
        for strength in regression.STRENGTHS
    ]
    best = regression.STRENGTHS[int(np.argmax(likelihoods))]
    asked: list[float] = []
    solved = regression._solved

    def noting(*args: object) -> object:
        asked.append(float(args[3]))  # type: ignore[arg-type]
        return solved(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(regression, "_solved", noting)
    regression.logistic_regression(given, None)
    # five folds train on four fifths: C times the number of images stays the same
    assert asked[-1] == pytest.approx(best * 96 / 120, rel=1e-9)


def test_a_class_without_images_is_never_said_and_one_image_a_class_is_enough() -> None:
    for given in (cloud((12, 0, 9)), cloud((1, 1, 1)), cloud((5,), num_classes=3)):
        found = probabilities(solved_linear("logistic", given), given.features)
        assert np.isfinite(found).all()
        assert set(found.argmax(1)) <= set(given.labels)


def test_a_feature_that_never_changes_changes_nothing() -> None:
    given = cloud((12, 14))
    constant = np.concatenate([given.features, np.full((26, 1), 3, np.float32)], axis=1)
    head = solved_linear("logistic", Solvable(constant, given.labels, 2), C=0.1)
    found = probabilities(head, constant)
    np.testing.assert_allclose(
        found, probabilities(solved_linear("logistic", given, C=0.1), given.features), atol=1e-6
    )


def by_hand(given: Solvable, asked: np.ndarray, k: int, temperature: float) -> np.ndarray:
    """Shares of votes, (images, classes), one loop an image."""
    bank = given.features / np.linalg.norm(given.features, axis=1, keepdims=True)
    shares = np.zeros((len(asked), given.num_classes))
    for row, image in enumerate(asked / np.linalg.norm(asked, axis=1, keepdims=True)):
        similar = bank @ image
        nearest = np.argsort(-similar)[:k]
        votes = np.exp(similar[nearest] / temperature)
        for label, vote in zip(given.labels[nearest], votes / votes.sum(), strict=True):
            shares[row, label] += vote
    return shares


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 0.5), (1000, 1.0)])
def test_neighbours_vote_by_their_similarity(k: int, temperature: float) -> None:
    given = cloud((20, 15, 10))
    head = NearestNeighbours(5, 3, k, temperature, torch.Generator()).double()
    METHODS["knn"](k=k, temperature=temperature).solve(head, given)
    asked = cloud((7, 7, 7), seed=1).features
    expected = by_hand(given, asked.astype(np.float64), k, temperature)
    with torch.no_grad():
        found = head(torch.tensor(asked, dtype=torch.float64)).exp().numpy()
    np.testing.assert_allclose(found, np.maximum(expected, LEAST_SHARE), rtol=0, atol=1e-6)


def attached(name: str) -> Tuned:
    generator = torch.Generator().manual_seed(0)
    return apply(METHODS[name](), fresh("vit"), anatomy_of("vit"), 3, generator)


def test_a_head_that_holds_training_images_comes_back_from_its_file(tmp_path: Path) -> None:
    tuned = attached("knn")
    given = cloud((11, 9, 6), width=tuned.anatomy.head_width)
    tuned.solve(given)
    assert sum(p.numel() for p in tuned.head_params.values()) == 26 * tuned.anatomy.head_width
    task_file.save(tuned, tmp_path, {"run_id": "0" * 16})
    again = attached("knn")
    task_file.load(again, tmp_path)
    for name, tensor in tuned.state().items():
        assert torch.equal(tensor, again.state()[name]), name

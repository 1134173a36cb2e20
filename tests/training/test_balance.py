"""Weights of classes and balanced draws, against scikit-learn, torch and arithmetic by hand."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.rounding import UNIT
from torch import Tensor, nn

from peftbench.data import TrainSplit
from peftbench.errors import ConfigError
from peftbench.spec import Preprocessing, Recipe
from peftbench.tasks import CLASSIFICATION, Task
from peftbench.training.balance import ClassWeights, Draws, balanced_weights
from peftbench.training.device import Compute
from peftbench.training.fittable import Fittable
from peftbench.training.loop import Fit, fit
from peftbench.training.recipe import check_recipe

CPU = torch.device("cpu")
RAW = Preprocessing(size=2, mean=(0.0,) * 3, std=(1.0,) * 3)
WEIGHED, DRAWN = Recipe(class_weights="balanced"), Recipe(sampling="balanced")
# 12 images of three classes
LABELS = torch.tensor([0] * 7 + [1] * 4 + [2])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("seed", range(20))
def test_weights_are_those_of_scikit_learn(seed: int) -> None:
    utils = pytest.importorskip("sklearn.utils.class_weight")
    generator = np.random.default_rng(seed)
    classes = int(generator.integers(1, 9))
    labels = generator.choice(
        classes, int(generator.integers(1, 200)), p=skewed(generator, classes)
    )
    present = np.unique(labels)
    expected = utils.compute_class_weight("balanced", classes=present, y=labels)
    found = balanced_weights(torch.tensor(labels), classes + 1).numpy()  # one class has no image
    np.testing.assert_allclose(found[present], expected, rtol=0, atol=1e-9)
    assert not found[np.setdiff1d(np.arange(classes + 1), present)].any()


def skewed(generator: np.random.Generator, classes: int) -> np.ndarray:
    return generator.dirichlet(np.full(classes, 0.3))


def test_all_classes_weigh_the_same_and_an_image_one_on_average() -> None:
    # 12 / (3 x 7), 12 / (3 x 4), 12 / (3 x 1), and no image of a fourth class
    weights = balanced_weights(LABELS, 4)
    assert weights.tolist() == pytest.approx([4 / 7, 1.0, 4.0, 0.0])
    assert float(weights[LABELS].mean()) == pytest.approx(1.0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_classes_is_that_of_torch(smoothing: float) -> None:
    outputs = torch.randn(12, 3, generator=seeded(0))
    weights = balanced_weights(LABELS, 3).float()
    expected = F.cross_entropy(outputs, LABELS, weight=weights, label_smoothing=smoothing)
    found = CLASSIFICATION.weighted_loss(outputs, LABELS, smoothing, weights)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    # shares of one class each are that class
    shares = F.one_hot(LABELS, 3).float()
    shared = CLASSIFICATION.weighted_loss(outputs, shares, smoothing, weights)
    torch.testing.assert_close(shared, expected, rtol=1e-6, atol=0)


def test_the_loss_of_three_images_by_hand() -> None:
    # probabilities of the images, the true class in brackets; weights 2 and 1/2
    #   [0.8] 0.2    [0.4] 0.6    0.3 [0.7]
    probabilities = torch.tensor([[0.8, 0.2], [0.4, 0.6], [0.3, 0.7]])
    outputs, weights = probabilities.log(), torch.tensor([2.0, 0.5])
    classes = torch.tensor([0, 0, 1])
    terms = -2 * math.log(0.8) - 2 * math.log(0.4) - 0.5 * math.log(0.7)
    found = CLASSIFICATION.weighted_loss(outputs, classes, 0.0, weights)
    assert float(found) == pytest.approx(terms / 4.5)  # 2 + 2 + 1/2
    # the first half mixed with the last: 0.75 of its class 0 and 0.25 of class 1
    mixed = torch.tensor([[0.75, 0.25]])
    terms = -0.75 * 2 * math.log(0.8) - 0.25 * 0.5 * math.log(0.2)
    found = CLASSIFICATION.weighted_loss(outputs[:1], mixed, 0.0, weights)
    assert float(found) == pytest.approx(terms / (0.75 * 2 + 0.25 * 0.5))
    # smoothed by 0.2, its shares are 0.8 x 0.75 + 0.1 and 0.8 x 0.25 + 0.1; it weighs the same
    terms = -0.7 * 2 * math.log(0.8) - 0.3 * 0.5 * math.log(0.2)
    found = CLASSIFICATION.weighted_loss(outputs[:1], mixed, 0.2, weights)
    assert float(found) == pytest.approx(terms / (0.75 * 2 + 0.25 * 0.5))


def test_equal_classes_have_the_plain_loss() -> None:
    outputs, labels = torch.randn(6, 3, generator=seeded(1)), torch.arange(6) % 3
    weights = balanced_weights(labels, 3).float()
    plain = CLASSIFICATION.loss(outputs, labels, 0.1)
    torch.testing.assert_close(CLASSIFICATION.weighted_loss(outputs, labels, 0.1, weights), plain)


def test_parts_of_a_batch_share_its_weight() -> None:
    weights = ClassWeights.of(WEIGHED, LABELS, 3, CLASSIFICATION)
    assert weights is not None
    batch = torch.tensor([0, 0, 1, 2])  # 4/7 + 4/7 + 1 + 4 = 43/7
    shares = [float(weights.share(part, batch)) for part in (batch[:2], batch[2:])]
    assert shares == pytest.approx([8 / 43, 35 / 43])
    assert ClassWeights.of(Recipe(), LABELS, 3, CLASSIFICATION) is None


def test_a_task_without_classes_refuses_their_weights() -> None:
    class Wordless(CLASSIFICATION.__class__):  # type: ignore[misc, name-defined]
        name = "wordless"
        weighted_loss = Task.weighted_loss

    with pytest.raises(ConfigError, match=r"task=wordless has not. Use recipe.class_weights=none"):
        Wordless().weighted_loss(torch.zeros(1, 2), torch.zeros(1), 0.0, torch.ones(2))


def drawn_by_hand(labels: list[int], seed: int, epochs: int) -> list[list[int]]:
    """The numbers of images, one after another, of two rows of uniform numbers an epoch."""
    generator, classes = seeded(seed), sorted(set(labels))
    found = []
    for _ in range(epochs):
        rows = torch.rand((2, len(labels)), generator=generator, dtype=torch.float64).tolist()
        epoch = []
        for first, second in zip(*rows, strict=True):
            chosen = classes[int(first * len(classes))]
            members = [i for i, label in enumerate(labels) if label == chosen]
            epoch.append(members[int(second * len(members))])
        found.append(epoch)
    return found


def test_draws_are_those_of_their_seed() -> None:
    labels = [3, 0, 3, 3, 5, 0, 3, 3, 3, 3]  # classes 1, 2 and 4 have no image
    draws, generator = Draws(DRAWN, torch.tensor(labels)), seeded(7)
    found = [draws.next(generator).tolist() for _ in range(3)]
    assert found == drawn_by_hand(labels, 7, 3)
    assert len({tuple(epoch) for epoch in found}) == 3
    plain, generator = Draws(Recipe(), torch.tensor(labels)), seeded(7)
    assert plain.next(generator).tolist() == torch.randperm(10, generator=seeded(7)).tolist()


def test_each_class_is_drawn_as_often_and_each_image_of_it() -> None:
    draws, generator, epochs = Draws(DRAWN, LABELS), seeded(0), 2000
    counts = torch.zeros(12)
    for _ in range(epochs):
        numbers = draws.next(generator)
        assert len(numbers) == 12
        counts += torch.bincount(numbers, minlength=12)
    # a class is drawn 24,000 times with a chance of 1/3: 8,000 and a deviation of 73
    classes = torch.zeros(3).index_add(0, LABELS, counts)
    assert ((classes - 8000).abs() < 5 * 73).all(), classes
    # and one of 7 and of 4 images 1143 and 2000 times, with deviations below 43
    assert ((counts[:7] - 8000 / 7).abs() < 5 * 43).all(), counts
    assert ((counts[7:11] - 2000).abs() < 5 * 43).all(), counts


class Shown(nn.Module):
    """A linear classifier of pixels that remembers the number in each image that it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 3)
        with torch.no_grad():
            self.linear.weight.copy_(torch.randn(3, 12, generator=seeded(5)) / 4)
            self.linear.bias.zero_()
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, 3, 2, 2)."""
        self.seen += (x[:, 0, 0, 0] * 255).round().int().tolist()
        return self.linear(x.flatten(1))


def trained(recipe: Recipe, micro_batch: int | None = None) -> tuple[Shown, Fit]:
    images = np.random.default_rng(0).integers(0, 256, (12, 2, 2, 3), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(12)
    split = TrainSplit(images, LABELS.numpy().copy(), tuple(map(str, range(12))))
    model = Shown()
    fittable = Fittable(model, list(model.parameters()), model.train, RAW, num_classes=3)
    compute = Compute(CPU, torch.float32, micro_batch=micro_batch)
    return model, fit(fittable, split, recipe, seed=4, compute=compute)


SHORT: dict[str, Any] = {
    "optimizer": "momentum",
    "momentum": 0.0,
    "weight_decay": 0.0,
    "schedule": "constant",
    "lr": 0.5,
    "epochs": 3,
    "batch_size": 5,
}


@pytest.mark.arithmetic
@pytest.mark.parametrize("changes", [{}, {"label_smoothing": 0.1}, {"mixup": 0.8, "cutmix": 1.0}])
def test_weighed_steps_do_not_depend_on_the_micro_batch(changes: dict[str, Any]) -> None:
    recipe = Recipe(**SHORT, class_weights="balanced", **changes)
    whole, fitted = trained(recipe)
    for micro_batch in (1, 2, 3):
        model, found = trained(recipe, micro_batch)
        for name, tensor in whole.state_dict().items():
            # sums of five terms in another order, nine times
            torch.testing.assert_close(
                model.state_dict()[name], tensor, rtol=256 * UNIT, atol=64 * UNIT
            )
        expected = [row.loss for row in fitted.history]
        assert [row.loss for row in found.history] == pytest.approx(expected, rel=256 * UNIT)
    plain, _ = trained(dataclasses.replace(recipe, class_weights="none"))
    assert not torch.allclose(plain.linear.weight, whole.linear.weight, rtol=1e-2)


@pytest.mark.arithmetic
def test_a_weighed_step_is_that_of_torch() -> None:
    recipe = Recipe(**{**SHORT, "epochs": 1, "batch_size": 12}, class_weights="balanced")
    model, fitted = trained(recipe)
    other, order = Shown(), torch.randperm(12, generator=seeded(4))
    images = np.random.default_rng(0).integers(0, 256, (12, 2, 2, 3), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(12)
    x = torch.tensor(images).permute(0, 3, 1, 2)[order] / 255
    loss = F.cross_entropy(other(x), LABELS[order], weight=torch.tensor([4 / 7, 1.0, 4.0]))
    loss.backward()
    assert fitted.history[0].loss == pytest.approx(loss.item(), rel=64 * UNIT)
    assert other.linear.weight.grad is not None
    expected = other.linear.weight - 0.5 * other.linear.weight.grad
    torch.testing.assert_close(model.linear.weight, expected, rtol=64 * UNIT, atol=16 * UNIT)


def test_training_sees_the_images_that_are_drawn() -> None:
    model, fitted = trained(Recipe(**SHORT, sampling="balanced"))
    generator = seeded(4)
    draws, expected = Draws(DRAWN, LABELS), list[int]()
    for _ in range(3):
        expected += draws.next(generator).tolist()
        torch.rand(12, generator=generator)  # which decides what is mirrored
    assert model.seen == expected
    assert len(fitted.history) == 3 and len(expected) == 36


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_weights": "balance"}, "Unknown recipe.class_weights 'balance'. Did you mean: bal"),
        ({"sampling": "blanced"}, "Unknown recipe.sampling 'blanced'. Did you mean: balanced"),
        ({"class_weights": "balanced", "sampling": "balanced"}, "Use one of the two."),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_line(changes: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")) as caught:
        check_recipe(Recipe(**changes))
    assert "\n" not in str(caught.value)


def test_recipes_from_before_keep_their_identity() -> None:
    assert not {"class_weights", "sampling"} & Recipe().canonical().keys()
    assert WEIGHED.canonical()["class_weights"] == DRAWN.canonical()["sampling"] == "balanced"

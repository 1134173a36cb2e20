"""Optimisers, schedules and the recipes that are refused."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import nn

from peftbench.errors import ConfigError, UnknownName
from peftbench.spec import Recipe
from peftbench.training.optim import check_recipe, make_optimizer, make_schedule


def rates(recipe: Recipe, steps_per_epoch: int) -> list[float]:
    """The rate of every step."""
    optimizer = make_optimizer(recipe, [nn.Parameter(torch.zeros(2, 2))])
    schedule = make_schedule(recipe, optimizer, steps_per_epoch)
    found = []
    for step in range(recipe.epochs * steps_per_epoch):
        if schedule is not None:
            schedule.step_update(step)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_the_rate_warms_up_linearly_and_falls_along_half_a_cosine() -> None:
    recipe = Recipe(lr=1.0, min_lr=0.2, warmup_lr=0.0, epochs=6, warmup_epochs=2, schedule="cosine")
    # 2 steps an epoch: 4 of warm-up (0, 1/4, 2/4, 3/4 of lr), then 8 along
    # 0.2 + 0.8 (1 + cos(pi t / 8)) / 2
    #   t = 0: 1; t = 4: 0.6; t = 2: 0.2 + 0.4 (1 + 0.70710678) = 0.88284271
    #   t = 6: 0.2 + 0.4 (1 - 0.70710678) = 0.31715729; t = 7: 0.2 + 0.4 (1 - 0.92387953)
    found = rates(recipe, 2)
    assert found[:5] == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0])
    assert found[6] == pytest.approx(0.88284271)
    assert found[8] == pytest.approx(0.6)
    assert found[10] == pytest.approx(0.31715729)
    assert found[11] == pytest.approx(0.23044819)
    assert found[4:] == sorted(found[4:], reverse=True)


def test_warm_up_starts_at_its_own_rate() -> None:
    found = rates(Recipe(lr=1.0, warmup_lr=0.2, min_lr=0.0, epochs=8, warmup_epochs=4), 1)
    assert found[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_without_warm_up_the_first_step_has_the_full_rate() -> None:
    found = rates(Recipe(lr=1.0, min_lr=0.0, epochs=4, warmup_epochs=0), 1)
    assert found == pytest.approx([(1 + math.cos(math.pi * t / 4)) / 2 for t in range(4)])


def test_a_constant_rate_stays() -> None:
    recipe = Recipe(lr=0.3, schedule="constant", epochs=3, warmup_epochs=2)
    assert rates(recipe, 2) == [0.3] * 6


def test_a_rate_below_the_floor_is_the_floor() -> None:
    recipe = Recipe(lr=1e-7, min_lr=1e-5, warmup_lr=1e-6, epochs=4, warmup_epochs=1)
    assert rates(recipe, 1) == pytest.approx([1e-7] * 4)


def test_a_warm_up_as_long_as_training_still_reaches_the_rate() -> None:
    found = rates(Recipe(lr=1.0, warmup_lr=0.0, epochs=4, warmup_epochs=10), 1)
    assert max(found) == pytest.approx(1.0)


@pytest.mark.parametrize("epochs", [1, 2, 5])
def test_a_short_training_is_not_commented_on(
    epochs: int, caplog: pytest.LogCaptureFixture
) -> None:
    """timm remarks on a schedule of one step, which would be a line on everybody's terminal."""
    rates(Recipe(epochs=epochs, warmup_epochs=10), 1)
    assert caplog.messages == []


def test_decay_applies_to_matrices_and_not_to_biases_and_scales() -> None:
    tensors = {
        "matrix": nn.Parameter(torch.ones(2, 3)),
        "kernel": nn.Parameter(torch.ones(2, 3, 1, 1)),
        "bias": nn.Parameter(torch.ones(3)),
        "scale": nn.Parameter(torch.tensor(1.0)),
    }
    optimizer = make_optimizer(Recipe(weight_decay=0.1), tensors.values())
    names = {id(p): name for name, p in tensors.items()}
    decay = {
        names[id(p)]: group["weight_decay"]
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert decay == {"matrix": 0.1, "kernel": 0.1, "bias": 0.0, "scale": 0.0}


@pytest.mark.parametrize(
    ("name", "kind"),
    [("adamw", torch.optim.AdamW), ("SGD", torch.optim.SGD), ("adam", torch.optim.Adam)],
)
def test_an_optimiser_is_the_one_named(name: str, kind: type) -> None:
    recipe = Recipe(optimizer=name, lr=0.5, momentum=0.7)
    check_recipe(recipe)
    optimizer = make_optimizer(recipe, [nn.Parameter(torch.zeros(2, 2))])
    assert type(optimizer) is kind
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert optimizer.param_groups[0].get("momentum", 0.7) == 0.7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "recipe.epochs=0; use 1 or more."),
        ({"batch_size": 0}, "recipe.batch_size=0; use 1 or more."),
        ({"lr": -1.0}, "recipe.lr=-1.0 is negative; use 0 or more."),
        ({"weight_decay": -1.0}, "recipe.weight_decay=-1.0 is negative; use 0 or more."),
        ({"warmup_epochs": -1}, "recipe.warmup_epochs=-1 is negative; use 0 or more."),
        ({"min_lr": -1.0}, "recipe.min_lr=-1.0 is negative; use 0 or more."),
        ({"label_smoothing": 1.0}, "recipe.label_smoothing=1.0 is not in [0, 1)."),
        (
            {"schedule": "cosin"},
            "Unknown recipe.schedule 'cosin'. Did you mean: cosine? Known: constant, cosine.",
        ),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_recipe(dataclasses.replace(Recipe(), **change))
    assert str(refused.value) == message


def test_an_unknown_optimiser_is_refused_with_suggestions() -> None:
    with pytest.raises(UnknownName) as refused:
        check_recipe(Recipe(optimizer="adamww"))
    assert str(refused.value).startswith("Unknown recipe.optimizer 'adamww'. Did you mean: adamw")


def test_descent_without_momentum_can_be_asked_for() -> None:
    recipe = Recipe(optimizer="sgd", momentum=0.0)
    check_recipe(recipe)
    optimizer = make_optimizer(recipe, [nn.Parameter(torch.zeros(2, 2))])
    assert optimizer.param_groups[0]["momentum"] == 0


@pytest.mark.parametrize("value", [-1.0, 0.0])
def test_a_gradient_cannot_be_clipped_to_nothing_or_less(value: float) -> None:
    with pytest.raises(ConfigError, match=r"recipe\.clip_grad"):
        check_recipe(Recipe(clip_grad=value))

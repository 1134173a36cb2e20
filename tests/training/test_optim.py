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
from peftbench.training.optim import Schedule, make_optimizer
from peftbench.training.recipe import check_recipe


def rates(recipe: Recipe, steps_per_epoch: int) -> list[float]:
    """The rate of every step."""
    optimizer = make_optimizer(recipe, [nn.Parameter(torch.zeros(2, 2))])
    schedule = Schedule(recipe, optimizer, steps_per_epoch)
    found = []
    for step in range(recipe.total_epochs * steps_per_epoch):
        schedule.begin_step(step // steps_per_epoch, step)
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


def test_the_schedule_of_vpt_by_its_multipliers() -> None:
    # e / W during warm-up, then (1 + cos(pi (e - W) / (T - W))) / 2, one rate an epoch
    recipe = Recipe(
        lr=2.0, lr_reference_batch=256, batch_size=128, epochs=100, warmup_epochs=10,
        warmup_lr=0.0, min_lr=0.0, schedule_unit="epoch",
    )  # fmt: skip
    found = rates(recipe, 3)
    assert recipe.peak_lr == 1.0  # 2 x 128 / 256
    assert found[0:3] == [0.0] * 3  # epoch 1
    assert found[3:6] == pytest.approx([0.1] * 3)  # epoch 2
    assert found[30] == pytest.approx(1.0)  # epoch 11
    assert found[3 * 55] == pytest.approx(0.5)  # epoch 56: 45 of 90 epochs behind the warm-up
    assert found[-1] == pytest.approx((1 + math.cos(math.pi * 89 / 90)) / 2)


def test_the_schedule_of_fact_begins_with_two_epochs_at_its_lowest_rate() -> None:
    # timm without warmup_prefix, stepped with the epoch that just ended
    recipe = Recipe(
        lr=1e-3, epochs=100, warmup_epochs=10, warmup_lr=1e-6, min_lr=1e-5,
        schedule_unit="epoch", schedule_delay=1, warmup_prefix=False,
    )  # fmt: skip
    found = rates(recipe, 1)
    assert found[:2] == pytest.approx([1e-6, 1e-6])
    assert found[2] == pytest.approx(1e-6 + (1e-3 - 1e-6) / 10)
    # epoch 12 has index 10 of the schedule: no longer warm-up, and a tenth of the cosine is over
    assert found[11] == pytest.approx(1e-5 + 0.5 * (1e-3 - 1e-5) * (1 + math.cos(math.pi / 10)))
    assert max(found) < 1e-3
    assert found[51] == pytest.approx((1e-3 + 1e-5) / 2)  # index 50: half of the way


def test_the_schedule_of_ssf_cools_down_for_ten_epochs() -> None:
    recipe = Recipe(
        lr=1e-2, epochs=100, warmup_epochs=10, warmup_lr=1e-7, min_lr=1e-8, cooldown_epochs=10,
        schedule_unit="epoch", warmup_prefix=False,
    )  # fmt: skip
    found = rates(recipe, 1)
    assert len(found) == recipe.total_epochs == 110
    assert found[0] == pytest.approx(1e-7)
    assert found[50] == pytest.approx((1e-2 + 1e-8) / 2)
    assert found[100:] == pytest.approx([1e-8] * 10)
    assert found[99] > 1e-8


@pytest.mark.parametrize("unit", ["step", "epoch"])
@pytest.mark.parametrize("prefix", [True, False])
def test_a_cool_down_keeps_the_lowest_rate(unit: str, prefix: bool) -> None:
    recipe = Recipe(
        lr=1.0, epochs=4, warmup_epochs=1, warmup_lr=0.0, min_lr=0.25, cooldown_epochs=2,
        schedule_unit=unit, warmup_prefix=prefix,
    )  # fmt: skip
    found = rates(recipe, 5)
    assert len(found) == 30
    assert found[20:] == pytest.approx([0.25] * 10)
    assert found[19] > 0.25


def test_an_epoch_has_one_rate_where_the_schedule_counts_epochs() -> None:
    recipe = Recipe(lr=1.0, epochs=4, warmup_epochs=2, schedule_unit="epoch")
    found = rates(recipe, 3)
    assert all(len(set(found[3 * e : 3 * e + 3])) == 1 for e in range(4))
    assert len(set(found)) == 4


def test_a_rate_for_a_reference_batch_is_scaled_to_the_batch() -> None:
    recipe = Recipe(lr=0.5, lr_reference_batch=256, batch_size=64, schedule="constant", epochs=1)
    assert rates(recipe, 1) == [0.125]
    assert Recipe(lr=0.5).peak_lr == 0.5


def test_decay_can_apply_to_everything() -> None:
    tensors = [nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(3))]
    optimizer = make_optimizer(Recipe(weight_decay=0.1, decay="all"), tensors)
    (group,) = optimizer.param_groups
    assert group["weight_decay"] == 0.1
    assert len(group["params"]) == 2


def test_epsilon_is_that_of_the_optimiser_unless_it_is_given() -> None:
    def eps(recipe: Recipe) -> float:
        optimizer = make_optimizer(recipe, [nn.Parameter(torch.zeros(2, 2))])
        return float(optimizer.param_groups[0]["eps"])

    assert eps(Recipe()) == 1e-8
    assert eps(Recipe(eps=1e-6)) == 1e-6


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
        ({"ema_decay": 1.0}, "recipe.ema_decay=1.0 is not in [0, 1)."),
        ({"random_erasing": 1.5}, "recipe.random_erasing=1.5 is not in [0, 1]."),
        ({"mixup": -0.1}, "recipe.mixup=-0.1 is negative; use 0 or more."),
        ({"cooldown_epochs": -1}, "recipe.cooldown_epochs=-1 is negative; use 0 or more."),
        ({"lr_reference_batch": 0}, "recipe.lr_reference_batch=0; use 1 or more."),
        ({"eps": 0.0}, "recipe.eps=0.0; use a positive value, or null."),
        (
            {"schedule": "constant", "cooldown_epochs": 3},
            "recipe.cooldown_epochs=3 means nothing to a constant rate. "
            "Use recipe.schedule=cosine, or 0.",
        ),
        (
            {"schedule_delay": 1},
            "recipe.schedule_delay=1 counts epochs. Use recipe.schedule_unit=epoch, or 0.",
        ),
        (
            {"augmentation": "crop"},
            "Unknown recipe.augmentation 'crop'. Did you mean: crop_flip? "
            "Known: crop_flip, flip, none, random_crop_flip.",
        ),
        (
            {"frozen_mode": "eval"},
            "Unknown recipe.frozen_mode 'eval'. Known: method, train.",
        ),
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


def stepped(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> list[torch.Tensor]:
    """The parameters after three steps along gradients from a fixed seed."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter)  # of the strides of the parameter
            parameter.grad.copy_(torch.randn(parameter.shape, generator=generator))
        optimizer.step()
    return [parameter.detach().clone() for parameter in parameters]


def parameters_of(layout: torch.memory_format) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 3, 5, 5), (6, 4), (7,), ()]
    values = [torch.randn(shape, generator=generator) for shape in shapes]
    return [nn.Parameter(v.to(memory_format=layout) if v.ndim == 4 else v) for v in values]


@pytest.mark.parametrize(
    ("optimizer", "reference"),
    [
        ("adamw", lambda ps: torch.optim.AdamW(ps, lr=0.1, weight_decay=0.2, foreach=False)),
        ("adam", lambda ps: torch.optim.Adam(ps, lr=0.1, weight_decay=0.2, foreach=False)),
        (
            "sgd",
            lambda ps: torch.optim.SGD(
                ps, lr=0.1, weight_decay=0.2, momentum=0.9, nesterov=True, foreach=False
            ),
        ),
        (
            "momentum",
            lambda ps: torch.optim.SGD(ps, lr=0.1, weight_decay=0.2, momentum=0.9, foreach=False),
        ),
    ],
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_fused_step_is_the_step_of_the_plain_optimiser(
    optimizer: str, reference: Any, layout: torch.memory_format
) -> None:
    recipe = Recipe(optimizer=optimizer, lr=0.1, weight_decay=0.2, decay="all", momentum=0.9)
    own, plain = parameters_of(layout), parameters_of(torch.contiguous_format)
    made = make_optimizer(recipe, own)
    # the fused kernels take no notice of strides
    assert bool(made.defaults["fused"]) is (layout is torch.contiguous_format)
    for actual, expected in zip(stepped(made, own), stepped(reference(plain), plain), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_an_optimiser_without_a_fused_kernel_is_made_without_one() -> None:
    parameter = nn.Parameter(torch.ones(2, 2))
    assert not make_optimizer(Recipe(optimizer="lion"), [parameter]).defaults.get("fused")

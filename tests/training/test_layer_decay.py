"""Learning rates that fall with depth: which layer a tensor is in, and what its rate is."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from support.tiny_backbones import anatomy_of, fresh
from support.tiny_runs import tiny_spec
from support.tiny_tuned import start
from timm.models.vision_transformer import VisionTransformer
from timm.optim import param_groups_layer_decay
from torch import nn

from peftbench.backbones.describe import describe
from peftbench.errors import ConfigError
from peftbench.methods import METHODS, apply
from peftbench.run.experiment import check
from peftbench.run.layers import layers_of, rate_scales
from peftbench.spec import Recipe
from peftbench.training.optim import Schedule, make_optimizer
from peftbench.training.recipe import OPTIMIZERS, check_recipe

DECAY = Recipe(layer_decay=0.5, lr=1.0, schedule="constant")


@pytest.mark.parametrize("backbone", ["vit", "swin", "convnext", "resnet_basic", "efficientnet"])
def test_the_rates_of_full_are_those_of_timm(backbone: str) -> None:
    tuned = start("full", backbone)
    scales = rate_scales(tuned, DECAY)
    assert scales is not None
    groups = param_groups_layer_decay(tuned.model, layer_decay=0.5)
    expected = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    for (name, parameter), scale in zip(tuned.trainable.items(), scales, strict=True):
        assert scale == expected[id(parameter)], name


def test_the_rates_on_a_vit_of_two_blocks_by_hand() -> None:
    tuned = start("full", "vit")
    found = dict(zip(tuned.trainable, rate_scales(tuned, DECAY) or [], strict=True))
    assert found["head.weight"] == 1
    assert found["norm.weight"] == found["blocks.1.mlp.fc2.bias"] == 1 / 2
    assert found["blocks.0.attn.qkv.weight"] == 1 / 4
    assert found["patch_embed.proj.weight"] == found["cls_token"] == found["pos_embed"] == 1 / 8


class Unsorted(VisionTransformer):
    """timm's ViT, of which timm knows no groups."""

    group_matcher = None


@pytest.mark.parametrize("kind", [VisionTransformer, Unsorted])
def test_where_timm_knows_no_groups_the_anatomy_gives_the_same_layers(kind: type) -> None:
    model = kind(img_size=16, patch_size=4, embed_dim=24, depth=3, num_heads=3, num_classes=5)
    anatomy = describe(model, 16)
    layers = layers_of(model, anatomy)
    assert layers["pos_embed"] == layers["patch_embed.proj.bias"] == 0
    assert [layers[f"blocks.{i}.norm1.weight"] for i in range(3)] == [1, 2, 3]
    assert (layers["norm.weight"], layers["head.bias"]) == (3, 4)


def test_a_backbone_without_known_layers_is_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    anatomy = dataclasses.replace(anatomy_of("vit"), sites=(), depth=0, family="Odd")
    with pytest.raises(ConfigError, match=r"recipe\.layer_decay=1\.0.*backbone\.anatomy=FILE"):
        layers_of(model, anatomy)


def test_partial_keeps_the_layers_of_the_whole_network() -> None:
    tuned = apply(
        METHODS["partial"](), fresh("vit"), anatomy_of("vit"), 7, torch.Generator().manual_seed(0)
    )
    found = dict(zip(tuned.trainable, rate_scales(tuned, DECAY) or [], strict=True))
    assert set(found.values()) == {1.0, 0.5}
    assert found["head.bias"] == 1


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_of_each_tensor_is_its_share_of_the_step_without_decay(name: str) -> None:
    """Of optimisers whose step is linear in the rate, here at weights of zero."""
    moved = {}
    for scales in (None, [1.0, 0.25, 0.25]):
        parameters = [nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2, 2))]
        parameters.append(nn.Parameter(torch.zeros(2)))
        recipe = dataclasses.replace(DECAY, optimizer=name)
        optimizer = make_optimizer(recipe, parameters, scales)
        Schedule(recipe, optimizer, 1).begin_step(0, 0)
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        moved[scales is None] = [float(p.detach().flatten()[0]) for p in parameters]
    assert moved[False] == pytest.approx([moved[True][0], moved[True][1] / 4, moved[True][2] / 4])


def test_the_cosine_and_its_floor_are_scaled_and_the_rate_that_is_told_is_the_heads() -> None:
    recipe = Recipe(layer_decay=0.5, lr=1.0, min_lr=0.2, warmup_lr=0.0, epochs=4, warmup_epochs=2)
    parameters = [nn.Parameter(torch.zeros(2, 2)) for _ in range(2)]
    optimizer = make_optimizer(recipe, parameters, [0.5, 1.0])
    schedule = Schedule(recipe, optimizer, 1)
    rates = []
    for step in range(4):
        schedule.begin_step(step, step)
        rates.append([group["lr"] for group in optimizer.param_groups])
    # warm-up 0, 1/2, then 1 and 0.2 + 0.8 (1 + cos(pi / 2)) / 2 = 0.6
    assert [rate[0] for rate in rates] == pytest.approx([0.0, 0.5, 1.0, 0.6])
    assert [rate[1] for rate in rates] == pytest.approx([0.0, 0.25, 0.5, 0.3])


@pytest.mark.parametrize("value", [0.0, -0.5, 1.5])
def test_a_decay_that_is_no_share_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match=r"recipe\.layer_decay=.* is not in \(0, 1\]"):
        check_recipe(Recipe(layer_decay=value))


def test_one_leaves_the_identity_as_it_was() -> None:
    assert "layer_decay" not in Recipe(layer_decay=1).canonical()
    assert Recipe(layer_decay=0.75).canonical()["layer_decay"] == 0.75


@pytest.mark.parametrize("method", ["lora", "linear", "bias", "knn"])
def test_a_method_that_keeps_the_layers_frozen_is_refused_in_one_line(method: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check(tiny_spec(method, recipe={"layer_decay": 0.75}), "cpu", None)
    assert str(refused.value) == (
        "recipe.layer_decay=0.75 lowers the rate of the backbone's own layers with their depth, "
        f"and method={method} trains none of them. Use recipe.layer_decay=1.0, or method=full or "
        "partial."
    )

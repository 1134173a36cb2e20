"""Visual prompts: where they stand, what they start from, who sees them."""

from __future__ import annotations

import math

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from tiny_backbones import anatomy_of, fill, fresh, images
from torch import Tensor, nn

from peftbench.backbones.anatomy import describe
from peftbench.methods import METHODS, Tuned, apply, discover

discover()
TOKENS = 3
DEPTHS = pytest.mark.parametrize("method", ["vpt_deep", "vpt_shallow"])


def _apply(backbone: str, method: str, **options: object) -> Tuned:
    """A prompted tiny backbone in float64 and eval mode, its prompts far from zero."""
    made = METHODS[method](num_tokens=TOKENS, **options)
    generator = torch.Generator().manual_seed(0)
    tuned = apply(made, fresh(backbone), anatomy_of(backbone), 7, generator)
    fill(tuned.trainable, seed=2)
    tuned.model.double().eval()
    return tuned


def _inputs(model: nn.Module, paths: list[str], x: Tensor) -> list[Tensor]:
    """What the modules at `paths` receive when `model` sees `x`."""
    received: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(path).register_forward_pre_hook(
            lambda _, args, path=path: received.update({path: args[0]})
        )
        for path in paths
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return [received[path] for path in paths]


@DEPTHS
@pytest.mark.parametrize(
    ("backbone", "options"),
    [("vit", {}), ("vit_average", {}), ("vit_average", {"pool_prompts": True}), ("vit_map", {})],
)
def test_an_image_does_not_see_its_batch(method: str, backbone: str, options: dict) -> None:
    tuned = _apply(backbone, method, **options)
    x = images(backbone, 4, dtype=torch.float64)
    with torch.no_grad():
        together = tuned.model(x)
        alone = torch.cat([tuned.model(image[None]) for image in x])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


@DEPTHS
@pytest.mark.parametrize(("backbone", "prefix"), [("vit", 1), ("vit_registers", 5)])
def test_prompts_follow_the_prefix_tokens(method: str, backbone: str, prefix: int) -> None:
    x = images(backbone, 2, dtype=torch.float64)
    (bare,) = _inputs(fresh(backbone).double(), ["blocks.0"], x)
    tuned = _apply(backbone, method)
    prompts = tuned.method_params["blocks.0.prompts.tokens"].detach().expand(2, -1, -1)
    (entered,) = _inputs(tuned.model, ["blocks.0.block"], x)
    expected = torch.cat((bare[:, :prefix], prompts, bare[:, prefix:]), dim=1)
    torch.testing.assert_close(entered, expected, rtol=0, atol=1e-12)


def test_deep_prompts_replace_those_of_the_block_before_and_shallow_ones_flow_on() -> None:
    x = images("vit", 2, dtype=torch.float64)
    deep = _apply("vit", "vpt_deep")
    between, second = _inputs(deep.model, ["blocks.1", "blocks.1.block"], x)
    prompts = deep.method_params["blocks.1.prompts.tokens"].detach().expand(2, -1, -1)
    assert torch.equal(second[:, 1 : 1 + TOKENS], prompts)
    assert torch.equal(second[:, :1], between[:, :1])
    assert torch.equal(second[:, 1 + TOKENS :], between[:, 1 + TOKENS :])
    assert second.shape == between.shape

    shallow = _apply("vit", "vpt_shallow")
    between, second = _inputs(shallow.model, ["blocks.1", "blocks.1.block"], x)
    assert torch.equal(second, between)
    assert second.shape[1] == 1 + TOKENS + 16


@DEPTHS
@pytest.mark.parametrize("backbone", ["vit_average", "vit_map"])
def test_a_read_out_over_tokens_sees_prompts_only_if_asked(method: str, backbone: str) -> None:
    x = images(backbone, 2, dtype=torch.float64)
    outputs = {}
    for pool_prompts in (False, True):
        model = _apply(backbone, method, pool_prompts=pool_prompts).model
        (read,) = _inputs(model, ["norm"], x)
        assert read.shape[1] == 16 + TOKENS * pool_prompts
        outputs[pool_prompts] = model(x)
    assert (outputs[True] - outputs[False]).abs().max() > 1e-3


@DEPTHS
def test_a_class_token_read_out_is_the_same_either_way(method: str) -> None:
    x = images("vit", 2, dtype=torch.float64)
    first, second = (_apply("vit", method, pool_prompts=p).model(x) for p in (False, True))
    torch.testing.assert_close(first, second, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("patch", "width", "bound"), [(16, 768, 0.0625), (16, 1024, 0.05786), (14, 1280, 0.05667)]
)
def test_prompts_start_uniform_with_the_bound_of_the_released_code(
    patch: int, width: int, bound: float
) -> None:
    """sqrt(6 / (3 patch^2 + D)) on ViT-B/16, ViT-L/16 and ViT-H/14; depth does not matter."""
    model = VisionTransformer(
        img_size=2 * patch, patch_size=patch, embed_dim=width, depth=1, num_heads=16, num_classes=5
    )
    generator = torch.Generator().manual_seed(0)
    method = METHODS["vpt_deep"](num_tokens=50)
    tuned = apply(method, model, describe(model, 2 * patch), 5, generator)
    tokens = tuned.method_params["blocks.0.prompts.tokens"].detach()
    assert tokens.shape == (50, width)
    # 50 D draws come within a thousandth of the bound, which is given to four digits
    assert tokens.abs().max().item() == pytest.approx(bound, rel=2e-3)
    assert tokens.mean().abs() < 0.02 * bound
    assert tokens.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)


def test_projected_prompts_start_with_the_bound_of_their_own_width() -> None:
    """The projection is Kaiming normal over its outputs, its bias that of a linear layer."""
    width, learned = 24, 64
    generator = torch.Generator().manual_seed(0)
    method = METHODS["vpt_shallow"](num_tokens=200, project_width=learned)
    tuned = apply(method, fresh("vit"), anatomy_of("vit"), 7, generator)
    tokens, weight, bias = (p.detach() for p in tuned.method_params.values())
    assert tokens.abs().max().item() == pytest.approx(math.sqrt(6 / (3 * 4**2 + learned)), rel=1e-2)
    assert weight.shape == (width, learned)
    assert weight.std().item() == pytest.approx(math.sqrt(2 / width), rel=0.1)
    assert 0 < bias.abs().max() <= 1 / math.sqrt(learned)


@DEPTHS
def test_prompt_dropout_differs_between_samples_and_stops_after_training(method: str) -> None:
    tuned = _apply("vit", method, dropout=0.5)
    x = images("vit", 1, dtype=torch.float64).expand(2, -1, -1, -1)
    torch.manual_seed(0)
    tuned.train()
    (entered,) = _inputs(tuned.model, ["blocks.0.block"], x)
    first, second = entered[:, 1 : 1 + TOKENS]
    assert not torch.equal(first == 0, second == 0)
    tuned.model.eval()
    (entered,) = _inputs(tuned.model, ["blocks.0.block"], x)
    prompts = tuned.method_params["blocks.0.prompts.tokens"].detach().expand(2, -1, -1)
    assert torch.equal(entered[:, 1 : 1 + TOKENS], prompts)

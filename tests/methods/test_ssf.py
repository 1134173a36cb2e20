"""Scale and shift: where the pairs stand, what they start from, what folds into what."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from support.tiny_backbones import anatomy_of, fill, fresh, images
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from peftbench.backbones.describe import describe
from peftbench.errors import ConfigError, NotMergeable, UnknownName
from peftbench.methods import METHODS, Tuned, apply, discover

discover()


def _apply(backbone: str, **options: object) -> Tuned:
    """With the classifier of the backbone, in float64 and eval mode, pairs far from identity."""
    generator = torch.Generator().manual_seed(0)
    method = METHODS["ssf"](**options)
    tuned = apply(method, fresh(backbone), anatomy_of(backbone), None, generator)
    fill(tuned.method_params, seed=2)
    tuned.model.double().eval()
    return tuned


def _inside(blocks: list[str], names: str) -> set[str]:
    return {f"{block}.{name}" for block in blocks for name in names.split()}


TRANSFORMER = "norm1 attn.qkv attn.proj norm2 mlp.fc1 mlp.fc2"
SWIN_BLOCKS = ["layers.0.blocks.0", "layers.0.blocks.1", "layers.1.blocks.0"]
CONVNEXT_BLOCKS = [f"stages.{i}.blocks.0" for i in range(4)] + ["stages.2.blocks.1"]
DOWNSAMPLES = [f"stages.{i}.downsample" for i in (1, 2, 3)]

VIT = {"patch_embed.proj", "norm"} | _inside(["blocks.0", "blocks.1"], TRANSFORMER)
SWIN = {"patch_embed.proj", "patch_embed.norm", "norm"} | _inside(SWIN_BLOCKS, TRANSFORMER)
CONVNEXT = {"stem.0", "stem.1"} | _inside(CONVNEXT_BLOCKS, "conv_dw norm mlp.fc1 mlp.fc2")
RESNET = {"bn1"} | _inside(
    ["layer1.0", "layer2.0", "layer3.0", "layer4.0"], "bn1 bn2 bn3 downsample.1"
)
MIXER = {"stem.proj", "norm"} | _inside(
    ["blocks.0", "blocks.1"], "norm1 mlp_tokens.fc1 norm2 mlp_channels.fc1 mlp_channels.fc2"
)
SITES = [
    ("vit", "default", VIT),
    ("swin", "default", SWIN | {"layers.1.downsample.norm"}),
    ("swin", "released", SWIN),
    ("convnext", "default", CONVNEXT | {"head.norm"} | _inside(DOWNSAMPLES, "0 1")),
    ("convnext", "released", CONVNEXT | {"stages.3.blocks.0"}),
    ("resnet_bottleneck", "default", RESNET | _inside(["layer4.1"], "bn1 bn2 bn3")),
    ("mixer", "default", MIXER),
]


def _pair(tuned: Tuned, path: str) -> tuple[Tensor, Tensor]:
    """Scale and shift of the pair behind the module that the bare backbone has at `path`."""
    if f"{path}.adapter.scale" not in tuned.method_params:  # inside a block with a pair behind it
        path = path.replace("stages.3.blocks.0.", "stages.3.blocks.0.base.")
    scale, shift = (tuned.method_params[f"{path}.adapter.{name}"] for name in ("scale", "shift"))
    return scale.detach(), shift.detach()


def _scale_and_shift(
    module: nn.Module, args: object, out: Tensor, pair: tuple[Tensor, Tensor], channels_first: bool
) -> Tensor:
    scale, shift = (t[:, None, None] if channels_first else t for t in pair)
    return scale * out + shift


@pytest.mark.parametrize(
    ("backbone", "variant", "sites"), SITES, ids=[f"{b}-{v}" for b, v, _ in SITES]
)
def test_the_output_is_that_of_the_backbone_with_a_scale_and_a_shift_at_the_sites(
    backbone: str, variant: str, sites: set[str]
) -> None:
    tuned = _apply(backbone, variant=variant)
    assert len(tuned.method_params) == 2 * len(sites)
    bare = fresh(backbone).double()
    maps = (nn.Conv2d, nn.BatchNorm2d)
    for path in sites:
        module = bare.get_submodule(path)
        first = isinstance(module, maps) or path.endswith(".downsample.0") or path == "head.norm"
        first = first or path in ("stem.1", "stages.3.blocks.0")
        hook = partial(_scale_and_shift, pair=_pair(tuned, path), channels_first=first)
        module.register_forward_hook(hook)
    x = images(backbone, 2, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(tuned.model(x), bare(x), rtol=1e-12, atol=1e-12)


def test_the_released_variant_trains_the_norm_of_the_head_of_convnext() -> None:
    trained = {"head.norm.weight", "head.norm.bias"}
    assert _apply("convnext", variant="released").unfrozen_params.keys() == trained
    assert not _apply("convnext").unfrozen_params
    assert not _apply("swin", variant="released").unfrozen_params


def test_on_efficientnet_the_pair_stands_between_batch_norm_and_activation() -> None:
    tuned = _apply("efficientnet")
    norms = {"bn1", "bn2", "blocks.0.0.bn1", "blocks.1.0.bn1", "blocks.1.0.bn2"}
    norms |= _inside(["blocks.2.0", "blocks.2.1"], "bn1 bn2 bn3")
    norms |= _inside(["blocks.3.0"], "bn1 bn2")
    assert set(tuned.touched) == norms
    bare = fresh("efficientnet").double()
    generator = torch.Generator().manual_seed(0)
    for path in norms:
        norm = bare.get_submodule(path)
        x = torch.randn(2, norm.num_features, 3, 3, generator=generator, dtype=torch.float64)
        scale, shift = (
            tuned.method_params[f"{path}.drop.{name}"].detach()[:, None, None]
            for name in ("scale", "shift")
        )
        statistics = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        normed = F.batch_norm(x, *statistics, training=False, eps=norm.eps)
        # the last norm of a block with a shortcut has no activation
        activated = norm.act(scale * normed + shift)
        with torch.no_grad():
            actual = tuned.model.get_submodule(path)(x)
        torch.testing.assert_close(actual, activated.detach(), rtol=0, atol=1e-12)


def test_scales_start_around_one_and_shifts_around_zero() -> None:
    """On the tensors of one block of ViT-B: 9,984 scales and as many shifts."""
    model = VisionTransformer(img_size=32, embed_dim=768, depth=1, num_heads=12, num_classes=5)
    generator = torch.Generator().manual_seed(0)
    tuned = apply(METHODS["ssf"](), model, describe(model, 32), 5, generator)
    for name, mean in (("scale", 1.0), ("shift", 0.0)):
        drawn = torch.cat([p.detach() for n, p in tuned.method_params.items() if n.endswith(name)])
        assert drawn.numel() == 11 * 768 + 2 * 768
        # four standard errors
        assert drawn.mean().item() == pytest.approx(mean, abs=4 * 0.02 / 9_984**0.5)
        assert drawn.std().item() == pytest.approx(0.02, rel=4 / (2 * 9_984) ** 0.5)
        assert (drawn - mean).abs().max() > 0.06  # not cut


@pytest.mark.parametrize("backbone", ["vit", "swin", "convnext", "efficientnet", "mixer"])
def test_without_noise_the_pairs_start_as_the_identity(backbone: str) -> None:
    generator = torch.Generator().manual_seed(0)
    method = METHODS["ssf"](std=0.0)
    tuned = apply(method, fresh(backbone), anatomy_of(backbone), None, generator)
    tuned.model.double().eval()
    x = images(backbone, 2, dtype=torch.float64)
    with torch.no_grad():
        expected = fresh(backbone).double()(x)
        torch.testing.assert_close(tuned.model(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backbone", ["resnet_bottleneck", "efficientnet"])
def test_a_pair_folds_into_the_affine_of_its_batch_norm(backbone: str) -> None:
    tuned = _apply(backbone)
    expected = {name: t.clone() for name, t in fresh(backbone).double().state_dict().items()}
    inside = "drop" if backbone == "efficientnet" else "adapter"
    for path in tuned.touched:
        scale = tuned.method_params[f"{path}.{inside}.scale"].detach()
        shift = tuned.method_params[f"{path}.{inside}.shift"].detach()
        weight, bias = expected[f"{path}.weight"], expected[f"{path}.bias"]
        expected[f"{path}.weight"] = scale * weight
        expected[f"{path}.bias"] = scale * bias + shift
    x = images(backbone, 2, dtype=torch.float64)
    with torch.no_grad():
        logits = tuned.model(x)
        merged = tuned.method.merge(tuned.model).eval()
        state = merged.state_dict()
        assert state.keys() == expected.keys()
        for name, tensor in expected.items():  # statistics included
            torch.testing.assert_close(state[name], tensor, rtol=0, atol=1e-15)
        torch.testing.assert_close(merged(x), logits, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("backbone", "options", "culprit"),
    [
        ("vit_registers", {}, "patch_embed.proj"),  # has no bias under a norm in front of blocks
        ("convnext", {"variant": "released"}, "stages.3.blocks.0"),
    ],
)
def test_a_refused_merge_changes_nothing(backbone: str, options: dict, culprit: str) -> None:
    tuned = _apply(backbone, **options)
    modules = list(tuned.model.named_modules())
    before = {name: tensor.clone() for name, tensor in tuned.model.state_dict().items()}
    with pytest.raises(NotMergeable, match=f"'{culprit}'"):
        tuned.method.merge(tuned.model)
    assert list(tuned.model.named_modules()) == modules
    after = tuned.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_senseless_values_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"^method=ssf: std=-0\.1"):
        METHODS["ssf"](std=-0.1)
    with pytest.raises(UnknownName, match=r"variant of method=ssf: 'official'"):
        METHODS["ssf"](variant="official")

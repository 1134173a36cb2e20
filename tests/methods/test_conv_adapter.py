"""Conv-Adapter: where the sum stands in each placement, and the counts of the paper's backbones."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from support.tiny_backbones import anatomy_of, fill
from support.tiny_tuned import noise, start
from torch import Tensor, nn

from peftbench.backbones.anatomy import Anatomy
from peftbench.backbones.describe import describe
from peftbench.backbones.load import load
from peftbench.errors import ConfigError, UnknownName, Unsupported
from peftbench.methods import METHODS, Tuned
from peftbench.spec import BackboneSpec


def _apply(backbone: str, **options: object) -> Tuned:
    """In float64 and eval mode, all that trains away from its start."""
    tuned = start("conv_adapter", backbone, reduction=2, **options)
    fill(tuned.method_params, seed=3)
    tuned.model.double().eval()
    return tuned


def _change(x: Tensor, adapter: nn.Module, stride: int = 1, gelu: bool = False) -> Tensor:
    """The definition: each group of channels is convolved into one hidden channel."""
    t = {name: p.detach() for name, p in adapter.named_parameters()}
    weight = t["conv.weight"]
    hidden, shared, rows, _ = weight.shape
    maps = [
        F.conv2d(
            x[:, shared * h : shared * (h + 1)],
            weight[h : h + 1],
            t["conv.bias"][h : h + 1],
            stride=stride,
            padding=rows // 2 if rows % 2 else 0,
        )
        for h in range(hidden)
    ]
    z = torch.cat(maps, 1)
    z = F.gelu(z) if gelu else z.clamp(min=0)
    up = torch.einsum("oh,bhij->boij", t["up.weight"][:, :, 0, 0], z)
    return t["scale"].view(-1, 1, 1) * (up + t["up.bias"].view(-1, 1, 1))


def _bottleneck(tuned: Tuned) -> tuple[nn.Module, Tensor, Tensor]:
    """A block of stride 2, an input, and what its 3 x 3 convolution reads of it."""
    block = tuned.model.get_submodule("layer2.0")
    x = noise(2, 16, 8, 8)
    bare = getattr(block, "base", block)
    return block, x, bare.act1(bare.bn1(bare.conv1(x)))


def test_beside_a_convolution_the_sum_stands_behind_the_activation() -> None:
    tuned = _apply("resnet_bottleneck")
    block, x, z = _bottleneck(tuned)
    conv = block.conv2.base
    a = F.relu(block.bn2(conv(z))) + _change(z, block.conv2.adapter, stride=2)
    expected = F.relu(block.bn3(block.conv3(a)) + block.downsample(x))
    torch.testing.assert_close(block(x), expected, rtol=1e-10, atol=1e-10)


def test_behind_a_convolution_the_adapter_reads_what_it_is_added_to() -> None:
    tuned = _apply("resnet_bottleneck", placement="conv_sequential")
    block, x, z = _bottleneck(tuned)
    a = F.relu(block.bn2(block.conv2(z)))
    a = a + _change(a, block.act2.adapter)
    expected = F.relu(block.bn3(block.conv3(a)) + block.downsample(x))
    torch.testing.assert_close(block(x), expected, rtol=1e-10, atol=1e-10)


def test_beside_a_block_the_adapter_has_its_stride_and_its_channels() -> None:
    tuned = _apply("resnet_bottleneck", placement="residual_parallel")
    block, x, _ = _bottleneck(tuned)
    expected = block.base(x) + _change(x, block.adapter, stride=2)
    assert block.adapter.conv.weight.shape == (8, 2, 3, 3)
    assert block.adapter.up.weight.shape == (24, 8, 1, 1)
    torch.testing.assert_close(block(x), expected, rtol=1e-10, atol=1e-10)


def test_behind_a_block_the_adapter_reads_what_the_block_gives() -> None:
    tuned = _apply("resnet_bottleneck", placement="residual_sequential")
    block, x, _ = _bottleneck(tuned)
    y = block.base(x)
    torch.testing.assert_close(block(x), y + _change(y, block.adapter), rtol=1e-10, atol=1e-10)


def test_on_swin_it_stands_beside_attention_on_the_normalised_map() -> None:
    tuned = _apply("swin")
    block = tuned.model.get_submodule("layers.0.blocks.0")
    bare = block.block
    x = noise(2, 8, 8, 12)
    n = bare.norm1.base(x)
    change = _change(n.permute(0, 3, 1, 2), bare.norm1.adapter, gelu=True).permute(0, 2, 3, 1)
    y = x + bare._attn(n) + change
    expected = y + bare.mlp(bare.norm2.base(y.flatten(1, 2))).unflatten(1, (8, 8))
    torch.testing.assert_close(block(x), expected, rtol=1e-10, atol=1e-10)
    assert bare.norm1.adapter.conv.kernel_size == (7, 7)


def test_a_reduction_that_does_not_divide_the_channels_is_lowered() -> None:
    method = METHODS["conv_adapter"](reduction=8)
    places = method.places(anatomy_of("resnet_basic"))  # the stem gives 64
    hidden = {place.in_channels: place.hidden for place in places}
    assert hidden == {64: 8, 8: 1, 12: 2, 16: 2, 24: 3}  # 12 channels go into groups of 6


def test_the_released_code_trains_norms_of_transformers_and_one_more_on_resnet() -> None:
    swin = start("conv_adapter", "swin", variant="released")
    norms = {n.replace("block.", "").replace("base.", "") for n in swin.unfrozen_params}
    assert "layers.0.blocks.0.norm1.weight" in norms and "patch_embed.norm.bias" in norms
    assert "layers.1.downsample.norm.weight" in norms and "norm.weight" in norms
    resnet = start("conv_adapter", "resnet_basic", variant="released")
    assert not resnet.unfrozen_params
    assert {n for n in resnet.changing_buffers if "running" in n} == {
        "layer4.1.adapter.running_mean",
        "layer4.1.adapter.running_var",
    }


@cache
def _anatomy(name: str) -> Anatomy:
    loaded = load(BackboneSpec(name, pretrained=False), 2, device="meta")
    return describe(loaded.model, loaded.image_size)


# millions of parameters that the released code has on these backbones, to two places
@pytest.mark.parametrize(
    ("backbone", "reduction", "millions"),
    [
        ("resnet50", 1, 1.30),
        ("resnet50", 2, 0.67),
        ("resnet50", 4, 0.36),
        ("resnet50", 8, 0.20),
        ("convnext_base", 4, 3.72),
        ("convnext_base", 8, 2.32),
        ("convnext_base", 16, 1.63),
    ],
)
def test_the_counts_are_those_of_the_released_code(
    backbone: str, reduction: int, millions: float
) -> None:
    count = METHODS["conv_adapter"](reduction=reduction).expected_params(_anatomy(backbone))
    assert count / 1e6 == pytest.approx(millions, abs=0.0051)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigError, match="kernel_size=4"):
        METHODS["conv_adapter"](kernel_size=4)
    with pytest.raises(UnknownName, match="placement"):
        METHODS["conv_adapter"](placement="parallel")
    with pytest.raises(Unsupported, match="exchange tokens"):
        METHODS["conv_adapter"]().check(anatomy_of("vit"))
    with pytest.raises(Unsupported, match="kernel_size=null"):
        METHODS["conv_adapter"](kernel_size=3).check(anatomy_of("resnet_basic"))
    with pytest.raises(Unsupported, match="residual_sequential"):
        METHODS["conv_adapter"](placement="conv_sequential").check(anatomy_of("swin"))

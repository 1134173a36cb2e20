"""Low-rank adaptation: what it starts from, which rows it changes, fused and split projections."""

from __future__ import annotations

import copy
import math
import re
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from support.rounding import assert_alike
from support.tiny_backbones import anatomy_of, fill, fresh, images, randomise
from timm.layers import Conv2dSame
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.efficientnet import EfficientNet
from timm.models.eva import Eva
from timm.models.resnet import Bottleneck, ResNet
from torch import Tensor, nn

from peftbench.backbones.describe import describe
from peftbench.methods import METHODS, Tuned, apply, discover

discover()


def _apply(backbone: str, **options: object) -> Tuned:
    generator = torch.Generator().manual_seed(0)
    return apply(METHODS["lora"](**options), fresh(backbone), anatomy_of(backbone), 7, generator)


@pytest.mark.parametrize(
    ("targets", "rows"),
    [
        (("q", "v"), {"q": (0, 24), "v": (48, 72)}),
        (("k",), {"k": (24, 48)}),
        (("qkv",), {"qkv": (0, 72)}),
    ],
)
@pytest.mark.parametrize("backbone", ["vit", "beit"])  # beside the layer, inside its weight
def test_the_merged_change_is_alpha_over_rank_times_b_a_on_the_rows_of_each_target(
    backbone: str, targets: tuple[str, ...], rows: dict[str, tuple[int, int]]
) -> None:
    tuned = _apply(backbone, rank=2, alpha=6.0, targets=targets)
    fill(tuned.trainable, seed=3)
    tuned.model.double()
    expected = fresh(backbone).double().get_parameter("blocks.1.attn.qkv.weight").detach()
    for target, (start, stop) in rows.items():
        (a,) = (
            p for n, p in tuned.method_params.items() if n.endswith(f"a.{target}") and ".1." in n
        )
        (b,) = (
            p for n, p in tuned.method_params.items() if n.endswith(f"b.{target}") and ".1." in n
        )
        expected[start:stop] += 6.0 / 2 * b.detach() @ a.detach()
    merged = tuned.method.merge(copy.deepcopy(tuned.model))
    weight = merged.get_parameter("blocks.1.attn.qkv.weight")
    torch.testing.assert_close(weight.detach(), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("backbone", ["vit", "beit"])
def test_merging_in_float32_rounds_once(backbone: str) -> None:
    tuned = _apply(backbone, rank=8, targets=("qkv",))
    fill(tuned.trainable, seed=3)
    (a,) = (
        p.detach().double()
        for n, p in tuned.method_params.items()
        if "blocks.0." in n and ".a." in n
    )
    (b,) = (
        p.detach().double()
        for n, p in tuned.method_params.items()
        if "blocks.0." in n and ".b." in n
    )
    weight = fresh(backbone).get_parameter("blocks.0.attn.qkv.weight").detach().double()
    merged = tuned.method.merge(tuned.model).get_parameter("blocks.0.attn.qkv.weight").detach()
    half_a_unit = 2.0**-24 * (1 + 1e-6)
    torch.testing.assert_close(merged.double(), weight + b @ a, rtol=half_a_unit, atol=0)


def test_a_is_kaiming_uniform_and_b_is_zero() -> None:
    tuned = _apply("vit", rank=16, targets=("q", "fc2"))
    for name, parameter in tuned.method_params.items():
        if ".delta.b." in name:
            assert not parameter.any()
            continue
        bound = 1 / math.sqrt(parameter.shape[1])
        assert parameter.abs().max().item() == pytest.approx(bound, rel=0.02)
        assert parameter.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)


def _copy_of_split(split: Eva, fused: Eva) -> None:
    """Give `fused` the weights of `split`."""
    state = dict(split.state_dict())
    for i in range(len(split.blocks)):
        attention = f"blocks.{i}.attn"
        parts = [state.pop(f"{attention}.{part}_proj.weight") for part in "qkv"]
        state[f"{attention}.qkv.weight"] = torch.cat(parts)
        for part in "qv":
            state[f"{attention}.{part}_bias"] = state.pop(f"{attention}.{part}_proj.bias")
    fused.load_state_dict(state)


def test_q_and_v_of_a_fused_projection_are_those_of_separate_ones() -> None:
    """The same EVA twice: fused and parametrized, split and beside the layers."""
    build = partial(
        Eva, img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=3, use_rot_pos_emb=True
    )
    split = randomise(build(qkv_fused=False), seed=0).eval()
    fused = build(qkv_fused=True).eval()
    _copy_of_split(split, fused)
    x = images("vit", 3, dtype=torch.float64)
    with torch.no_grad():
        assert_alike(fused(x.float()), split(x.float()))
    outputs: list[Tensor] = []
    gradients: list[list[Tensor]] = []
    for model in (split, fused):
        generator = torch.Generator().manual_seed(0)
        tuned = apply(METHODS["lora"](rank=2), model, describe(model, 16), 7, generator)
        ordered = {  # the same order of sites in both: block, then factor, then q or v
            (name.split(".")[1], name.split(".")[-2], name.split(".")[-1]): parameter
            for name, parameter in tuned.method_params.items()
        }
        fill({str(k): ordered[k] for k in sorted(ordered)}, seed=4)
        fill(tuned.head_params, seed=5)
        model.double().eval()
        output = model(x)
        output.square().sum().backward()
        outputs.append(output.detach())
        gradients.append([g for k in sorted(ordered) if (g := ordered[k].grad) is not None])
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=1e-12)
    assert len(gradients[0]) == 8
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-9)


def test_parametrized_weights_are_noted() -> None:
    assert _apply("vit").notes == ()
    (note,) = _apply("beit").notes
    assert "2 weights are parametrized" in note


def test_the_frozen_weight_gets_no_gradient_on_the_activation_path() -> None:
    """W + dW would make autograd form the gradient of the whole weight."""
    tuned = _apply("vit")
    weight = tuned.model.get_parameter("blocks.0.attn.qkv.base.weight")
    shapes: list[torch.Size] = []
    for parameter in tuned.method_params.values():
        parameter.register_hook(lambda gradient: shapes.append(gradient.shape))
    tuned.model(images("vit", 2)).sum().backward()
    assert weight.grad is None
    assert len(shapes) == len(tuned.method_params)


def test_dropout_acts_on_the_factors_only_and_only_while_training() -> None:
    tuned = _apply("vit", dropout=0.5)
    fill(tuned.trainable, seed=3)
    x = images("vit", 2)
    torch.manual_seed(0)
    tuned.train()
    with torch.no_grad():
        assert not torch.allclose(tuned.model(x), tuned.model(x))
        fill({n: p for n, p in tuned.method_params.items() if ".b." in n}, seed=3)
        for name, parameter in tuned.method_params.items():
            if ".delta.b." in name:
                parameter.zero_()
        torch.testing.assert_close(tuned.model(x), tuned.model(x))
        tuned.model.eval()
        torch.testing.assert_close(tuned.model(x), tuned.model(x))


# ------------------------------------------------------------------- which weights


@pytest.mark.parametrize(
    ("backbone", "layers", "targets"),
    [
        ("vit", r"blocks\.\d\.attn\.qkv", {"q", "v"}),
        ("swin", r"layers\.\d\.blocks\.\d\.attn\.qkv", {"q", "v"}),
        ("eva_split", r"blocks\.\d\.attn\.[qv]_proj", {"q", "v"}),
        ("convnext", r"stages\.\d\.blocks\.\d\.mlp\.fc[12]", {"fc1", "fc2"}),
        ("convnext_conv", r"stages\.\d\.blocks\.\d\.mlp\.fc[12]", {"fc1", "fc2"}),
        ("mixer", r"blocks\.\d\.mlp_channels\.fc[12]", {"fc1", "fc2"}),
        # every convolution but that of the stem and, on EfficientNet, the one behind the blocks
        ("resnet_basic", r"layer\d\.\d\.(conv\d|downsample\.0)", {"conv", "pointwise"}),
        ("resnet_bottleneck", r"layer\d\.\d\.(conv\d|downsample\.0)", {"conv", "pointwise"}),
        ("efficientnet", r"blocks\.\d\.\d\.(se\.)?conv\w*", {"conv", "pointwise"}),
    ],
)
def test_auto_takes_attention_else_the_mlp_else_all_convolutions_of_the_blocks(
    backbone: str, layers: str, targets: set[str]
) -> None:
    tuned = _apply(backbone)
    matching = {n for n, _ in fresh(backbone).named_modules() if re.fullmatch(layers, n)}
    assert set(tuned.touched) == matching and matching
    assert {name.rpartition(".")[2] for name in tuned.method_params} == targets


# ------------------------------------------------------------------- convolutions


def _efficientnet(pad_type: str) -> nn.Module:
    """Stride 2 in plain, expanding and depthwise convolutions."""
    stages = ["cn_r1_k3_s2_e1_c8", "er_r1_k5_s2_e2_c12", "ir_r2_k5_s2_e2_c16_se0.25"]
    return EfficientNet(
        decode_arch_def([[stage] for stage in stages]),
        num_classes=5,
        num_features=32,
        stem_size=8,
        pad_type=pad_type,
    )


def _grouped_resnet() -> nn.Module:
    """Two groups in each 3 x 3 convolution, dilated and not strided in the last stage."""
    return ResNet(
        block=Bottleneck,
        layers=(1, 1, 1, 2),
        channels=(8, 12, 16, 24),
        num_classes=5,
        cardinality=2,
        base_width=32,
        output_stride=16,
    )


CONVOLUTIONS = {
    "resnet": partial(fresh, "resnet_bottleneck"),
    "grouped": _grouped_resnet,
    "depthwise": partial(_efficientnet, ""),
    "same": partial(_efficientnet, "same"),
    "convnext": partial(fresh, "convnext"),
}
KINDS = {  # kernel, stride, dilation and whether there are groups, at least once in each of them
    "resnet": {(1, 1, 1, False), (1, 2, 1, False), (3, 1, 1, False), (3, 2, 1, False)},
    "grouped": {(1, 2, 1, False), (3, 1, 1, True), (3, 2, 1, True), (3, 1, 2, True)},
    "depthwise": {(3, 2, 1, False), (5, 2, 1, False), (5, 2, 1, True), (5, 1, 1, True)},
    "same": {(3, 2, 1, False), (5, 2, 1, False), (5, 2, 1, True), (5, 1, 1, True)},
    "convnext": {(7, 1, 1, True)},
}


def _on_convolutions(name: str, **options: object) -> tuple[Tuned, nn.Module]:
    """Adapted and bare, both in float64 and eval mode, factors far from zero."""
    bare = randomise(CONVOLUTIONS[name](), seed=0).eval()
    targets = ("conv",) if name == "convnext" else ("conv", "pointwise")
    method = METHODS["lora"](targets=targets, **options)
    generator = torch.Generator().manual_seed(0)
    tuned = apply(method, copy.deepcopy(bare), describe(bare, 32), 5, generator)
    fill(tuned.method_params, seed=3)
    tuned.model.double().eval()
    return tuned, bare.double()


def _kernel_change(tuned: Tuned, path: str, scale: float) -> Tensor:
    """alpha / r B A in the shape of the kernel."""
    delta = {n: p.detach() for n, p in tuned.method_params.items() if n.startswith(f"{path}.delta")}
    (a,) = (p for n, p in delta.items() if ".a." in n)
    (b,) = (p for n, p in delta.items() if ".b." in n)
    return scale * torch.einsum("or,rixy->oixy", b, a)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_an_adapted_convolution_has_the_kernel_w_plus_alpha_over_rank_b_a(name: str) -> None:
    tuned, bare = _on_convolutions(name, rank=2, alpha=6.0)
    generator = torch.Generator().manual_seed(1)
    kinds = set()
    for path in tuned.touched:
        conv = bare.get_submodule(path)
        geometry = (conv.kernel_size[0], conv.stride[0], conv.dilation[0])
        kinds.add((*geometry, conv.groups > 1))
        assert isinstance(conv, Conv2dSame) == (name == "same" and conv.stride[0] == 2)
        change = _kernel_change(tuned, path, 6.0 / 2)
        for size in ((9, 9), (8, 7)):  # padding to the same size depends on it
            x = torch.randn(2, conv.in_channels, *size, generator=generator, dtype=torch.float64)
            with torch.no_grad():
                actual = tuned.model.get_submodule(path)(x)
                kept = conv.weight.clone()
                conv.weight += change
                expected = conv(x)
                conv.weight.copy_(kept)
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-11)
    assert kinds >= KINDS[name]


def test_factors_of_a_convolution_start_with_the_bound_of_its_fan_in_and_at_zero() -> None:
    bare = CONVOLUTIONS["grouped"]()
    method = METHODS["lora"](rank=16)
    generator = torch.Generator().manual_seed(0)
    tuned = apply(method, bare, describe(bare, 32), 5, generator)
    assert len(tuned.method_params) == 2 * len(tuned.touched)
    for name, parameter in tuned.method_params.items():
        if ".delta.b." in name:
            assert not parameter.any()
            continue
        bound = 1 / math.sqrt(parameter[0].numel())  # inputs of one group times the kernel's area
        assert parameter.abs().max().item() == pytest.approx(bound, rel=0.05)
        assert parameter.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.15)


@pytest.mark.parametrize("name", ["resnet", "depthwise"])
def test_dropout_of_a_convolution_acts_on_the_input_of_the_change_only(name: str) -> None:
    tuned, bare = _on_convolutions(name, rank=2, alpha=2.0, dropout=0.5)
    generator = torch.Generator().manual_seed(1)
    for path in tuned.touched:
        conv, module = bare.get_submodule(path), tuned.model.get_submodule(path)
        change = _kernel_change(tuned, path, 1.0)
        geometry = (conv.stride, conv.padding, conv.dilation, conv.groups)
        x = torch.randn(2, conv.in_channels, 8, 8, generator=generator, dtype=torch.float64)
        for training in (True, False):
            tuned.train() if training else tuned.model.eval()
            with torch.no_grad():
                torch.manual_seed(0)
                seen = F.dropout(x, 0.5, training=training)
                expected = conv(x) + F.conv2d(seen, change, None, *geometry)
                torch.manual_seed(0)
                torch.testing.assert_close(module(x), expected, rtol=0, atol=1e-11)

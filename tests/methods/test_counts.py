"""Parameter counts on the backbones of the papers, built without memory on the meta device.

The numbers are those that the released code of each method instantiates, or the closed form of the
paper where there is no released code for the backbone; none comes from the code under test.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import torch
from support.copies import Copies

from peftbench.backbones.anatomy import Anatomy
from peftbench.backbones.describe import describe
from peftbench.backbones.load import load
from peftbench.errors import Unsupported
from peftbench.methods import METHODS, Tuned, apply, discover
from peftbench.spec import BackboneSpec

discover()

BACKBONES: Mapping[str, str] = {
    "vit_b16": "vit_base_patch16_224",
    "vit_l16": "vit_large_patch16_224",
    "vit_h14": "vit_huge_patch14_224",
    "swin_b": "swin_base_patch4_window7_224",
    "convnext_b": "convnext_base",
    "resnet50": "resnet50",
}

WIDTH = {
    "vit_b16": 768,
    "vit_l16": 1024,
    "vit_h14": 1280,
    "swin_b": 1024,
    "convnext_b": 1024,
    "resnet50": 2048,
}
CLASSES = 100

# trainable parameters without the head
FULL = {
    "vit_b16": 85_798_656,
    "vit_l16": 303_301_632,
    "vit_h14": 630_764_800,
    "swin_b": 86_743_224,
    "convnext_b": 87_566_464,
    "resnet50": 23_508_032,
}
PARTIAL: dict[tuple[str, int, str], int] = {
    # the last k blocks, 12 D^2 + 13 D each, and the final norm, 2 D
    ("vit_b16", 1, "block"): 7_089_408,
    ("vit_b16", 2, "block"): 14_177_280,
    ("vit_b16", 4, "block"): 28_353_024,
    ("vit_l16", 1, "block"): 12_598_272,
    ("vit_l16", 2, "block"): 25_194_496,
    ("vit_l16", 4, "block"): 50_386_944,
    ("vit_h14", 1, "block"): 19_680_000,
    ("vit_h14", 2, "block"): 39_357_440,
    ("vit_h14", 4, "block"): 78_712_320,
    # k = 2 is the last stage; k = 4 reaches over the patch merging in front of it
    ("swin_b", 1, "block"): 12_603_680,
    ("swin_b", 2, "block"): 25_205_312,
    ("swin_b", 4, "block"): 33_616_736,
    ("swin_b", 1, "stage"): 25_205_312,
    # a block of width 1024 has 8,448,000, one of width 512 has 2,126,848, the downsampling
    # between them 2,099,200 and the norm of the head 2,048
    ("convnext_b", 1, "block"): 8_450_048,
    ("convnext_b", 2, "block"): 16_898_048,
    ("convnext_b", 4, "block"): 3 * 8_448_000 + 2_126_848 + 2_099_200 + 2_048,
    ("convnext_b", 1, "stage"): 3 * 8_448_000 + 2_048,
    # blocks of layer4: 6,039,552 with a downsampling branch, 4,462,592 without; the last block of
    # layer3 has 1,117,184
    ("resnet50", 1, "block"): 4_462_592,
    ("resnet50", 2, "block"): 2 * 4_462_592,
    ("resnet50", 4, "block"): 14_964_736 + 1_117_184,
    ("resnet50", 1, "stage"): 14_964_736,
    ("resnet50", 2, "stage"): 22_063_104,
    # everything but the stem: its convolution has 9,408 and its norm 128
    ("resnet50", 4, "stage"): 23_508_032 - 9_408 - 128,
}
BIAS = {
    "vit_b16": 102_912,  # 11 L D + 2 D
    "vit_l16": 272_384,
    "vit_h14": 453_120,
    "swin_b": 137_216,
    "convnext_b": 130_304,
    "resnet50": 26_560,
}
SWIN_POSITION_TABLES = 63_544
DEPTH_TIMES_WIDTH = {"vit_b16": 9_216, "vit_l16": 24_576, "vit_h14": 40_960}
LORA_R8 = {"vit_b16": 294_912, "vit_l16": 786_432, "vit_h14": 1_310_720, "swin_b": 385_024}
SIDETUNE = {
    "vit_b16": 9_547_585,
    "vit_l16": 11_906_881,
    "vit_h14": 14_266_177,
    "swin_b": 11_906_881,
    "convnext_b": 11_906_881,
    "resnet50": 21_344_065,
}
MLP_HEAD = {2: 669_028, 3: 1_261_156, 5: 2_445_412, 9: 4_813_924}  # ViT-B, 100 classes


@cache
def _loaded(backbone: str) -> tuple[torch.nn.Module, Anatomy]:
    loaded = load(BackboneSpec(BACKBONES[backbone], pretrained=False), CLASSES, device="meta")
    return loaded.model, describe(loaded.model, loaded.image_size)


@cache
def _copies(backbone: str) -> Copies:
    return Copies(_loaded(backbone)[0])


def _apply(backbone: str, method: str, **options: Any) -> Tuned:
    anatomy = _loaded(backbone)[1]
    generator = torch.Generator().manual_seed(0)
    tuned = apply(METHODS[method](**options), _copies(backbone)(), anatomy, CLASSES, generator)
    assert all(p.is_meta for p in tuned.trainable.values())
    return tuned


def _count(backbone: str, method: str, **options: Any) -> int:
    """Trainable parameters without the head; the closed form must say the same."""
    tuned = _apply(backbone, method, **options)
    counted = sum(p.numel() for p in {**tuned.method_params, **tuned.unfrozen_params}.values())
    assert tuned.method.expected_params(_loaded(backbone)[1]) == counted
    return counted


@pytest.mark.parametrize("backbone", BACKBONES)
def test_full(backbone: str) -> None:
    assert _count(backbone, "full") == FULL[backbone]
    assert _loaded(backbone)[1].num_params == FULL[backbone]


@pytest.mark.parametrize("method", ["linear", "mlp"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_head_only_methods_have_nothing_but_the_head(backbone: str, method: str) -> None:
    assert _count(backbone, method) == 0


@pytest.mark.parametrize("backbone", BACKBONES)
def test_linear_head(backbone: str) -> None:
    head = _apply(backbone, "linear").head_params
    assert sum(p.numel() for p in head.values()) == (WIDTH[backbone] + 1) * CLASSES


@pytest.mark.parametrize("k", MLP_HEAD)
def test_mlp_head(k: int) -> None:
    head = _apply("vit_b16", "mlp", num_layers=k).head_params
    assert sum(p.numel() for p in head.values()) == MLP_HEAD[k]


@pytest.mark.parametrize(("backbone", "k", "unit"), PARTIAL)
def test_partial(backbone: str, k: int, unit: str) -> None:
    assert _count(backbone, "partial", num_blocks=k, unit=unit) == PARTIAL[backbone, k, unit]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_bias(backbone: str) -> None:
    assert _count(backbone, "bias") == BIAS[backbone]
    tables = SWIN_POSITION_TABLES if backbone == "swin_b" else 0
    assert _count(backbone, "bias", variant="released") == BIAS[backbone] + tables


@pytest.mark.parametrize("p", [1, 5, 10, 50])
@pytest.mark.parametrize("backbone", DEPTH_TIMES_WIDTH)
def test_visual_prompts(backbone: str, p: int) -> None:
    assert _count(backbone, "vpt_shallow", num_tokens=p) == WIDTH[backbone] * p
    assert _count(backbone, "vpt_deep", num_tokens=p) == DEPTH_TIMES_WIDTH[backbone] * p


def test_projected_visual_prompts() -> None:
    learned, projection = 12 * 10 * 100, (100 + 1) * 768
    count = _count("vit_b16", "vpt_deep", num_tokens=10, project_width=100)
    assert count == learned + projection


@pytest.mark.parametrize("p", [1, 5, 50])
def test_visual_prompts_have_the_width_of_their_stage(p: int) -> None:
    """Swin-B: 2 x 128 + 2 x 256 + 18 x 512 + 2 x 1024."""
    assert _count("swin_b", "vpt_shallow", num_tokens=p) == 128 * p
    assert _count("swin_b", "vpt_deep", num_tokens=p) == 12_032 * p


@pytest.mark.parametrize(("n", "count"), [(1, 2_700), (5, 13_740), (10, 28_080)])
@pytest.mark.parametrize("backbone", ["convnext_b", "resnet50"])
def test_border_of_pixels(backbone: str, n: int, count: int) -> None:
    """12 N^2 + 12 N S at S = 224."""
    assert _count(backbone, "vpt_pad", num_tokens=n) == count


@pytest.mark.parametrize(
    ("backbone", "count"),
    [
        ("resnet50", 250_880 + 25_088 + 128),  # channels, convolution, batch norm
        ("vit_b16", 250_880 + 8 * 16**2 * 768 + 768),  # the convolution has a bias
        ("swin_b", 250_880 + 8 * 4**2 * 128 + 128),
        ("convnext_b", 250_880 + 8 * 4**2 * 128 + 128),
    ],
)
def test_five_channels_below_the_image(backbone: str, count: int) -> None:
    assert _count(backbone, "vpt_shallow", num_tokens=5, location="below") == count


@pytest.mark.parametrize("backbone", SIDETUNE)
def test_side_network(backbone: str) -> None:
    """The convolutions of AlexNet, 9216 values to the width of the backbone, and alpha."""
    assert _count(backbone, "sidetune") == SIDETUNE[backbone]


def test_side_network_of_the_backbones_own_layers() -> None:
    """Patch embedding, class token, positions and one block of ViT-B; its stage of ResNet-50."""
    d = 768
    vit = (16 * 16 * 3 * d + d) + d + 197 * d + (12 * d * d + 13 * d)
    assert _count("vit_b16", "sidetune", side="backbone") == vit + d * d + 1
    resnet = 9_408 + 128 + 215_808  # stem and layer1
    assert _count("resnet50", "sidetune", side="backbone") == resnet + 256 * 2048 + 1


@pytest.mark.parametrize("targets", [("q", "v"), ("qkv",)])
@pytest.mark.parametrize("backbone", LORA_R8)
def test_lora_on_q_and_v_has_as_many_as_one_pair_on_the_fused_projection(
    backbone: str, targets: tuple[str, ...]
) -> None:
    """r (D + D) twice, or r (D + 3 D) once."""
    assert _count(backbone, "lora", rank=8, targets=targets) == LORA_R8[backbone]


def test_lora_on_all_linear_layers() -> None:
    """16 L D r: qkv as one pair has 4 D r, proj 2 D r, fc1 and fc2 5 D r each."""
    assert _count("vit_b16", "lora", targets=("qkv", "proj", "fc1", "fc2")) == 1_179_648


@pytest.mark.parametrize("method", ["vpt_deep", "vpt_shallow"])
@pytest.mark.parametrize("backbone", ["convnext_b", "resnet50"])
def test_prompts_are_refused_where_no_tokens_flow(backbone: str, method: str) -> None:
    with pytest.raises(Unsupported, match=f"^{method} needs a token stream.* Use method=vpt_pad"):
        _apply(backbone, method)


@pytest.mark.parametrize("backbone", ["vit_b16", "swin_b"])
def test_borders_are_refused_where_nothing_is_convolutional(backbone: str) -> None:
    with pytest.raises(Unsupported, match=r"^vpt_pad enlarges the image"):
        _apply(backbone, "vpt_pad")


@pytest.mark.parametrize(
    ("backbone", "count"),
    [
        ("vit_b16", 38_400),  # 4 L D + 2 D
        # blocks 4 C each: 1,024 + 2,048 + 36,864 + 8,192; merging 8 C each: 7,168; first and last
        ("swin_b", 48_128 + 7_168 + 256 + 2_048),
        # blocks 2 C each: 768 + 1,536 + 27,648 + 6,144; downsampling 2 C each; first and last
        ("convnext_b", 36_096 + 1_792 + 256 + 2_048),
        ("resnet50", 2 * 26_560),  # as many scales as shifts, and all its biases are shifts
    ],
)
def test_norm(backbone: str, count: int) -> None:
    assert _count(backbone, "norm") == count


# L (2 D h + h + D)
ADAPTER_H8 = {"vit_b16": 156_768, "vit_l16": 417_984, "vit_h14": 696_576, "swin_b": 204_736}
ADAPTER_H64 = {
    "vit_b16": 1_189_632,
    "vit_l16": 3_171_840,
    "vit_h14": 5_285_888,
    "swin_b": 1_553_664,
}
ADAPTER_VPT = {
    ("vit_b16", 8): 1_779_840,
    ("vit_b16", 64): 230_544,
    ("vit_b16", 256): 64_548,
    ("vit_l16", 8): 6_319_104,
    ("vit_l16", 64): 811_392,
    ("vit_l16", 256): 221_280,
    ("vit_h14", 8): 13_153_280,
    ("vit_h14", 64): 1_680_000,
    ("vit_h14", 256): 450_720,
}


@pytest.mark.parametrize("backbone", ADAPTER_H8)
def test_adapter_and_adaptformer_have_the_same_count(backbone: str) -> None:
    assert _count(backbone, "adapter", bottleneck=8) == ADAPTER_H8[backbone]
    assert _count(backbone, "adaptformer", bottleneck=8) == ADAPTER_H8[backbone]
    assert _count(backbone, "adapter", bottleneck=64) == ADAPTER_H64[backbone]
    assert _count(backbone, "adaptformer") == ADAPTER_H64[backbone]


def test_variants_of_the_adapter() -> None:
    assert _count("vit_b16", "adapter", position="houlsby") == 313_536
    assert _count("vit_b16", "adapter", position="houlsby", train_norms=True) == 313_536 + 38_400
    assert _count("vit_b16", "adapter_plus") == 165_984  # one scale for each channel
    # its own layer norm
    assert _count("vit_b16", "adapter", position="pfeiffer") == 156_768 + 12 * 2 * 768
    assert _count("vit_b16", "adaptformer", bottleneck=8, bias=False) == 12 * 2 * 768 * 8


@pytest.mark.parametrize(("backbone", "reduction"), ADAPTER_VPT)
def test_adapter_of_vpt(backbone: str, reduction: int) -> None:
    count = _count(backbone, "adapter_vpt", reduction=reduction)
    assert count == ADAPTER_VPT[backbone, reduction]


@pytest.mark.parametrize(
    ("backbone", "default", "released"),
    [
        ("vit_b16", 205_824, 205_824),  # 22 L D + 4 D, twice the biases
        ("vit_l16", 544_768, 544_768),
        ("vit_h14", 906_240, 906_240),
        ("swin_b", 274_432, 267_264),
        ("convnext_b", 260_608, 255_232 + 2_048),  # and the norm of the head, which trains there
        ("resnet50", 2 * 26_560, 2 * 26_560),
    ],
)
def test_ssf(backbone: str, default: int, released: int) -> None:
    assert _count(backbone, "ssf") == default
    assert _count(backbone, "ssf", variant="released") == released


FACT = {
    ("fact_tt", "vit_b16"): {4: 8_448, 8: 21_504, 16: 61_440},
    ("fact_tt", "vit_l16"): {4: 12_800, 8: 34_816, 16: 106_496},
    ("fact_tt", "vit_h14"): {4: 16_384, 8: 45_056, 16: 139_264},
    ("fact_tk", "vit_b16"): {8: 13_952, 16: 30_976, 32: 86_528},
    ("fact_tk", "vit_l16"): {8: 19_200, 16: 41_472, 32: 107_520},
    ("fact_tk", "vit_h14"): {8: 24_064, 16: 51_200, 32: 126_976},
    # one set for each width: sum over stages of 2 C r + 12 L r^2, or 2 C r + 12 L r + r^3
    ("fact_tt", "swin_b"): {8: 2 * 1_920 * 8 + 12 * 24 * 8**2},
    ("fact_tk", "swin_b"): {8: 2 * 1_920 * 8 + 12 * 24 * 8 + 4 * 8**3},
}


@pytest.mark.parametrize(("method", "backbone"), FACT)
def test_fact(method: str, backbone: str) -> None:
    for rank, count in FACT[method, backbone].items():
        assert _count(backbone, method, rank=rank) == count


def test_convpass_and_repadapter() -> None:
    assert _count("vit_b16", "convpass") == 327_552  # 2 L ((2 h + 1) D + 9 h^2 + 2 h) less h
    assert _count("vit_b16", "convpass", branches="attention") == 327_552 // 2
    # 2 L (D h + D h / 2) = 221,184 without biases
    assert _count("vit_b16", "repadapter") == 221_184 + 2 * 12 * (8 + 768)


@pytest.mark.parametrize("backbone", ["convnext_b", "resnet50"])
def test_lora_on_convolutions(backbone: str) -> None:
    """r (in / groups · k^2 + out) for each convolution of the blocks."""
    model, _ = _loaded(backbone)
    blocks = [m for n, m in model.named_modules() if n.startswith(("layer", "stages"))]
    convolutions = {
        id(m): m
        for block in blocks
        for n, m in block.named_modules()
        if isinstance(m, torch.nn.Conv2d) and m.stride in ((1, 1), (2, 2))
    }
    if backbone == "convnext_b":  # its blocks hold depthwise ones; downsampling is no block
        convolutions = {i: m for i, m in convolutions.items() if m.groups > 1}
    expected = sum(8 * (m.weight[0].numel() + m.out_channels) for m in convolutions.values())
    targets = ("conv",) if backbone == "convnext_b" else ("conv", "pointwise")
    assert _count(backbone, "lora", targets=targets) == expected
    if backbone == "resnet50":
        assert _count(backbone, "lora") == expected
    else:  # 8 (5 C + 5 C) on fc1 and fc2 of each block
        widths = 3 * 128 + 3 * 256 + 27 * 512 + 3 * 1024
        assert _count(backbone, "lora") == 8 * 10 * widths

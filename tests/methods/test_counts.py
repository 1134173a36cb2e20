"""Parameter counts on the backbones of the papers, built without memory on the meta device.

The numbers are those that the released code of each method instantiates, or the closed form of the
paper where there is no released code for the backbone; none comes from the code under test.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import torch

from peftbench.backbones.anatomy import Anatomy, describe
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
MLP_HEAD = {2: 669_028, 3: 1_261_156, 5: 2_445_412, 9: 4_813_924}  # ViT-B, 100 classes


@cache
def _loaded(backbone: str) -> tuple[torch.nn.Module, Anatomy]:
    loaded = load(BackboneSpec(BACKBONES[backbone], pretrained=False), CLASSES, device="meta")
    return loaded.model, describe(loaded.model, loaded.image_size)


def _apply(backbone: str, method: str, **options: Any) -> Tuned:
    model, anatomy = _loaded(backbone)
    generator = torch.Generator().manual_seed(0)
    tuned = apply(METHODS[method](**options), copy.deepcopy(model), anatomy, CLASSES, generator)
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
    assert _count(backbone, "bias", relative_position=True) == BIAS[backbone] + tables


@pytest.mark.parametrize("p", [1, 5, 10, 50])
@pytest.mark.parametrize("backbone", DEPTH_TIMES_WIDTH)
def test_visual_prompts(backbone: str, p: int) -> None:
    assert _count(backbone, "vpt_shallow", num_tokens=p) == WIDTH[backbone] * p
    assert _count(backbone, "vpt_deep", num_tokens=p) == DEPTH_TIMES_WIDTH[backbone] * p


def test_projected_visual_prompts() -> None:
    learned, projection = 12 * 10 * 100, (100 + 1) * 768
    count = _count("vit_b16", "vpt_deep", num_tokens=10, project_width=100)
    assert count == learned + projection


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
@pytest.mark.parametrize("backbone", ["swin_b", "convnext_b", "resnet50"])
def test_prompts_are_refused_where_no_tokens_flow(backbone: str, method: str) -> None:
    with pytest.raises(Unsupported, match=f"^{method} needs a token stream"):
        _apply(backbone, method)

"""Small timm models whose classifier is not one linear layer, or not where others have it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from timm.models.crossvit import CrossVit
from timm.models.deit import VisionTransformerDistilled
from timm.models.efficientvim import EfficientViM, EfficientViMDistilled
from timm.models.levit import LevitDistilled
from timm.models.metaformer import MetaFormer
from timm.models.repvit import RepVit
from timm.models.resnetv2 import ResNetV2
from timm.models.sequencer import Sequencer2d
from timm.models.vision_transformer_sam import VisionTransformerSAM
from timm.models.volo import VOLO
from torch import nn


@dataclass(frozen=True)
class Odd:
    """How to build one, and where timm's own entries for the architecture say its classifiers are.

    That is `pretrained_cfg["classifier"]` of a model of the same class.
    """

    make: Callable[..., nn.Module]
    image_size: int
    classifiers: tuple[str, ...]
    maps: bool = False
    auxiliary: tuple[str, ...] = ()


ODD: Mapping[str, Odd] = {
    "two tokens": Odd(
        partial(
            VisionTransformerDistilled, img_size=16, patch_size=8, embed_dim=8, depth=1, num_heads=2
        ),
        16,
        ("head", "head_dist"),
    ),
    "two norms": Odd(
        partial(
            LevitDistilled, img_size=32, embed_dim=(16,), key_dim=8, depth=(1,), num_heads=(2,)
        ),
        32,
        ("head.linear", "head_dist.linear"),
    ),
    "two inside one": Odd(
        partial(RepVit, embed_dim=(8, 12), depth=(1, 1), mlp_ratio=2, distillation=True),
        32,
        ("head.head.l", "head.head_dist.l"),
    ),
    "two branches": Odd(
        partial(
            CrossVit,
            img_size=32,
            img_scale=(1.0, 0.75),
            patch_size=(8, 8),
            embed_dim=(8, 16),
            depth=((1, 1, 0),),
            num_heads=(2, 2),
            mlp_ratio=(2.0, 2.0, 1.0),
        ),
        32,
        ("head.0", "head.1"),
    ),
    "weighed stages": Odd(
        partial(EfficientViM, embed_dim=(8, 12, 16), depths=(1, 1, 1), state_dim=(4, 4, 4)),
        64,
        ("heads.0", "heads.1", "heads.2", "heads.3"),
    ),
    "two lists": Odd(
        partial(
            EfficientViMDistilled, embed_dim=(8, 12, 16), depths=(1, 1, 1), state_dim=(4, 4, 4)
        ),
        64,
        (
            *("heads.0", "heads.1", "heads.2", "heads.3"),
            *("heads_dist.0", "heads_dist.1", "heads_dist.2", "heads_dist.3"),
        ),
    ),
    "hidden layer": Odd(
        partial(MetaFormer, depths=(1, 1), dims=(8, 12), use_mlp_head=True),
        32,
        ("head.fc.fc2",),
    ),
    "map": Odd(
        partial(ResNetV2, layers=(1, 1), channels=(128, 128), stem_chs=32),
        32,
        ("head.fc",),
        maps=True,
    ),
    "inside a head": Odd(
        partial(
            Sequencer2d,
            layers=(1, 1, 1, 1),
            patch_sizes=(7, 1, 1, 1),
            embed_dims=(8, 8, 8, 8),
            hidden_sizes=(4, 4, 4, 4),
            mlp_ratios=(1, 1, 1, 1),
        ),
        28,
        ("head.fc",),
    ),
    "neck": Odd(
        partial(
            VisionTransformerSAM,
            img_size=32,
            patch_size=8,
            embed_dim=8,
            depth=1,
            num_heads=2,
            neck_chans=8,
            window_size=0,
            global_attn_indexes=(0,),
        ),
        32,
        ("head.fc",),
    ),
    "beside": Odd(
        partial(
            VOLO,
            layers=(1, 1, 1, 1),
            img_size=32,
            patch_size=8,
            stem_hidden_dim=8,
            embed_dims=(8, 16, 16, 16),
            num_heads=(2, 2, 2, 2),
            mlp_ratio=2.0,
            post_layers=("ca",),
            use_aux_head=True,
        ),
        32,
        ("head",),
        auxiliary=("aux_head",),
    ),
}


def odd(name: str, num_classes: int = 3, seed: int = 0) -> nn.Module:
    """The model with random tensors, none of which is zero; in eval mode."""
    model = ODD[name].make(num_classes=num_classes).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def pictures(name: str, count: int = 4) -> torch.Tensor:
    """(count, 3, S, S) at the model's image size."""
    size = ODD[name].image_size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))

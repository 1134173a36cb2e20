"""The architecture with the fewest parameters in each module of models of timm 1.0.31."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cache

import timm
import torch
from torch import nn

OTHER = 3  # classes of the classifier that the models come with
SIDES = (64, 96, 128, 160, 224, 240, 256)  # pixels, of which the least that works is taken
# more than 160 million parameters: too much for a machine that runs tests
LARGE = frozenset({"deepseek_vit", "gemma4_vit"})

SMALLEST: dict[str, str] = {
    "beit": "beit_base_patch16_224",
    "byoanet": "halonet_h1",
    "byobnet": "test_byobnet",
    "cait": "cait_xxs24_224",
    "coat": "coat_tiny",
    "convit": "convit_tiny",
    "convmixer": "convmixer_768_32",
    "convnext": "test_convnext",
    "cpubone": "cpubone_nano",
    "crossvit": "crossvit_tiny_240",
    "csatv2": "csatv2",
    "cspnet": "cs3darknet_focus_s",
    "cspnext": "cspnext_tiny",
    "davit": "davit_tiny",
    "deepseek_vit": "deepseek_vit_412m",
    "deit": "deit_tiny_patch16_224",
    "densenet": "densenet121",
    "dla": "dla46x_c",
    "dpn": "dpn48b",
    "edgenext": "edgenext_xx_small",
    "efficientformer": "efficientformer_l1",
    "efficientformer_v2": "efficientformerv2_s0",
    "efficientnet": "test_efficientnet",
    "efficientvim": "efficientvim_m1",
    "efficientvit_mit": "efficientvit_b0",
    "efficientvit_msra": "efficientvit_m0",
    "eva": "eva02_tiny_patch14_336",
    "fasternet": "fasternet_t0",
    "fastvit": "fastvit_t8",
    "focalnet": "focalnet_tiny_srf",
    "gcvit": "gcvit_xxtiny",
    "gemma4_vit": "gemma4_vit_167m",
    "ghostnet": "ghostnet_050",
    "hardcorenas": "hardcorenas_b",
    "hgnet": "hgnetv2_b0",
    "hiera": "hiera_tiny_224",
    "hieradet_sam2": "hieradet_small",
    "hrnet": "hrnet_w18_small",
    "iformer": "iformer_t",
    "inception_next": "inception_next_atto",
    "inception_resnet_v2": "inception_resnet_v2",
    "inception_v3": "inception_v3",
    "inception_v4": "inception_v4",
    "lcnetv2": "lcnetv2_small",
    "levit": "levit_128s",
    "lowformer": "lowformer_b0",
    "mambaout": "test_mambaout",
    "maxxvit": "test_coatnet",
    "metaformer": "poolformerv2_s12",
    "mlp_mixer": "gmlp_ti16_224",
    "mobilenetv3": "mobilenetv3_small_050",
    "mobilenetv5": "mobilenetv5_base",
    "mobilevit": "mobilevit_xxs",
    "mvitv2": "mvitv2_tiny",
    "naflexvit": "naflexvit_base_patch16_gap",
    "nasnet": "nasnetalarge",
    "nest": "nest_tiny",
    "nextvit": "nextvit_small",
    "nfnet": "test_nfnet",
    "pit": "pit_ti_224",
    "pnasnet": "pnasnet5large",
    "pvt_v2": "pvt_v2_b0",
    "qwen3_vit": "qwen3_vit_88m",
    "rdnet": "rdnet_tiny",
    "regnet": "regnetx_002",
    "repghost": "repghostnet_050",
    "repvit": "repvit_m1",
    "res2net": "res2next50",
    "resnest": "resnest14d",
    "resnet": "test_resnet",
    "resnetv2": "resnetv2_18",
    "rexnet": "rexnet_100",
    "selecsls": "selecsls42",
    "senet": "legacy_seresnet18",
    "sequencer": "sequencer2d_s",
    "shvit": "shvit_s1",
    "sknet": "skresnet18",
    "starnet": "starnet_s050",
    "swiftformer": "swiftformer_xs",
    "swin_transformer": "swin_tiny_patch4_window7_224",
    "swin_transformer_v2": "swinv2_tiny_window8_256",
    "swin_transformer_v2_cr": "swinv2_cr_tiny_224",
    "tiny_vit": "tiny_vit_5m_224",
    "tnt": "tnt_s_legacy_patch16_224",
    "tresnet": "tresnet_m",
    "twins": "twins_svt_small",
    "vgg": "vgg11",
    "visformer": "visformer_tiny",
    "vision_transformer": "test_vit",
    "vision_transformer_hybrid": "vit_tiny_r_s16_p8_224",
    "vision_transformer_relpos": "test_vit_relpos",
    "vision_transformer_sam": "samvit_base_patch16_224",
    "vitamin": "vitamin_small_224",
    "volo": "volo_d1_224",
    "vovnet": "ese_vovnet19b_slim_dw",
    "xception": "legacy_xception",
    "xception_aligned": "xception41p",
    "xcit": "xcit_nano_12_p8_224",
}


def build(name: str, side: int | None, num_classes: int = OTHER) -> nn.Module:
    """The architecture with random tensors, none of which is zero; in eval mode."""
    try:
        model = timm.create_model(name, num_classes=num_classes, img_size=side)
    except TypeError:  # of convolutions, which take any size
        model = timm.create_model(name, num_classes=num_classes)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 25
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5 / fan_in**0.5)
            if parameter.ndim == 1 and path.endswith("weight"):  # the scale of a norm
                parameter.add_(1.0)
    return model.eval()


# what models raise of an image that is too small for them
TOO_SMALL = (RuntimeError, AssertionError, ValueError, IndexError, ZeroDivisionError)
# below these a window holds one token, to whose attention queries and keys mean nothing
LEAST = {
    "csatv2": 256,
    "levit_128s": 128,  # below, its last queries have one key
}


def named(modules: Iterable[str]) -> list[str]:
    """Those that TIMM_MODULES names, with commas between them, or all where that is not set.

    Slow tests of a few small modules take a minute, of all modules an hour.
    """
    given = os.environ.get("TIMM_MODULES")
    if given is None:
        return sorted(modules)
    names = set(given.split(","))
    if unknown := names - set(timm.list_modules()):
        raise ValueError(f"TIMM_MODULES names {sorted(unknown)}, which are no modules of timm.")
    return sorted(names.intersection(modules))


def chosen() -> list[str]:
    """The modules that slow tests train on: all but the large, or those of them that are named."""
    return named(module for module in SMALLEST if module not in LARGE)


@cache
def side_of(name: str) -> int:
    """The least side in pixels at which the architecture works."""
    own = timm.get_pretrained_cfg(name).input_size[-1]
    for side in (*(side for side in SIDES if LEAST.get(name, 0) <= side < own), own):
        try:
            with torch.no_grad():
                build(name, side)(torch.zeros(2, 3, side, side))
        except TOO_SMALL:
            continue
        return side
    raise AssertionError(f"{name} works at no size")

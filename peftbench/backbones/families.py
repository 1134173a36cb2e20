"""One description per backbone family, in the vocabulary of `anatomy`.

An installed package adds families through the entry point group `peftbench.families`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from peftbench import plugins
from peftbench.backbones.anatomy import COUNTED, GENERIC, Example, Family, Role
from peftbench.backbones.models.families import SEEDS
from peftbench.registry import Registry

if TYPE_CHECKING:
    from torch import nn

_TRANSFORMER_BLOCK = {
    Role.NORM: ("norm1", "norm2"),
    Role.ATTN_IN: ("attn.qkv",),
    Role.ATTN_OUT: ("attn.proj",),
    Role.MLP_IN: ("mlp.fc1",),
    Role.MLP_OUT: ("mlp.fc2",),
}
_PRE_NORM = {Role.ATTN_ENTRY: ("norm1",), Role.MLP_ENTRY: ("norm2",)}
_FUSED = {"attn.qkv": ("q", "k", "v")}
_RESNET_CONVS = ("conv1", "conv2", "conv3", "downsample.0", "downsample.1")
_ROTARY = "the position code inside attention counts on the number of tokens"

SWIN = Family(
    name="swin",
    classes=("SwinTransformer",),
    example=Example("Swin-T", "swin_tiny_patch4_window7_224"),
    blocks="layers.*.blocks.*",
    inside=_TRANSFORMER_BLOCK | _PRE_NORM,
    stem={Role.EMBED: ("patch_embed.proj",), Role.NORM: ("patch_embed.norm",)},
    after=("norm",),
    # timm merges patches at the start of a stage, the original code at the end of the last one
    transitions=("layers.*.downsample",),
    in_transition={Role.TRANSITION_NORM: ("norm",)},
    parts=_FUSED,
    position_biases=("relative_position_bias_table",),
)

OURS = (  # in the order in which the pages of methods go through them
    Family(
        name="vit",
        classes=("VisionTransformer",),
        example=Example("ViT-B/16", "vit_base_patch16_224"),
        blocks="blocks.*",
        inside=_TRANSFORMER_BLOCK | _PRE_NORM,
        stem={Role.EMBED: ("patch_embed.proj",), Role.NORM: ("norm_pre",)},
        after=("norm", "attn_pool", "fc_norm"),
        tokens=True,
        parts=_FUSED,
    ),
    Family(
        name="convnext",
        classes=("ConvNeXt",),
        example=Example("ConvNeXt-B", "convnext_base"),
        blocks="stages.*.blocks.*",
        inside={
            Role.SPATIAL_CONV: ("conv_dw",),
            Role.NORM: ("norm",),
            Role.MLP_IN: ("mlp.fc1",),
            Role.MLP_OUT: ("mlp.fc2",),
            Role.MLP_ENTRY: ("conv_dw",),  # the block is one branch
        },
        # the stem is convolution and norm, or with the overlapped variant two convolutions and norm
        stem={Role.EMBED: ("stem.0",), Role.NORM: ("stem.1", "stem.2")},
        after=("norm_pre", "head.norm"),
        transitions=("stages.*.downsample",),
        in_transition={Role.TRANSITION_NORM: ("0",), Role.TRANSITION_CONV: ("1",)},
        channels_last=False,
    ),
    Family(
        name="resnet",
        classes=("ResNet",),
        example=Example("ResNet-50", "resnet50"),
        blocks="layer*.*",
        # the kernel size decides between spatial and point convolutions
        inside={
            Role.SPATIAL_CONV: _RESNET_CONVS,
            Role.POINT_CONV: _RESNET_CONVS,
            Role.NORM: ("bn1", "bn2", "bn3", "downsample.1", "downsample.2"),
        },
        stem={Role.EMBED: ("conv1",), Role.NORM: ("bn1",)},
        optional=frozenset({Role.POINT_CONV}),  # basic blocks without a downsampling branch
        channels_last=False,
    ),
    SWIN,
    # attn.qkv is read as a weight and never called; its biases are q_bias and v_bias
    replace(
        SWIN,
        name="swin_v2",
        classes=("SwinTransformerV2",),
        example=Example("Swin-V2-T", "swinv2_tiny_window8_256"),
        # norms stand behind the branches
        inside=_TRANSFORMER_BLOCK | {Role.MLP_ENTRY: ("mlp",)},
        bias_attributes=("bias", "q_bias", "v_bias"),
        position_biases=(),
    ),
    Family(
        name="beit",
        classes=("Beit",),
        example=Example("BEiT-B/16", "beit_base_patch16_224"),
        blocks="blocks.*",
        # attn.qkv is read as a weight and never called; its biases are q_bias and v_bias
        inside=_TRANSFORMER_BLOCK | _PRE_NORM,
        stem={Role.EMBED: ("patch_embed.proj",)},
        after=("norm", "fc_norm"),
        tokens=True,
        token_refusal=_ROTARY,
        parts=_FUSED,
        bias_attributes=("bias", "q_bias", "v_bias"),
        position_biases=("relative_position_bias_table",),
    ),
    Family(
        name="eva",
        classes=("Eva",),
        example=Example("EVA-02-T/14", "eva02_tiny_patch14_224"),
        blocks="blocks.*",
        # fused models read attn.qkv as a weight; larger ones have q, k and v apart and a gated MLP
        inside={
            Role.NORM: ("norm1", "norm2", "attn.norm", "mlp.norm"),
            Role.ATTN_IN: ("attn.qkv", "attn.q_proj", "attn.k_proj", "attn.v_proj"),
            Role.ATTN_OUT: ("attn.proj",),
            Role.MLP_IN: ("mlp.fc1", "mlp.fc1_g", "mlp.fc1_x"),
            Role.MLP_OUT: ("mlp.fc2",),
            **_PRE_NORM,
        },
        stem={Role.EMBED: ("patch_embed.proj",), Role.NORM: ("norm_pre",)},
        after=("norm", "attn_pool", "fc_norm"),
        tokens=True,
        token_refusal=_ROTARY,
        token_count=COUNTED,
        parts=_FUSED | {"attn.q_proj": ("q",), "attn.k_proj": ("k",), "attn.v_proj": ("v",)},
        bias_attributes=("bias", "q_bias", "v_bias"),
        position_biases=("relative_position_bias_table",),
    ),
    Family(
        name="mixer",
        classes=("MlpMixer",),
        example=Example("Mixer-B/16", "mixer_b16_224"),
        blocks="blocks.*",
        inside={
            Role.NORM: ("norm1", "norm2"),
            Role.TOKEN_MIX_IN: ("mlp_tokens.fc1",),
            Role.TOKEN_MIX_OUT: ("mlp_tokens.fc2",),
            Role.MLP_IN: ("mlp_channels.fc1",),
            Role.MLP_OUT: ("mlp_channels.fc2",),
            Role.MLP_ENTRY: ("norm2",),
        },
        stem={Role.EMBED: ("stem.proj",)},
        after=("norm",),
        tokens=True,
        token_refusal="the token-mixing layers have one weight per position",
    ),
    Family(
        name="efficientnet",
        classes=("EfficientNet",),
        example=Example("EfficientNet-Lite0", "tf_efficientnet_lite0"),
        blocks="blocks.*.*",
        inside={
            Role.SPATIAL_CONV: ("conv", "conv_dw", "conv_exp"),
            Role.POINT_CONV: ("conv_pw", "conv_pwl", "se.conv_reduce", "se.conv_expand"),
            Role.NORM: ("bn1", "bn2", "bn3"),
        },
        stem={Role.EMBED: ("conv_stem",), Role.NORM: ("bn1",)},
        after=("conv_head", "bn2"),
        channels_last=False,
    ),
    *SEEDS,
)


DESCRIBED = ("timm.", "peftbench.backbones.models.")  # whose classes families describe
FAMILIES: Registry[Family] = Registry("family")


def register_family(family: Family) -> Family:
    """Make a family known under its name; a taken name raises `ValueError`."""
    return FAMILIES.register(family.name)(family)


for _family in OURS:
    register_family(_family)


def every_family() -> tuple[Family, ...]:
    """All families, those of installed packages behind ours, and last what none describes."""
    plugins.load("families")
    return (*FAMILIES.entries(), GENERIC)


def classes_of(backbone: nn.Module) -> tuple[str, ...]:
    """Names by which a family can be that of the model: of its class and bases, timm's and ours."""
    kinds = type(backbone).__mro__
    return tuple(kind.__name__ for kind in kinds if kind.__module__.startswith(DESCRIBED))


def family_of(backbone: nn.Module) -> Family:
    """The family of the model's class or of its nearest described base class, else `GENERIC`."""
    by_class = {name: family for family in every_family() for name in family.classes}
    named = (by_class[name] for name in classes_of(backbone) if name in by_class)
    return next(named, GENERIC)

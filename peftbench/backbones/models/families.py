"""Descriptions of the architectures of this package, and of GhostNet, which timm has."""

from __future__ import annotations

from dataclasses import replace

from peftbench.backbones.anatomy import Example, Family, Role

HORNET = Family(
    name="hornet",
    classes=("HorNet",),
    example=Example("HorNet-T", "hornet_tiny_7x7"),
    blocks="stages.*.*",
    inside={
        Role.NORM: ("norm1", "norm2", "gnconv.dwconv.pre_norm", "gnconv.dwconv.post_norm"),
        # a convolution, or with global filters a module with one
        Role.SPATIAL_CONV: ("gnconv.dwconv", "gnconv.dwconv.dw"),
        Role.POINT_CONV: (
            "gnconv.proj_in",
            *(f"gnconv.pws.{step}" for step in range(4)),
            "gnconv.proj_out",
        ),
        Role.MLP_IN: ("pwconv1",),
        Role.MLP_OUT: ("pwconv2",),
        Role.ATTN_ENTRY: ("norm1",),  # gated convolutions stand where attention would
        Role.MLP_ENTRY: ("norm2",),
    },
    stem={Role.EMBED: ("downsample_layers.0.0",), Role.NORM: ("downsample_layers.0.1",)},
    after=("norm",),
    transitions=("downsample_layers.[1-9]",),
    in_transition={Role.TRANSITION_NORM: ("0",), Role.TRANSITION_CONV: ("1",)},
    transitions_in_order=True,
    channels_last=False,
)

REVCOL = Family(
    name="revcol",
    classes=("RevCol",),
    example=Example("RevCol-T", "revcol_tiny"),
    blocks="subnet*.level*.blocks.*",  # column by column: each level of each is a stage
    inside={
        Role.SPATIAL_CONV: ("dwconv",),
        Role.NORM: ("norm",),
        Role.MLP_IN: ("pwconv1",),
        Role.MLP_OUT: ("pwconv2",),
        Role.MLP_ENTRY: ("dwconv",),  # the block is one branch
    },
    stem={Role.EMBED: ("stem.0",), Role.NORM: ("stem.1",)},
    after=("cls.classifier.0",),
    transitions=("subnet*.level*.fusion",),
    in_transition={
        Role.TRANSITION_NORM: ("down.1", "up.channel_reschedule.1"),
        Role.TRANSITION_CONV: ("down.0",),
    },
    channels_last=False,
)

# the operator has values alone: its offsets and weights take the place of queries and keys
_INTERNIMAGE = {
    Role.NORM: (
        *("norm1.0", "norm2.0", "res_post_norm1.0", "res_post_norm2.0"),
        "dcn.dw_conv.1.1",
    ),
    Role.ATTN_IN: ("dcn.input_proj",),
    Role.ATTN_OUT: ("dcn.output_proj",),
    Role.SPATIAL_CONV: ("dcn.dw_conv.0",),
    Role.MLP_IN: ("mlp.fc1",),
    Role.MLP_OUT: ("mlp.fc2",),
}

INTERNIMAGE = Family(
    name="internimage",
    classes=("InternImage",),
    example=Example("InternImage-T", "internimage_t"),
    blocks="levels.*.blocks.*",
    inside={**_INTERNIMAGE, Role.ATTN_ENTRY: ("norm1.0",), Role.MLP_ENTRY: ("norm2.0",)},
    stem={
        Role.EMBED: ("patch_embed.conv1", "patch_embed.conv2"),
        Role.NORM: ("patch_embed.norm1.1", "patch_embed.norm2.1"),
    },
    after=(
        *("levels.3.norm.0", "conv_head.0", "conv_head.1.0"),
        *("dcnv3_head_x4.0", "dcnv3_head_x3", "clip_projector", "fc_norm.0"),
    ),
    transitions=("levels.*.downsample",),
    in_transition={Role.TRANSITION_CONV: ("conv",), Role.TRANSITION_NORM: ("norm.1",)},
    transitions_in_order=True,
    parts={"dcn.input_proj": ("v",)},
)

INTERNIMAGE_POST_NORM = replace(
    INTERNIMAGE,
    name="internimage_post_norm",
    classes=("PostNormInternImage",),
    example=Example("InternImage-S", "internimage_s"),
    # norms stand behind the branches
    inside={**_INTERNIMAGE, Role.MLP_ENTRY: ("mlp",)},
)

HAT_NET = Family(
    name="hat_net",
    classes=("HATNet",),
    example=Example("HAT-Net-T", "hat_net_tiny"),
    blocks="blocks.*.*",
    inside={
        Role.NORM: (
            *("attn.norm", "attn.grid_norm", "attn.ds_norm"),
            *("conv.conv1.0", "conv.conv3.1"),
        ),
        # q and kv are those of the second attention, over the pooled map
        Role.ATTN_IN: ("attn.qkv", "attn.q", "attn.kv"),
        Role.ATTN_OUT: ("attn.proj",),
        Role.MLP_IN: ("conv.conv1.1",),
        Role.SPATIAL_CONV: ("conv.conv2.0",),
        Role.MLP_OUT: ("conv.conv3.0",),
        Role.ATTN_ENTRY: ("attn.norm",),
        Role.MLP_ENTRY: ("conv.conv1.0",),
    },
    stem={Role.EMBED: ("patch_embed.0", "patch_embed.3"), Role.NORM: ("patch_embed.1",)},
    transitions=("ds[2-4]",),
    in_transition={Role.TRANSITION_CONV: ("conv",), Role.TRANSITION_NORM: ("norm",)},
    transitions_in_order=True,
    parts={"attn.qkv": ("q", "k", "v"), "attn.q": ("q",), "attn.kv": ("k", "v")},
    channels_last=False,
    size_refusal="the sides of their maps are multiples of the windows of attention",
)

_BOTTLENECK_CONVS = ("conv1", "conv2", "conv3", "downsample.0")

G_GHOST = Family(
    name="g_ghost",
    classes=("GGhostRegNet",),
    example=Example("G-Ghost-RegNetX-8.0G", "g_ghost_regnetx_080"),
    # plain stages; the first and last block of ghost stages; the blocks between them
    blocks="layer*.[0-9be]*",
    more_blocks=("layer*.layers.*",),
    inside={
        Role.SPATIAL_CONV: _BOTTLENECK_CONVS,
        Role.POINT_CONV: _BOTTLENECK_CONVS,
        Role.NORM: ("bn1", "bn2", "bn3", "downsample.1"),
    },
    stem={Role.EMBED: ("conv1",), Role.NORM: ("bn1",)},
    # what makes the cheap half of a ghost stage's channels
    transitions=("layer*.merge", "layer*.cheap"),
    in_transition={
        Role.TRANSITION_CONV: ("0", "1", "4"),
        Role.TRANSITION_NORM: ("1", "2", "5"),
    },
    channels_last=False,
)

_GHOSTS = ("ghost1", "ghost2")
_PATHS = ("primary", "cheap")
_PARALLEL = (  # branches of the third version, which are summed
    *(f"{g}.{p}_rpr_conv.{i}" for g in _GHOSTS for p in _PATHS for i in range(3)),
    *(f"{g}.cheap_rpr_scale" for g in _GHOSTS),
    *(f"dw_rpr_conv.{i}" for i in range(3)),
    "dw_rpr_scale",
)
_GHOST_CONVS = (
    *("conv", "conv_dw", "se.conv_reduce", "se.conv_expand"),
    *(f"{g}.{p}" for g in _GHOSTS for p in ("primary_conv.0", "cheap_operation.0")),
    *(f"{g}.short_conv.{i}" for g in _GHOSTS for i in (0, 2, 4)),  # from the second version on
    *(f"shortcut.{i}" for i in (0, 2)),
    *(f"{path}.conv" for path in _PARALLEL),
)
_GHOST_NORMS = (
    *("bn1", "bn_dw"),
    *(f"{g}.{p}" for g in _GHOSTS for p in ("primary_conv.1", "cheap_operation.1")),
    *(f"{g}.short_conv.{i}" for g in _GHOSTS for i in (1, 3, 5)),
    *(f"shortcut.{i}" for i in (1, 3)),
    *(f"{path}.bn1" for path in _PARALLEL),
    *(f"{g}.cheap_rpr_skip" for g in _GHOSTS),
)

GHOSTNET = Family(
    name="ghostnet",
    classes=("GhostNet",),
    example=Example("GhostNet 1.0", "ghostnet_100"),
    blocks="blocks.*.*",
    inside={
        Role.SPATIAL_CONV: _GHOST_CONVS,
        Role.POINT_CONV: _GHOST_CONVS,
        Role.NORM: _GHOST_NORMS,
    },
    stem={Role.EMBED: ("conv_stem",), Role.NORM: ("bn1",)},
    after=("conv_head",),
    channels_last=False,
)

SEEDS = (HORNET, REVCOL, INTERNIMAGE, INTERNIMAGE_POST_NORM, HAT_NET, G_GHOST, GHOSTNET)

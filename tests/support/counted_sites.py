"""How many sites of each role the tiny backbones have, counted by hand from their constructors."""

from __future__ import annotations

from collections.abc import Mapping

from peftbench.backbones.anatomy import Role

# backbone -> (path of the classifier, its width, stage of each block)
SHAPE: Mapping[str, tuple[str, int, list[int]]] = {
    "vit": ("head", 24, [0, 0]),
    "vit_registers": ("head", 24, [0, 0]),
    "vit_average": ("head", 24, [0, 0]),
    "vit_map": ("head", 24, [0, 0]),
    "swin": ("head.fc", 24, [0, 0, 1]),
    "swin_v2": ("head.fc", 24, [0, 0, 1]),
    "beit": ("head", 24, [0, 0]),
    "eva_fused": ("head", 24, [0, 0]),
    "eva_split": ("head", 24, [0, 0]),
    "convnext": ("head.fc", 24, [0, 1, 2, 2, 3]),
    "convnext_conv": ("head.fc", 24, [0, 1, 2, 2, 3]),
    "resnet_basic": ("fc", 24, [0, 1, 2, 3, 3]),
    "resnet_bottleneck": ("fc", 48, [0, 1, 2, 3, 3]),
    "efficientnet": ("classifier", 32, [0, 1, 2, 2, 3]),
    "mixer": ("head", 16, [0, 0]),
    "regnet": ("head.fc", 40, [0, 1, 2, 3]),
    "hornet": ("head", 128, [0, 1, 2, 2, 3]),
    "hornet_gf": ("head", 128, [0, 1, 2, 2, 3]),
    # each level of each of the two columns is a stage
    "revcol": ("cls.classifier.1", 24, [0, 1, 2, 2, 3, 4, 5, 6, 6, 7]),
    "internimage": ("head", 96, [0, 1, 2, 2, 3]),
    "internimage_post_norm": ("head", 96, [0, 1, 2, 2, 3]),
    "hat_net": ("classifier.1", 32, [0, 1, 2, 2, 3]),
    # the third stage has a first block, one on a part of the channels, and a last block
    "g_ghost": ("fc", 32, [0, 1, 1, 2, 2, 2, 3]),
    "ghostnet": ("classifier", 1280, [0, 1, 2, 3]),
}

_TRANSFORMER = {
    Role.EMBED: 1,
    Role.BLOCK: 2,
    Role.NORM: 4,
    Role.ATTN_IN: 2,
    Role.ATTN_OUT: 2,
    Role.MLP_IN: 2,
    Role.MLP_OUT: 2,
    Role.AFTER: 1,
    # the norms in front of the two branches
    Role.ATTN_ENTRY: 2,
    Role.MLP_ENTRY: 2,
}
_SWIN = {
    Role.EMBED: 1,
    Role.BLOCK: 3,
    Role.NORM: 7,  # two in each block and one behind the patches
    Role.ATTN_IN: 3,
    Role.ATTN_OUT: 3,
    Role.MLP_IN: 3,
    Role.MLP_OUT: 3,
    Role.TRANSITION: 1,
    Role.TRANSITION_NORM: 1,
    Role.AFTER: 1,
    Role.ATTN_ENTRY: 3,
    Role.MLP_ENTRY: 3,
}
_CONVNEXT = {
    Role.EMBED: 1,
    Role.BLOCK: 5,
    Role.NORM: 6,
    Role.SPATIAL_CONV: 5,
    Role.MLP_IN: 5,
    Role.MLP_OUT: 5,
    Role.TRANSITION: 3,
    Role.TRANSITION_NORM: 3,
    Role.TRANSITION_CONV: 3,
    Role.AFTER: 1,
    Role.MLP_ENTRY: 5,  # the depthwise convolution: a block is one branch
}
_HORNET = {
    Role.EMBED: 1,
    Role.BLOCK: 5,
    Role.NORM: 11,  # two in each block and one in the stem
    Role.SPATIAL_CONV: 5,
    # into and out of each gated convolution, and 1, 2, 3, 3 and 4 that widen inside
    Role.POINT_CONV: 10 + 13,
    Role.MLP_IN: 5,
    Role.MLP_OUT: 5,
    Role.ATTN_ENTRY: 5,
    Role.MLP_ENTRY: 5,
    Role.TRANSITION: 3,
    Role.TRANSITION_NORM: 3,
    Role.TRANSITION_CONV: 3,
    Role.AFTER: 1,
}
_INTERNIMAGE = {
    Role.EMBED: 2,
    Role.BLOCK: 5,
    Role.NORM: 5 * 3 + 2,  # of both branches and inside the operator; two in the stem
    Role.SPATIAL_CONV: 5,
    Role.ATTN_IN: 5,
    Role.ATTN_OUT: 5,
    Role.MLP_IN: 5,
    Role.MLP_OUT: 5,
    Role.ATTN_ENTRY: 5,
    Role.MLP_ENTRY: 5,
    Role.TRANSITION: 3,
    Role.TRANSITION_NORM: 3,
    Role.TRANSITION_CONV: 3,
    Role.AFTER: 3,  # the norm of the last stage; convolution and norm of the head
}
ROLES: Mapping[str, Mapping[Role, int]] = {
    "vit": _TRANSFORMER,
    "vit_registers": _TRANSFORMER | {Role.NORM: 5},  # one more in front of the blocks
    "vit_average": _TRANSFORMER,  # the norm stands behind the pooling
    "vit_map": _TRANSFORMER | {Role.AFTER: 2},  # norm and attention pooling
    "swin": _SWIN,
    # its norms stand behind the branches: the MLP reads the stream, attention none that is a module
    "swin_v2": {role: n for role, n in _SWIN.items() if role is not Role.ATTN_ENTRY},
    "beit": _TRANSFORMER,
    "eva_fused": _TRANSFORMER,
    # q, k and v apart; two gates in front of each MLP and a norm inside it
    "eva_split": _TRANSFORMER | {Role.ATTN_IN: 6, Role.MLP_IN: 4, Role.NORM: 6},
    "convnext": _CONVNEXT,
    "convnext_conv": _CONVNEXT,
    # two convolutions in each block, a branch around four of them
    "resnet_basic": {
        Role.EMBED: 1,
        Role.BLOCK: 5,
        Role.NORM: 15,
        Role.SPATIAL_CONV: 10,
        Role.POINT_CONV: 4,
    },
    # 1 x 1, 3 x 3, 1 x 1
    "resnet_bottleneck": {
        Role.EMBED: 1,
        Role.BLOCK: 5,
        Role.NORM: 20,
        Role.SPATIAL_CONV: 5,
        Role.POINT_CONV: 14,
    },
    # norms: plain 1, fused 2, inverted 3 + 3, separable 2 and the stem; point convolutions: fused
    # 1, inverted 2 + 2 with two more for squeeze and excitation each, separable 1
    "efficientnet": {
        Role.EMBED: 1,
        Role.BLOCK: 5,
        Role.NORM: 12,
        Role.SPATIAL_CONV: 5,
        Role.POINT_CONV: 10,
        Role.AFTER: 2,
    },
    "mixer": {
        Role.EMBED: 1,
        Role.BLOCK: 2,
        Role.NORM: 4,
        Role.TOKEN_MIX_IN: 2,
        Role.TOKEN_MIX_OUT: 2,
        Role.MLP_IN: 2,
        Role.MLP_OUT: 2,
        Role.AFTER: 1,
        Role.MLP_ENTRY: 2,
    },
    # nobody described it: 1 x 1, 3 x 3, 1 x 1 and a 1 x 1 beside them in each of four blocks
    "regnet": {
        Role.EMBED: 1,
        Role.BLOCK: 4,
        Role.NORM: 17,  # one behind each convolution, and one in the stem
        Role.SPATIAL_CONV: 4,
        Role.POINT_CONV: 12,
    },
    "hornet": _HORNET,
    "hornet_gf": _HORNET | {Role.NORM: 17},  # two more around each of three filters
    "revcol": {
        Role.EMBED: 1,
        Role.BLOCK: 10,
        Role.NORM: 11,
        Role.SPATIAL_CONV: 10,
        Role.MLP_IN: 10,
        Role.MLP_OUT: 10,
        Role.MLP_ENTRY: 10,  # the depthwise convolution: a block is one branch
        Role.TRANSITION: 8,  # what each level reads, which is in the first one the stem alone
        Role.TRANSITION_NORM: 2 * 3 + 3,  # from the level before, and from the next of the column
        Role.TRANSITION_CONV: 2 * 3,
        Role.AFTER: 1,
    },
    "internimage": _INTERNIMAGE,
    # no norm at the end of the last stage; the MLP reads the stream, the operator no module does
    "internimage_post_norm": {
        role: n for role, n in _INTERNIMAGE.items() if role is not Role.ATTN_ENTRY
    }
    | {Role.AFTER: 2},
    "hat_net": {
        Role.EMBED: 2,
        Role.BLOCK: 5,
        Role.NORM: 5 * 3 + 4 * 2 + 1,  # two more in the four blocks with windows, one in the stem
        Role.ATTN_IN: 5 + 4 * 2,
        Role.ATTN_OUT: 5,
        Role.MLP_IN: 5,
        Role.SPATIAL_CONV: 5,
        Role.MLP_OUT: 5,
        Role.ATTN_ENTRY: 5,
        Role.MLP_ENTRY: 5,
        Role.TRANSITION: 3,
        Role.TRANSITION_NORM: 3,
        Role.TRANSITION_CONV: 3,
    },
    "g_ghost": {
        Role.EMBED: 1,
        Role.BLOCK: 7,
        Role.NORM: 7 * 3 + 4 + 1,  # four blocks change the width; one in the stem
        Role.SPATIAL_CONV: 7,
        Role.POINT_CONV: 7 * 2 + 4,
        Role.TRANSITION: 2,  # the cheap half of the ghost stage, and what is mixed in
        Role.TRANSITION_NORM: 3,
        Role.TRANSITION_CONV: 3,
    },
    # three blocks of two ghost modules each, all with a shortcut of two convolutions but the first,
    # depthwise in the two of stride 2, squeeze and excitation in the third; a last convolution
    "ghostnet": {
        Role.EMBED: 1,
        Role.BLOCK: 4,
        Role.NORM: 3 * 4 + 2 * 2 + 2 + 1 + 1,
        Role.SPATIAL_CONV: 3 * 2 + 2 + 2,
        Role.POINT_CONV: 3 * 2 + 2 + 2 + 1,
        Role.AFTER: 1,
    },
}

"""Sizes of the architectures that timm lacks, as published; reading them needs no torch.

Sources: the papers, and the released code for what they leave open. `Architecture.paper` cites.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Architecture:
    """One published size of an architecture."""

    module: str  # of this package, which holds its class
    kind: str  # that class
    options: Mapping[str, Any]  # of its constructor
    millions: float  # published parameters, with a classifier of 1000 classes
    image_size: int = 224


PAPERS: Mapping[str, str] = {
    "hornet": "HorNet, arXiv:2207.14284",
    "revcol": "RevCol, arXiv:2212.11696",
    "internimage": "InternImage, arXiv:2211.05778",
    "hat_net": "HAT-Net, arXiv:2106.03180",
    "g_ghost": "G-GhostNet, arXiv:2201.03297",
}


def _hornet(
    base_dim: int,
    millions: float,
    grids: tuple[tuple[int, int], ...] = (),
    image_size: int = 224,
) -> Architecture:
    filters = (None, None, *grids) if grids else (None,) * 4
    options = {"depths": (2, 3, 18, 2), "base_dim": base_dim, "filters": filters}
    return Architecture("hornet", "HorNet", options, millions, image_size)


def _revcol(
    base_dim: int, layers: tuple[int, ...], num_subnet: int, millions: float
) -> Architecture:
    channels = tuple(base_dim * 2**level for level in range(4))
    options = {"channels": channels, "layers": layers, "num_subnet": num_subnet}
    return Architecture("revcol", "RevCol", options, millions)


def _post_norm(
    channels: int, depths: tuple[int, ...], heads: int, millions: float, offset_scale: float = 1.0
) -> Architecture:
    """An InternImage whose norms stand behind its branches; `heads` groups in the first stage."""
    options = {
        "channels": channels,
        "depths": depths,
        "groups": tuple(heads * 2**level for level in range(4)),
        "offset_scale": offset_scale,
        "layer_scale": 1e-5,
    }
    size = 384 if channels >= 160 else 224
    return Architecture("internimage", "PostNormInternImage", options, millions, size)


def _intern_large(
    channels: int,
    depths: tuple[int, ...],
    heads: int,
    post_norm: bool,
    millions: float,
    image_size: int,
) -> Architecture:
    """An InternImage above a billion parameters, whose head pools by attention."""
    options = {
        "channels": channels,
        "depths": depths,
        "groups": tuple(heads * 2**level for level in range(4)),
        "dw_kernel_size": 5,
        "res_post_norm": not post_norm,
        "center_feature_scale": True,
        "norms_behind": tuple(range(5, depths[2], 6)),
        "clip": (1024, 16, 768),
    }
    kind = "PostNormInternImage" if post_norm else "InternImage"
    return Architecture("internimage", kind, options, millions, image_size)


def _hat_net(
    dims: tuple[int, ...],
    head_dim: int,
    depths: tuple[int, ...],
    millions: float,
    kernels: tuple[int, ...] = (3, 3, 3, 3),
) -> Architecture:
    options = {"dims": dims, "head_dim": head_dim, "depths": depths, "kernel_sizes": kernels}
    return Architecture("hat_net", "HATNet", options, millions)


def _g_ghost(
    layers: tuple[int, ...], widths: tuple[int, ...], group_width: int, millions: float
) -> Architecture:
    options = {"layers": layers, "widths": widths, "group_width": group_width}
    return Architecture("g_ghost", "GGhostRegNet", options, millions)


_GRIDS = ((14, 8), (7, 4))  # of 224 pixels: rows, and half of the columns and one, at /16 and /32
_GRIDS_384 = ((24, 13), (12, 7))

ARCHITECTURES: Mapping[str, Architecture] = {
    "hornet_tiny_7x7": _hornet(64, 22.41),
    "hornet_tiny_gf": _hornet(64, 22.99, _GRIDS),
    "hornet_small_7x7": _hornet(96, 49.53),
    "hornet_small_gf": _hornet(96, 50.40, _GRIDS),
    "hornet_base_7x7": _hornet(128, 87.26),
    "hornet_base_gf": _hornet(128, 88.42, _GRIDS),
    "hornet_base_gf_img384": _hornet(128, 92.10, _GRIDS_384, 384),
    "hornet_large_7x7": _hornet(192, 194.54),
    "hornet_large_gf": _hornet(192, 196.29, _GRIDS),
    "hornet_large_gf_img384": _hornet(192, 201.81, _GRIDS_384, 384),
    "revcol_tiny": _revcol(64, (2, 2, 4, 2), 4, 30.46),
    "revcol_small": _revcol(64, (2, 2, 4, 2), 8, 60.57),
    "revcol_base": _revcol(72, (1, 1, 3, 2), 16, 138.62),
    "revcol_large": _revcol(128, (1, 2, 6, 2), 8, 273.10),
    "revcol_xlarge": _revcol(224, (1, 2, 6, 2), 8, 833.81),
    "internimage_t": Architecture(
        "internimage",
        "InternImage",
        {"channels": 64, "depths": (4, 4, 18, 4), "groups": (4, 8, 16, 32)},
        29.92,
    ),
    "internimage_s": _post_norm(80, (4, 4, 21, 4), 5, 50.08),
    "internimage_b": _post_norm(112, (4, 4, 21, 4), 7, 97.46),
    "internimage_l": _post_norm(160, (5, 5, 22, 5), 10, 223.33, 2.0),
    "internimage_xl": _post_norm(192, (5, 5, 24, 5), 12, 334.82, 2.0),
    "internimage_h": _intern_large(320, (6, 6, 32, 6), 10, False, 1080.0, 384),
    "internimage_g": _intern_large(512, (2, 2, 48, 4), 16, True, 3000.0, 512),
    "hat_net_tiny": _hat_net((48, 96, 240, 384), 48, (2, 2, 6, 3), 12.66),
    "hat_net_small": _hat_net((64, 128, 320, 512), 64, (2, 3, 8, 3), 25.75),
    "hat_net_medium": _hat_net((64, 128, 320, 512), 64, (3, 6, 18, 3), 42.94, (5, 3, 5, 3)),
    "hat_net_large": _hat_net((64, 128, 320, 640), 64, (3, 8, 27, 3), 63.13),
    "g_ghost_regnetx_002": _g_ghost((1, 1, 4, 7), (24, 56, 152, 368), 8, 1.83),
    "g_ghost_regnetx_004": _g_ghost((1, 2, 7, 12), (32, 64, 160, 384), 16, 2.88),
    "g_ghost_regnetx_006": _g_ghost((1, 3, 5, 7), (48, 96, 240, 528), 24, 4.03),
    "g_ghost_regnetx_008": _g_ghost((1, 3, 7, 5), (64, 128, 288, 672), 16, 5.25),
    "g_ghost_regnetx_016": _g_ghost((2, 4, 10, 2), (72, 168, 408, 912), 24, 7.11),
    "g_ghost_regnetx_032": _g_ghost((2, 6, 15, 2), (96, 192, 432, 1008), 48, 10.51),
    "g_ghost_regnetx_040": _g_ghost((2, 5, 14, 2), (80, 240, 560, 1360), 40, 15.73),
    "g_ghost_regnetx_064": _g_ghost((2, 4, 10, 1), (168, 392, 784, 1624), 56, 17.99),
    "g_ghost_regnetx_080": _g_ghost((2, 5, 15, 1), (80, 240, 720, 1920), 120, 24.59),
    "g_ghost_regnetx_120": _g_ghost((2, 5, 11, 1), (224, 448, 896, 2240), 112, 30.63),
    "g_ghost_regnetx_160": _g_ghost((2, 6, 13, 1), (256, 512, 896, 2048), 128, 32.38),
    "g_ghost_regnetx_320": _g_ghost((2, 7, 13, 1), (336, 672, 1344, 2520), 168, 62.82),
}

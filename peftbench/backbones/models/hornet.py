"""HorNet: recursive gated convolutions (Rao et al., NeurIPS 2022, arXiv 2207.14284).

Where a transformer has attention, a block multiplies features with spatially mixed ones n - 1
times, each time at twice the width (section 3.1). Some sizes mix with a filter on frequencies
("gf") in their last two stages.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm2d
from torch import Tensor, nn

from peftbench.backbones.models import common

EPS = 1e-6
Grid = tuple[int, int]  # rows and columns of a filter on the frequencies of a real map


class GlobalLocalFilter(nn.Module):
    """Half of the channels through a 3 x 3 convolution, half through a filter on frequencies."""

    def __init__(self, width: int, grid: Grid) -> None:
        super().__init__()
        half = width // 2
        self.dw = nn.Conv2d(half, half, 3, padding=1, bias=False, groups=half)
        self.complex_weight = nn.Parameter(torch.empty(half, *grid, 2))  # real and imaginary part
        self.pre_norm = LayerNorm2d(width, eps=EPS)
        self.post_norm = LayerNorm2d(width, eps=EPS)
        nn.init.trunc_normal_(self.complex_weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) of (B, C, H, W)."""
        near, far = self.pre_norm(x).chunk(2, dim=1)
        near, far = self.dw(near), self._filtered(common.in_float32(far)).to(far.dtype)
        interleaved = torch.stack((near, far), dim=2).flatten(1, 2)
        mixed: Tensor = self.post_norm(interleaved)
        return mixed

    def _filtered(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) times the filter in frequencies, resized to as many as x has."""
        weight = self.complex_weight.to(x.dtype)
        grid = (x.shape[-2], x.shape[-1] // 2 + 1)
        if weight.shape[1:3] != grid:
            parts = weight.permute(3, 0, 1, 2)
            parts = F.interpolate(parts, size=grid, mode="bilinear", align_corners=True)
            weight = parts.permute(1, 2, 3, 0)
        spectrum = torch.fft.rfft2(x, norm="ortho")
        spectrum = spectrum * torch.view_as_complex(weight.contiguous())
        return torch.fft.irfft2(spectrum, s=x.shape[-2:], norm="ortho")


class GnConv(nn.Module):
    """The recursive gated convolution of one order (section 3.1, eq. 3-5)."""

    def __init__(self, width: int, order: int, scale: float, grid: Grid | None) -> None:
        super().__init__()
        self.widths = [width // 2 ** (order - 1 - step) for step in range(order)]
        mixed = sum(self.widths)
        self.scale = scale
        self.proj_in = nn.Conv2d(width, 2 * width, 1)
        self.dwconv: nn.Module = (
            nn.Conv2d(mixed, mixed, 7, padding=3, groups=mixed)
            if grid is None
            else GlobalLocalFilter(mixed, grid)
        )
        self.proj_out = nn.Conv2d(width, width, 1)
        pairs = itertools.pairwise(self.widths)
        self.pws = nn.ModuleList(nn.Conv2d(narrow, wide, 1) for narrow, wide in pairs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) of (B, C, H, W)."""
        feature, rest = self.proj_in(x).split((self.widths[0], sum(self.widths)), dim=1)
        gates = (self.dwconv(rest) * self.scale).split(self.widths, dim=1)
        feature = feature * gates[0]
        for widen, gate in zip(self.pws, gates[1:], strict=True):
            feature = widen(feature) * gate
        out: Tensor = self.proj_out(feature)
        return out


class HorNetBlock(nn.Module):
    """x + gamma1 gnconv(LN x), then the same with an MLP, on maps (B, C, H, W)."""

    def __init__(self, width: int, gnconv: GnConv, drop_path: float, layer_scale: float) -> None:
        super().__init__()
        self.norm1 = LayerNorm2d(width, eps=EPS)
        self.gnconv = gnconv
        self.norm2 = LayerNorm2d(width, eps=EPS)
        self.pwconv1 = nn.Linear(width, 4 * width)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(4 * width, width)
        self.gamma1 = nn.Parameter(torch.full((width,), layer_scale))
        self.gamma2 = nn.Parameter(torch.full((width,), layer_scale))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) of (B, C, H, W)."""
        x = x + self.drop_path(self.gamma1[:, None, None] * self.gnconv(self.norm1(x)))
        hidden = self.act(self.pwconv1(self.norm2(x).permute(0, 2, 3, 1)))
        change = (self.gamma2 * self.pwconv2(hidden)).permute(0, 3, 1, 2)
        out: Tensor = x + self.drop_path(change)
        return out


class HorNet(nn.Module):
    """Four stages of blocks, each at half the resolution and twice the width."""

    def __init__(  # noqa: PLR0913 - by name, from timm.create_model
        self,
        depths: Sequence[int] = (2, 3, 18, 2),
        base_dim: int = 64,
        orders: Sequence[int] = (2, 3, 4, 5),
        filters: Sequence[Grid | None] = (None,) * 4,
        scale: float = 1 / 3,
        layer_scale: float = 1e-6,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        widths = [base_dim * 2**stage for stage in range(len(depths))]
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = widths[-1]
        self.global_pool = common.check_pooling(global_pool)
        self.feature_info = [
            {"num_chs": width, "reduction": 4 * 2**stage, "module": f"stages.{stage}"}
            for stage, width in enumerate(widths)
        ]
        stem = nn.Sequential(
            nn.Conv2d(in_chans, base_dim, 4, stride=4), LayerNorm2d(base_dim, eps=EPS)
        )
        self.downsample_layers = nn.ModuleList([stem])
        for narrow, wide in itertools.pairwise(widths):
            norm = LayerNorm2d(narrow, eps=EPS)
            self.downsample_layers.append(nn.Sequential(norm, nn.Conv2d(narrow, wide, 2, stride=2)))
        drops = iter(common.rates(drop_path_rate, sum(depths)))
        self.stages = nn.ModuleList()
        for width, depth, order, grid in zip(widths, depths, orders, filters, strict=True):
            blocks = (
                HorNetBlock(width, GnConv(width, order, scale, grid), next(drops), layer_scale)
                for _ in range(depth)
            )
            self.stages.append(nn.Sequential(*blocks))
        self.norm = nn.LayerNorm(self.num_features, eps=EPS)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = common.classifier_of(self.num_features, num_classes)
        self.apply(common.draw_weights)

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.global_pool = common.check_pooling(global_pool or self.global_pool)
        self.num_classes = num_classes
        self.head = common.classifier_of(self.num_features, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map (B, C, H / 32, W / 32) of images (B, 3, H, W)."""
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(downsample(x))
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, classes) of the last map; with `pre_logits` what the classifier reads."""
        x = self.head_drop(self.norm(x.mean((-2, -1))))
        out: Tensor = x if pre_logits else self.head(x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, 3, H, W)."""
        return self.forward_head(self.forward_features(x))


common.register(__name__, "downsample_layers.0.0", "head", "bicubic")

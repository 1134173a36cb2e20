"""DCNv3, a deformable convolution with softmax weights, in plain PyTorch (arXiv 2211.05778, 3.1).

Every position reads nine taps of its group of channels, each moved by an offset and weighted by
its share of a softmax, and both come from the features at that position.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftbench.backbones.models.common import in_float32

SIDE = 3  # of the grid of taps
TAPS = SIDE * SIDE
EPS = 1e-6


class ToChannelsLast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) of (B, C, H, W)."""
        return x.permute(0, 2, 3, 1)


class ToChannelsFirst(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) of (B, H, W, C)."""
        return x.permute(0, 3, 1, 2)


def sample_taps(value: Tensor, offset: Tensor, share: Tensor, scale: float) -> Tensor:
    """The weighted sum (B, H, W, C) over the taps of each group of channels of `value`.

    The taps of a position are the 3 x 3 grid around it plus the offsets, all times `scale`; between
    pixels they are bilinear, outside the map zero. The first axis of the taps goes along columns of
    the grid: (-1, -1), (-1, 0), (-1, 1), (0, -1), ... as (x, y).

    Args:
        value: (B, H, W, C).
        offset: (B, H, W, G, K, 2), each (x, y) in pixels.
        share: (B, H, W, G, K), the weight of each tap.
    """
    batch, height, width, channels = value.shape
    groups = offset.shape[3]
    steps = torch.arange(SIDE, dtype=value.dtype, device=value.device) - SIDE // 2
    taps = torch.cartesian_prod(steps, steps)  # (K, 2)
    rows = torch.arange(height, dtype=value.dtype, device=value.device)
    columns = torch.arange(width, dtype=value.dtype, device=value.device)
    across, down = torch.meshgrid(columns, rows, indexing="xy")
    here = torch.stack((across, down), -1)[:, :, None, None]  # (H, W, 1, 1, 2)
    places = here + scale * (taps + offset)
    # `grid_sample` counts from -1 at the left edge of the first pixel to 1 behind the last one
    sides = torch.tensor((width, height), dtype=value.dtype, device=value.device)
    grid = (2 * places + 1) / sides - 1
    grid = grid.permute(0, 3, 1, 2, 4, 5).reshape(batch * groups, height * width, TAPS, 2)
    maps = value.permute(0, 3, 1, 2).reshape(batch * groups, channels // groups, height, width)
    read = F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    shares = share.permute(0, 3, 1, 2, 4).reshape(batch * groups, 1, height * width, TAPS)
    return (read * shares).sum(-1).reshape(batch, channels, height, width).permute(0, 2, 3, 1)


class DCNv3(nn.Module):
    """The operator with its projections, on maps (B, H, W, C)."""

    def __init__(
        self,
        width: int,
        groups: int,
        offset_scale: float = 1.0,
        dw_kernel_size: int = SIDE,
        center_feature_scale: bool = False,
    ) -> None:
        """`center_feature_scale`: each group keeps a learned share of its own value."""
        super().__init__()
        self.groups, self.offset_scale = groups, offset_scale
        near = nn.Conv2d(width, width, dw_kernel_size, padding=dw_kernel_size // 2, groups=width)
        norm = nn.Sequential(ToChannelsLast(), nn.LayerNorm(width, eps=EPS))
        self.dw_conv = nn.Sequential(near, norm, nn.GELU())
        self.offset = nn.Linear(width, groups * TAPS * 2)
        self.mask = nn.Linear(width, groups * TAPS)
        self.input_proj = nn.Linear(width, width)
        self.output_proj = nn.Linear(width, width)
        self.center_feature_scale = center_feature_scale
        if center_feature_scale:
            self.center_feature_scale_proj_weight = nn.Parameter(torch.zeros(groups, width))
            self.center_feature_scale_proj_bias = nn.Parameter(torch.zeros(groups))

    @torch.no_grad()
    def reset_taps(self) -> None:
        """Let the taps start unmoved and with equal weights."""
        for layer in (self.offset, self.mask):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) of (B, H, W, C)."""
        value = self.input_proj(x)
        near = self.dw_conv(x.permute(0, 3, 1, 2))
        offset = self.offset(near).unflatten(-1, (self.groups, TAPS, 2))
        share = in_float32(self.mask(near).unflatten(-1, (self.groups, TAPS))).softmax(-1)
        mixed = sample_taps(in_float32(value), in_float32(offset), share, self.offset_scale)
        mixed = mixed.to(value.dtype)
        if self.center_feature_scale:
            weight, bias = (
                self.center_feature_scale_proj_weight,
                self.center_feature_scale_proj_bias,
            )
            kept = F.linear(near, weight, bias).sigmoid()
            kept = kept.repeat_interleave(value.shape[-1] // self.groups, dim=-1)
            mixed = mixed * (1 - kept) + value * kept
        out: Tensor = self.output_proj(mixed)
        return out

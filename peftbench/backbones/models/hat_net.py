"""HAT-Net: hierarchical attention (Liu et al., arXiv 2106.03180).

Attention inside small windows first, then of every position over the pooled map (section 3.1);
the second branch is an inverted bottleneck with a depthwise convolution (section 3.2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import DropPath, use_fused_attn
from torch import Tensor, nn

from peftbench.backbones.models import common
from peftbench.errors import ConfigError

STEM = 16  # channels between the two convolutions of the stem


def _norm(width: int) -> nn.GroupNorm:
    """One group: over channels and positions of an image."""
    return nn.GroupNorm(1, width, eps=1e-6)


class Unused(nn.Module):
    """Tensors that files have and nothing reads: no parameters, so that no method trains them."""

    unread_buffers = ("weight", "bias")

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(width))
        self.register_buffer("bias", torch.zeros(width))


class Attention(nn.Module):
    """Hierarchical multi-head attention on maps (B, C, H, W)."""

    def __init__(self, width: int, head_dim: int, grid_size: int, ds_ratio: int) -> None:
        super().__init__()
        self.head_dim, self.grid_size, self.ds_ratio = head_dim, grid_size, ds_ratio
        self.fused_attn = use_fused_attn()
        self.norm = _norm(width)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.proj = nn.Conv2d(width, width, 1)
        self.proj_norm = Unused(width)
        if grid_size > 1:
            self.grid_norm = _norm(width)
            self.ds_norm = _norm(width)
            self.q = nn.Conv2d(width, width, 1)
            self.kv = nn.Conv2d(width, 2 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) of (B, C, H, W), whose sides are multiples of window and pool."""
        query, key, value = self.qkv(self.norm(x)).chunk(3, dim=1)
        if self.grid_size == 1:
            out: Tensor = self.proj(self._attend(query, key, value))
            return out
        side = self.grid_size
        windows = [_windows(part, side) for part in (query, key, value)]
        inside = _map_of(self._attend(*windows), x.shape, side)
        local = self.grid_norm(x + inside)
        pooled = self.ds_norm(F.avg_pool2d(local, self.ds_ratio))
        key, value = self.kv(pooled).chunk(2, dim=1)
        out = self.proj(local + self._attend(self.q(local), key, value))
        return out

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The map (B, C, H, W) of queries of that shape, keys and values (B, C, h, w)."""
        shape = query.shape
        query, key, value = (
            part.flatten(2).unflatten(1, (-1, self.head_dim)).transpose(2, 3)
            for part in (query, key, value)
        )
        mixed = common.attend(query, key, value, self.fused_attn)
        return mixed.transpose(2, 3).reshape(shape)


def _windows(x: Tensor, side: int) -> Tensor:
    """(B · windows, C, side, side) of (B, C, H, W)."""
    x = x.unflatten(3, (-1, side)).unflatten(2, (-1, side))  # (B, C, rows, side, columns, side)
    return x.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def _map_of(windows: Tensor, shape: torch.Size, side: int) -> Tensor:
    """The map of `shape` (B, C, H, W) that `_windows` cut."""
    batch, _, height, width = shape
    x = windows.unflatten(0, (batch, height // side, width // side))
    return x.permute(0, 3, 1, 4, 2, 5).reshape(shape)


class InvertedResidual(nn.Module):
    """An MLP with a depthwise convolution between its two layers."""

    def __init__(self, width: int, expansion: int, kernel: int) -> None:
        super().__init__()
        hidden = expansion * width
        expand = nn.Conv2d(width, hidden, 1, bias=False)
        mix = nn.Conv2d(hidden, hidden, kernel, padding=kernel // 2, groups=hidden, bias=False)
        self.conv1 = nn.Sequential(_norm(width), expand, nn.SiLU())
        self.conv2 = nn.Sequential(mix, nn.SiLU())
        self.conv3 = nn.Sequential(nn.Conv2d(hidden, width, 1, bias=False), _norm(width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) of (B, C, H, W)."""
        out: Tensor = self.conv3(self.conv2(self.conv1(x)))
        return out


class HATNetBlock(nn.Module):
    """Both branches, each added to the map."""

    def __init__(self, attn: Attention, conv: InvertedResidual, drop_path: float) -> None:
        super().__init__()
        self.attn = attn
        self.conv = conv
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) of (B, C, H, W)."""
        x = x + self.drop_path(self.attn(x))
        out: Tensor = x + self.drop_path(self.conv(x))
        return out


class HATNetDownsample(nn.Module):
    """Half the resolution, and the width of the next stage."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, out, 3, stride=2, padding=1)
        self.norm = _norm(out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, out, H / 2, W / 2) of (B, C, H, W)."""
        out: Tensor = self.norm(self.conv(x))
        return out


class HATNet(nn.Module):
    """Four stages of blocks; windows and pools shrink with the maps."""

    def __init__(  # noqa: PLR0913 - by name, from timm.create_model
        self,
        dims: Sequence[int] = (48, 96, 240, 384),
        head_dim: int = 48,
        depths: Sequence[int] = (2, 2, 6, 3),
        expansions: Sequence[int] = (8, 8, 4, 4),
        grid_sizes: Sequence[int] = (8, 7, 7, 1),
        ds_ratios: Sequence[int] = (8, 4, 2, 1),
        kernel_sizes: Sequence[int] = (3, 3, 3, 3),
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.2,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = dims[-1]
        self.global_pool = common.check_pooling(global_pool)
        self.feature_info = [
            {"num_chs": width, "reduction": 4 * 2**stage, "module": f"blocks.{stage}"}
            for stage, width in enumerate(dims)
        ]
        reductions = (4 * 2**stage for stage in range(len(dims)))
        sides = map(math.lcm, grid_sizes, ds_ratios)
        self.multiple = math.lcm(*(r * side for r, side in zip(reductions, sides, strict=True)))
        self.patch_embed = nn.Sequential(
            nn.Conv2d(in_chans, STEM, 3, stride=2, padding=1),
            _norm(STEM),
            nn.SiLU(),
            nn.Conv2d(STEM, dims[0], 3, stride=2, padding=1),
        )
        drops = iter(common.rates(drop_path_rate, sum(depths)))
        self.blocks = nn.ModuleList()
        for stage, width in enumerate(dims):
            blocks = (
                HATNetBlock(
                    Attention(width, head_dim, grid_sizes[stage], ds_ratios[stage]),
                    InvertedResidual(width, expansions[stage], kernel_sizes[stage]),
                    next(drops),
                )
                for _ in range(depths[stage])
            )
            self.blocks.append(nn.Sequential(*blocks))
        self.ds2, self.ds3, self.ds4 = map(HATNetDownsample, dims[:-1], dims[1:])
        self.classifier = nn.Sequential(
            nn.Dropout(drop_rate), common.classifier_of(self.num_features, num_classes)
        )
        self.apply(common.draw_weights)

    def get_classifier(self) -> nn.Module:
        return self.classifier[1]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.global_pool = common.check_pooling(global_pool or self.global_pool)
        self.num_classes = num_classes
        self.classifier[1] = common.classifier_of(self.num_features, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map (B, C, H / 32, W / 32) of images (B, 3, H, W).

        Raises:
            ConfigError: windows and pools do not cover their maps.
        """
        if any(side % self.multiple for side in x.shape[-2:]):
            raise ConfigError(
                f"images of {x.shape[-2]} x {x.shape[-1]} pixels do not suit this HATNet, whose "
                f"windows cover images with sides in multiples of {self.multiple} alone. Use "
                f"backbone.image_size={self.multiple} or a multiple of it."
            )
        x = self.patch_embed(x)
        between = (nn.Identity(), self.ds2, self.ds3, self.ds4)
        for downsample, blocks in zip(between, self.blocks, strict=True):
            x = downsample(x)
            x = blocks(x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, classes) of the last map; with `pre_logits` what the classifier reads."""
        dropout, classifier = self.classifier
        x = dropout(x.mean((-2, -1)))
        out: Tensor = x if pre_logits else classifier(x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, 3, H, W)."""
        return self.forward_head(self.forward_features(x))


common.register(__name__, "patch_embed.0", "classifier.1", "bicubic")

"""InternImage: deformable convolutions with softmax weights (Wang et al., CVPR 2023, 2211.05778).

The operator, DCNv3, is in `deformable.py`. Maps are channels last inside. Sizes differ in where
norms stand: in front of the branches (`InternImage`) or behind them (`PostNormInternImage`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from timm.layers import DropPath, Mlp, use_fused_attn
from torch import Tensor, nn

from peftbench.backbones.models import common
from peftbench.backbones.models.deformable import DCNv3, ToChannelsFirst, ToChannelsLast

EPS = 1e-6


def _norm(width: int, *before: nn.Module, after: Sequence[nn.Module] = ()) -> nn.Sequential:
    """A layer norm where the released files have it: in a sequence."""
    return nn.Sequential(*before, nn.LayerNorm(width, eps=EPS), *after)


class Stem(nn.Module):
    """Two convolutions of stride 2 with norms; gives a map with its channels last."""

    def __init__(self, in_chans: int, width: int) -> None:
        super().__init__()
        half = width // 2
        self.conv1 = nn.Conv2d(in_chans, half, 3, stride=2, padding=1)
        self.norm1 = _norm(half, ToChannelsLast(), after=(ToChannelsFirst(),))
        self.act = nn.GELU()
        self.conv2 = nn.Conv2d(half, width, 3, stride=2, padding=1)
        self.norm2 = _norm(width, ToChannelsLast())

    def forward(self, x: Tensor) -> Tensor:
        """(B, H / 4, W / 4, C) of images (B, 3, H, W)."""
        out: Tensor = self.norm2(self.conv2(self.act(self.norm1(self.conv1(x)))))
        return out


class InternImageDownsample(nn.Module):
    """Half the resolution, twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.norm = _norm(2 * width, ToChannelsLast())

    def forward(self, x: Tensor) -> Tensor:
        """(B, H / 2, W / 2, 2 C) of (B, H, W, C)."""
        out: Tensor = self.norm(self.conv(x.permute(0, 3, 1, 2)))
        return out


@dataclass(frozen=True)
class LayerDesign:
    """What the blocks of one size have in common."""

    post_norm: bool  # norms behind the branches instead of in front of them
    res_post_norm: bool  # norms behind them as well
    layer_scale: float | None
    mlp_ratio: float
    offset_scale: float
    dw_kernel_size: int
    center_feature_scale: bool

    @property
    def norm_at_end(self) -> bool:
        """Whether a stage ends with a norm."""
        return not self.post_norm or self.center_feature_scale


class Layer(nn.Module):
    """A DCN branch and an MLP branch on maps (B, H, W, C)."""

    def __init__(self, width: int, groups: int, design: LayerDesign, drop_path: float) -> None:
        super().__init__()
        self.post_norm = design.post_norm
        self.norm1 = _norm(width)
        self.dcn = DCNv3(
            width,
            groups,
            design.offset_scale,
            design.dw_kernel_size,
            design.center_feature_scale,
        )
        self.norm2 = _norm(width)
        self.mlp = Mlp(width, int(width * design.mlp_ratio))
        self.res_post_norm1 = _norm(width) if design.res_post_norm else nn.Identity()
        self.res_post_norm2 = _norm(width) if design.res_post_norm else nn.Identity()
        self.gamma1: nn.Parameter | float = 1.0
        self.gamma2: nn.Parameter | float = 1.0
        if design.layer_scale is not None:
            self.gamma1 = nn.Parameter(torch.full((width,), design.layer_scale))
            self.gamma2 = nn.Parameter(torch.full((width,), design.layer_scale))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) of (B, H, W, C)."""
        if self.post_norm:
            x = x + self.drop_path(self.gamma1 * self.norm1(self.dcn(x)))
            out: Tensor = x + self.drop_path(self.gamma2 * self.norm2(self.mlp(x)))
            return out
        x = x + self.drop_path(self.gamma1 * self.res_post_norm1(self.dcn(self.norm1(x))))
        out = x + self.drop_path(self.gamma2 * self.res_post_norm2(self.mlp(self.norm2(x))))
        return out


class Stage(nn.Module):
    """Layers at one resolution, and the norms between and behind them."""

    def __init__(
        self,
        layers: Sequence[Layer],
        width: int,
        norm_at_end: bool,
        norms_behind: Collection[int],
        last: bool,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(layers)
        self.norms_behind = tuple(norms_behind)
        self.post_norms = nn.ModuleList(_norm(width) for _ in norms_behind)
        self.norm = _norm(width) if norm_at_end else nn.Identity()
        self.downsample = nn.Identity() if last else InternImageDownsample(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) of (B, H, W, C), before `downsample`."""
        norms = iter(self.post_norms)
        for index, layer in enumerate(self.blocks):
            x = layer(x)
            if index in self.norms_behind:
                x = next(norms)(x)
        out: Tensor = self.norm(x)
        return out


class AttentionPool(nn.Module):
    """Attention of one query over tokens, with biases of their own; to another width."""

    def __init__(self, width: int, heads: int, out: int) -> None:
        super().__init__()
        self.heads = heads
        self.fused_attn = use_fused_attn()
        for name in ("q", "k", "v"):
            self.register_parameter(f"{name}_bias", nn.Parameter(torch.zeros(width)))
            self.add_module(name, nn.Linear(width, width, bias=False))
        self.proj = nn.Linear(width, out)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(B, 1, out) of a query (B, 1, E) and keys and values (B, N, E)."""
        parts = []
        for name, x in (("q", query), ("k", key), ("v", value)):
            projected = getattr(self, name)(x) + getattr(self, f"{name}_bias")
            parts.append(projected.unflatten(2, (self.heads, -1)).transpose(1, 2))
        query, key, value = parts
        mixed = common.attend(query, key, value, self.fused_attn)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out


class ClipProjector(nn.Module):
    """One feature of all tokens: attention whose query is their mean."""

    def __init__(self, width: int, heads: int, out: int) -> None:
        super().__init__()
        self.norm1_q, self.norm1_k, self.norm1_v = (_norm(width) for _ in range(3))
        self.cross_dcn = AttentionPool(width, heads, out)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, out) of (B, N, E)."""
        query = self.norm1_q(tokens.mean(1, keepdim=True))
        pooled: Tensor = self.cross_dcn(query, self.norm1_k(tokens), self.norm1_v(tokens))
        return pooled.squeeze(1)


class InternImage(nn.Module):
    """Four stages, and a head of the last map; with `clip`, of the last two maps."""

    post_norm: ClassVar[bool] = False

    def __init__(  # noqa: PLR0913 - by name, from timm.create_model
        self,
        channels: int = 64,
        depths: Sequence[int] = (4, 4, 18, 4),
        groups: Sequence[int] = (4, 8, 16, 32),
        offset_scale: float = 1.0,
        layer_scale: float | None = None,
        mlp_ratio: float = 4.0,
        dw_kernel_size: int = 3,
        res_post_norm: bool = False,
        center_feature_scale: bool = False,
        norms_behind: Collection[int] = (),
        clip: tuple[int, int, int] | None = None,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        """`norms_behind`: layers of the third stage with one more norm; `clip`: width, heads and
        output of the pooling by attention that the largest sizes have.
        """
        super().__init__()
        self.num_classes = num_classes
        self.global_pool = common.check_pooling(global_pool)
        widths = [channels * 2**stage for stage in range(len(depths))]
        self.feature_info = [
            {"num_chs": width, "reduction": 4 * 2**stage, "module": f"levels.{stage}"}
            for stage, width in enumerate(widths)
        ]
        design = LayerDesign(
            *(self.post_norm, res_post_norm, layer_scale, mlp_ratio),
            *(offset_scale, dw_kernel_size, center_feature_scale),
        )
        self.patch_embed = Stem(in_chans, channels)
        drops = iter(common.rates(drop_path_rate, sum(depths)))
        self.levels = nn.ModuleList()
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            layers = [Layer(width, groups[stage], design, next(drops)) for _ in range(depth)]
            behind, last = norms_behind if stage == 2 else (), stage == len(depths) - 1
            self.levels.append(Stage(layers, width, design.norm_at_end, behind, last))
        self.clip = clip
        self.num_features = clip[2] if clip else int(1.5 * widths[-1])
        self.head_hidden_size = self.num_features
        if clip:
            wide = nn.Conv2d(widths[-1], 4 * clip[0], 1)
            self.dcnv3_head_x4 = nn.Sequential(wide, nn.PixelShuffle(2))
            self.dcnv3_head_x3 = nn.Conv2d(widths[-2], clip[0], 1)
            self.clip_projector = ClipProjector(*clip)
            self.fc_norm = _norm(self.num_features)
        else:
            self.conv_head = nn.Sequential(
                nn.Conv2d(widths[-1], self.num_features, 1, bias=False),
                nn.Sequential(nn.BatchNorm2d(self.num_features)),
                nn.GELU(),
            )
        self.head_drop = nn.Dropout(drop_rate)
        self.head = common.classifier_of(self.num_features, num_classes)
        self.apply(common.draw_weights)
        for module in self.modules():
            if isinstance(module, DCNv3):
                module.reset_taps()

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.global_pool = common.check_pooling(global_pool or self.global_pool)
        self.num_classes = num_classes
        self.head = common.classifier_of(self.num_features, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """The map (B, C, h, w) that the head pools, of images (B, 3, H, W)."""
        x = self.patch_embed(x)
        maps: list[Tensor] = []
        for level in self.levels:
            x = level(x)
            maps.append(x.permute(0, 3, 1, 2))
            x = level.downsample(x)  # type: ignore[operator]
        out: Tensor
        if self.clip:
            out = self.dcnv3_head_x4(maps[-1]) + self.dcnv3_head_x3(maps[-2])
        else:
            out = self.conv_head(maps[-1])
        return out

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, classes) of that map; with `pre_logits` what the classifier reads."""
        if self.clip:
            x = self.fc_norm(self.clip_projector(x.flatten(2).transpose(1, 2)))
        else:
            x = x.mean((-2, -1))
        x = self.head_drop(x)
        out: Tensor = x if pre_logits else self.head(x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, 3, H, W)."""
        return self.forward_head(self.forward_features(x))


class PostNormInternImage(InternImage):
    """x + gamma LN(branch(x)): the sizes from S on, but for H."""

    post_norm: ClassVar[bool] = True


common.register(__name__, "patch_embed.conv1", "head", "bicubic")

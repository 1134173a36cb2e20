"""RevCol: reversible columns (Cai et al., ICLR 2023, arXiv 2212.11696).

Each column is a small network of four levels that reads the maps of the column before it (section
2.1). What a column is given can be computed from what it gives (eq. 2), which saves memory where
training does so; here gradients are PyTorch's own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm2d
from torch import Tensor, nn

from peftbench.backbones.models import common

EPS = 1e-6
LEAST_ALPHA = 1e-3  # magnitude of the weights of old maps, which `ReversibleColumn.undo` divides by
LEVELS = 4
Maps = tuple[Tensor, ...]  # of one column, the largest first, each (B, C, H, W)


class ConvNextBlock(nn.Module):
    """x + gamma MLP(LN conv(x)) with a depthwise convolution, on maps (B, C, H, W)."""

    def __init__(
        self,
        width: int,
        kernel: int = 3,
        ratio: int = 4,
        drop_path: float = 0.0,
        layer_scale: float = 1e-6,
    ) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.pwconv1 = nn.Linear(width, ratio * width)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(ratio * width, width)
        self.gamma = nn.Parameter(torch.full((width,), layer_scale))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) of (B, C, H, W)."""
        hidden = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        hidden = self.gamma * self.pwconv2(self.act(self.pwconv1(hidden)))
        out: Tensor = x + self.drop_path(hidden.permute(0, 3, 1, 2))
        return out


class UpSample(nn.Module):
    """The map of the next level, brought to the width and the size of this one."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.channel_reschedule = nn.Sequential(nn.Linear(width, out), nn.LayerNorm(out, eps=EPS))

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        """(B, out, *size) of (B, C, H, W)."""
        x = self.channel_reschedule(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return F.interpolate(x, size=size, mode="nearest")


class Fusion(nn.Module):
    """What a level reads: of its own column the level before, of the last one the level after."""

    def __init__(self, level: int, channels: Sequence[int], first: bool) -> None:
        super().__init__()
        width = channels[level]
        self.down: nn.Module = nn.Identity()
        if level > 0:
            reduce = nn.Conv2d(channels[level - 1], width, 2, stride=2)
            self.down = nn.Sequential(reduce, LayerNorm2d(width, eps=EPS))
        last = level == len(channels) - 1
        self.up = None if first or last else UpSample(channels[level + 1], width)

    def forward(self, below: Tensor, above: Tensor | None) -> Tensor:
        """(B, C, H, W) of the larger map `below` and the smaller one `above`, if there is one."""
        x: Tensor = self.down(below)
        if self.up is not None and above is not None:
            x = x + self.up(above, x.shape[-2:])
        return x


class ColumnLevel(nn.Module):
    """Fusion and blocks at one resolution."""

    def __init__(self, fusion: Fusion, blocks: Sequence[ConvNextBlock]) -> None:
        super().__init__()
        self.fusion = fusion
        self.blocks = nn.Sequential(*blocks)

    def forward(self, below: Tensor, above: Tensor | None) -> Tensor:
        """The new map (B, C, H, W) but for what the old one adds to it."""
        out: Tensor = self.blocks(self.fusion(below, above))
        return out


class ReversibleColumn(nn.Module):
    """Four levels; the new map of a level is alpha times the old one plus what its level gives."""

    def __init__(
        self,
        channels: Sequence[int],
        layers: Sequence[int],
        kernel: int,
        first: bool,
        drops: Sequence[float],
    ) -> None:
        super().__init__()
        left = iter(drops)
        self.unread_buffers = tuple(f"alpha{level}" for level in range(LEVELS) if first)
        for level, (width, depth) in enumerate(zip(channels, layers, strict=True)):
            alpha = torch.full((1, width, 1, 1), 0.5)
            if first:  # no column before it: files have these, and nothing reads them
                self.register_buffer(f"alpha{level}", alpha)
            else:
                self.register_parameter(f"alpha{level}", nn.Parameter(alpha))
            blocks = [ConvNextBlock(width, kernel, drop_path=next(left)) for _ in range(depth)]
            self.add_module(f"level{level}", ColumnLevel(Fusion(level, channels, first), blocks))

    def levels(self) -> Iterator[tuple[ColumnLevel, Tensor]]:
        """Each level with its alpha (1, C, 1, 1), held away from zero with its gradient whole."""
        for index in range(LEVELS):
            level = getattr(self, f"level{index}")
            alpha = getattr(self, f"alpha{index}")
            far = torch.where(alpha < 0, -1.0, 1.0).to(alpha) * alpha.abs().clamp(min=LEAST_ALPHA)
            yield level, alpha + (far - alpha).detach()

    def forward(self, x: Tensor, old: Maps | None) -> Maps:
        """The column's maps of the stem's output x (B, C, H, W) and the maps of the last column."""
        new: list[Tensor] = []
        for index, (level, alpha) in enumerate(self.levels()):
            above = old[index + 1] if old is not None and index + 1 < LEVELS else None
            made = level(new[-1] if new else x, above)
            new.append(made if old is None else alpha * old[index] + made)
        return tuple(new)

    def undo(self, x: Tensor, new: Maps) -> Maps:
        """The maps (B, C, H, W) that `forward` made `new` of, for the same `x` (eq. 2)."""
        old: list[Tensor] = []
        for index, (level, alpha) in reversed(list(enumerate(self.levels()))):
            made = level(new[index - 1] if index else x, old[-1] if old else None)
            old.append((new[index] - made) / alpha)
        return tuple(reversed(old))


class Classifier(nn.Module):
    """Mean over positions, norm, linear."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.classifier = nn.Sequential(
            nn.LayerNorm(width, eps=EPS), common.classifier_of(width, num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of a map (B, C, H, W)."""
        logits: Tensor = self.classifier(x.mean((-2, -1)))
        return logits


class Decoder(nn.Module):
    """An image of the smallest map: what released training asks of three columns beside logits."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        widths = list(channels)[::-1]
        self.proj_layers, self.normal_layers = nn.ModuleList(), nn.ModuleList()
        for width, out in itertools.pairwise(widths):
            project = nn.Sequential(nn.Conv2d(width, out, 1), LayerNorm2d(out, eps=EPS), nn.GELU())
            self.proj_layers.append(project)
            self.normal_layers.append(nn.Sequential(ConvNextBlock(out, ratio=1)))
        self.projback = nn.Sequential(nn.Conv2d(widths[-1], 48, 1), nn.PixelShuffle(4))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 32 H, 32 W) of (B, C, H, W)."""
        for project, block in zip(self.proj_layers, self.normal_layers, strict=True):
            x = F.interpolate(project(x), scale_factor=2, mode="bilinear", align_corners=True)
            x = block(x)
        image: Tensor = self.projback(x)
        return image


class RevCol(nn.Module):
    """A stem, columns, and a classifier of the last column's smallest map."""

    def __init__(  # noqa: PLR0913 - by name, from timm.create_model
        self,
        channels: Sequence[int] = (64, 128, 256, 512),
        layers: Sequence[int] = (2, 2, 4, 2),
        num_subnet: int = 4,
        kernel_size: int = 3,
        supervised: bool = False,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        """`supervised`: with the heads and decoders of released training, which logits need not."""
        super().__init__()
        self.num_classes, self.num_subnet = num_classes, num_subnet
        self.num_features = self.head_hidden_size = channels[-1]
        self.global_pool = common.check_pooling(global_pool)
        last = f"subnet{num_subnet - 1}"
        self.feature_info = [
            {"num_chs": width, "reduction": 4 * 2**level, "module": f"{last}.level{level}"}
            for level, width in enumerate(channels)
        ]
        self.stem = nn.Sequential(
            nn.Conv2d(in_chans, channels[0], 4, stride=4), LayerNorm2d(channels[0], eps=EPS)
        )
        drops = common.rates(drop_path_rate, sum(layers))
        for index in range(num_subnet):
            column = ReversibleColumn(channels, layers, kernel_size, index == 0, drops)
            self.add_module(f"subnet{index}", column)
        self.head_drop = nn.Dropout(drop_rate)
        self.supervised = supervised
        if supervised:
            heads = (Classifier(channels[-1], num_classes) for _ in range(4))
            self.cls_blocks = nn.ModuleList(heads)
            self.decoder_blocks = nn.ModuleList(Decoder(channels) for _ in range(3))
        else:
            self.cls = Classifier(channels[-1], num_classes)
        self.apply(common.draw_weights)

    def _head(self) -> nn.Sequential:
        """Norm and classifier of the last column."""
        last = self.cls_blocks[-1] if self.supervised else self.cls
        assert isinstance(last, Classifier)
        return last.classifier

    def get_classifier(self) -> nn.Module:
        return self._head()[-1]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.global_pool = common.check_pooling(global_pool or self.global_pool)
        self.num_classes = num_classes
        self._head()[-1] = common.classifier_of(self.num_features, num_classes)

    def columns(self, x: Tensor) -> Iterator[Maps]:
        """The maps of each column for images (B, 3, H, W)."""
        x = self.stem(x)
        maps: Maps | None = None
        for index in range(self.num_subnet):
            maps = getattr(self, f"subnet{index}")(x, maps)
            yield maps

    def forward_features(self, x: Tensor) -> Tensor:
        """The smallest map (B, C, H / 32, W / 32) of the last column for images (B, 3, H, W)."""
        *_, maps = self.columns(x)
        return maps[-1]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, classes) of that map; with `pre_logits` what the classifier reads."""
        norm, classifier = self._head()
        x = self.head_drop(norm(x.mean((-2, -1))))
        out: Tensor = x if pre_logits else classifier(x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, 3, H, W)."""
        return self.forward_head(self.forward_features(x))

    def forward_supervised(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Logits (B, classes) after each quarter of the columns, and images after the first three.

        Only where it was built with `supervised`.
        """
        step = self.num_subnet // 4
        smallest = [maps[-1] for maps in self.columns(x)]
        chosen = [smallest[(quarter + 1) * step - 1] for quarter in range(4)]
        logits = [head(x) for head, x in zip(self.cls_blocks, chosen, strict=True)]
        images = [decode(x) for decode, x in zip(self.decoder_blocks, chosen[:3], strict=True)]
        return logits, images


def checkpoint_filter_fn(state: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """A released file without what its training alone needs; the last head is the model's."""
    if getattr(model, "supervised", False):
        return dict(state)
    kept = {}
    for name, tensor in state.items():
        if name.startswith(("decoder_blocks.", *(f"cls_blocks.{j}." for j in range(3)))):
            continue
        kept[name.replace("cls_blocks.3.", "cls.", 1)] = tensor
    return kept


common.register(__name__, "stem.0", "cls.classifier.1", "bicubic")

"""A network of shrinking maps beside a token backbone, fed by what its blocks give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftbench.methods.layers.handing import HandingOn
from peftbench.methods.layers.ladder import SideAttention

STEM_EPS = 1e-5  # of the layer norms behind convolutions, and of meta tokens
BLOCK_EPS = 1e-6
MLP_RATIO = 4


@dataclass(frozen=True)
class BlockOutput:
    """What a frozen block gave."""

    meta: Tensor  # (B, G, D)
    patches: Tensor  # (B, N, D)
    meta_norm: nn.LayerNorm  # of its own, on bridged meta tokens


@dataclass
class HierarchyState:
    """The outputs of the blocks in the forward pass under way, in depth order."""

    outputs: list[BlockOutput] = field(default_factory=list)


class MetaBlock(HandingOn):
    """A block that runs with meta tokens of its own in front; they are told and do not flow on."""

    def __init__(
        self,
        block: nn.Module,
        meta: Tensor,
        side_width: int,
        num_prefix: int,
        state: HierarchyState,
    ) -> None:
        super().__init__()
        self.block = block
        self.meta = nn.Parameter(meta)  # (G, D)
        self.meta_norm = nn.LayerNorm(side_width, eps=STEM_EPS)
        self.num_prefix = num_prefix
        self.state = state

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """x: (B, N, D) tokens, the prefix first; the same shape."""
        meta = self.meta.to(x.dtype).expand(len(x), -1, -1)
        out: Tensor = self.block(torch.cat((meta, x), 1), *args, **kwargs)
        told, out = out[:, : len(self.meta)], out[:, len(self.meta) :]
        patches = out[:, self.num_prefix :]
        self.state.outputs.append(BlockOutput(told, patches, self.meta_norm))
        return out


class SideBlock(nn.Module):
    """Attention to the meta tokens and the mean of the patches, the patches, and an MLP."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=BLOCK_EPS)
        self.attn = SideAttention(width, num_heads, key_bias=True)
        self.norm2 = nn.LayerNorm(width, eps=BLOCK_EPS)
        self.fc1 = nn.Linear(width, MLP_RATIO * width)
        self.fc2 = nn.Linear(MLP_RATIO * width, width)

    def forward(self, z: Tensor, meta: Tensor, patches: Tensor) -> Tensor:
        """z, patches: (B, M, d) tokens of the stage; meta: (B, G, d); gives (B, M, d)."""
        context = torch.cat((meta, patches.mean(1, keepdim=True)), 1)
        z = z + self.attn(self.norm1(z), context) + patches
        out: Tensor = z + self.fc2(F.gelu(self.fc1(self.norm2(z))))
        return out


class QuarterStem(nn.Module):
    """A quarter of the image's side: two convolutions of stride 2 and a layer norm."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 2, stride=2)
        self.norm = nn.LayerNorm(width, eps=STEM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H / 4, W / 4, d) of images (B, 3, H, W)."""
        maps = self.conv2(F.relu(self.bn(self.conv1(x))))
        out: Tensor = self.norm(maps.movedim(1, -1))
        return out


class Shrink(nn.Module):
    """Half the side between two stages, and a layer norm."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, width, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(width, eps=STEM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H / 2, W / 2, d) of a map (B, H, W, before)."""
        out: Tensor = self.norm(self.conv(x.movedim(-1, 1)).movedim(1, -1))
        return out


class SideStage(nn.Module):
    """One resolution: a side block for each of its frozen blocks, whose outputs it bridges."""

    def __init__(
        self, frozen_width: int, width: int, num_heads: int, num_blocks: int, before: int | None
    ) -> None:
        super().__init__()
        self.down = None if before is None else Shrink(before, width)
        # nothing to bridge where there are fewer frozen blocks than stages
        self.bridge = nn.Linear(frozen_width, width) if num_blocks else None
        self.blocks = nn.ModuleList(SideBlock(width, num_heads) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(width, eps=BLOCK_EPS)

    def forward(self, x: Tensor, outputs: Sequence[BlockOutput], grid: tuple[int, int]) -> Tensor:
        """x: a map (B, H, W, before); `grid` of the frozen patches; gives a map (B, h, w, d)."""
        if self.down is not None:
            x = self.down(x)
        z, size = x.flatten(1, 2), x.shape[1:3]
        for block, output in zip(self.blocks, outputs, strict=True):
            assert self.bridge is not None
            meta = output.meta_norm(self.bridge(output.meta))
            # each place of a resized map is a mean of places, so that the bridge may come first
            bridged = self.bridge(output.patches).unflatten(1, grid).movedim(-1, 1)
            if size != grid:
                bridged = F.interpolate(bridged, size, mode="bilinear", align_corners=False)
            z = block(z, meta, bridged.flatten(2).mT)
        out: Tensor = self.norm(z).unflatten(1, tuple(size))
        return out


class Hierarchy(nn.Module):
    """The side network: the mean over the places of its last map."""

    def __init__(
        self, stem: QuarterStem, stages: Sequence[SideStage], grid: tuple[int, int]
    ) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.ModuleList(stages)
        self.grid = grid

    def forward(self, images: Tensor, outputs: Sequence[BlockOutput]) -> Tensor:
        """(B, d) of images (B, 3, H, W) and what the frozen blocks gave of them."""
        x, begin = self.stem(images), 0
        for stage in self.stages:
            assert isinstance(stage, SideStage)
            end = begin + len(stage.blocks)
            x = stage(x, outputs[begin:end], self.grid)
            begin = end
        mean: Tensor = x.mean((1, 2))
        return mean


class HierarchyTuned(nn.Module):
    """A token backbone whose classifier reads a side network in place of its own feature."""

    def __init__(
        self, backbone: nn.Module, head: str, side: Hierarchy, state: HierarchyState
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head  # path of the classifier inside the backbone
        self.side = side
        self.state = state

    def forward(self, x: Tensor) -> Tensor:
        """(B, classes) logits of images (B, 3, H, W)."""
        self.state.outputs.clear()
        try:
            self.backbone.forward_features(x)  # type: ignore[operator]
            feature = self.side(x, self.state.outputs)
        finally:
            self.state.outputs.clear()  # a copy must hold no tensor of a pass
        logits: Tensor = self.backbone.get_submodule(self.head)(feature)
        return logits

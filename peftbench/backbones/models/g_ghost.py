"""G-GhostNet on RegNetX: stages that compute half of their channels (Han et al., arXiv 2201.03297).

In a ghost stage the middle blocks work on a part of the channels; the rest comes from the first
block's output through a cheap layer, with information of all blocks mixed in (section 4.2).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftbench.backbones.models import common

STEM = 32
RAW_SHARE = 0.5  # of the channels that the middle blocks of a ghost stage work on, about
GROUP_SHARE = 0.75  # of the width of a group, in those blocks


class RegNetBlock(nn.Module):
    """RegNet's block: 1 x 1, grouped 3 x 3, 1 x 1, added to its input."""

    def __init__(self, width: int, out: int, group_width: int, stride: int = 1) -> None:
        super().__init__()
        groups = out // min(out, group_width)
        self.conv1 = nn.Conv2d(width, out, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, stride=stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.conv3 = nn.Conv2d(out, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or width != out:
            reduce = nn.Conv2d(width, out, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(reduce, nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        """(B, out, H / stride, W / stride) of (B, C, H, W)."""
        hidden = F.relu(self.bn1(self.conv1(x)))
        hidden = F.relu(self.bn2(self.conv2(hidden)))
        return F.relu(self.bn3(self.conv3(hidden)) + self.downsample(x))


class GhostStage(nn.Module):
    """A first block, blocks on a part of the channels, and a last block that reads all."""

    def __init__(self, width: int, out: int, group_width: int, depth: int) -> None:
        super().__init__()
        narrow = int(GROUP_SHARE * group_width)
        self.raw = int(RAW_SHARE * out / narrow) * narrow
        cheap, middle = out - self.raw, max(1, depth - 2)
        self.base = RegNetBlock(width, out, group_width, stride=2)
        self.layers = nn.Sequential(
            *(RegNetBlock(self.raw, self.raw, narrow) for _ in range(middle))
        )
        self.merge = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(out + middle * self.raw, cheap, 1, bias=False),
            nn.BatchNorm2d(cheap),
            nn.ReLU(),
            nn.Conv2d(cheap, cheap, 1, bias=False),
            nn.BatchNorm2d(cheap),
        )
        self.cheap = nn.Sequential(nn.Conv2d(cheap, cheap, 1, bias=False), nn.BatchNorm2d(cheap))
        self.end = RegNetBlock(out, out, group_width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, out, H / 2, W / 2) of (B, C, H, W)."""
        base = self.base(x)
        raw, rest = base[:, : self.raw], base[:, self.raw :]
        seen = [base]
        for block in self.layers:
            raw = block(raw)
            seen.append(raw)
        # the mean over positions is taken first, so that the long map is never formed
        mix = self.merge(torch.cat([m.mean((-2, -1), keepdim=True) for m in seen], dim=1))
        ghost = F.relu(self.cheap(rest) + mix)
        out: Tensor = self.end(torch.cat((raw, ghost), dim=1))
        return out


def _stage(width: int, out: int, group_width: int, depth: int, ghost: bool) -> nn.Module:
    """A ghost stage, or plain blocks."""
    if ghost:
        return GhostStage(width, out, group_width, depth)
    first = RegNetBlock(width, out, group_width, stride=2)
    return nn.Sequential(first, *(RegNetBlock(out, out, group_width) for _ in range(depth - 1)))


class GGhostRegNet(nn.Module):
    """A stem and four stages; ghost stages are the third, and deep ones behind the first."""

    def __init__(  # noqa: PLR0913 - by name, from timm.create_model
        self,
        layers: Sequence[int] = (2, 5, 15, 1),
        widths: Sequence[int] = (80, 240, 720, 1920),
        group_width: int = 120,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.2,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = widths[-1]
        self.global_pool = common.check_pooling(global_pool)
        self.feature_info = [
            {"num_chs": width, "reduction": 4 * 2**stage, "module": f"layer{stage + 1}"}
            for stage, width in enumerate(widths)
        ]
        self.conv1 = nn.Conv2d(in_chans, STEM, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        for stage, (depth, out) in enumerate(zip(layers, widths, strict=True)):
            ghost = stage == 2 or (stage > 0 and depth > 2)
            before = widths[stage - 1] if stage else STEM
            self.add_module(f"layer{stage + 1}", _stage(before, out, group_width, depth, ghost))
        self.drop = nn.Dropout(drop_rate)
        self.fc = common.classifier_of(self.num_features, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.global_pool = common.check_pooling(global_pool or self.global_pool)
        self.num_classes = num_classes
        self.fc = common.classifier_of(self.num_features, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map (B, C, H / 32, W / 32) of images (B, 3, H, W)."""
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in range(4):
            x = getattr(self, f"layer{stage + 1}")(x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, classes) of the last map; with `pre_logits` what the classifier reads."""
        x = self.drop(x.mean((-2, -1)))
        out: Tensor = x if pre_logits else self.fc(x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, 3, H, W)."""
        return self.forward_head(self.forward_features(x))


common.register(__name__, "conv1", "fc", "bilinear")

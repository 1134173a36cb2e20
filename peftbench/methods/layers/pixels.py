"""Learned pixels around or below the image, in front of the layer that reads it."""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.func import functional_call


class BorderedStem(nn.Module):
    """A stem that reads the image inside a learned border of N pixels on each side.

    The border is drawn uniform in [0, 1) like pixels, and normalised like them.
    """

    def __init__(
        self, stem: nn.Module, num_pixels: int, image_size: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.stem = stem
        both = 2 * num_pixels
        # the bands above and below reach over the corners
        top_bottom = torch.empty(3, both, image_size + both).uniform_(generator=generator)
        left_right = torch.empty(3, image_size, both).uniform_(generator=generator)
        self.top_bottom = nn.Parameter(top_bottom)
        self.left_right = nn.Parameter(left_right)

    def forward(self, x: Tensor) -> Tensor:
        """What the stem makes of (B, 3, S + 2N, S + 2N), from normalised images x (B, 3, S, S)."""
        mean = self.left_right.new_tensor(IMAGENET_DEFAULT_MEAN)[:, None, None]
        std = self.left_right.new_tensor(IMAGENET_DEFAULT_STD)[:, None, None]
        for band, along in ((self.left_right, -1), (self.top_bottom, -2)):
            pixels = ((band - mean) / std).to(x.dtype).expand(len(x), -1, -1, -1)
            before, after = pixels.chunk(2, dim=along)
            x = torch.cat((before, x, after), dim=along)
        return self.stem(x)


class DeepenedStem(nn.Module):
    """A convolution that reads N learned channels below the 3 of the image.

    Its kernel keeps the pretrained planes for the image; those for the new channels are drawn
    Xavier uniform with the fans of the whole kernel. The channels are drawn uniform in [0, 1) and
    normalised with the averages of the ImageNet statistics over the colours.
    """

    def __init__(
        self, conv: nn.Module, num_channels: int, image_size: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.conv: Any = conv
        width, colours, height, breadth = conv.get_parameter("weight").shape
        assert colours == 3
        fans = (width + colours + num_channels) * height * breadth
        planes = torch.empty(width, num_channels, height, breadth)
        bound = math.sqrt(6 / fans)
        self.planes = nn.Parameter(planes.uniform_(-bound, bound, generator=generator))
        channels = torch.empty(num_channels, image_size, image_size)
        self.channels = nn.Parameter(channels.uniform_(generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) from normalised images x (B, 3, S, S)."""
        channels = (self.channels - _mean(IMAGENET_DEFAULT_MEAN)) / _mean(IMAGENET_DEFAULT_STD)
        x = torch.cat((x, channels.to(x.dtype).expand(len(x), -1, -1, -1)), dim=1)
        kernel = torch.cat((self.conv.weight, self.planes), dim=1)
        # the module decides how its kernel is applied, such as with padding that follows the size
        return functional_call(self.conv, {"weight": kernel}, (x,))


def _mean(values: tuple[float, ...]) -> float:
    return sum(values) / len(values)

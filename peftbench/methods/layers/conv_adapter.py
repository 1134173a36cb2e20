"""Convolutions with one hidden channel a group, and how they stand beside layers."""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.layers import pad_same
from torch import Tensor, nn

from peftbench.methods import surgery
from peftbench.methods.layers.design import ACTIVATIONS
from peftbench.methods.layers.drawn import as_by_default


@dataclass(frozen=True)
class Geometry:
    """How a convolution goes over its map, by rows and columns."""

    kernel_size: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    same: bool = False  # pads as TensorFlow does, by the size of the map


def geometry_of(conv: nn.Conv2d) -> Geometry:
    """That of a convolution of PyTorch or timm."""
    rows, columns = conv.kernel_size
    same = "Same" in type(conv).__name__ or bool(getattr(conv, "same_pad", False))
    padding = (0, 0) if isinstance(conv.padding, str) or same else conv.padding
    return Geometry(
        (rows, columns),
        (conv.stride[0], conv.stride[1]),
        (padding[0], padding[1]),
        (conv.dilation[0], conv.dilation[1]),
        same or conv.padding == "same",
    )


class GroupedConvAdapter(nn.Module):
    """scale · up(act(conv(x))): each hidden channel reads a few channels of its own."""

    def __init__(
        self,
        channels: tuple[int, int, int],
        geometry: Geometry,
        activation: str,
        channels_last: bool,
        generator: torch.Generator,
    ) -> None:
        """With `channels` that it reads, hides and gives."""
        super().__init__()
        in_channels, hidden, out_channels = channels
        self.conv = nn.Conv2d(
            in_channels,
            hidden,
            geometry.kernel_size,
            geometry.stride,
            geometry.padding,
            geometry.dilation,
            groups=hidden,
        )
        self.activation = pkgutil.resolve_name(ACTIVATIONS[activation])()
        self.up = nn.Conv2d(hidden, out_channels, 1)
        self.scale = nn.Parameter(torch.ones(out_channels))
        self.same = geometry.same
        self.channels_last = channels_last
        for layer in (self.conv, self.up):
            as_by_default(layer, generator)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) or (B, H, W, C); the change in the same layout, at the stride's size."""
        if self.channels_last:
            x = x.movedim(-1, 1)
        if self.same:
            conv = self.conv
            x = pad_same(x, list(conv.kernel_size), list(conv.stride), list(conv.dilation))
        hidden = self.activation(self.conv(x))
        weight = self.scale.view(-1, 1, 1, 1) * self.up.weight
        assert self.up.bias is not None
        change = F.conv2d(hidden, weight, self.scale * self.up.bias)
        return change.movedim(1, -1) if self.channels_last else change


class CarriedChange:
    """What an adapter made in the pass under way, until the sum takes it."""

    def __init__(self) -> None:
        self._value: Tensor | None = None

    def put(self, value: Tensor) -> None:
        """Keep the change (B, C, H, W)."""
        self._value = value

    def take(self) -> Tensor:
        """The change (B, C, H, W), which is then forgotten: a copy holds no tensor of a pass."""
        value, self._value = self._value, None
        assert value is not None  # its source is called in front of the sum
        return value


class ChangeSource(surgery.Around):
    """A frozen module whose input an adapter reads, for a sum further on."""

    def __init__(self, base: nn.Module, adapter: nn.Module, change: CarriedChange) -> None:
        super().__init__()
        self.base = base
        self.adapter = adapter
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W); what the module makes of it, unchanged."""
        self.change.put(self.adapter(x))
        out: Tensor = self.base(x)
        return out


class ChangeSum(surgery.Around):
    """A frozen module to whose output a change is added that was made in front of it."""

    def __init__(self, base: nn.Module, change: CarriedChange) -> None:
        super().__init__()
        self.base = base
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W); the module's output and the change."""
        out: Tensor = self.base(x) + self.change.take()
        return out

"""Low-rank changes of weights."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame, pad_same
from torch import Tensor, nn

from peftbench.methods import surgery
from peftbench.methods.layers.products import Input, add_low_rank


class LowRankDelta(surgery.Delta):
    """scale · B A on chosen row blocks of a weight; A random, B zero."""

    recomputes = True

    def __init__(
        self,
        rows: Mapping[str, tuple[int, int]],
        shape: tuple[int, int],
        rank: int,
        scale: float,
        dropout: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.rows = dict(rows)
        self.width, fan_in = shape  # of the weight: outputs, inputs
        self.scale = scale
        self.dropout = nn.Dropout(dropout)
        self.a = nn.ParameterDict()
        self.b = nn.ParameterDict()
        bound = 1 / math.sqrt(fan_in)  # Kaiming uniform with a = sqrt(5)
        for name, (start, stop) in rows.items():
            a = torch.empty(rank, fan_in).uniform_(-bound, bound, generator=generator)
            self.a[name] = nn.Parameter(a)
            self.b[name] = nn.Parameter(torch.zeros(stop - start, rank))

    def add_to_output(self, y: Tensor, x: Tensor) -> Tensor:
        a = torch.cat([self.a[name] for name in self.rows]) * self.scale
        bs = [self.b[name] for name in self.rows]
        # behind a dropout that acts, x is not what the activation gave
        read = Input.of(self.dropout(x), self.reading)
        return add_low_rank(y, read, a, bs, tuple(self.rows.values()))

    def weight_delta(self) -> Tensor:
        changes = [
            F.pad(self.scale * self.b[name] @ self.a[name], (0, 0, start, self.width - stop))
            for name, (start, stop) in self.rows.items()
        ]
        return torch.stack(changes).sum(0)


class LowRankConvDelta(surgery.Delta):
    """scale · B A on row blocks of a kernel, read as a matrix (out, in / groups · k · k).

    Without groups it runs as a convolution with the kernels of A to `rank` channels and a 1 x 1
    convolution with B. Groups share A; there the small kernel B A is formed, which for a depthwise
    convolution is as cheap.
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        rows: Mapping[str, tuple[int, int]],
        rank: int,
        scale: float,
        dropout: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.rows = dict(rows)
        self.width = conv.out_channels
        self.scale = scale
        self.dropout = nn.Dropout(dropout)
        self.stride, self.dilation, self.groups = conv.stride, conv.dilation, conv.groups
        self.padding = conv.padding
        self.same = isinstance(conv, Conv2dSame)  # pads by the size of its input
        self.shape = conv.weight.shape[1:]
        self.kernel = self.shape[1:]
        shape = (rank, *self.shape)
        bound = 1 / math.sqrt(math.prod(shape[1:]))  # Kaiming uniform with a = sqrt(5)
        self.a = nn.ParameterDict()
        self.b = nn.ParameterDict()
        for name, (start, stop) in rows.items():
            a = torch.empty(shape).uniform_(-bound, bound, generator=generator)
            self.a[name] = nn.Parameter(a)
            self.b[name] = nn.Parameter(torch.zeros(stop - start, rank))

    def add_to_output(self, y: Tensor, x: Tensor) -> Tensor:
        x = self.dropout(x)
        if self.same:
            x = pad_same(x, list(self.kernel), list(self.stride), list(self.dilation))
        if self.groups > 1:
            return y + self._convolve(x, self.weight_delta())
        for name, (start, stop) in self.rows.items():
            hidden = self._convolve(x, self.a[name])
            change = self.scale * F.conv2d(hidden, self.b[name][:, :, None, None])
            if (start, stop) != (0, self.width):
                change = F.pad(change, (0, 0, 0, 0, start, self.width - stop))
            y = y + change
        return y

    def _convolve(self, x: Tensor, kernel: Tensor) -> Tensor:
        """With the stride, padding and groups of the frozen layer."""
        geometry = (self.stride, self.padding, self.dilation, self.groups)
        return F.conv2d(x, kernel, None, *geometry)  # type: ignore[arg-type]

    def weight_delta(self) -> Tensor:
        changes = [
            F.pad(self.scale * self.b[name] @ a.flatten(1), (0, 0, start, self.width - stop))
            for (name, (start, stop)), a in zip(self.rows.items(), self.a.values(), strict=True)
        ]
        return torch.stack(changes).sum(0).unflatten(1, self.shape)

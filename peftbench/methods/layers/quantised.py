"""Factors of few bits: rounded to levels in every pass, and stored as packed bits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from statistics import NormalDist
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftbench.methods import surgery
from peftbench.methods.layers.bottleneck import Bottleneck
from peftbench.methods.layers.design import Design
from peftbench.methods.layers.packing import PackedTensor, pack_bits, unpack_bits
from peftbench.methods.layers.slices import RowBlock

EPS = 1e-5  # beside the deviation by which values are divided


@cache
def levels_of(bits: int) -> tuple[float, ...]:
    """To which 2^bits numbers standard normal values are rounded.

    Each is the quantile of the mid-probability of its cell, and the borders of cells lie in the
    middle between two: a fixed point, found by iterating.
    """
    normal, count = NormalDist(), 2**bits
    levels = [normal.inv_cdf((i + 0.5) / count) for i in range(count)]
    change = 1.0
    while change > 1e-13:
        borders = [(a + b) / 2 for a, b in pairwise(levels)]
        below = [0.0, *map(normal.cdf, borders), 1.0]
        after = [normal.inv_cdf((a + b) / 2) for a, b in pairwise(below)]
        change = max(abs(a - b) for a, b in zip(levels, after, strict=True))
        levels = after
    return tuple((b - a) / 2 for a, b in zip(levels, reversed(levels), strict=True))[::-1]


class QuantisedFactor(PackedTensor):
    """A matrix of a few bits: level · std + mean with the level nearest to (w - mean) / std.

    Trains `full`, w. The rounding hands its gradient on, and mean and deviation have theirs. One
    of a stored task holds the rounded values themselves, until it trains again.
    """

    packs = "full"

    def __init__(self, values: Tensor, bits: int) -> None:
        super().__init__()
        self.full = nn.Parameter(values)
        self.bits = bits
        self.is_rounded = False  # whether `full` holds rounded values, of a stored task
        self.register_buffer("levels", torch.tensor(levels_of(bits)), persistent=False)
        self.register_buffer("moments", torch.zeros(2), persistent=False)  # where `is_rounded`

    bias = None  # as a linear layer says that it has none

    @property
    def weight(self) -> Tensor:
        """The matrix of the forward pass, in the shape of `full`: (out, in)."""
        if self.is_rounded:
            return self.full
        mean, std = self.full.mean(), self.full.std()
        z = (self.full - mean) / (std + EPS)
        rounded = self.get_buffer("levels").to(z.dtype)[self._codes(z)]
        return (rounded + (z - z.detach())) * std + mean

    def _codes(self, z: Tensor) -> Tensor:
        """Index of the level nearest to each of standardised values (out, in)."""
        levels = self.get_buffer("levels").to(z.dtype)
        return torch.bucketize(z.detach(), (levels[1:] + levels[:-1]) / 2)

    @torch.no_grad()
    def pack(self) -> dict[str, Tensor]:
        if self.is_rounded:
            moments = self.get_buffer("moments").clone()
            codes = self._codes((self.full - moments[0]) / moments[1])
        else:
            moments = torch.stack((self.full.mean(), self.full.std()))
            codes = self._codes((self.full - moments[0]) / (moments[1] + EPS))
        return {"codes": pack_bits(codes.flatten(), self.bits), "moments": moments}

    @torch.no_grad()
    def unpack(self, packed: Mapping[str, Tensor]) -> None:
        codes = unpack_bits(packed["codes"], self.bits, self.full.numel()).to(self.full.device)
        moments = self.get_buffer("moments").copy_(packed["moments"])
        levels = self.get_buffer("levels").to(moments.dtype)
        self.full.copy_((levels[codes] * moments[1] + moments[0]).view_as(self.full))
        self.is_rounded = True

    def train(self, mode: bool = True) -> Self:
        if mode:
            self.is_rounded = False
        return super().train(mode)

    def load_full(self) -> None:
        self.is_rounded = False


def _up(rows: int, rank: int, generator: torch.Generator) -> Tensor:
    """Truncated normal with a deviation of 0.001, cut at 2: (rows, rank)."""
    return nn.init.trunc_normal_(torch.empty(rows, rank), std=0.001, generator=generator)


class QuantisedDelta(surgery.Delta):
    """scale · up down on chosen row blocks of a weight, both factors of a few bits."""

    def __init__(
        self,
        rows: Mapping[str, RowBlock],
        shape: tuple[int, int],
        rank: int,
        bits: int,
        design: Design,
        generator: torch.Generator,
    ) -> None:
        """`shape`: outputs and inputs of the weight; of `design` scale and dropout count."""
        super().__init__()
        self.rows = dict(rows)
        self.width, fan_in = shape
        self.scale = design.scale
        self.dropout = nn.Dropout(design.dropout)
        self.down = nn.ModuleDict()
        self.up = nn.ModuleDict()
        bound = 1 / math.sqrt(fan_in)  # the default of a linear layer
        for name, (start, stop) in rows.items():
            down = torch.empty(rank, fan_in).uniform_(-bound, bound, generator=generator)
            self.down[name] = QuantisedFactor(down, bits)
            self.up[name] = QuantisedFactor(_up(stop - start, rank, generator), bits)

    def _factors(self, name: str) -> tuple[Tensor, Tensor]:
        down, up = self.down[name], self.up[name]
        assert isinstance(down, QuantisedFactor) and isinstance(up, QuantisedFactor)
        return down.weight, self.scale * up.weight

    def add_to_output(self, y: Tensor, x: Tensor) -> Tensor:
        for name, (start, stop) in self.rows.items():
            down, up = self._factors(name)
            change = F.linear(self.dropout(F.linear(x, down)), up)
            y = y + F.pad(change, (start, self.width - stop)).to(y.dtype)
        return y

    def weight_delta(self) -> Tensor:
        changes = []
        for name, (start, stop) in self.rows.items():
            down, up = self._factors(name)
            changes.append(F.pad(up @ down, (0, 0, start, self.width - stop)))
        return torch.stack(changes).sum(0)


class QuantisedBottleneck(Bottleneck):
    """A bottleneck whose two matrices are of a few bits."""

    def __init__(
        self,
        design: Design,
        width: int,
        bottleneck: int,
        bits: int,
        channels_last: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__(design, width, bottleneck, channels_last, generator)
        down = self.down.weight.detach()
        self.down = QuantisedFactor(down, bits)  # type: ignore[assignment]
        up = _up(width, bottleneck, generator)
        self.up = QuantisedFactor(up, bits)  # type: ignore[assignment]


class QuantisedHead(nn.Module):
    """A linear classifier of one bit, without a bias."""

    def __init__(self, width: int, num_classes: int, generator: torch.Generator) -> None:
        super().__init__()
        bound = 1 / math.sqrt(width)
        values = torch.empty(num_classes, width).uniform_(-bound, bound, generator=generator)
        self.factor = QuantisedFactor(values, bits=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, classes) logits of features x (B, D)."""
        return F.linear(x, self.factor.weight)

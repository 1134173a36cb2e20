"""What blocks read, gathered in few channels and given back to the stream further on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftbench.methods.layers.handing import HandingOn


class TraceState:
    """The gathered h of one stage in the forward pass under way."""

    def __init__(self) -> None:
        self.h: Tensor | None = None  # in the layout of the blocks' input

    def clear(self) -> None:
        """Hold no tensor of a pass."""
        self.h = None

    def add(self, change: Tensor) -> None:
        """h + change, both (B, N, C), (B, H, W, C) or (B, C, H, W)."""
        self.h = change if self.h is None else self.h + change


class Gather(nn.Module):
    """B A x of what a block reads, with A (r, C) random and B (C, r) zero at the start."""

    def __init__(self, width: int, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        bound = 1 / math.sqrt(width)  # Kaiming uniform with a = sqrt(5)
        self.a = nn.Parameter(torch.empty(rank, width).uniform_(-bound, bound, generator=generator))
        self.b = nn.Parameter(torch.zeros(width, rank))

    def forward(self, x: Tensor, channels_last: bool) -> Tensor:
        """x: (B, ..., C) or (B, C, H, W); the same shape."""
        if channels_last:
            return F.linear(F.linear(x, self.a), self.b)
        return F.conv2d(F.conv2d(x, self.a[..., None, None]), self.b[..., None, None])


class FusionKernel(nn.Module):
    """A depthwise convolution of one kernel for all blocks of a stage, without a bias."""

    def __init__(self, width: int, size: int, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, 1, size, size))
        with torch.no_grad():
            self.weight.uniform_(-1 / size, 1 / size, generator=generator)  # 1 / sqrt(size²)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W); the same shape."""
        size = self.weight.shape[-1]
        return F.conv2d(x, self.weight, padding=size // 2, groups=len(self.weight))


@dataclass(frozen=True)
class TracePlace:
    """Where a block stands in its stage, and how the stream lies there."""

    gives: bool  # h back to the stream
    hands_on: bool  # False in front of the first block that gathers
    is_first: bool  # of its stage
    is_last: bool
    channels_last: bool
    num_prefix: int  # prefix tokens
    grid: tuple[int, int] | None  # of tokens; None where blocks exchange maps
    averages: bool  # whether the mean of the patches takes the place of the prefix


class TracedBlock(HandingOn):
    """A block of a stage whose blocks gather h += B A x and give h · sigmoid(β h) back.

    With `fusion` what is given back is convolved on the grid of the patches first; prefix tokens
    have no place on it. h itself stays as it was gathered.
    """

    def __init__(
        self,
        block: nn.Module,
        state: TraceState,
        place: TracePlace,
        gather: Gather | None,
        fusion: FusionKernel | None,
        beta: float,
    ) -> None:
        super().__init__()
        self.block = block
        self.state = state
        self.place = place
        self.hands_on = place.hands_on
        self.gather = gather
        self.fusion = fusion
        self.beta = beta

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """x: (B, N, C), (B, H, W, C) or (B, C, H, W); the block's output has the same shape."""
        state, place = self.state, self.place
        if place.is_first:
            state.clear()  # of a pass that ended early
        if self.gather is not None:
            state.add(self.gather(x, place.channels_last))
        out: Tensor = self.block(x, *args, **kwargs)
        if place.gives and state.h is not None:
            out = out + self._given(state.h)
        if place.is_last:
            state.clear()  # a copy must hold no tensor of a pass
        if place.averages:
            patches = out[:, place.num_prefix :]
            mean = patches.mean(1, keepdim=True).expand(-1, place.num_prefix, -1)
            out = torch.cat((mean, patches), 1)
        return out

    def _given(self, h: Tensor) -> Tensor:
        """What a block adds to its output of the gathered `h`."""
        place = self.place
        given = h * (self.beta * h).sigmoid()
        if self.fusion is None:
            return given
        if place.grid is not None:
            prefix, patches = given[:, : place.num_prefix], given[:, place.num_prefix :]
            on_grid = patches.unflatten(1, place.grid).movedim(-1, 1)
            fused: Tensor = self.fusion(on_grid).movedim(1, -1).flatten(1, 2)
            return torch.cat((prefix, fused), 1)
        if place.channels_last:
            given = given.movedim(-1, 1)
        fused = self.fusion(given)
        return fused.movedim(1, -1) if place.channels_last else fused

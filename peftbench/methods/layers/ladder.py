"""A narrow transformer beside a frozen one, which climbs its outputs layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftbench.methods.layers.handing import HandingOn


@dataclass(frozen=True)
class LadderDesign:
    """What the layers of a ladder have in common."""

    width: int  # of the frozen stream, D
    side_width: int
    num_heads: int
    hidden: int  # of the MLP of a side layer
    pre_norm: bool  # x + f(LN x), as in ViTs; else LN(x + f(x)), as in the released code
    eps: float  # of the layer norms
    gate: bool  # learned shares; else a plain sum
    temperature: float  # of the gates
    mixes_after: bool  # the frozen output joins behind a side layer; else in front of it


class SideAttention(nn.Module):
    """Multi-head attention of one narrow stream to another, or to itself."""

    def __init__(self, width: int, num_heads: int, key_bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width, bias=key_bias)
        self.v = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x: (B, N, d) asks context (B, M, d); gives (B, N, d).

        A bias of the keys adds one number to all that a query compares, which the softmax cancels.
        It is there for files that have one, and multiplied by zero, so that rounding cannot move
        it.
        """
        keys = F.linear(context, self.k.weight)
        if self.k.bias is not None:
            keys = keys + 0 * self.k.bias
        q, k, v = (
            each.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for each in (self.q(x), keys, self.v(context))
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        out: Tensor = self.proj(mixed)
        return out


class LadderLayer(nn.Module):
    """Self-attention and an MLP with exact GELU, each with a residual and a layer norm."""

    def __init__(self, design: LadderDesign) -> None:
        super().__init__()
        width = design.side_width
        self.pre_norm = design.pre_norm
        self.norm1 = nn.LayerNorm(width, eps=design.eps)
        self.attn = SideAttention(width, design.num_heads, key_bias=not design.pre_norm)
        self.norm2 = nn.LayerNorm(width, eps=design.eps)
        self.fc1 = nn.Linear(width, design.hidden)
        self.fc2 = nn.Linear(design.hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, N, d); the same shape."""
        if self.pre_norm:
            normed = self.norm1(x)
            x = x + self.attn(normed, normed)
            return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        x = self.norm1(x + self.attn(x, x))
        out: Tensor = self.norm2(x + self.fc2(F.gelu(self.fc1(x))))
        return out


class Rung(nn.Module):
    """One side layer, and how the output of its frozen layer joins."""

    def __init__(self, design: LadderDesign) -> None:
        super().__init__()
        self.down = nn.Linear(design.width, design.side_width, bias=False)
        self.gate = nn.Parameter(torch.zeros(1)) if design.gate else None
        self.temperature = design.temperature
        self.mixes_after = design.mixes_after
        self.layer = LadderLayer(design)

    def forward(self, side: Tensor, frozen: Tensor) -> Tensor:
        """side: (B, N, d); frozen: (B, N, D), the output of the frozen layer; gives (B, N, d)."""
        if self.mixes_after:
            return self._mixed(self.layer(side), frozen)
        out: Tensor = self.layer(self._mixed(side, frozen))
        return out

    def _mixed(self, side: Tensor, frozen: Tensor) -> Tensor:
        below: Tensor = self.down(frozen)
        if self.gate is None:
            return side + below
        share = (self.gate / self.temperature).sigmoid()
        return share * side + (1 - share) * below


class Ladder(nn.Module):
    """All rungs: s = first x, each rung in turn, and up s.

    `rungs[i]` is None where the frozen layer i has no side layer.
    """

    def __init__(self, design: LadderDesign, with_layer: Sequence[bool]) -> None:
        super().__init__()
        self.first = nn.Linear(design.width, design.side_width, bias=False)
        self.rungs = nn.ModuleList(Rung(design) if with_ else nn.Identity() for with_ in with_layer)
        self.up = nn.Linear(design.side_width, design.width, bias=False)

    def start(self, x: Tensor) -> Tensor:
        """(B, N, d) of what the first frozen layer reads, (B, N, D)."""
        side: Tensor = self.first(x)
        return side

    def climb(self, index: int, side: Tensor, frozen: Tensor) -> Tensor:
        """(B, N, d) behind the frozen layer `index`, whose output is `frozen` (B, N, D)."""
        rung = self.rungs[index]
        return rung(side, frozen) if isinstance(rung, Rung) else side

    def end(self, side: Tensor) -> Tensor:
        """(B, N, D), in place of the output of the last frozen layer."""
        out: Tensor = self.up(side)
        return out

    def draw(self, generator: torch.Generator) -> None:
        """Start as timm's ViTs do: weights truncated normal (0.02), biases and gates zero."""
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    nn.init.trunc_normal_(module.weight, std=0.02, generator=generator)
                    if module.bias is not None:
                        module.bias.zero_()


class LadderState:
    """What has climbed in the forward pass under way."""

    def __init__(self) -> None:
        self.side: Tensor | None = None

    def keep(self, side: Tensor | None) -> None:
        """Hold (B, N, d) for the next block, or nothing."""
        self.side = side


class LadderBlock(HandingOn):
    """A frozen block whose output climbs the ladder; the last one gives what arrives there."""

    def __init__(self, block: nn.Module, ladder: Ladder, state: LadderState, index: int) -> None:
        super().__init__()
        self.block = block
        self.ladder = ladder  # shared by all blocks
        self.state = state
        self.index = index

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """x: (B, N, D) tokens; the same shape."""
        state, ladder = self.state, self.ladder
        side = ladder.start(x) if self.index == 0 else state.side
        assert side is not None
        out: Tensor = self.block(x, *args, **kwargs)
        side = ladder.climb(self.index, side, out)
        if self.index == len(ladder.rungs) - 1:
            state.keep(None)  # a copy must hold no tensor of a pass
            return ladder.end(side)
        state.keep(side)
        return out

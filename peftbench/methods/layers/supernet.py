"""Prompts, low-rank changes and adapters of which the first units are used, as many as chosen.

A network of them at full width holds every narrower one, so that many share their weights.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftbench.methods import surgery
from peftbench.methods.layers.activations import QuickGELU


class SlicedLowRank(surgery.Delta):
    """B A of the first `active` ranks; A (R, inputs) random and B (outputs, R) zero."""

    def __init__(
        self, rank: int, shape: tuple[int, int], dropout: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        width, fan_in = shape
        self.active = rank
        self.dropout = nn.Dropout(dropout)
        bound = 1 / math.sqrt(fan_in)  # Kaiming uniform with a = sqrt(5)
        self.a = nn.Parameter(
            torch.empty(rank, fan_in).uniform_(-bound, bound, generator=generator)
        )
        self.b = nn.Parameter(torch.zeros(width, rank))

    def use(self, active: int) -> None:
        """Use the first `active` ranks."""
        self.active = active

    def add_to_output(self, y: Tensor, x: Tensor) -> Tensor:
        if not self.active:
            return y
        a, b = self.a[: self.active], self.b[:, : self.active]
        return y + F.linear(F.linear(self.dropout(x), a), b)

    def weight_delta(self) -> Tensor:
        return self.b[:, : self.active] @ self.a[: self.active]


class SlicedAdapter(nn.Module):
    """up(QuickGELU(down u)) of the first `active` hidden units, with all of the last bias."""

    def __init__(self, width: int, hidden: int, dropout: float, generator: torch.Generator) -> None:
        super().__init__()
        self.active = hidden
        self.down = nn.Linear(width, hidden)
        self.activation = QuickGELU()
        self.dropout = nn.Dropout(dropout)
        self.up = nn.Linear(hidden, width)
        with torch.no_grad():
            for linear in (self.down, self.up):
                nn.init.xavier_uniform_(linear.weight, generator=generator)
                linear.bias.zero_()

    def use(self, active: int) -> None:
        """Use the first `active` hidden units."""
        self.active = active

    def forward(self, u: Tensor) -> Tensor:
        """u: (B, ..., D), the output of an MLP; the change has the same shape."""
        if not self.active:
            return torch.zeros_like(u)
        down, up = self.down, self.up
        hidden = F.linear(u, down.weight[: self.active], down.bias[: self.active])
        hidden = self.dropout(self.activation(hidden))
        return F.linear(hidden, up.weight[:, : self.active], up.bias)


class SlicedPromptBlock(nn.Module):
    """A block behind whose patches the first `active` of its prompts stand.

    They take the place of those that the block in front appended; a block without prompts leaves
    all in place, and one behind it appends without removing.
    """

    def __init__(self, block: nn.Module, tokens: Tensor | None) -> None:
        super().__init__()
        self.block = block
        self.tokens = None if tokens is None else nn.Parameter(tokens)  # (P, D)
        self.active = 0 if tokens is None else len(tokens)
        self.removed = 0  # prompts that the block in front has appended
        self.stripped = 0  # behind the last block: all that are there

    def use(self, active: int, removed: int, stripped: int) -> None:
        """Use the first `active` prompts, in the place of `removed`, and give `stripped` fewer."""
        self.active, self.removed, self.stripped = active, removed, stripped

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """x: (B, N, D) tokens, the prompts last; what comes out has those of this block."""
        if self.tokens is not None and self.active:
            prompts = self.tokens[: self.active].to(x.dtype).expand(len(x), -1, -1)
            x = torch.cat((x[:, : x.shape[1] - self.removed], prompts), 1)
        out: Tensor = self.block(x, *args, **kwargs)
        return out[:, : out.shape[1] - self.stripped]


def choose_prompts(blocks: list[SlicedPromptBlock], widths: tuple[int, ...]) -> None:
    """Let each of `blocks`, in depth order, use so many prompts; none is read behind the last."""
    before = there = 0
    for number, (block, width) in enumerate(zip(blocks, widths, strict=True)):
        removed = before if width else 0
        there += width - removed
        block.use(width, removed, there if number == len(blocks) - 1 else 0)
        before = width

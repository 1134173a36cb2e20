"""Multi-cognitive visual adapters on maps, and on the patches among tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftbench.backbones.anatomy import Tokens
from peftbench.methods.layers.drawn import as_by_default

NORM_EPS = 1e-5  # of the released module's own layer norm
KERNELS = (3, 5, 7)
NORM_SCALE = 1e-6  # gamma at the start


class MonaAdapter(nn.Module):
    """up(gelu(filter(down(m)))) with m = gamma LN(x) + gammax x, without the residual.

    `filter` averages three depthwise convolutions, adds what it reads, and mixes channels in a
    second residual step.
    """

    def __init__(
        self,
        width: int,
        bottleneck: int,
        dropout: float,
        channels_last: bool,
        tokens: Tokens | None,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        h = bottleneck
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.gamma = nn.Parameter(torch.full((width,), NORM_SCALE))
        self.gammax = nn.Parameter(torch.ones(width))
        self.down = nn.Linear(width, h)
        self.conv3, self.conv5, self.conv7 = (
            nn.Conv2d(h, h, k, padding=k // 2, groups=h) for k in KERNELS
        )
        self.mix = nn.Conv2d(h, h, 1)
        self.dropout = nn.Dropout(dropout)
        self.up = nn.Linear(h, width)
        for layer in (self.down, self.conv3, self.conv5, self.conv7, self.mix, self.up):
            as_by_default(layer, generator)
        self.channels_last = channels_last
        self.tokens = tokens  # None: the input is a map already

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, N, C), (B, H, W, C) or (B, C, H, W); the change has the same shape.

        That of prefix tokens, which have no place on the grid, is zero.
        """
        if self.tokens is not None:
            assert self.tokens.grid is not None  # `check` has refused it
            start = self.tokens.num_prefix
            grid = x[:, start:].unflatten(1, self.tokens.grid)
            return F.pad(self._change(grid).flatten(1, 2), (0, 0, start, 0))
        if self.channels_last:
            return self._change(x)
        return self._change(x.movedim(1, -1)).movedim(-1, 1)

    def _change(self, x: Tensor) -> Tensor:
        """The change of a map (B, H, W, C)."""
        hidden = self.down(self.norm(x) * self.gamma + x * self.gammax).movedim(-1, 1)
        averaged = (self.conv3(hidden) + self.conv5(hidden) + self.conv7(hidden)) / len(KERNELS)
        filtered = averaged + hidden
        mixed = (filtered + self.mix(filtered)).movedim(1, -1)
        change: Tensor = self.up(self.dropout(F.gelu(mixed)))
        return change

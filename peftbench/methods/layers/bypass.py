"""Convolutions in a bottleneck beside a branch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftbench.backbones.anatomy import Site, Tokens
from peftbench.methods.layers.activations import QuickGELU


class Bypass(nn.Module):
    """scale · up(g(conv3x3(g(down(x))))) on the grid of the tokens, g = QuickGELU.

    Prefix tokens have no place on the grid: each is convolved alone, as a 1 x 1 map.
    """

    def __init__(
        self,
        site: Site,
        bottleneck: int,
        scale: float,
        dropout: float,
        tokens: Tokens | None,
    ) -> None:
        super().__init__()
        width = site.width
        self.down = nn.Linear(width, bottleneck)
        self.conv = nn.Conv2d(bottleneck, bottleneck, 3, padding=1)
        self.up = nn.Linear(bottleneck, width)
        self.activation = QuickGELU()
        self.dropout = nn.Dropout(dropout)
        self.scale = scale
        self.tokens = tokens  # None: the input is a map already
        self.channels_last = site.channels_last

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, N, C), (B, H, W, C) or (B, C, H, W); the change has the same shape."""
        if not self.channels_last:
            x = x.movedim(1, -1)
        hidden = self.activation(self.down(x))
        if self.tokens is None:
            mixed = self._convolve(hidden)
        else:
            assert self.tokens.grid is not None  # `check` has refused it
            start = self.tokens.num_prefix
            prefix, patches = hidden[:, :start], hidden[:, start:]
            grid = patches.unflatten(1, self.tokens.grid)
            alone = self._convolve(prefix.flatten(0, 1)[:, None, None])
            mixed = torch.cat((alone.reshape(prefix.shape), self._convolve(grid).flatten(1, 2)), 1)
        hidden = self.dropout(self.activation(mixed))
        change = F.linear(hidden, self.scale * self.up.weight, self.scale * self.up.bias)
        return change if self.channels_last else change.movedim(-1, 1)

    def _convolve(self, grid: Tensor) -> Tensor:
        mixed: Tensor = self.conv(grid.movedim(-1, 1)).movedim(1, -1)
        return mixed


@torch.no_grad()
def initialise(bypass: Bypass, conv_init: str, generator: torch.Generator) -> None:
    """Xavier in front, zero behind; `conv_init` is "identity" or "xavier"."""
    nn.init.xavier_uniform_(bypass.down.weight, generator=generator)
    nn.init.zeros_(bypass.up.weight)
    for layer in (bypass.down, bypass.conv, bypass.up):
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)
    if conv_init == "xavier":
        nn.init.xavier_uniform_(bypass.conv.weight, generator=generator)
    else:
        nn.init.zeros_(bypass.conv.weight)
        bypass.conv.weight[:, :, 1, 1] = torch.eye(bypass.conv.out_channels)

"""Blocks that make a prompt of the map at the end of a stage."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftbench.backbones.anatomy import Tokens
from peftbench.methods.layers.drawn import as_by_default


class StagePrompt(nn.Module):
    """up(gelu(filter(gelu(down(x))))): 1 x 1, depthwise and 1 x 1 convolutions."""

    def __init__(
        self,
        width: int,
        hidden: int,
        kernel_size: int,
        channels_last: bool,
        tokens: Tokens | None,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.down = nn.Conv2d(width, hidden, 1)
        self.filter = nn.Conv2d(
            hidden, hidden, kernel_size, padding=kernel_size // 2, groups=hidden
        )
        self.up = nn.Conv2d(hidden, width, 1)
        for layer in (self.down, self.filter):
            as_by_default(layer, generator)
        for tensor in self.up.parameters():
            nn.init.zeros_(tensor)  # the model starts at the pretrained function
        self.channels_last = channels_last
        self.tokens = tokens  # None: the input is a map already

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, N, C), (B, H, W, C) or (B, C, H, W); the prompt has the same shape.

        That of prefix tokens, which have no place on the grid, is zero.
        """
        if self.tokens is not None:
            assert self.tokens.grid is not None  # `check` has refused it
            start = self.tokens.num_prefix
            grid = x[:, start:].unflatten(1, self.tokens.grid).movedim(-1, 1)
            return F.pad(self._prompt(grid).flatten(2).mT, (0, 0, start, 0))
        if not self.channels_last:
            return self._prompt(x)
        return self._prompt(x.movedim(-1, 1)).movedim(1, -1)

    def _prompt(self, x: Tensor) -> Tensor:
        """The prompt of a map (B, C, H, W)."""
        prompt: Tensor = self.up(F.gelu(self.filter(F.gelu(self.down(x)))))
        return prompt

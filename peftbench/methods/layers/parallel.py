"""The scaled parallel adapter of the unified view."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftbench.methods.layers import starts

NORM_EPS = 1e-5


class ParallelBottleneck(nn.Module):
    """s · up(relu(down(x))), with a layer norm in front, behind the scale, or nowhere."""

    def __init__(
        self,
        width: int,
        bottleneck: int,
        scale: float | nn.Parameter,
        norm: str,
        dropout: float,
        channels_last: bool,
    ) -> None:
        super().__init__()
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        self.scale = scale
        self.norm = None if norm == "none" else nn.LayerNorm(width, eps=NORM_EPS)
        self.norm_in_front = norm == "in"
        self.dropout = nn.Dropout(dropout)
        self.channels_last = channels_last

    @torch.no_grad()
    def start(self, generator: torch.Generator) -> None:
        """As LoRA: Kaiming in front, zero behind."""
        for linear, up in ((self.down, False), (self.up, True)):
            starts.lora(linear, up, generator)
            assert linear.bias is not None
            linear.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, ..., C) or (B, C, H, W); the change has the same shape."""
        x = x if self.channels_last else x.movedim(1, -1)
        if self.norm is not None and self.norm_in_front:
            x = self.norm(x)
        hidden = self.dropout(F.relu(self.down(x)))
        change = F.linear(hidden, self.scale * self.up.weight, self.scale * self.up.bias)
        if self.norm is not None and not self.norm_in_front:
            change = self.norm(change)
        return change if self.channels_last else change.movedim(-1, 1)

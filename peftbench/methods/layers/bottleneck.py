"""The bottleneck of adapters."""

from __future__ import annotations

import pkgutil

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from peftbench.methods.layers.design import ACTIVATIONS, INITS, Design
from peftbench.methods.layers.starts import Start

NORM_EPS = 1e-6  # of an adapter's own layer norm, as in Adapter+ (Steitz and Roth, 2024)


class Bottleneck(nn.Module):
    """The adapter of a `Design` on the channels of its input, without a residual."""

    def __init__(
        self,
        design: Design,
        width: int,
        bottleneck: int,
        channels_last: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=NORM_EPS) if design.own_norm else None
        self.down = nn.Linear(width, bottleneck, bias=design.bias)
        self.activation = pkgutil.resolve_name(ACTIVATIONS[design.activation])()
        self.dropout = nn.Dropout(design.dropout)
        self.up = nn.Linear(bottleneck, width, bias=design.bias)
        self.drop_path = DropPath(design.drop_path)
        self.channels_last = channels_last
        start: Start = pkgutil.resolve_name(INITS[design.init])
        with torch.no_grad():
            for linear, up in ((self.down, False), (self.up, True)):
                start(linear, up, generator)
                if design.bias:
                    linear.bias.zero_()
        self.scale: float | nn.Parameter = design.scale
        if design.learned_scale != "none":
            shape = (width,) if design.learned_scale == "channel" else ()
            self.scale = nn.Parameter(torch.full(shape, design.scale))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, ..., C) or (B, C, H, W); the change has the same shape."""
        if not self.channels_last:
            x = x.movedim(1, -1)
        if self.norm is not None:
            x = self.norm(x)
        x = self.up(self.dropout(self.activation(self.down(x)))) * self.scale
        if not self.channels_last:
            x = x.movedim(-1, 1)
        change: Tensor = self.drop_path(x)
        return change

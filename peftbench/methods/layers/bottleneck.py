"""The bottleneck of adapters."""

from __future__ import annotations

import pkgutil

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from peftbench.methods.layers.design import ACTIVATIONS, INITS, Design
from peftbench.methods.layers.starts import Start


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
        eps = design.norm_eps
        self.norm = nn.LayerNorm(width, eps=eps) if design.own_norm else None
        self.norm_behind = nn.LayerNorm(width, eps=eps) if design.norm_behind else None
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
        """x: (B, ..., C) or (B, C, H, W); the change has the same shape.

        Of what has C channels, only the input is kept: the scale is part of the second layer.
        """
        if self.norm is not None:
            x = self._normalised(self.norm, x)
        apply = F.linear if self.channels_last else _on_map
        hidden = self.dropout(self.activation(apply(x, self.down.weight, self.down.bias)))
        change: Tensor = apply(hidden, *self._scaled_up())
        if self.norm_behind is not None:
            change = self._normalised(self.norm_behind, change)
        change = self.drop_path(change)
        return change

    def _normalised(self, norm: nn.LayerNorm, x: Tensor) -> Tensor:
        """`norm` over the channels of x (B, ..., C) or (B, C, H, W)."""
        x = norm(x if self.channels_last else x.movedim(1, -1))
        return x if self.channels_last else x.movedim(-1, 1)

    def _scaled_up(self) -> tuple[Tensor, Tensor | None]:
        """Weight (C, h) and bias (C,) of the second layer times the scale."""
        weight, bias, scale = self.up.weight, self.up.bias, self.scale
        if isinstance(scale, float) and scale == 1:
            return weight, bias
        of_rows = scale.view(-1, 1) if isinstance(scale, Tensor) else scale
        return of_rows * weight, None if bias is None else scale * bias


def _on_map(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The linear layer at each place of a map (B, C, H, W), which is not copied to be read."""
    return F.conv2d(x, weight[:, :, None, None], bias)

"""Scales and shifts behind layers, and how they fold into them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from peftbench.methods import surgery


class ScaleShift(nn.Module):
    """scale · x + shift for each channel."""

    def __init__(
        self, width: int, channels_last: bool, std: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(width).normal_(1.0, std, generator=generator))
        self.shift = nn.Parameter(torch.empty(width).normal_(0.0, std, generator=generator))
        self.channels_last = channels_last

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, ..., C) or (B, C, H, W); what comes out has the same shape."""
        if self.channels_last:
            return x * self.scale + self.shift
        return x * self.scale[:, None, None] + self.shift[:, None, None]


def pairs_of(model: nn.Module) -> list[tuple[str, nn.Module, ScaleShift]]:
    """Path, module and the pair behind it."""
    pairs = []
    for path, module in model.named_modules():
        if isinstance(module, surgery.OutputAdapter) and isinstance(module.adapter, ScaleShift):
            pairs.append((path, module.base, module.adapter))
        elif isinstance(getattr(module, "drop", None), ScaleShift):
            pairs.append((path, module, module.drop))
    return pairs


@torch.no_grad()
def fold(model: nn.Module) -> list[str]:
    """Fold the pairs that can be folded, in float64; returns the paths of the others."""
    left = []
    for path, base, pair in pairs_of(model):
        if not is_foldable(base):
            left.append(path)
            continue
        scale, shift = pair.scale.double(), pair.shift.double()
        weight, bias = base.get_parameter("weight"), base.get_parameter("bias")
        shape = (-1, *(1,) * (weight.ndim - 1))
        weight.copy_(scale.view(shape) * weight.double())
        bias.copy_(scale * bias.double() + shift)
        if has_activation(base):
            surgery.replace(model, f"{path}.drop", nn.Identity())
        else:
            surgery.replace(model, path, base)
    return left


def is_foldable(base: nn.Module) -> bool:
    """Whether a module has a weight and a bias of its own to take a pair."""
    tensors = dict(base.named_parameters(recurse=False))
    return "weight" in tensors and "bias" in tensors


def has_activation(module: nn.Module) -> bool:
    """Whether a norm of timm computes its activation too; `drop` stands between the two."""
    return hasattr(module, "drop") and hasattr(module, "act")

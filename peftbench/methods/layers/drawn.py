"""PyTorch's own initial values, drawn from a generator."""

from __future__ import annotations

import math

import torch
from torch import nn


@torch.no_grad()
def as_by_default(layer: nn.Linear | nn.Conv2d, generator: torch.Generator) -> None:
    """Uniform within 1 / sqrt(fan-in), weight and bias alike, as PyTorch draws both layers."""
    bound = 1 / math.sqrt(layer.weight[0].numel())
    layer.weight.uniform_(-bound, bound, generator=generator)
    if layer.bias is not None:
        layer.bias.uniform_(-bound, bound, generator=generator)

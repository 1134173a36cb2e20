"""Activations that PyTorch does not have."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x), the activation of CLIP and of the adapters of NOAH and Convpass."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (...); the activations have the same shape."""
        return x * torch.sigmoid(1.702 * x)

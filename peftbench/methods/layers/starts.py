"""How the two matrices of an adapter start."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

Start = Callable[[nn.Linear, bool, torch.Generator], None]  # linear, whether it leads up, draws


def lora(linear: nn.Linear, up: bool, generator: torch.Generator) -> None:
    """Kaiming uniform with a = sqrt(5) in front, zero behind: the identity, with live gradients."""
    bound = 0.0 if up else 1 / math.sqrt(linear.in_features)
    linear.weight.uniform_(-bound, bound, generator=generator)


def _truncated(std: float) -> Start:
    """Normal with this deviation, cut at two of them."""

    def draw(linear: nn.Linear, up: bool, generator: torch.Generator) -> None:
        nn.init.trunc_normal_(linear.weight, 0.0, std, -2 * std, 2 * std, generator=generator)

    return draw


houlsby = _truncated(0.01)
noah = _truncated(0.02)


def bert(linear: nn.Linear, up: bool, generator: torch.Generator) -> None:
    """Normal with a deviation of 0.02."""
    linear.weight.normal_(0.0, 0.02, generator=generator)


def zero(linear: nn.Linear, up: bool, generator: torch.Generator) -> None:
    """As VPT released its adapter: only the last bias ever gets a gradient."""
    linear.weight.zero_()

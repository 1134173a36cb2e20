"""Classifiers, and how they stand where a backbone has a 1 x 1 convolution."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def linear_head(width: int, num_classes: int, generator: torch.Generator) -> nn.Linear:
    """A linear classifier, weights uniform in ±1/sqrt(width), biases zero."""
    head = nn.Linear(width, num_classes)
    with torch.no_grad():
        bound = 1 / math.sqrt(width)
        head.weight.uniform_(-bound, bound, generator=generator)
        head.bias.zero_()
    return head


class MapHead(nn.Module):
    """A head of feature vectors that is asked at each position of a map."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """(B, classes, H, W) logits of a map (B, C, H, W)."""
        rows = x.permute(0, 2, 3, 1)
        logits: Tensor = self.inner(rows.flatten(0, 2))
        return logits.unflatten(0, rows.shape[:3]).permute(0, 3, 1, 2)


def on_maps(head: nn.Module) -> nn.Module:
    """What computes `head` at each position of a map; of a linear head a 1 x 1 convolution."""
    if not isinstance(head, nn.Linear):
        return MapHead(head)
    conv = nn.utils.skip_init(
        nn.Conv2d, head.in_features, head.out_features, 1, device=head.weight.device
    )
    conv.load_state_dict({"weight": head.weight[..., None, None], "bias": head.bias})
    return conv


def on_rows(head: nn.Module) -> nn.Module:
    """The head of feature vectors that `head` computes on maps; of a convolution a linear copy."""
    if isinstance(head, MapHead):
        return head.inner
    if not isinstance(head, nn.Conv2d):
        return head
    weight = head.weight
    linear = nn.utils.skip_init(
        nn.Linear, head.in_channels, head.out_channels, device=weight.device, dtype=weight.dtype
    )
    linear.load_state_dict({"weight": weight.flatten(1), "bias": head.bias})
    return linear


def take_over(head: nn.Module, rows: nn.Module) -> None:
    """Make `head` compute what `rows`, which `on_rows` made of it, computes now."""
    if isinstance(head, nn.Conv2d):
        weight = rows.get_parameter("weight")[..., None, None]
        head.load_state_dict({"weight": weight, "bias": rows.get_parameter("bias")})


def silent_head(width: int, num_classes: int) -> nn.Linear:
    """A linear layer of zeros, whose logits are zero."""
    head = nn.Linear(width, num_classes, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        head.weight.zero_()
        head.bias.zero_()
    return head

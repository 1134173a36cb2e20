"""Classifiers."""

from __future__ import annotations

import math

import torch
from torch import nn


def linear_head(width: int, num_classes: int, generator: torch.Generator) -> nn.Linear:
    """A linear classifier, weights uniform in ±1/sqrt(width), biases zero."""
    head = nn.Linear(width, num_classes)
    with torch.no_grad():
        bound = 1 / math.sqrt(width)
        head.weight.uniform_(-bound, bound, generator=generator)
        head.bias.zero_()
    return head

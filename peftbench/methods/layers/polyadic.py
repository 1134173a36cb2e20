"""Canonical polyadic tensors of all weight changes of one width, and the changes made of them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftbench.methods.layers.reweighting import Reweighting
from peftbench.methods.layers.shared import SharedTensor
from peftbench.methods.layers.slices import SliceLayout


class CanonicalFactors(nn.Module, ABC):
    """Factors of a tensor whose slices are D x D matrices; the first slices are zero."""

    def __init__(self, slices: int, rank: int, mean: float, std: float, draws: torch.Generator):
        super().__init__()
        layer = torch.empty(slices, rank)  # Xavier normal
        layer.normal_(0.0, math.sqrt(2 / (slices + rank)), generator=draws)
        self.layer = nn.Parameter(layer)
        # lambda: how much each of the r products counts
        self.weights = nn.Parameter(torch.empty(rank).normal_(mean, std, generator=draws))

    @abstractmethod
    def slices(self, first: int, count: int) -> Tensor:
        """Slices `first` and the next ones: (count, D, D)."""


def _orthogonal(rows: int, rank: int, draws: torch.Generator) -> nn.Parameter:
    return nn.Parameter(nn.init.orthogonal_(torch.empty(rows, rank), generator=draws))


class HeadFactors(CanonicalFactors):
    """Of projections for attention: inputs, heads, and channels of a head."""

    def __init__(
        self,
        slices: int,
        width: int,
        heads: int,
        rank: int,
        start: tuple[float, float],
        draws: torch.Generator,
    ) -> None:
        super().__init__(slices, rank, *start, draws)
        self.into = nn.Parameter(torch.zeros(width, rank))
        self.head = _orthogonal(heads, rank, draws)
        self.head_width = _orthogonal(width // heads, rank, draws)

    def slices(self, first: int, count: int) -> Tensor:
        rows = self.layer[first : first + count] * self.weights
        # (slice, head, channel of it, input)
        tensor = torch.einsum("jr,hr,dr,er->jhde", rows, self.head, self.head_width, self.into)
        return tensor.flatten(1, 2)


class MatrixFactors(CanonicalFactors):
    """Of all other weights: U and V for the two sides of each slice."""

    def __init__(
        self,
        slices: int,
        width: int,
        rank: int,
        start: tuple[float, float],
        draws: torch.Generator,
    ) -> None:
        super().__init__(slices, rank, *start, draws)
        self.u = nn.Parameter(torch.zeros(width, rank))
        self.v = _orthogonal(width, rank, draws)

    def slices(self, first: int, count: int) -> Tensor:
        rows = self.layer[first : first + count] * self.weights
        return (self.u * rows[:, None]) @ self.v.mT


class CanonicalChange(Reweighting):
    """scale · the slices of one weight, below one another, and scale · a bias that others share.

    Weights of the second kind (`by_rows` false) are the transpose of their slices' column.
    """

    def __init__(
        self,
        factors: CanonicalFactors,
        layout: SliceLayout,
        scale: float,
        dropout: float,
        bias: SharedTensor | None,
    ) -> None:
        super().__init__()
        self.factors = factors
        self.layout = layout
        self.scale = scale
        self.dropout = dropout
        self.bias = bias

    def changed_weight(self, weight: Tensor) -> Tensor:
        column = self.factors.slices(self.layout.first, self.layout.count).flatten(0, 1)
        change = self.scale * (column if self.layout.by_rows else column.mT)
        change = F.dropout(change, self.dropout, self.training)
        return weight + change.to(weight.dtype)

    def changed_bias(self, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        return bias if bias is None or self.bias is None else bias + self.scale * self.bias.value

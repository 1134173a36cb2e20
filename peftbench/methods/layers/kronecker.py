"""Kronecker products as changes of weights."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftbench.methods import surgery
from peftbench.methods.layers.reweighting import call_with, in_rows, weight_and_bias
from peftbench.methods.layers.slices import RowBlock


class KroneckerChange(surgery.Change):
    """scale · (A ⊗ B) on chosen row blocks of a weight; A random, B zero."""

    def __init__(
        self,
        rows: Mapping[str, RowBlock],
        width: int,
        shapes: Mapping[str, tuple[tuple[int, int], tuple[int, int]]],
        scale: float,
        generator: torch.Generator,
    ) -> None:
        """`shapes`: those of A and of B, by name of the row block."""
        super().__init__()
        self.rows = dict(rows)
        self.width = width
        self.scale = scale
        self.a = nn.ParameterDict()
        self.b = nn.ParameterDict()
        for name, (shape_a, shape_b) in shapes.items():
            bound = 1 / math.sqrt(shape_a[1])  # Kaiming uniform with a = sqrt(5)
            a = torch.empty(shape_a).uniform_(-bound, bound, generator=generator)
            self.a[name] = nn.Parameter(a)
            self.b[name] = nn.Parameter(torch.zeros(shape_b))

    def output(self, base: nn.Module, x: Tensor) -> Tensor:
        """What the changed layer makes of x: (..., fan_in), or a map (B, C, H, W).

        Beside a linear layer the product is never formed: (A ⊗ B) x = A X Bᵀ, x read by rows.
        """
        weight, bias = weight_and_bias(base)
        if weight.ndim > 2:
            return call_with(base, x, self.changed_weight(weight), bias)
        y: Tensor = base(x)
        for name, (start, stop) in self.rows.items():
            a, b = self.a[name], self.b[name]
            matrix = x.unflatten(-1, (a.shape[1], b.shape[1]))
            change = self.scale * (a @ (matrix @ b.mT)).flatten(-2)
            y = y + F.pad(change, (start, self.width - stop)).to(y.dtype)
        return y

    def changed_weight(self, weight: Tensor) -> Tensor:
        changes = {name: self.scale * torch.kron(a, self.b[name]) for name, a in self.a.items()}
        change = in_rows(changes, self.rows, self.width)
        return weight + change.view_as(weight).to(weight.dtype)

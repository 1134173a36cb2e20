"""Learned vectors around random matrices that all layers share."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftbench.methods import surgery
from peftbench.methods.layers.reweighting import call_with, in_rows, weight_and_bias
from peftbench.methods.layers.slices import RowBlock


class RandomProjections(nn.Module):
    """The frozen A (r, widest fan-in) and B (widest target, r), of which layers read corners.

    No file holds them: they are drawn again from their seed.
    """

    a: Tensor
    b: Tensor

    def __init__(self, rank: int, widest: tuple[int, int], seed: int) -> None:
        """`widest`: outputs and inputs."""
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        outputs, inputs = widest
        for name, shape in (("a", (rank, inputs)), ("b", (outputs, rank))):
            bound = math.sqrt(6 / shape[1])  # Kaiming uniform for a rectifier: √3 · √(2 / fan-in)
            value = torch.empty(shape).uniform_(-bound, bound, generator=generator)
            self.register_buffer(name, value, persistent=False)


class VectorChange(surgery.Change):
    """Λ_b B Λ_d A on chosen row blocks of a weight; d constant and b zero at the start."""

    def __init__(
        self,
        rows: Mapping[str, RowBlock],
        shape: tuple[int, int],
        projections: RandomProjections,
        d_initial: float,
        dropout: float,
    ) -> None:
        """`shape`: outputs and inputs of the weight, the inputs of a kernel times its area."""
        super().__init__()
        self.rows = dict(rows)
        self.width, self.fan_in = shape
        self.projections = projections
        self.dropout = nn.Dropout(dropout)
        self.d = nn.ParameterDict()
        self.b = nn.ParameterDict()
        rank = len(projections.a)
        for name, (start, stop) in rows.items():
            self.d[name] = nn.Parameter(torch.full((rank,), d_initial))
            self.b[name] = nn.Parameter(torch.zeros(stop - start))

    def output(self, base: nn.Module, x: Tensor) -> Tensor:
        """What the changed layer makes of x: (..., fan_in), or a map (B, C, H, W).

        Beside a linear layer x passes A once for all row blocks, and no matrix is formed.
        """
        weight, bias = weight_and_bias(base)
        if weight.ndim > 2:
            return call_with(base, x, self.changed_weight(weight), bias)
        y: Tensor = base(x)
        read = F.linear(self.dropout(x), self.projections.a[:, : self.fan_in])
        for name, (start, stop) in self.rows.items():
            change = F.linear(read * self.d[name], self.projections.b[: stop - start])
            y = y + F.pad(change * self.b[name], (start, self.width - stop)).to(y.dtype)
        return y

    def changed_weight(self, weight: Tensor) -> Tensor:
        a = self.projections.a[:, : self.fan_in]
        changes = {
            name: self.b[name][:, None]
            * (self.projections.b[: stop - start] @ (self.d[name][:, None] * a))
            for name, (start, stop) in self.rows.items()
        }
        change = in_rows(changes, self.rows, self.width)
        return weight + change.view_as(weight).to(weight.dtype)

"""Weights scaled by products of two vectors."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftbench.methods import surgery
from peftbench.methods.layers.reweighting import call_with, in_rows, weight_and_bias
from peftbench.methods.layers.slices import RowBlock


class RankOneScale(surgery.Change):
    """W ⊙ (1 + o iᵀ) on row blocks of a weight, and b + f on those of its bias."""

    def __init__(
        self,
        rows: Mapping[str, RowBlock],
        shape: tuple[int, int],
        shifted: tuple[str, ...],
        generator: torch.Generator,
    ) -> None:
        """`shape`: outputs and inputs of the weight; `shifted`: row blocks that get an f."""
        super().__init__()
        self.rows = dict(rows)
        self.width, fan_in = shape
        self.out_scale = nn.ParameterDict()
        self.in_scale = nn.ParameterDict()
        self.shift = nn.ParameterDict()
        for name, (start, stop) in rows.items():
            # Kaiming uniform of o as (out, 1) and of i as (1, in)
            for held, size, bound in (
                (self.out_scale, stop - start, math.sqrt(6)),
                (self.in_scale, fan_in, math.sqrt(6 / fan_in)),
            ):
                values = torch.empty(size).uniform_(-bound, bound, generator=generator)
                held[name] = nn.Parameter(values)
            if name in shifted:
                self.shift[name] = nn.Parameter(torch.zeros(stop - start))

    def output(self, base: nn.Module, x: Tensor) -> Tensor:
        """What the changed layer makes of x: (..., fan_in), or a map (B, C, H, W).

        Beside a linear layer it is base(x) + o ⊙ W (i ⊙ x) + f, without a gradient of the weight.
        """
        weight, bias = weight_and_bias(base)
        if weight.ndim > 2:
            changed = self.changed_weight(weight)
            return call_with(base, x, changed, self.changed_bias(weight, bias))
        y: Tensor = base(x)
        for name, (start, stop) in self.rows.items():
            change = (x * self.in_scale[name]) @ weight[start:stop].mT * self.out_scale[name]
            if name in self.shift:
                change = change + self.shift[name]
            y = y + F.pad(change, (start, self.width - stop)).to(y.dtype)
        return y

    def changed_weight(self, weight: Tensor) -> Tensor:
        outer = {n: torch.outer(o, self.in_scale[n]) for n, o in self.out_scale.items()}
        products = in_rows(outer, self.rows, self.width)
        return weight + weight * products.view_as(weight).to(weight.dtype)

    def changed_bias(self, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        if not self.shift:
            return bias
        shift = in_rows(dict(self.shift.items()), self.rows, self.width)
        return shift if bias is None else bias + shift

"""Sums of Kronecker products whose first factors all layers share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftbench.methods.layers.reweighting import Reweighting, in_rows
from peftbench.methods.layers.slices import RowBlock

STD = 0.01  # of the shared factors


class SharedRules(nn.Module):
    """The n matrices A_i (n, n) of all layers: whole, or of a rank as products of two."""

    def __init__(self, number: int, rank: int, is_dead: bool, generator: torch.Generator) -> None:
        super().__init__()
        # products of two factors have the deviation of whole matrices
        std = math.sqrt(STD / math.sqrt(rank)) if rank else STD
        shapes = ((number, number, rank), (number, rank, number)) if rank else ((number,) * 3,)
        self.factors = nn.ParameterList()
        for shape in shapes:
            value = torch.empty(shape).normal_(0.0, std, generator=generator)
            self.factors.append(nn.Parameter(torch.zeros(shape) if is_dead else value))

    def matrices(self) -> Tensor:
        """A (n, n, n), the first axis over the products."""
        first, *rest = self.factors
        return first @ rest[0] if rest else first


@dataclass(frozen=True)
class SumDesign:
    """What the sums of all layers have in common."""

    rank: int  # of u_i and v_i
    scale: float
    dropout: float  # on the entries of the sum
    is_dead: bool  # as released


class KroneckerSum(Reweighting):
    """scale · (Σ_i A_i ⊗ u_i v_i)ᵀ on row blocks of a weight, and one bias for all of them.

    As released all starts at zero, so that no gradient ever reaches a factor, and each
    block has the factors u and v of the first one.
    """

    def __init__(
        self,
        rows: Mapping[str, RowBlock],
        shape: tuple[int, int],
        rules: Mapping[str, SharedRules],
        design: SumDesign,
        has_bias: bool,
        generator: torch.Generator,
    ) -> None:
        """`shape`: outputs and inputs of the weight; `rules`: the shared factors by row block."""
        super().__init__()
        self.rows = dict(rows)
        self.width, fan_in = shape
        self.design = design
        rank = design.rank
        self.rules = nn.ModuleDict(rules)
        self.left = nn.ParameterDict()
        self.right = nn.ParameterDict()
        for name, (start, stop) in rows.items():
            number = len(rules[name].matrices())
            above, beside = fan_in // number, (stop - start) // number
            bound = 0.0 if design.is_dead else math.sqrt(6 / (above + rank))  # Xavier uniform
            left = torch.empty(number, above, rank).uniform_(-bound, bound, generator=generator)
            self.left[name] = nn.Parameter(left)
            self.right[name] = nn.Parameter(torch.zeros(number, rank, beside))
        size = next(stop - start for start, stop in rows.values())
        self.bias = nn.Parameter(torch.zeros(size)) if has_bias else None

    def changed_weight(self, weight: Tensor) -> Tensor:
        changes = {name: self.design.scale * self._matrix(name).mT for name in self.rows}
        change = in_rows(changes, self.rows, self.width)
        return weight + change.view_as(weight).to(weight.dtype)

    def _matrix(self, name: str) -> Tensor:
        """H (in, out) of one row block."""
        rules = self.rules[name]
        assert isinstance(rules, SharedRules)
        own = next(iter(self.rows)) if self.design.is_dead else name
        products = self.left[own] @ self.right[own]
        total = torch.einsum("iab,icd->acbd", rules.matrices(), products)
        matrix = total.flatten(2).flatten(0, 1)
        if own != name:  # counted, and of no effect
            matrix = matrix + 0.0 * (self.left[name].sum() + self.right[name].sum())
        return F.dropout(matrix, self.design.dropout, self.training)

    def changed_bias(self, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        if self.bias is None or bias is None:
            return bias
        return bias + in_rows(dict.fromkeys(self.rows, self.bias), self.rows, self.width)

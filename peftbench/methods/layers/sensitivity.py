"""Which entries, matrices and vectors of a backbone are sensitive, and what a budget pays for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from peftbench.methods.layers.units import Unit

STEPS = range(1, 80)  # of the number of entries that are on
SHARE = 0.02  # of the unit, by which that number grows


@dataclass(frozen=True)
class Rule:
    """How a number of sensitive entries becomes a structure, and how large that is."""

    structured_size: Callable[[Unit], int]  # numbers that a matrix costs in its structured form
    alpha: float  # a matrix becomes structured from structured_size / alpha entries on
    beta: float  # a vector trains whole from length / beta entries on
    whole_vectors: bool  # whether any does
    unit: float  # sizes and budgets are in it
    always: int  # numbers that train besides

    def is_structured(self, matrix: Unit, on: int) -> bool:
        """Whether so many entries make a matrix structured."""
        return on >= self.structured_size(matrix) / self.alpha

    def is_whole(self, vector: Unit, on: int) -> bool:
        """Whether so many entries make a vector train whole."""
        return self.whole_vectors and on >= vector.size / self.beta

    def size(self, matrices: Sequence[Unit], vectors: Sequence[Unit], on: Sequence[int]) -> float:
        """In units, for numbers of entries that are on, of the matrices first."""
        total = self.always
        for matrix, number in zip(matrices, on, strict=False):
            total += self.structured_size(matrix) if self.is_structured(matrix, number) else number
        for vector, number in zip(vectors, on[len(matrices) :], strict=True):
            total += vector.size if self.is_whole(vector, number) else number
        return total / self.unit


@dataclass(frozen=True)
class Chosen:
    """The numbers of entries whose structure comes nearest to the budget."""

    top_k: int  # entries that are on, over all tensors
    size: float  # in units
    on: dict[str, int]  # by label


def choose(
    sensitivity: Mapping[str, Tensor],
    matrices: Sequence[Unit],
    vectors: Sequence[Unit],
    rule: Rule,
    budget: float,
) -> Chosen:
    """Try more and more entries; of sizes equally near to `budget` the last one wins.

    sensitivity: by label, flat (n,).
    """
    labels = [unit.label for unit in (*matrices, *vectors)]
    counts = [math.ceil(round(SHARE * step * rule.unit, 6)) for step in STEPS]
    # none beyond the most entries that are asked for matters, and of one tensor as few
    tops = [
        sensitivity[name].topk(min(counts[-1], len(sensitivity[name]))).values for name in labels
    ]
    owner = torch.cat([torch.full((len(top),), i) for i, top in enumerate(tops)])
    values = torch.cat([top.cpu() for top in tops])
    order = values.topk(min(counts[-1], len(values))).indices
    ranked = owner[order]
    best: Chosen | None = None
    for count in counts:
        on = torch.bincount(ranked[:count], minlength=len(labels)).tolist()
        size = rule.size(matrices, vectors, on)
        if best is None or abs(size - budget) <= abs(best.size - budget):
            best = Chosen(count, size, dict(zip(labels, on, strict=True)))
    assert best is not None
    return best


def entries(unit: Unit, sensitivity: Tensor, number: int) -> Tensor:
    """Flat indices (number,) in the whole tensor of the most sensitive entries of a unit."""
    inside = sensitivity.topk(number).indices.sort().values
    return (inside + unit.start * unit.columns).cpu()

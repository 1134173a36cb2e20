"""Trained values at chosen entries of a frozen tensor."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftbench.methods import surgery


class SparseDelta(surgery.Delta):
    """`values` (n,) at the entries `index` (n,) of a frozen tensor, counted row by row.

    So a step changes n numbers, whatever its optimiser remembers or decays, and n numbers and
    their places are stored.
    """

    inside: bool = True  # one product with the sum, in place of two
    index: Tensor

    def __init__(self, index: Tensor, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = torch.Size(shape)
        self.values = nn.Parameter(torch.zeros(len(index)))
        self.register_buffer("index", index.to(torch.int32))

    def add_to_output(self, y: Tensor, x: Tensor) -> Tensor:
        return y + F.linear(x, self.weight_delta())

    def weight_delta(self) -> Tensor:
        dense = self.values.new_zeros(self.shape.numel())
        return dense.index_put((self.index.long(),), self.values).view(self.shape)

    def check_index(self, index: Tensor) -> None:
        """Raise `ValueError` unless all of `index` (n,) are entries, each at most once."""
        size = self.shape.numel()
        if index.numel() and not (int(index.min()) >= 0 and int(index.max()) < size):
            raise ValueError(f"an index is none of the {size:,} entries of its tensor")
        if len(index.unique()) != len(index):
            raise ValueError("an index names one entry twice")

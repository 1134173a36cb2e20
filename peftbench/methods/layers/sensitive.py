"""Changes of one layer of which some rows are low-rank and some entries are sparse."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftbench.methods import surgery

KEYS = "k"  # name of the rows of a projection that make keys


class SumDelta(surgery.Delta):
    """The sum of changes of one layer, each of which may act on rows of its own."""

    def __init__(self, *deltas: surgery.Delta) -> None:
        super().__init__()
        self.deltas = nn.ModuleList(deltas)
        self.inside = all(delta.inside for delta in deltas)

    def add_to_output(self, y: Tensor, x: Tensor) -> Tensor:
        for delta in self.deltas:
            assert isinstance(delta, surgery.Delta)
            y = delta.add_to_output(y, x)
        return y

    def weight_delta(self) -> Tensor:
        changes = []
        for delta in self.deltas:
            assert isinstance(delta, surgery.Delta)
            changes.append(delta.weight_delta())
        return torch.stack(changes).sum(0)


class AdapterDelta(surgery.Delta):
    """up gelu(down x), with biases, on chosen row blocks of a layer's output; down is random."""

    def __init__(
        self,
        rows: Mapping[str, tuple[int, int]],
        fan_in: int,
        width: int,
        rank: int,
        dropout: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.rows = dict(rows)
        self.width = width
        self.dropout = nn.Dropout(dropout)
        self.down = nn.ModuleDict({name: nn.Linear(fan_in, rank) for name in rows})
        self.up = nn.ModuleDict({n: nn.Linear(rank, b - a) for n, (a, b) in rows.items()})
        bound = 1 / math.sqrt(fan_in)  # PyTorch's start
        with torch.no_grad():
            for tensor in self.down.parameters():
                tensor.uniform_(-bound, bound, generator=generator)
            for tensor in self.up.parameters():
                tensor.zero_()

    def add_to_output(self, y: Tensor, x: Tensor) -> Tensor:
        x = self.dropout(x)
        for name, (start, stop) in self.rows.items():
            up = self.up[name]
            assert isinstance(up, nn.Linear)
            # the softmax cancels what is added to all keys alike, and rounding must not move it
            bias = 0 * up.bias if name == KEYS else up.bias
            change = F.linear(F.gelu(self.down[name](x)), up.weight, bias)
            y = y + F.pad(change, (start, self.width - stop))
        return y

    def weight_delta(self) -> Tensor:
        raise TypeError(
            "an activation stands between its layers, so that it is no change of a weight"
        )

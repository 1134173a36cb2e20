"""Linear adapters, and how they fold into the layer behind."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftbench.errors import NotMergeable
from peftbench.methods import surgery
from peftbench.methods.layers.shared import SharedTensor


class InputMap(nn.Module, ABC):
    """x + M x + c in front of a linear layer, with a small way to compute it."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """x: (B, ..., D); what comes out has the same shape."""

    @abstractmethod
    def as_matrix(self) -> tuple[Tensor, Tensor]:
        """M (D, D) and c (D,) with `forward(x)` = x + M x + c."""


class LinearAdapter(InputMap):
    """x + scale · up(down(x)) without an activation; `up` works on groups of hidden units."""

    def __init__(
        self, width: int, bottleneck: int, groups: int, scale: float, dropout: float
    ) -> None:
        super().__init__()
        self.down = nn.Linear(width, bottleneck)
        self.dropout = nn.Dropout(dropout)
        # output channels of one group read the hidden units of the same group only
        self.up = nn.Linear(bottleneck // groups, width)
        self.groups = groups
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, ..., D); what comes out has the same shape."""
        hidden = self.dropout(self.down(x))
        # with h hidden units a dense matrix costs less than products by group and their copies
        out: Tensor = x + F.linear(hidden, self.scale * self._dense(), self.scale * self.up.bias)
        return out

    def _dense(self) -> Tensor:
        """The weight of `up` (D, h), zero between the groups."""
        return torch.block_diag(*self.up.weight.unflatten(0, (self.groups, -1)))

    def as_matrix(self) -> tuple[Tensor, Tensor]:
        up = self._dense()
        matrix = self.scale * up @ self.down.weight
        return matrix, self.scale * (up @ self.down.bias + self.up.bias)


class ComposedAdapter(InputMap):
    """x + ((x U) ⊙ c) Uᵀ + β, where other adapters share U (D, r)."""

    def __init__(self, shared: SharedTensor, dropout: float) -> None:
        super().__init__()
        self.shared = shared
        width, rank = shared.value.shape
        self.rescale = nn.Parameter(torch.zeros(rank))
        self.bias = nn.Parameter(torch.zeros(width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, ..., D); what comes out has the same shape."""
        return x + self.change(x)

    def change(self, x: Tensor) -> Tensor:
        """What is added to x (B, ..., D)."""
        u = self.shared.value
        code = self.dropout(x @ (u * self.rescale))
        return F.linear(code, u, self.bias)

    def as_matrix(self) -> tuple[Tensor, Tensor]:
        u = self.shared.value
        return (u * self.rescale) @ u.mT, self.bias


class ComposedChange(ComposedAdapter):
    """What a `ComposedAdapter` adds, for the stream, which adds it by itself."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, ..., D); the change has the same shape."""
        return self.change(x)


@torch.no_grad()
def fold(model: nn.Module, name: str) -> None:
    """W (n + M n + c) + b = (W + W M) n + (b + W c), summed in float64.

    Raises:
        NotMergeable: a layer has no bias to take the constant of the method `name`.
    """
    wrapped = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, surgery.InputAdapter) and isinstance(module.adapter, InputMap)
    ]
    for path, module in wrapped:
        if module.base.bias is None:
            raise NotMergeable(
                f"{name} adds a constant to the output of {path!r}, which has no bias to take it."
            )
    for path, module in wrapped:
        base, adapter = module.base, module.adapter
        assert isinstance(base, nn.Linear) and isinstance(adapter, InputMap)
        matrix, constant = surgery.in_float64(adapter).as_matrix()
        weight = base.weight.double()
        base.bias.copy_(base.bias.double() + weight @ constant)
        base.weight.copy_(weight + weight @ matrix)
        surgery.replace(model, path, base)

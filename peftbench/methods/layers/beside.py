"""A frozen module with an adapter beside it."""

from __future__ import annotations

from torch import Tensor, nn

from peftbench.methods import surgery


class Beside(surgery.Around):
    """The sum of what a frozen module and an adapter make of one input."""

    def __init__(self, base: nn.Module, adapter: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.adapter = adapter

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """x: (B, ..., C) or (B, C, H, W); the sum in the module's layout."""
        change = self.adapter(x)
        out: Tensor = self.base(x, *args, **kwargs) + change
        return out

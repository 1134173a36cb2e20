"""What an activation read, for a layer behind it whose gradient needs what the activation gave."""

from __future__ import annotations

import copy
from typing import Any

import torch
from timm.layers import GELU, GELUTanh, QuickGELU
from torch import Tensor, nn

# activations without parameters and chance that keep their input
RECOMPUTABLE = (nn.GELU, nn.SiLU, GELU, GELUTanh, QuickGELU)


class Reading:
    """Which input gave the output of an activation, for a layer behind it that needs the output.

    An activation keeps its input for its own gradient, so the output can be computed again. Holds
    tensors between the two layers only; a copy holds none.
    """

    def __init__(self, activation: nn.Module) -> None:
        self.activation = activation
        self._pair: tuple[Tensor, Tensor] | None = None

    def note(self, x: Tensor, y: Tensor) -> None:
        """The activation made `y` (...) of `x` (...)."""
        self._pair = (x, y)

    def source_of(self, y: Tensor) -> Tensor | None:
        """The tensor of which the activation made exactly `y` (...), None if it did not."""
        pair, self._pair = self._pair, None
        return pair[0] if pair is not None and pair[1] is y else None

    def __deepcopy__(self, memo: dict[int, Any]) -> Reading:
        memo[id(self)] = copied = Reading(copy.deepcopy(self.activation, memo))
        return copied

    def __getstate__(self) -> dict[str, Any]:
        return {"activation": self.activation, "_pair": None}


class NotedActivation(nn.Module):
    """A frozen activation that notes what it reads."""

    def __init__(self, base: nn.Module, reading: Reading) -> None:
        super().__init__()
        self.base = base
        self.reading = reading

    def forward(self, x: Tensor) -> Tensor:
        """x: (...); the activations have the same shape."""
        y: Tensor = self.base(x)
        if torch.is_grad_enabled():
            self.reading.note(x, y)
        return y

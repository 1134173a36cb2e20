"""Learned changes of layers, usable beside a layer or inside its weight. Registers no method."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor, nn

from peftbench.methods.readings import Reading

# names of before, which methods of others may still use
RENAMED_IN_DELTA = {"add_to": "add_to_output", "of_weight": "weight_delta"}


class Change(nn.Module, ABC):
    """A learned change of one layer with a weight, usable beside it or inside its weight."""

    recomputes: ClassVar[bool] = False  # whether it makes use of `reading`
    inside: bool = False  # cheaper as a part of the weight than beside the layer
    reading: Reading | None = None  # of the activation in front of the layer

    @abstractmethod
    def output(self, base: nn.Module, x: Tensor) -> Tensor:
        """What the changed layer makes of x (..., fan_in), or of a map (B, C, H, W)."""

    @abstractmethod
    def changed_weight(self, weight: Tensor) -> Tensor:
        """The changed weight, in the shape of `weight`: (width, fan_in), or (out, in, k, k)."""

    def changed_bias(self, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        """The changed bias (width,) of a layer with this weight (width, ...) and bias (width,)."""
        return bias


class Delta(Change):
    """A learned sum with a weight, which does not depend on it."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Give a method by its name of before its name of now, with a warning that says it."""
        super().__init_subclass__(**options)
        for before, now in RENAMED_IN_DELTA.items():
            if before in vars(cls):
                warnings.warn(
                    f"{before} of a surgery.Delta is {now} now", DeprecationWarning, stacklevel=2
                )
                setattr(cls, now, vars(cls)[before])

    @abstractmethod
    def add_to_output(self, y: Tensor, x: Tensor) -> Tensor:
        """`y` (..., width), the layer's fresh output for `x` (..., fan_in), with the change added.

        Of a convolution both are maps (B, C, H, W). May write into `y`.
        """

    @abstractmethod
    def weight_delta(self) -> Tensor:
        """The same change in the weight's shape: (width, fan_in), or a kernel (out, in, k, k)."""

    def output(self, base: nn.Module, x: Tensor) -> Tensor:
        return self.add_to_output(base(x), x)

    def changed_weight(self, weight: Tensor) -> Tensor:
        return weight + self.weight_delta().to(weight.dtype)

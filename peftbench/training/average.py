"""The moving average of the trained tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """An exponential moving average that begins at the initial values.

    After each step, average = decay * average + (1 - decay) * weights. Buffers are not averaged.
    Without a decay the average is the weights themselves, and nothing is kept.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float | None) -> None:
        self.parameters = [p.detach() for p in parameters]  # the same memory, without gradient
        self.decay = decay
        self.averages: list[Tensor] | None = None
        if decay is not None:
            self.averages = [p.clone() for p in self.parameters]

    def update(self) -> None:
        """Take the present weights in."""
        if self.averages is not None and self.decay is not None:
            torch._foreach_lerp_(self.averages, self.parameters, 1 - self.decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the averages inside, and its own weights again behind."""
        if self.averages is None:
            yield
            return
        own = [p.clone() for p in self.parameters]
        self.keep()
        try:
            yield
        finally:
            torch._foreach_copy_(self.parameters, own)

    def state_dict(self) -> dict[str, Any]:
        """The averages, if any are kept."""
        return {"averages": self.averages}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take averages up again."""
        if self.averages is not None:
            torch._foreach_copy_(self.averages, list(state["averages"]))

    def keep(self) -> None:
        """Give the model the averages for good."""
        if self.averages is not None:
            torch._foreach_copy_(self.parameters, self.averages)

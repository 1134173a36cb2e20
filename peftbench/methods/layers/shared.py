"""One tensor that several modules hold: a module, so that moving a model keeps it one."""

from __future__ import annotations

from torch import Tensor, nn


class SharedTensor(nn.Module):
    """Holds a parameter for all who hold this module."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(value)

"""What a method minimises in place of the task's loss, and what its modules know of a pass.

An objective says what a pass is for; modules deep in the network do something else then. With
activation checkpointing a block runs again in the backward pass, when the objective has returned
long since: what it said last still holds there, and nowhere else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class ObjectiveInput(Protocol):
    """Images that are in memory at the same time, and what an objective may ask of them."""

    @property
    def target(self) -> Tensor:
        """(B,) classes, or (B, C) shares of them where images are mixed."""

    def __len__(self) -> int:
        """B, the number of images."""

    def outputs(self, copies: int = 1) -> Tensor:
        """What the task makes of a pass over the images, `copies` times: (copies * B, ...)."""

    def loss(self, outputs: Tensor) -> Tensor:
        """() the task's loss of outputs (B, ...): a mean over the images."""

    def classes(self) -> Tensor:
        """(B,) the class of each image; `ConfigError` where images are mixed."""


class MethodObjective(Protocol):
    """What a method minimises in place of the task's loss.

    An object that holds no tensor between two calls, and modules only of the model: a copy of both
    together must work as they do. Where a pass goes through modules that must know that they train,
    see `PassNote`.
    """

    def __call__(self, batch: ObjectiveInput) -> tuple[Tensor, Tensor]:
        """What is minimised, a mean over images, and outputs (B, ...) for loss and accuracy."""


class PassNote(Generic[T]):
    """What the objective said of the pass under way, `None` outside one."""

    def __init__(self) -> None:
        self._now: T | None = None
        self._last: T | None = None

    @contextlib.contextmanager
    def saying(self, value: T) -> Iterator[None]:
        """Inside, and in the backward pass of what is computed inside, `value` holds."""
        self._now = self._last = value
        try:
            yield
        finally:
            self._now = None

    @property
    def value(self) -> T | None:
        """What holds."""
        return self._last if in_backward() else self._now


def in_backward() -> bool:
    """Whether autograd is at work, so that what runs is computed for it again."""
    if torch.compiler.is_compiling():  # which has its own way of computing again
        return False
    return bool(torch._C._current_graph_task_id() != -1)

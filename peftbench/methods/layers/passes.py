"""What modules must know of the pass under way, also while a block computes it again.

An objective says what a pass is for; modules deep in the network do something else then. With
activation checkpointing a block runs again in the backward pass, when the objective has returned
long since: what it said last still holds there, and nowhere else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Generic, TypeVar

import torch

T = TypeVar("T")


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

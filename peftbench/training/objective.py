"""What an objective of its own computes with, such as a second pass or a term that reads classes.

By default a step minimises the task's loss of the model's outputs. An objective gets one part of a
batch, asks for as many passes as it needs, and returns what to minimise: a mean over the images, as
the task's loss is. A term that is none is that of the images that are in memory at the same time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from peftbench.errors import ConfigError
from peftbench.tasks import Task
from peftbench.training.activations import Activations
from peftbench.training.balance import loss_of
from peftbench.training.checkpoint import Stateful
from peftbench.training.world import World


@dataclass(frozen=True)
class StepBatch:
    """Images that are in memory at the same time, the model, and the task's loss."""

    images: Tensor | Activations  # (B, 3, S, S), or what the model takes in their place
    target: Tensor  # (B,) classes, or (B, C) shares of them where images are mixed
    model: Callable[[Any], Tensor]
    task: Task
    label_smoothing: float = 0.0
    weights: Tensor | None = None  # (C,) of the classes
    step: int = 0  # counted from 0 over the whole training
    numbers: Tensor | None = None  # (B,) of the images in the train split; None where none counts

    def __len__(self) -> int:
        return len(self.target)

    def outputs(self, copies: int = 1) -> Tensor:
        """What the task makes of a pass over the images, `copies` times one behind the other.

        (copies * B, ...); copies of an image meet the same layers in one pass.
        """
        images = self.images
        if copies > 1:
            images = (
                torch.cat([images] * copies)
                if isinstance(images, Tensor)
                else Activations.joined([images] * copies)
            )
        return self.task.outputs(self.model(images))

    def loss(self, outputs: Tensor) -> Tensor:
        """() the task's loss of outputs (B, ...)."""
        return loss_of(self.task, outputs, self.target, self.label_smoothing, self.weights)

    def classes(self) -> Tensor:
        """(B,) the class of each image.

        Raises:
            ConfigError: images are mixed and have several.
        """
        if self.target.is_floating_point():
            raise ConfigError(
                "this objective reads the class of each image, and recipe.mixup or recipe.cutmix "
                "gives an image several. Use recipe.mixup=0 and recipe.cutmix=0."
            )
        return self.target

    def first(self, count: int) -> StepBatch:
        """The first `count` of the images."""
        if count == len(self):
            return self
        own = slice(0, count)
        return dataclasses.replace(
            self,
            images=self.images[own],
            target=self.target[own],
            numbers=None if self.numbers is None else self.numbers[own],
        )


class BatchObjective(Protocol):
    """What a step minimises in place of the task's loss."""

    def __call__(self, batch: StepBatch) -> tuple[Tensor, Tensor]:
        """What is minimised, and outputs (b, ...) of the first b images, for loss and accuracy."""


@runtime_checkable
class Remembering(Stateful, Protocol):
    """An objective that keeps something of images from one epoch to the next."""

    def gather(self, world: World) -> object:
        """Let each process know what all of them kept; called in all at the same time."""


def gather(objective: BatchObjective | None, world: World) -> None:
    """Let each process know what the objective of all of them keeps of images."""
    if isinstance(objective, Remembering):
        objective.gather(world)


def count_right(task: Task, outputs: Tensor, labels: Tensor, counted: int) -> Tensor:
    """() how many of the first `counted` images are right, by outputs (b, ...) and labels (B,).

    Images of which an objective gave no output are taken to be right as often as the others.
    """
    given = min(counted, len(outputs))
    right = task.correct(outputs, labels[: len(outputs)])[:given].sum()
    return right if given == counted else right * counted // max(1, given)

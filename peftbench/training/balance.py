"""What a recipe does about classes of unequal size: weights in the loss, or how images are drawn.

Both are made of the labels that train: of train while tuning, of train and val in the final phase.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from peftbench.spec import BALANCED, Recipe
from peftbench.tasks import Task


def balanced_weights(labels: Tensor, num_classes: int) -> Tensor:
    """(C,) float64: n / (K n_c), where n_c of the n labels (N,) are c and K classes have any.

    So all classes weigh the same, and an image weighs one on average. A class without an image
    weighs nothing.
    """
    counts = torch.bincount(labels, minlength=num_classes).double()
    present = int((counts > 0).sum())
    return torch.where(counts > 0, len(labels) / (present * counts), 0.0)


@dataclass(frozen=True)
class ClassWeights:
    """The weights of classes in a task's loss, and what of a batch they give to a part of it."""

    values: Tensor  # (C,) on the device
    task: Task

    @classmethod
    def of(
        cls, recipe: Recipe, labels: Tensor, num_classes: int, task: Task
    ) -> ClassWeights | None:
        """Of the labels (N,) that train; `None` where the recipe weighs no class."""
        if recipe.class_weights != BALANCED:
            return None
        values = balanced_weights(labels.cpu(), num_classes).float()
        return cls(values.to(labels.device), task)

    def share(self, targets: Tensor, labels: Tensor) -> Tensor:
        """What of the weight of a batch of images a part of them has: (), in [0, 1].

        Args:
            targets: of the part, (B,) classes or (B, C) shares of them.
            labels: of all images of the batch, (N,). Mixing leaves the sum of their weights as it
                is: what an image gets of another one, that other one gives away.
        """
        return self.task.weight_of(targets, self.values) / self.task.weight_of(labels, self.values)


def loss_of(
    task: Task, outputs: Tensor, targets: Tensor, label_smoothing: float, weights: Tensor | None
) -> Tensor:
    """() the task's loss of outputs (B, ...) and targets (B, ...), with weights (C,) if any."""
    if weights is None:
        return task.loss(outputs, targets, label_smoothing)
    return task.weighted_loss(outputs, targets, label_smoothing, weights)


class Draws:
    """Which images an epoch sees, and in which order: as many as train.

    Without balance, each once. With it, for each of them one of the classes that have images is
    drawn, all as likely, and then one of its images, all as likely: some come twice, others not.
    """

    def __init__(self, recipe: Recipe, labels: Tensor) -> None:
        """Of images whose classes are `labels` (N,)."""
        self.count = len(labels)
        self.balanced = recipe.sampling == BALANCED
        if self.balanced:
            _, sizes = torch.unique(labels.cpu(), return_counts=True)
            self.sizes = sizes  # of each class, in the order of the classes
            self.by_class = torch.argsort(labels.cpu(), stable=True)
            self.starts = torch.cumsum(sizes, 0) - sizes

    def next(self, generator: torch.Generator) -> Tensor:
        """(N,) numbers of the images of the next epoch."""
        if not self.balanced:
            return torch.randperm(self.count, generator=generator)
        # one row decides the classes, the other the images within them
        drawn = torch.rand((2, self.count), generator=generator, dtype=torch.float64)
        classes = (drawn[0] * len(self.sizes)).long()
        places = (drawn[1] * self.sizes[classes]).long()
        return self.by_class[self.starts[classes] + places]

"""What trains, and what a step of it minimises."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from peftbench.spec import Preprocessing
from peftbench.tasks import CLASSIFICATION, Task
from peftbench.training.balance import ClassWeights
from peftbench.training.checkpoint import Stateful
from peftbench.training.objective import BatchObjective, StepBatch
from peftbench.training.pixels import ModelInputs


class AfterStep(Stateful, Protocol):
    """What a method does behind every step; its state is saved with that of the training."""

    def __call__(self, step: int, total: int) -> None: ...


@dataclass(frozen=True)
class Fittable:
    """A model, and what training must know of it."""

    model: nn.Module
    trainable: Sequence[nn.Parameter]
    set_mode: Callable[[], None]  # puts what trains in train mode, before each epoch
    preprocessing: Preprocessing
    regulariser: Callable[[], Tensor] | None = None
    num_classes: int | None = None  # where images are mixed; what the labels show unless given
    task: Task = CLASSIFICATION
    inputs: ModelInputs | None = None  # what the model sees of the images, if not they themselves
    after_step: AfterStep | None = None  # is told the number of a step, from 1, and of all steps
    rate_scales: Sequence[float] | None = None  # of each of `trainable`, where rates differ
    objective: BatchObjective | None = None  # in place of the task's loss


class Objective(nn.Module):
    """What a step minimises: the task's loss or an objective, and a method's regulariser."""

    def __init__(
        self, fittable: Fittable, label_smoothing: float, weights: ClassWeights | None = None
    ) -> None:
        super().__init__()
        self.model = fittable.model
        self.task = fittable.task
        self.regulariser = fittable.regulariser
        self.objective = fittable.objective
        self.label_smoothing = label_smoothing
        self.weights = None if weights is None else weights.values

    def forward(
        self, x: Any, target: Tensor, step: int = 0, numbers: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What is minimised, the task's loss, and its outputs (B, ...) of images x (B, 3, S, S).

        target: (B,) classes, or (B, C) shares of them where images are mixed; numbers: (B,) of the
        images in the train split.
        """
        batch = StepBatch(
            *(x, target, self.model, self.task, self.label_smoothing, self.weights, step, numbers)
        )
        if self.objective is None:
            outputs = batch.outputs()
            total = loss = batch.loss(outputs)
        else:
            total, outputs = self.objective(batch)
            with torch.no_grad():
                loss = batch.first(len(outputs)).loss(outputs)
        if self.regulariser is not None:
            total = total + self.regulariser()
        return total, loss, outputs

"""One training step by itself: the computation of the training loop on images that are there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from peftbench.methods.applied import Tuned
from peftbench.run.objectives import objective_of
from peftbench.spec import Preprocessing, Recipe
from peftbench.tasks import CLASSIFICATION, Task
from peftbench.training.average import WeightAverage
from peftbench.training.device import Compute, autocast
from peftbench.training.fittable import Fittable, Objective
from peftbench.training.optim import make_optimizer


@dataclass(frozen=True)
class StepPlan:
    """What decides the cost of a step, and nothing of data."""

    tuned: Tuned
    recipe: Recipe
    preprocessing: Preprocessing
    num_classes: int
    task: Task = CLASSIFICATION

    @property
    def trainable(self) -> list[nn.Parameter]:
        """What the optimiser gets."""
        return list(self.tuned.trainable.values())


class Step:
    """Steps of one plan, one after another, on images without content."""

    def __init__(
        self, plan: StepPlan, compute: Compute, device: torch.device | None = None
    ) -> None:
        self.plan, self.compute = plan, compute
        self.device = compute.device if device is None else device  # of images and targets
        self.optimizer = make_optimizer(plan.recipe, plan.trainable)
        self.average = WeightAverage(plan.trainable, plan.recipe.ema_decay)
        fittable = Fittable(
            plan.tuned.model,
            plan.trainable,
            lambda: plan.tuned.train(plan.recipe.frozen_mode),
            plan.preprocessing,
            plan.tuned.regulariser,
            plan.num_classes,
            plan.task,
            objective=objective_of(plan.tuned, plan.recipe, (1, plan.num_classes)),
        )
        self.objective = Objective(fittable, plan.recipe.label_smoothing)
        fittable.set_mode()

    def batch(self, count: int) -> tuple[Tensor, Tensor]:
        """Grey images (B, 3, S, S) and their targets: (B,), or (B, classes) of mixed images."""
        size, recipe = self.plan.preprocessing.size, self.plan.recipe
        x = torch.zeros(count, 3, size, size, device=self.device)
        if recipe.mixup or recipe.cutmix:
            share = 1 / self.plan.num_classes
            return x, torch.full((count, self.plan.num_classes), share, device=self.device)
        return x, torch.zeros(count, dtype=torch.long, device=self.device)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """The objective of images (B, 3, S, S), a scalar; target as `batch` gives it."""
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.compute):
            total: Tensor = self.objective(x, target)[0]
        return total

    def update(self) -> None:
        """Change the weights by their gradients."""
        if self.plan.recipe.clip_grad is not None:
            nn.utils.clip_grad_norm_(self.plan.trainable, self.plan.recipe.clip_grad)
        self.optimizer.step()
        self.average.update()

    def __call__(self, x: Tensor, target: Tensor) -> None:
        """Forward, backward and optimiser; arguments as of `forward`."""
        self.forward(x, target).backward()
        self.update()

"""PACE: noisy passes that must agree (Ni et al., 2024, arXiv 2409.17137).

Every pass of training has noise on what the method adds. `pace` compares two passes over each
image; `lazy` does so in some steps, on half of the images; `fast` compares with the outputs of the
same image an epoch ago. At inference there is no noise.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from peftbench.spec import FAST, LAZY, Recipe
from peftbench.training.objective import StepBatch
from peftbench.training.world import World


@dataclass(frozen=True)
class Noise:
    """What makes passes noisy."""

    saying: Callable[[int], AbstractContextManager[None]]  # inside, with so many views an image
    on_outputs: Callable[[Tensor], Tensor]  # of the classifier, in which nothing is frozen


class Consistency:
    """The task's loss of a noisy pass, and how far another one is from it."""

    def __init__(self, recipe: Recipe, noise: Noise) -> None:
        self.recipe = recipe
        self.noise = noise

    def __call__(self, batch: StepBatch) -> tuple[Tensor, Tensor]:
        """What is minimised, (), and noisy outputs (b, C) of the first b images."""
        if self.recipe.consistency == LAZY:
            if batch.step % self.recipe.consistency_interval:
                outputs = self._pass(batch)
                return batch.loss(outputs), outputs
            batch = batch.first(max(1, len(batch) // 2))
        first, second = self._pass(batch, views=2).chunk(2)
        return batch.loss(first) + self._distance(first, second), first

    def _pass(self, batch: StepBatch, views: int = 1) -> Tensor:
        """(views * B, C) of one noisy pass."""
        with self.noise.saying(views):
            return self.noise.on_outputs(batch.outputs(copies=views))

    def _distance(self, first: Tensor, second: Tensor) -> Tensor:
        """The mean over images of the squared distance of outputs (B, C), weighed."""
        squared = (first - second).square().sum(dim=-1)
        return self.recipe.consistency_weight * squared.mean()


class FastConsistency(Consistency):
    """Compares with the outputs of an epoch ago, zeros in the first one."""

    def __init__(self, recipe: Recipe, noise: Noise, size: tuple[int, int]) -> None:
        """size: images that train, and outputs of one."""
        super().__init__(recipe, noise)
        self.history = torch.zeros(size)
        self.written = torch.zeros(size[0])  # since processes told one another

    def __call__(self, batch: StepBatch) -> tuple[Tensor, Tensor]:
        """What is minimised, (), and noisy outputs (B, C)."""
        outputs = self._pass(batch)
        before = torch.zeros_like(outputs)
        if batch.numbers is not None:
            before = self._exchanged(batch.numbers, outputs.detach())
        return batch.loss(outputs) + self._distance(outputs, before), outputs

    def _exchanged(self, numbers: Tensor, outputs: Tensor) -> Tensor:
        """What was known of images (B,), for which `outputs` (B, C) are known from now on."""
        if self.history.device != outputs.device or self.history.dtype != outputs.dtype:
            self.history, self.written = self.history.to(outputs), self.written.to(outputs)
        before = self.history[numbers]
        self.history[numbers] = outputs
        self.written[numbers] = 1
        return before

    def gather(self, world: World) -> None:
        """Let each process know what all of them saw; of what several saw, the mean."""
        if not world.is_single:
            count = world.all_reduce_sum(self.written.clone())
            total = world.all_reduce_sum(self.history * self.written[:, None])
            seen = (count > 0)[:, None]
            self.history = torch.where(seen, total / count.clamp(min=1)[:, None], self.history)
        self.written.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Outputs (N, C) of each image."""
        return {"history": self.history}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.history = state["history"].to(self.history)


def consistency_of(recipe: Recipe, noise: Noise, size: tuple[int, int]) -> Consistency:
    """The objective of a recipe; size: images that train, and outputs of one."""
    if recipe.consistency == FAST:
        return FastConsistency(recipe, noise, size)
    return Consistency(recipe, noise)

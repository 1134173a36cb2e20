"""What a run minimises: the task's loss, the method's own objective, or that of the recipe."""

from __future__ import annotations

from peftbench.errors import Unsupported
from peftbench.methods.applied import Tuned
from peftbench.methods.layers.noise import ChangeNoise, disturb, sigma_at
from peftbench.methods.layers.passes import PassNote
from peftbench.spec import NO_CONSISTENCY, Recipe
from peftbench.training.consistency import Noise, consistency_of
from peftbench.training.objective import BatchObjective


def objective_of(tuned: Tuned, recipe: Recipe, size: tuple[int, int]) -> BatchObjective | None:
    """The objective of a method under a recipe; `None` where it is the task's loss.

    With `recipe.consistency`, the modules of the model get their noise, which acts in passes of
    this objective alone. size: images that train, and outputs of one.

    Raises:
        Unsupported: the method has an objective of its own, or adds nothing that noise could be on.
    """
    if recipe.consistency == NO_CONSISTENCY:
        return tuned.objective
    noisy: PassNote[int] = PassNote()
    anatomy, sigma = tuned.anatomy, recipe.consistency_noise
    sites = {} if tuned.objective is not None else disturb(tuned.model, anatomy, sigma, noisy)
    if not sites:
        has = "adds nothing to the output of a layer"
        if tuned.objective is not None:
            has = "has an objective of its own"
        raise Unsupported(
            f"recipe.consistency={recipe.consistency} compares passes with noise on what a method "
            f"adds to the outputs of layers, and {tuned.method.name} {has} on this "
            f"{anatomy.family} backbone. Use recipe.consistency=none, or method=pace_adapter, lora "
            "or adapter."
        )
    on_outputs = ChangeNoise(sigma_at(anatomy.depth, anatomy, sigma), noisy)
    return consistency_of(recipe, Noise(noisy.saying, on_outputs), size)

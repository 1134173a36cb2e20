"""Which recipes make no sense for a method; said before anything is loaded."""

from __future__ import annotations

from peftbench.errors import ConfigError
from peftbench.methods.base import METHODS, as_method
from peftbench.spec import NO_CONSISTENCY, RunSpec


def check_pair(spec: RunSpec) -> None:
    """Raise `ConfigError` for a method that cannot follow the recipe of `spec`."""
    method, recipe = as_method(spec.method), spec.recipe
    mixed = [key for key in ("mixup", "cutmix") if getattr(recipe, key)]
    if mixed and method.card.needs_classes:
        raise ConfigError(
            f"method={method.name} learns from the class of each image, and recipe.{mixed[0]}="
            f"{getattr(recipe, mixed[0])} gives an image several. Use recipe.{mixed[0]}=0."
        )
    card = method.card
    if recipe.consistency != NO_CONSISTENCY and (card.head_only or card.layer_decay):
        raise ConfigError(
            f"recipe.consistency={recipe.consistency} compares passes with noise on what a method "
            f"adds to the outputs of layers, and method={method.name} adds nothing. Use "
            "recipe.consistency=none, or method=pace_adapter, lora or adapter."
        )
    if recipe.layer_decay != 1 and not method.card.layer_decay:
        taking = [name for name in METHODS if METHODS[name].card.layer_decay]
        raise ConfigError(
            f"recipe.layer_decay={recipe.layer_decay} lowers the rate of the backbone's own layers "
            f"with their depth, and method={method.name} trains none of them. Use "
            f"recipe.layer_decay=1.0, or method={' or '.join(taking)}."
        )

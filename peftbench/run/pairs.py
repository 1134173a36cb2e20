"""Which recipes make no sense for a method; said before anything is loaded."""

from __future__ import annotations

from peftbench.errors import ConfigError
from peftbench.methods.base import METHODS, as_method
from peftbench.spec import RunSpec


def check_pair(spec: RunSpec) -> None:
    """Raise `ConfigError` for a method that cannot follow the recipe of `spec`."""
    method, recipe = as_method(spec.method), spec.recipe
    if recipe.layer_decay != 1 and not method.card.layer_decay:
        taking = [name for name in METHODS if METHODS[name].card.layer_decay]
        raise ConfigError(
            f"recipe.layer_decay={recipe.layer_decay} lowers the rate of the backbone's own layers "
            f"with their depth, and method={method.name} trains none of them. Use "
            f"recipe.layer_decay=1.0, or method={' or '.join(taking)}."
        )

"""How deep in a network each trained tensor lies, and the share of the learning rate that it gets.

Layers are those of timm's layer decay (`timm.optim.param_groups_layer_decay`): embeddings are the
first, each block is one, what follows the last block belongs to it, and the classifier is the last.
"""

from __future__ import annotations

from torch import nn

from peftbench.backbones.anatomy import Anatomy, Role
from peftbench.errors import ConfigError
from peftbench.methods.applied import Tuned
from peftbench.spec import Recipe


def rate_scales(tuned: Tuned, recipe: Recipe) -> list[float] | None:
    """What each trained tensor's rate is multiplied with: layer_decay ** (layers behind its own).

    `None` where all have the same.

    Raises:
        ConfigError: neither timm nor the anatomy knows the layers.
    """
    if recipe.layer_decay == 1:
        return None
    layers = layers_of(tuned.model, tuned.anatomy)
    last = max(layers.values())
    return [float(recipe.layer_decay ** (last - layers[name])) for name in tuned.trainable]


def layers_of(model: nn.Module, anatomy: Anatomy) -> dict[str, int]:
    """The layer of each parameter by name, from 0: by timm's own groups, or by the anatomy.

    Raises:
        ConfigError: neither knows more than one.
    """
    from timm.models import group_parameters

    matcher = getattr(model, "group_matcher", None)
    if matcher is not None:
        found: dict[str, int] = group_parameters(model, matcher(coarse=False), reverse=True)
        if max(found.values()) > 0:
            return found
    if not anatomy.depth:
        raise ConfigError(
            "recipe.layer_decay needs to know the blocks, and neither timm nor "
            f"{anatomy.finds.removesuffix(' shows').removesuffix(' describes')} knows any. Use "
            "recipe.layer_decay=1.0, or tell where they are: backbone.anatomy=FILE."
        )
    return {name: _layer(name, anatomy) for name, _ in model.named_parameters()}


def _layer(name: str, anatomy: Anatomy) -> int:
    """By the block that the tensor lies in or behind whose predecessor it stands."""
    if name.startswith(anatomy.head_prefixes):
        return anatomy.depth + 1
    for site in anatomy.where(Role.BLOCK, Role.TRANSITION):
        if name.startswith(f"{site.path}."):
            return site.depth + 1
    behind = any(name.startswith(f"{site.path}.") for site in anatomy.where(Role.AFTER))
    return anatomy.depth if behind else 0

"""Whether a recipe can be followed; loading it needs no torch."""

from __future__ import annotations

import dataclasses

from peftbench.errors import ConfigError
from peftbench.registry import unknown_name
from peftbench.spec import (
    AUGMENTATIONS,
    BALANCED,
    BALANCES,
    CONSISTENCIES,
    FAST,
    LAZY,
    NO_CONSISTENCY,
    PACE,
    Recipe,
)

# whose step is linear in the rate and, but for weight decay, blind to the weights
DECOUPLED = ("adamw",)  # weight decay shrinks the weights
COUPLED = ("adam", "momentum", "sgd")  # it is part of the gradient
OPTIMIZERS = (*COUPLED, *DECOUPLED)  # of timm, which is asked for all others
CHOICES = {
    "schedule": ("cosine", "constant"),
    "schedule_unit": ("step", "epoch"),
    "decay": ("matrices", "all"),
    "augmentation": AUGMENTATIONS,
    "frozen_mode": ("method", "train"),
    "class_weights": BALANCES,
    "sampling": BALANCES,
    "consistency": CONSISTENCIES,
}
AT_LEAST_ONE = (
    *("epochs", "batch_size", "lr_reference_batch", "fixed_views", "consistency_interval"),
)
NOT_NEGATIVE = (
    "lr",
    "weight_decay",
    "warmup_epochs",
    "warmup_lr",
    "min_lr",
    "schedule_delay",
    "cooldown_epochs",
    "mixup",
    "cutmix",
    "consistency_weight",
    "consistency_noise",
)
POSITIVE = ("clip_grad", "eps")
FRACTIONS = ("label_smoothing", "ema_decay")  # 1 itself would learn nothing


def check_recipe(recipe: Recipe) -> None:
    """Raise `ConfigError` for a recipe that cannot be followed."""
    _check_optimizer(recipe.optimizer)
    for key, choices in CHOICES.items():
        if getattr(recipe, key) not in choices:
            raise unknown_name(f"recipe.{key}", getattr(recipe, key), choices)
    for keys, refused, advice in (
        (AT_LEAST_ONE, lambda value: value < 1, "; use 1 or more."),
        (NOT_NEGATIVE, lambda value: value < 0, " is negative; use 0 or more."),
        (POSITIVE, lambda value: value <= 0, "; use a positive value, or null."),
        (FRACTIONS, lambda value: not 0 <= value < 1, " is not in [0, 1)."),
        (("random_erasing",), lambda value: not 0 <= value <= 1, " is not in [0, 1]."),
        (("layer_decay",), lambda value: not 0 < value <= 1, " is not in (0, 1]; 1 is off."),
    ):
        for key in keys:
            value = getattr(recipe, key)
            if value is not None and refused(value):
                raise ConfigError(f"recipe.{key}={value}{advice}")
    if recipe.fixed_views:
        _check_views(recipe)
    _check_consistency(recipe)
    if recipe.class_weights == recipe.sampling == BALANCED:
        raise ConfigError(
            "recipe.class_weights=balanced and recipe.sampling=balanced each make up for classes "
            "of unequal size, and together small classes would count too much. Use one of the two."
        )
    if recipe.schedule == "constant":
        for key in ("schedule_delay", "cooldown_epochs"):
            if getattr(recipe, key):
                raise ConfigError(
                    f"recipe.{key}={getattr(recipe, key)} means nothing to a constant rate. "
                    "Use recipe.schedule=cosine, or 0."
                )
    if recipe.schedule_delay and recipe.schedule_unit != "epoch":
        raise ConfigError(
            f"recipe.schedule_delay={recipe.schedule_delay} counts epochs. "
            "Use recipe.schedule_unit=epoch, or 0."
        )


def _check_views(recipe: Recipe) -> None:
    """Raise `ConfigError` where views of single images make no sense."""
    mixed = [key for key in ("mixup", "cutmix") if getattr(recipe, key)]
    if mixed:
        raise ConfigError(
            f"recipe.fixed_views={recipe.fixed_views} are views of single images, and recipe."
            f"{mixed[0]}={getattr(recipe, mixed[0])} mixes them. Use one of the two."
        )
    if recipe.augmentation == "none" and not recipe.random_erasing:
        raise ConfigError(
            f"recipe.fixed_views={recipe.fixed_views}, but nothing makes one view of an image "
            "differ from another. Set recipe.augmentation, or leave it out."
        )


def _check_consistency(recipe: Recipe) -> None:
    """Raise `ConfigError` for settings of a comparison that is not made, or cannot be."""
    for field in dataclasses.fields(recipe):
        given = getattr(recipe, field.name) != field.default
        lazily = field.name == "consistency_interval"
        if not (given and field.name.startswith("consistency_")):
            continue
        if recipe.consistency == NO_CONSISTENCY or (lazily and recipe.consistency != LAZY):
            use = LAZY if lazily else PACE
            raise ConfigError(
                f"recipe.{field.name}={getattr(recipe, field.name)} means nothing to "
                f"recipe.consistency={recipe.consistency}. Use recipe.consistency={use}, or leave "
                "it out."
            )
    if recipe.consistency == FAST:
        for key in ("mixup", "cutmix"):
            if getattr(recipe, key):
                raise ConfigError(
                    f"recipe.consistency={FAST} compares an image with itself an epoch ago, and "
                    f"recipe.{key}={getattr(recipe, key)} mixes it with others. Use "
                    f"recipe.consistency={PACE}, or recipe.{key}=0."
                )


def _check_optimizer(name: str) -> None:
    """Raise `UnknownName` unless timm has an optimiser of this name."""
    if name.lower() in OPTIMIZERS:
        return
    from timm.optim import list_optimizers

    known = [str(one) for one in list_optimizers()]
    if name.lower() not in known:
        raise unknown_name("recipe.optimizer", name, known)

"""Optimiser and learning-rate schedule of a recipe, both from timm."""

from __future__ import annotations

from collections.abc import Iterable

from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import CosineLRScheduler
from torch import nn
from torch.optim import Optimizer

from peftbench.errors import ConfigError
from peftbench.registry import unknown_name
from peftbench.spec import Recipe


def check_recipe(recipe: Recipe) -> None:
    """Raise `ConfigError` for a recipe that cannot be followed."""
    known = [str(name) for name in list_optimizers()]
    if recipe.optimizer.lower() not in known:
        raise unknown_name("recipe.optimizer", recipe.optimizer, known)
    if recipe.schedule not in ("cosine", "constant"):
        raise unknown_name("recipe.schedule", recipe.schedule, ("cosine", "constant"))
    for key in ("epochs", "batch_size"):
        if getattr(recipe, key) < 1:
            raise ConfigError(f"recipe.{key}={getattr(recipe, key)}; use 1 or more.")
    for key in ("lr", "weight_decay", "warmup_epochs", "warmup_lr", "min_lr"):
        if getattr(recipe, key) < 0:
            raise ConfigError(f"recipe.{key}={getattr(recipe, key)} is negative; use 0 or more.")
    if recipe.clip_grad is not None and recipe.clip_grad <= 0:
        raise ConfigError(f"recipe.clip_grad={recipe.clip_grad}; use a positive norm, or null.")
    if not 0 <= recipe.label_smoothing < 1:
        raise ConfigError(f"recipe.label_smoothing={recipe.label_smoothing} is not in [0, 1).")


def make_optimizer(recipe: Recipe, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """The recipe's optimiser; weight decay applies to matrices and not to biases and scales."""
    chosen = list(parameters)
    groups = [
        {"params": [p for p in chosen if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in chosen if p.ndim <= 1], "weight_decay": 0.0},
    ]
    name = recipe.optimizer.lower()
    if name == "sgd" and recipe.momentum == 0:
        name = "momentum"  # timm's "sgd" is Nesterov's, which needs a momentum
    return create_optimizer_v2(
        [g for g in groups if g["params"]],
        opt=name,
        lr=recipe.lr,
        weight_decay=recipe.weight_decay,
        momentum=recipe.momentum,
    )


def make_schedule(
    recipe: Recipe, optimizer: Optimizer, steps_per_epoch: int
) -> CosineLRScheduler | None:
    """Linear warm-up, then half a cosine down to `min_lr`, counted in steps; None if constant."""
    if recipe.schedule == "constant":
        return None
    total = recipe.epochs * steps_per_epoch
    warmup = min(recipe.warmup_epochs * steps_per_epoch, total - 1)
    return CosineLRScheduler(
        optimizer,
        t_initial=max(2, total - warmup),  # timm remarks on a cosine of one step
        lr_min=min(recipe.min_lr, recipe.lr),
        warmup_t=warmup,
        warmup_lr_init=min(recipe.warmup_lr, recipe.lr),
        warmup_prefix=True,
        t_in_epochs=False,
    )

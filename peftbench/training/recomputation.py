"""Activation checkpointing: what blocks keep for the backward pass is computed again instead."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

from peftbench.errors import ConfigError
from peftbench.training.batchnorm import uses_batch_statistics

OFF = "Use recipe.checkpointing=false, or micro_batch=N to save memory."


@contextlib.contextmanager
def recomputing(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Inside, where `wanted`, blocks of `model` keep their inputs alone (Chen et al. 2016).

    timm's own switch is used, and dropout draws again what it drew, so that gradients are the same
    bit for bit. `model` is in the mode that it trains in.

    Raises:
        ConfigError: the architecture has no such switch, a batch norm would take the statistics of
            a batch in twice, or a block tells later ones what it read.
    """
    if not wanted:
        yield
        return
    if any(getattr(module, "hands_on", False) for module in model.modules()):
        raise ConfigError(
            "recipe.checkpointing=true, but blocks hand on what they read, so that none can be "
            f"computed again alone. {OFF}"
        )
    if any(uses_batch_statistics(part) for part in _parts(model)):
        raise ConfigError(
            "recipe.checkpointing=true, but batch norms train here and would take each batch into "
            f"their statistics twice. {OFF}"
        )
    switch = getattr(model, "set_grad_checkpointing", None)
    try:
        if switch is None:
            raise AssertionError
        switch(True)
    except (AssertionError, NotImplementedError) as e:
        raise ConfigError(
            f"recipe.checkpointing=true, but timm cannot checkpoint a {type(model).__name__}. {OFF}"
        ) from e
    try:
        yield
    finally:
        switch(False)


def _parts(model: nn.Module) -> Iterator[nn.Module]:
    """The children of `model` but for its classifier, which keeps what it kept."""
    find = getattr(model, "get_classifier", None)
    found = None if find is None else find()
    classifiers = found if isinstance(found, tuple | list) else (found,)
    return (child for child in model.children() if not any(child is each for each in classifiers))

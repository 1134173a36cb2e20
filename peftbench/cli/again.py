"""Trials that follow one another in a process: Hydra composes the first, the others follow from it.

They differ in a few single values. Composing anew took 0.35 s of one core, which is more than a
trial of a small model needs beside its steps.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

VALUES = ("recipe.lr", "recipe.weight_decay", "one_pass")  # in which such trials differ

_known: tuple[tuple[str, ...], DictConfig] | None = None  # the latest, by what they share


def remember(arguments: Sequence[str], cfg: DictConfig) -> None:
    """Keep what a command with `arguments` was composed into, if others are said to follow it."""
    global _known
    if any(_key(argument) == "one_pass" for argument in arguments):
        _known = _shared(arguments), copy.deepcopy(cfg)


def composed(arguments: Sequence[str]) -> DictConfig | None:
    """What Hydra would make of `arguments`, where that follows from what is kept; always new."""
    if _known is None or _known[0] != _shared(arguments):
        return None
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    cfg = copy.deepcopy(_known[1])
    cfg.one_pass = ""
    own = [argument for argument in arguments if _key(argument) in VALUES]
    for override in OverridesParser.create().parse_overrides(own):
        OmegaConf.update(cfg, override.key_or_group, override.value(), merge=True)
    return cfg


def _shared(arguments: Sequence[str]) -> tuple[str, ...]:
    """The arguments without those in which trials differ, of which the keys of a recipe stay."""
    kept = [argument for argument in arguments if _key(argument) != "one_pass"]
    return tuple(_key(argument) if _key(argument) in VALUES else argument for argument in kept)


def _key(argument: str) -> str:
    return argument.partition("=")[0]

"""Makes the architectures of this package known to timm, when a model of that name is asked for."""

from __future__ import annotations

import importlib
from functools import cache

from peftbench.backbones.models.architectures import ARCHITECTURES

PACKAGE = "peftbench.backbones.models"


@cache
def register_all() -> None:
    """Enter every architecture of this package into timm's registry; once a process."""
    for module in dict.fromkeys(size.module for size in ARCHITECTURES.values()):
        importlib.import_module(f"{PACKAGE}.{module}")


def is_own(name: str) -> bool:
    """Whether `name` is an architecture of this package, which timm alone does not have."""
    return name.partition(".")[0] in ARCHITECTURES

"""Tuning methods. Every module of this package and every entry point registers itself.

An installed package adds methods through the entry point group `peftbench.methods`, whose values
name modules; a folder `conf/` beside such a module is searched for configurations.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from pathlib import Path

from peftbench import plugins
from peftbench.methods.base import (
    METHODS,
    Attachment,
    Method,
    MethodCard,
    Tuned,
    apply,
    parameters_of,
    register_method,
)

__all__ = [
    "METHODS",
    "Attachment",
    "Method",
    "MethodCard",
    "Tuned",
    "apply",
    "discover",
    "parameters_of",
    "register_method",
]


@cache
def discover() -> tuple[Path, ...]:
    """Import every method, built in or installed; returns folders that hold their configurations.

    Raises:
        ConfigError: an installed module cannot be imported.
    """
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    folders = [Path(loaded.__file__ or "").parent / "conf" for loaded in plugins.load("methods")]
    return tuple(dict.fromkeys(folder for folder in folders if folder.is_dir()))

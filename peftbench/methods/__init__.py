"""Tuning methods. Every module of this package and every entry point registers itself.

An installed package adds methods through the entry point group `peftbench.methods`, whose values
name modules.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

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
def discover() -> None:
    """Import every method, built in or installed; once a process.

    Raises:
        ConfigError: an installed module cannot be imported.
    """
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    plugins.load("methods")

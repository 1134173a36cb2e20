"""Tuning methods. Every module of this package and every entry point registers itself.

An installed package adds methods through the entry point group `peftbench.methods`, whose values
name modules.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import TYPE_CHECKING, Any

from peftbench import plugins
from peftbench.methods.base import (
    METHODS,
    Attachment,
    Method,
    MethodCard,
    parameters_of,
    register_method,
)

if TYPE_CHECKING:
    from peftbench.methods.applied import Tuned, apply

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

# modules beside the methods that need torch and register nothing
NO_METHODS = ("applied", "changes", "readings", "surgery", "together")


def __getattr__(name: str) -> Any:
    """What needs torch on first use: methods are listed and checked without it."""
    if name in ("Tuned", "apply"):
        from peftbench.methods import applied

        return getattr(applied, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def discover() -> None:
    """Import every method, built in or installed; once a process.

    Raises:
        ConfigError: an installed module cannot be imported.
    """
    for module in pkgutil.iter_modules(__path__):
        if module.name not in NO_METHODS and not module.ispkg:
            importlib.import_module(f"{__name__}.{module.name}")
    plugins.load("methods")

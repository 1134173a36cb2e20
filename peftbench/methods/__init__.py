"""Tuning methods. Every module of this package and every entry point registers itself.

An installed package adds methods through the entry point group `peftbench.methods`, whose values
name modules; a folder `conf/` beside such a module is searched for configurations.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
from functools import cache
from pathlib import Path

from peftbench.errors import ConfigError
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

ENTRY_POINTS = "peftbench.methods"

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
        ConfigError: an installed module cannot be imported. A method that silently vanished from a
            sweep would be a gap in a table that nobody sees.
    """
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    folders = []
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        try:
            loaded = importlib.import_module(entry.module)
        except Exception as e:
            package = entry.dist.name if entry.dist else entry.module
            raise ConfigError(
                f"the installed package {package!r} offers methods in {entry.module!r}, which "
                f"cannot be imported: {type(e).__name__}: {e}. Repair or uninstall it."
            ) from e
        folder = Path(loaded.__file__ or "").parent / "conf"
        if folder.is_dir():
            folders.append(folder)
    return tuple(dict.fromkeys(folders))

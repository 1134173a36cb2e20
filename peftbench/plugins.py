"""Parts that installed packages add: each entry point names a module, which registers them."""

from __future__ import annotations

import importlib
import importlib.metadata
from functools import cache
from types import ModuleType

from peftbench.errors import ConfigError


@cache
def load(kind: str) -> tuple[ModuleType, ...]:
    """The modules of the entry point group `peftbench.KIND`, imported; once a process.

    Raises:
        ConfigError: one cannot be imported. A method that silently vanished from a sweep would be
            a gap in a table that nobody sees.
    """
    loaded = []
    for entry in importlib.metadata.entry_points(group=f"peftbench.{kind}"):
        try:
            loaded.append(importlib.import_module(entry.module))
        except Exception as e:
            package = entry.dist.name if entry.dist else entry.module
            raise ConfigError(
                f"the installed package {package!r} offers {kind} in {entry.module!r}, which "
                f"cannot be imported: {type(e).__name__}: {e}. Repair or uninstall it."
            ) from e
    return tuple(dict.fromkeys(loaded))

"""Parts that installed packages add: each entry point names a module, which registers them.

A folder `conf/` beside a module of the groups `CONFIGURED` is searched for configurations. A
package that adds nothing else, such as one of data sets, names itself in `peftbench.conf`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from functools import cache
from pathlib import Path
from types import ModuleType

from peftbench.errors import ConfigError

CONFIGURED = ("methods", "families", "layouts", "conf")


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


def config_dirs() -> tuple[Path, ...]:
    """The folders of configurations that installed packages bring.

    Raises:
        ConfigError: as `load`.
    """
    modules = dict.fromkeys(module for kind in CONFIGURED for module in load(kind))
    folders = dict.fromkeys(_folder(module) / "conf" for module in modules)
    return tuple(folder for folder in folders if folder.is_dir())


def _folder(module: ModuleType) -> Path:
    """Where a module lies; a package without `__init__.py` has no file of its own."""
    return Path(module.__file__).parent if module.__file__ else Path(next(iter(module.__path__)))

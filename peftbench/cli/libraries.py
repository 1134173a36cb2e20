"""What runs need and lists do not, loaded where it is known that there is a run."""

from __future__ import annotations

import contextlib
import gc
import importlib

from peftbench.errors import ConfigError


def warm_up() -> None:
    """Load and read what every job of a sweep needs, so that no job does: 5 s of one core."""
    import peftbench.config.build  # noqa: F401 - for its effect
    from peftbench.cli.hydra import GROUPS
    from peftbench.config.choices import only_ours, read_group
    from peftbench.sweep.launchers.register import register

    load_libraries()
    with contextlib.suppress(ConfigError):  # of an installed package; every job tells of it
        register()
        for group in GROUPS if only_ours() else ():  # what others write may change meanwhile
            read_group(group)


def load_libraries() -> None:
    """Import all that a run needs, torch and timm with it.

    That makes half a million objects, which stay. The garbage collector would walk over them again
    and again, a tenth of the time of the import, so it waits meanwhile.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        importlib.import_module("peftbench.run.measure")
    finally:
        if enabled:
            gc.enable()

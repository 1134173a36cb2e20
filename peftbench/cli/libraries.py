"""The model libraries, loaded where it is known that a run needs them."""

from __future__ import annotations

import gc
import importlib


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

"""Compare every way of tuning a pretrained vision backbone under one protocol.

The public interface is `import peftbench as pb` with the names in `__all__`:

    tune, trainable, merge, TunedModel    a method on a timm model, what trains, a plain model again
    load, attach, detach                  a task that `peftbench export` wrote, and its backbone
    Prediction                            what a loaded model says of a picture
    list_methods                          names of all methods
    results                               the runs of a results folder as a pandas frame

Other modules may change without notice. docs/stability.md says how long a public name stays, and
what else is public for those who write methods of their own.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from peftbench._version import __version__ as __version__

if TYPE_CHECKING:
    from peftbench import results
    from peftbench.api import (
        Prediction,
        TunedModel,
        attach,
        detach,
        list_methods,
        load,
        merge,
        trainable,
        tune,
    )

__all__ = [
    "Prediction",
    "TunedModel",
    "attach",
    "detach",
    "list_methods",
    "load",
    "merge",
    "results",
    "trainable",
    "tune",
]

# modules that notebooks of others import from here, and where they stand
FACES = {"experiment": "peftbench.run.experiment"}


def __getattr__(name: str) -> Any:
    """The library on first use: the command line and the report start without PyTorch."""
    if name == "results":
        return importlib.import_module("peftbench.results")
    if name in FACES:
        return importlib.import_module(FACES[name])
    if name in __all__:
        return getattr(importlib.import_module("peftbench.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

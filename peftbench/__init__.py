"""Compare every way of tuning a pretrained vision backbone under one protocol."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peftbench import results
    from peftbench.api import (
        TunedModel,
        attach,
        detach,
        list_methods,
        load,
        merge,
        trainable,
        tune,
    )

__version__ = "0.1.0"

__all__ = [
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


def __getattr__(name: str) -> Any:
    """The library on first use: the command line and the report start without PyTorch."""
    if name == "results":
        return importlib.import_module("peftbench.results")
    if name in __all__:
        return getattr(importlib.import_module("peftbench.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

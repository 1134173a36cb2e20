"""Which hyper-parameters give the function of an official file, and how its tensors are named here.

Each module of this package declares for some methods

- `CASES`: file -> name of the method and the hyper-parameters that give the same function;
- `NAMES`: pattern of a role in a file -> name of the tensor here. {head} is the path of the
  classifier, {last} of its last layer, {stem} of the layer that reads the image;
- `RECIPES`, where it has any: file -> the recipe whose objective is its loss;
- `INJECT`, where it has any: file -> what gives a model the random numbers of the file;
- `ELSEWHERE`, where it has any: file -> the test file that compares it by other means, because it
  holds one module alone, or a loss or a selection of its own.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from peftbench.spec import Recipe

CASES: dict[str, tuple[str, dict[str, Any]]] = {}
ELSEWHERE: dict[str, str] = {}
RECIPES: dict[str, Recipe] = {}
INJECT: dict[str, Callable[[nn.Module, dict[str, Tensor]], None]] = {}
_NAMES: dict[str, tuple[tuple[str, str], ...]] = {}  # by file

# roles that every file has
COMMON: tuple[tuple[str, str], ...] = (
    (r"head\.(weight|bias)", r"{last}.\1"),
    (r"head\.(bn\.\w+)", r"{head}.\1"),
    (r"backbone\.(.+)", r"\1"),
)

for _found in pkgutil.iter_modules(__path__):
    _module = importlib.import_module(f"{__name__}.{_found.name}")
    CASES |= _module.CASES
    RECIPES |= getattr(_module, "RECIPES", {})
    INJECT |= getattr(_module, "INJECT", {})
    ELSEWHERE |= getattr(_module, "ELSEWHERE", {})
    _NAMES |= dict.fromkeys(_module.CASES, (*_module.NAMES, *COMMON))


def our_name(file: str, role: str, places: Mapping[str, str]) -> str:
    """Name of our tensor for `role` of an official file; `places` fills what is in braces."""
    for pattern, name in _NAMES[file]:
        match = re.fullmatch(pattern, role)
        if match:
            return match.expand(name).format(**places)
    raise AssertionError(f"role {role!r} of {file} has no name in NAMES")

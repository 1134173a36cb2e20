"""MATLAB files, which several archives have their labels and splits in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from peftbench.errors import DataError


def read(path: Path, names: Sequence[str] | None = None) -> dict[str, Any]:
    """The variables of a MATLAB file, or those of `names`; cells and structures as lists and
    dictionaries. `DataError` where SciPy is missing or the file is damaged.
    """
    try:
        from scipy.io import loadmat
        from scipy.io.matlab import MatReadError
    except ImportError as error:
        raise DataError(
            f"Reading {path} needs SciPy. Install it with: pip install 'peftbench[data]'"
        ) from error
    try:
        variables: dict[str, Any] = loadmat(str(path), variable_names=names, simplify_cells=True)
    except (OSError, ValueError, TypeError, NotImplementedError, MatReadError) as error:
        raise DataError(f"Cannot read {path}: {error}. Fetch it again.") from error
    return variables


def column(path: Path, variables: dict[str, Any], key: str) -> list[Any]:
    """A variable as a list, also where it holds one element."""
    if key not in variables:
        raise DataError(f"{path} has no variable {key!r}. Fetch it again.")
    value = variables[key]
    if isinstance(value, list | dict | str):
        return value if isinstance(value, list) else [value]
    return list(np.atleast_1d(value).ravel())

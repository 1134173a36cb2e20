"""HDF5 files, read with the optional h5py."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from peftbench.errors import DataError
from peftbench.untrusted import MOST_BYTES, check_plain_file, printable


def array(path: Path, name: str) -> Any:
    """An array of an HDF5 file, of which rows are read when they are asked for.

    Raises:
        DataError: h5py is not installed, there is no such array, it lies in another file, or it is
            packed in pieces so large that a row of it cannot be read alone.
    """
    try:
        import h5py
    except ImportError as error:
        raise DataError(
            f"Reading {path} needs h5py. Install it with: pip install 'peftbench[data]'"
        ) from error
    try:
        check_plain_file(path)
        dataset = h5py.File(path, "r")[name]
        _check(dataset, path)
    except (OSError, KeyError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        raise DataError(
            f"Cannot read {name} of {path}: {printable(str(error))}. Fetch it again."
        ) from error
    return dataset


def whole(path: Path, name: str) -> np.ndarray:
    """All of a small array (...), as `array` otherwise; `DataError` where it is no small one."""
    dataset = array(path, name)
    size = math.prod(dataset.shape) * dataset.dtype.itemsize
    if size > MOST_BYTES:  # what was never written takes no room in the file
        raise DataError(
            f"Cannot read {name} of {path}: it has {size:,} bytes, more than {MOST_BYTES:,}. "
            "Fetch it again."
        )
    try:
        return np.asarray(dataset)
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise DataError(
            f"Cannot read {name} of {path}: {printable(str(error))}. Fetch it again."
        ) from error


def _check(dataset: Any, path: Path) -> None:
    """Raise `ValueError` for what is no array of numbers of this file that can be read in rows."""
    if dataset.dtype.hasobject or dataset.shape is None:
        raise ValueError("it holds no numbers")
    if dataset.is_virtual or dataset.external or Path(dataset.file.filename) != path:
        raise ValueError("it lies in another file")
    piece = math.prod(dataset.chunks or ()) * dataset.dtype.itemsize
    if piece > MOST_BYTES:
        raise ValueError(f"it is packed in pieces of {piece:,} bytes")

"""HDF5 files, read with the optional h5py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peftbench.errors import DataError


def array(path: Path, name: str) -> Any:
    """An array of an HDF5 file, of which rows are read when they are asked for.

    Raises:
        DataError: h5py is not installed, or there is no such array.
    """
    try:
        import h5py
    except ImportError as error:
        raise DataError(
            f"Reading {path} needs h5py. Install it with: pip install 'peftbench[data]'"
        ) from error
    try:
        return h5py.File(path, "r")[name]
    except (OSError, KeyError) as error:
        raise DataError(f"Cannot read {name} of {path}: {error}. Fetch it again.") from error

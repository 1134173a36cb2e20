"""MATLAB files, which several archives have their labels and splits in."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from peftbench.data.unpack import CHUNK, Limits
from peftbench.errors import DataError
from peftbench.untrusted import check_plain_file, printable

MOST_CELLS = 10**7
PACKED = 15  # type of a variable that is packed


def read(path: Path, names: Sequence[str] | None = None) -> dict[str, Any]:
    """The variables of a MATLAB file, or those of `names`; cells and structures as lists and
    dictionaries. `DataError` where SciPy is missing or the file is damaged.
    """
    try:
        from scipy.io import loadmat, whosmat
    except ImportError as error:
        raise DataError(
            f"Reading {path} needs SciPy. Install it with: pip install 'peftbench[data]'"
        ) from error
    try:
        check_plain_file(path)
        _check_size(path)
        for name, shape, kind in whosmat(str(path)):
            # each cell or structure becomes an object; numbers are bounded by their bytes
            if kind in ("cell", "struct", "object") and math.prod(shape) > MOST_CELLS:
                raise ValueError(f"{name} announces {math.prod(shape):,} cells")
        variables: dict[str, Any] = loadmat(str(path), variable_names=names, simplify_cells=True)
    except Exception as error:  # of every kind on damaged files
        reason = printable(str(error)) or type(error).__name__
        raise DataError(f"Cannot read {path}: {reason}. Fetch it again.") from error
    return variables


def _check_size(path: Path) -> None:
    """Raise `ValueError` where packed variables unpack to more than `Limits` allow.

    A file of version 5 is a header of 128 bytes and variables, each with its type and its length;
    those of type 15 are packed by zlib, and nothing says to how much.
    """
    room = Limits.of(path).bytes
    with path.open("rb") as file:
        head = file.read(128)
        order = {b"IM": "<", b"MI": ">"}.get(head[126:128])
        while order and len(tag := file.read(8)) == 8:
            kind, length = struct.unpack(f"{order}II", tag)
            end = file.tell() + length
            if kind == PACKED:
                room -= _unpacked(file, length, room)
                if room < 0:
                    raise ValueError("it unpacks to far more than it has")
            file.seek(end)


def _unpacked(file: IO[bytes], length: int, most: int) -> int:
    """How many bytes come out of the next `length` ones; it is not gone on with beyond `most`."""
    unpacker, count = zlib.decompressobj(), 0
    while length > 0 and not unpacker.eof and count <= most:
        chunk = unpacker.unconsumed_tail or file.read(min(length, CHUNK))
        if not chunk:
            break
        if not unpacker.unconsumed_tail:
            length -= len(chunk)
        count += len(unpacker.decompress(chunk, CHUNK))
    while unpacker.unconsumed_tail and not unpacker.eof and count <= most:
        count += len(unpacker.decompress(unpacker.unconsumed_tail, CHUNK))
    return count


def column(path: Path, variables: dict[str, Any], key: str) -> list[Any]:
    """A variable as a list, also where it holds one element."""
    if key not in variables:
        raise DataError(f"{path} has no variable {key!r}. Fetch it again.")
    value = variables[key]
    if isinstance(value, list | dict | str):
        return value if isinstance(value, list) else [value]
    return list(np.atleast_1d(value).ravel())

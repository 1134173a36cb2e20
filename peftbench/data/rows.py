"""Rows of an array in any order: from memory, or from its file without mapping its pages.

A page of a map that was touched counts as memory of the process, and one epoch touches them all.
Telling the system to forget them (`MADV_DONTNEED`) makes the next rows fault again: 1.2 GB/s where
reading the file gives 4. Of rows that the system had dropped, a map gave 850 a second, reading
2,700, and reading what was announced for a whole batch 8,000 (160 pixels, a disk that answers at
once). A slow disk sets the pace of both.
"""

from __future__ import annotations

import mmap
import os
import weakref
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from peftbench.errors import DataError

SMALL = 2**26  # bytes of an array that may as well be in memory


class RowSource(Protocol):
    """Something whose rows are read in any order, from any thread."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, ...) of all rows."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of what stands in the rows."""

    @property
    def waits(self) -> bool:
        """Whether reading takes time in which something else can be done."""

    def read(self, index: np.ndarray, out: np.ndarray) -> None:
        """Put the rows at `index` (B,) into `out` (B, ...); `DataError` where they cannot be."""


class ArrayRows:
    """Rows of an array (N, ...) that is in memory, or small."""

    waits = False

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.shape, self.dtype = array.shape, array.dtype

    def read(self, index: np.ndarray, out: np.ndarray) -> None:
        """Copy the rows at `index` (B,) into `out` (B, ...)."""
        if self.array.flags.c_contiguous:  # `take` copies all of another array first
            np.take(self.array, index, axis=0, out=out, mode="clip")
        else:
            out[...] = self.array[index]


class FileRows:
    """Rows of an array (N, ...) as they are in its file.

    Args:
        path: the file.
        array: as it is mapped; it gives the shape and the distance of rows.
        start: byte of the file at which the first row begins.
    """

    waits = True

    def __init__(self, path: Path, array: np.ndarray, start: int) -> None:
        self.path = path
        self.shape, self.dtype = array.shape, array.dtype
        self.start = start
        self.distance = array.strides[0]
        self.length = array[:1].nbytes  # of a row
        self.handle = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.handle)
        if hasattr(os, "posix_fadvise"):  # nothing but what is asked for
            os.posix_fadvise(self.handle, 0, 0, os.POSIX_FADV_RANDOM)

    def read(self, index: np.ndarray, out: np.ndarray) -> None:
        """Read the rows at `index` (B,) into `out` (B, ...), in the order of the file.

        The disk hears of all of them before the first.
        """
        places = np.argsort(index, kind="stable")
        starts = self.start + index[places].astype(np.int64) * self.distance
        if hasattr(os, "posix_fadvise"):
            for start in starts.tolist():
                os.posix_fadvise(self.handle, start, self.length, os.POSIX_FADV_WILLNEED)
        for place, start in zip(places.tolist(), starts.tolist(), strict=True):
            self._fill(out[place : place + 1], start)

    def _fill(self, row: np.ndarray, start: int) -> None:
        left = memoryview(row.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        while left:
            try:
                got = os.preadv(self.handle, [left], start)
            except OSError as error:
                raise DataError(f"Cannot read {self.path}: {error.strerror or error}.") from error
            if not got:
                raise DataError(
                    f"{self.path} was cut short while it was read. Remove it; it is made again "
                    "when it is used."
                )
            left, start = left[got:], start + got


def rows_of(array: np.ndarray) -> RowSource:
    """The rows of an array (N, ...), from its file where it is mapped and not `SMALL`."""
    if len(array) and abs(array.strides[0]) * len(array) > SMALL and hasattr(os, "preadv"):
        return _from_file(array) or ArrayRows(array)
    return ArrayRows(array)


def take(rows: RowSource, index: np.ndarray) -> np.ndarray:
    """The rows at `index` (B,): (B, ...)."""
    out = np.empty((len(index), *rows.shape[1:]), rows.dtype)
    rows.read(index, out)
    return out


def _from_file(array: np.ndarray) -> FileRows | None:
    """`None` where it is not mapped, a row is not in one piece, or the file is another one now."""
    owner = array
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    if not (isinstance(owner, np.memmap) and isinstance(owner.base, mmap.mmap)):
        return None
    if owner.filename is None or not array[0].flags.c_contiguous:
        return None
    start = owner.offset + _address(array) - _address(owner)
    try:
        rows = FileRows(Path(owner.filename), array, start)
        ends = np.array([0, len(array) - 1])
        return rows if np.array_equal(take(rows, ends), array[ends]) else None
    except (OSError, DataError):  # gone, though its pages are still there
        return None


def _address(array: np.ndarray) -> int:
    address: int = array.__array_interface__["data"][0]
    return address

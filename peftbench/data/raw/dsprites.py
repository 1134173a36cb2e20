"""dSprites: x position and orientation, each in 16 classes, from the published .npz."""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from peftbench.data.raw.base import (
    ORDER_NOTE,
    VTAB,
    Counts,
    Raw,
    Records,
    Splits,
    add,
    cut_one,
    grey,
    scratch,
)
from peftbench.errors import DataError

FILE = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
SIDE = 64
CLASSES = 16
ORIENTATION, X_POSITION = 3, 4  # columns of latents_classes
TRAIN_PERCENT, VAL_PERCENT = 80, 10
_CHUNK = 4096  # images unpacked at once: 16 MiB


def location(x: int) -> int:
    """The class of an x position 0..31. Source: VTAB, task_adaptation/data/dsprites.py."""
    return x // 2


def orientation(step: int) -> int:
    """The class of an orientation 0..39: bins of 2.5, so of 3 and 2 steps in turn.

    Source: VTAB, task_adaptation/data/dsprites.py.
    """
    return int(step // 2.5)


def splits(folder: Path, column: int, rule: Callable[[int], int], counts: Counts = VTAB) -> Splits:
    """VTAB-1k of dSprites, with `rule` applied to a `column` of latents_classes.

    Raises `DataError` where the file is damaged. Key of a record: its row (TFDS 4.9.9,
    datasets/dsprites). The images are unpacked once, one bit a pixel.
    """
    path = folder / FILE
    factors = _factors(path)[:, column]
    bits = functools.cache(lambda: _bits(path, len(factors)))

    def image(row: int) -> np.ndarray:
        return grey(np.unpackbits(bits()[row]).reshape(SIDE, SIDE) * np.uint8(255))

    records = Records(
        str(path),
        "train",
        range(len(factors)),
        CLASSES,
        lambda row: rule(int(factors[row])),
        image,
    )
    return cut_one(records, TRAIN_PERCENT, VAL_PERCENT, counts)


def _factors(path: Path) -> np.ndarray:
    """The factors of each image as indices: (N, 6), integers."""
    try:
        with np.load(path, allow_pickle=False) as archive:  # its `metadata` is pickled
            factors: np.ndarray = archive["latents_classes"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise _damaged(path, str(error)) from error
    if factors.ndim != 2 or factors.shape[1] != 6 or factors.dtype.kind not in "iu":
        raise _damaged(path, f"latents_classes is {factors.dtype} {factors.shape}")
    return factors


def _bits(path: Path, count: int) -> np.ndarray:
    """All images as bits in a temporary file: (N, 512) uint8. Unpacked bytes would be 3 GB."""
    flat = scratch(_packed(path, count), path)
    return flat.reshape(count, -1)


def _packed(path: Path, count: int) -> Iterator[bytes]:
    with zipfile.ZipFile(path) as archive, archive.open("imgs.npy") as file:
        try:
            version = np.lib.format.read_magic(file)
            read = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape, fortran, dtype = read(file)
        except ValueError as error:
            raise _damaged(path, str(error)) from error
        if shape != (count, SIDE, SIDE) or fortran or dtype != np.uint8:
            raise _damaged(path, f"imgs is {dtype} {shape}, and {count} images are labelled")
        for start in range(0, count, _CHUNK):
            wanted = min(_CHUNK, count - start) * SIDE * SIDE
            chunk = np.frombuffer(file.read(wanted), dtype=np.uint8)
            if len(chunk) != wanted:
                raise _damaged(path, "imgs is cut short")
            if chunk.max() > 1:
                raise _damaged(path, f"imgs holds the value {chunk.max()}, and masks hold 0 and 1")
            yield np.packbits(chunk).tobytes()


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(f"{path} is not the published file: {reason}. Fetch it again.")


NOTES = (
    ORDER_NOTE,
    "masks are stored without loss as 0 and 255, as VTAB makes them",
    "TensorFlow Datasets reads the .hdf5 file of dSprites; its rows are taken to be those of the "
    ".npz",
)
ABOUT = f"dSprites as published: {FILE}"

add(
    Raw(
        "dsprites_location",
        ABOUT,
        (FILE,),
        functools.partial(splits, column=X_POSITION, rule=location),
        NOTES,
    )
)
add(
    Raw(
        "dsprites_orientation",
        ABOUT,
        (FILE,),
        functools.partial(splits, column=ORIENTATION, rule=orientation),
        NOTES,
    )
)

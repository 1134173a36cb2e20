"""dSprites: x position and orientation, each in 16 classes, from the published files."""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from peftbench.data import hdf5
from peftbench.data.raw.base import (
    ORDER_NOTE,
    VTAB,
    Raw,
    Records,
    SplitCounts,
    Splits,
    add,
    cut_one,
    grey,
    located,
    scratch,
)
from peftbench.errors import DataError
from peftbench.untrusted import DAMAGED, READABLE, read_array, read_header

STEM = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64"
NEED = f"{STEM}.hdf5|{STEM}.npz"
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


def splits(
    folder: Path, column: int, rule: Callable[[int], int], counts: SplitCounts = VTAB
) -> Splits:
    """VTAB-1k of dSprites, with `rule` applied to a `column` of latents_classes.

    Raises `DataError` where the file is damaged. Key of a record: its row (TFDS 4.9.9,
    datasets/dsprites). The images are unpacked once, one bit a pixel.
    """
    path = located(folder, NEED)
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
        if path.suffix == ".hdf5":
            factors = hdf5.whole(path, "latents/classes")
        else:
            with zipfile.ZipFile(path) as archive:  # its `metadata` is pickled
                factors = read_array(archive, "latents_classes.npy")
    except (OSError, *DAMAGED) as error:
        raise _damaged(path, str(error)) from error
    if factors.ndim != 2 or factors.shape[1] != 6 or factors.dtype.kind not in "iu":
        raise _damaged(path, f"latents_classes is {factors.dtype} {factors.shape}")
    return factors


def _bits(path: Path, count: int) -> np.ndarray:
    """All images as bits in a temporary file: (N, 512) uint8. Unpacked bytes would be 3 GB."""
    flat = scratch(_packed(path, count), path)
    return flat.reshape(count, -1)


def _packed(path: Path, count: int) -> Iterator[bytes]:
    chunks = _stored if path.suffix == ".hdf5" else _zipped
    for chunk in chunks(path, count):
        if chunk.max() > 1:
            raise _damaged(path, f"imgs holds the value {chunk.max()}, and masks hold 0 and 1")
        yield np.packbits(chunk).tobytes()


def _stored(path: Path, count: int) -> Iterator[np.ndarray]:
    dataset = hdf5.array(path, "imgs")
    _check_images(path, count, dataset.shape, dataset.dtype)
    for start in range(0, count, _CHUNK):
        yield dataset[start : start + _CHUNK].reshape(-1)


def _zipped(path: Path, count: int) -> Iterator[np.ndarray]:
    with zipfile.ZipFile(path) as archive, archive.open("imgs.npy") as file:
        try:
            if archive.getinfo("imgs.npy").compress_type not in READABLE:
                raise ValueError("imgs.npy is packed in a way that numpy does not write")
            shape, fortran, dtype = read_header(file, "imgs.npy")
        except DAMAGED as error:
            raise _damaged(path, str(error)) from error
        _check_images(path, count, (-1,) if fortran else shape, dtype)
        for start in range(0, count, _CHUNK):
            wanted = min(_CHUNK, count - start) * SIDE * SIDE
            chunk = np.frombuffer(file.read(wanted), dtype=np.uint8)
            if len(chunk) != wanted:
                raise _damaged(path, "imgs is cut short")
            yield chunk


def _check_images(path: Path, count: int, shape: tuple[int, ...], dtype: np.dtype) -> None:
    if shape != (count, SIDE, SIDE) or dtype != np.uint8:
        raise _damaged(path, f"imgs is {dtype} {shape}, and {count} images are labelled")


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(f"{path} is not the published file: {reason}. Fetch it again.")


MASK_NOTE = "masks are stored without loss as 0 and 255, as VTAB makes them"
NOTES = (
    ORDER_NOTE,
    MASK_NOTE,
    "TensorFlow Datasets reads the .hdf5 file of dSprites; where only the .npz is there, its rows "
    "are taken to be the same",
)
ABOUT = f"dSprites as published: {STEM}.hdf5 or .npz"

add(
    Raw(
        "dsprites_location",
        ABOUT,
        (NEED,),
        functools.partial(splits, column=X_POSITION, rule=location),
        NOTES,
    )
)
add(
    Raw(
        "dsprites_orientation",
        ABOUT,
        (NEED,),
        functools.partial(splits, column=ORIENTATION, rule=orientation),
        NOTES,
    )
)

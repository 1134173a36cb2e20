"""SVHN, cropped digits, from its two MATLAB files."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from peftbench.data import matlab
from peftbench.data.raw.base import (
    EXACT_NOTE,
    ORDER_NOTE,
    VTAB,
    Raw,
    Records,
    SplitCounts,
    Splits,
    add,
    cut_tail,
    scratch,
)
from peftbench.errors import DataError

NEEDS = ("train_32x32.mat", "test_32x32.mat")
TRAIN_PERCENT = 90
_CHUNK = 4096  # images written at once: 12 MiB


def digit(value: int) -> int:
    """The class of a label 1..10, where 10 is the digit 0; of others, -1.

    Source: TFDS 4.9.9, datasets/svhn_cropped.
    """
    return value % 10 if 1 <= value <= 10 else -1


def splits(folder: Path, counts: SplitCounts = VTAB) -> Splits:
    """VTAB-1k of SVHN.

    Raises `DataError` where a file is damaged. Key of a record: its row (TFDS 4.9.9,
    datasets/svhn_cropped; VTAB, task_adaptation/data/svhn.py).
    """
    train, test = (_records(folder / name) for name in NEEDS)
    return cut_tail(train, test, TRAIN_PERCENT, counts)


def _records(path: Path) -> Records:
    labels = matlab.whole_numbers(path, matlab.read(path, ["y"]), "y")

    @functools.cache
    def images() -> np.ndarray:
        return scratch(_unpacked(path, len(labels)), path).reshape(-1, 32, 32, 3)

    return Records(
        str(path),
        path.name.partition("_")[0],
        range(len(labels)),
        10,
        lambda row: digit(labels[row]),
        lambda row: images()[row],
    )


def _unpacked(path: Path, count: int) -> Iterator[bytes]:
    """Images one after another; the file holds them compressed, so that it is read as a whole."""
    images = np.asarray(matlab.read(path, ["X"]).get("X"))
    if images.shape != (32, 32, 3, count) or images.dtype != np.uint8:
        raise DataError(
            f"{path}: X is {images.dtype} {images.shape}, not the 32x32 images of {count} labels. "
            "Fetch it again."
        )
    for start in range(0, count, _CHUNK):
        yield np.moveaxis(images[..., start : start + _CHUNK], -1, 0).tobytes()


add(
    Raw(
        "svhn",
        "SVHN's cropped digits as published: train_32x32.mat and test_32x32.mat",
        NEEDS,
        splits,
        (ORDER_NOTE, EXACT_NOTE),
    )
)

"""SmallNORB: azimuth and elevation from its binary matrices, first camera only."""

from __future__ import annotations

import functools
import gzip
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from peftbench.data.raw.base import (
    EXACT_NOTE,
    ORDER_NOTE,
    VTAB,
    Portion,
    Raw,
    Records,
    SplitCounts,
    Splits,
    add,
    cut,
    grey,
    located,
    scratch,
)
from peftbench.data.unpack import Limits
from peftbench.errors import DataError

STEMS = {
    "train": "smallnorb-5x46789x9x18x6x2x96x96-training",
    "test": "smallnorb-5x01235x9x18x6x2x96x96-testing",
}
NEEDS = {
    (split, kind): f"{stem}-{kind}.mat|{stem}-{kind}.mat.gz"
    for split, stem in STEMS.items()
    for kind in ("dat", "info")
}
# of the values, by the magic number
TYPES: dict[int, np.dtype] = {0x1E3D4C55: np.dtype("uint8"), 0x1E3D4C54: np.dtype("<i4")}
ELEVATION, AZIMUTH = 1, 2  # columns of info: instance, elevation, azimuth, lighting
VAL_PERCENT = 50  # of test; the rest is tested


def elevation(value: int) -> int:
    """The class of an elevation 0..8. Source: VTAB, task_adaptation/data/smallnorb.py."""
    return value


def azimuth(value: int) -> int:
    """The class of an azimuth 0, 2, ... 34; of an odd one, -1.

    Source: TFDS 4.9.9, datasets/smallnorb, which halves it.
    """
    return -1 if value % 2 else value // 2


def splits(
    folder: Path, column: int, rule: Callable[[int], int], classes: int, counts: SplitCounts = VTAB
) -> Splits:
    """VTAB-1k of SmallNORB, with `rule` applied to a `column` of info.

    Raises `DataError` where a file is damaged. Key of a record: its row (TFDS 4.9.9,
    datasets/smallnorb).
    """
    parts = (_records(folder, split, column, rule, classes) for split in ("train", "test"))
    return cut_halves(parts, counts)


def cut_halves(parts: Iterable[Records], counts: SplitCounts) -> Splits:
    """All of train, and test in halves: val, and what is tested.

    Source: VTAB, task_adaptation/data/smallnorb.py.
    """
    train, test = (Portion.whole(records) for records in parts)
    half = VAL_PERCENT * test.stop // 100
    return cut(train, test.between(0, half), test.between(half, test.stop), counts)


def _records(
    folder: Path, split: str, column: int, rule: Callable[[int], int], classes: int
) -> Records:
    pixels = located(folder, NEEDS[split, "dat"])
    info = read_matrix(located(folder, NEEDS[split, "info"]))
    if info.ndim != 2 or info.shape[1] != 4:
        raise DataError(f"{folder}: info of {split} is {info.shape}, not (N, 4). Fetch it again.")
    values = info[:, column].tolist()

    @functools.cache
    def images() -> np.ndarray:
        matrix = read_matrix(pixels)
        if matrix.shape != (len(values), 2, 96, 96) or matrix.dtype != np.uint8:
            raise DataError(
                f"{pixels} is {matrix.dtype} {matrix.shape}, not the pairs of 96x96 images of "
                f"{len(values)} labels. Fetch it again."
            )
        return matrix

    return Records(
        str(folder),
        split,
        range(len(values)),
        classes,
        lambda row: rule(values[row]),
        lambda row: grey(images()[row, 0]),
    )


def read_matrix(path: Path) -> np.ndarray:
    """An array of any shape (...) in the binary format of SmallNORB, memory-mapped.

    Little-endian int32: magic number of the type, number of dimensions, at least three sizes; then
    the values (TFDS 4.9.9, datasets/smallnorb). `DataError` where the bytes are not those.
    """
    raw = scratch(_unzipped(path), path) if path.suffix == ".gz" else _mapped(path)
    try:
        magic, rank = raw[:8].view(np.dtype("<i4")).tolist()
        dtype = TYPES[magic]
        if not 1 <= rank <= 8:
            raise ValueError(f"{rank} dimensions")
        start = 8 + 4 * max(3, rank)
        shape = tuple(raw[8 : 8 + 4 * rank].view(np.dtype("<i4")).tolist())
        array: np.ndarray = raw[start:].view(dtype).reshape(shape)
    except (ValueError, KeyError) as error:
        raise DataError(
            f"{path} is no whole matrix of SmallNORB ({error}). Fetch it again."
        ) from error
    return array


def _mapped(path: Path) -> np.ndarray:
    if not path.stat().st_size:
        raise DataError(f"{path} is empty. Fetch it again.")
    return np.memmap(path, dtype=np.uint8, mode="r")


def _unzipped(path: Path) -> Iterator[bytes]:
    room = Limits.of(path).bytes
    with gzip.open(path) as file:
        while chunk := file.read(1 << 22):
            room -= len(chunk)
            if room < 0:
                raise DataError(f"{path} unpacks to far more than was published. Fetch it again.")
            yield chunk


CAMERA_NOTE = "only the image of the first camera is used, as in VTAB"
NOTES = (ORDER_NOTE, EXACT_NOTE, CAMERA_NOTE)
ABOUT = "SmallNORB as published: the dat and info files of training and testing, .mat or .mat.gz"

add(
    Raw(
        "smallnorb_azimuth",
        ABOUT,
        tuple(NEEDS.values()),
        functools.partial(splits, column=AZIMUTH, rule=azimuth, classes=18),
        NOTES,
    )
)
add(
    Raw(
        "smallnorb_elevation",
        ABOUT,
        tuple(NEEDS.values()),
        functools.partial(splits, column=ELEVATION, rule=elevation, classes=9),
        NOTES,
    )
)

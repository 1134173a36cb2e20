"""Patch Camelyon from its HDF5 files."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np

from peftbench.data import hdf5
from peftbench.data.raw.base import (
    EXACT_NOTE,
    ORDER_NOTE,
    VTAB,
    Raw,
    Records,
    SplitCounts,
    Splits,
    add,
    cut_own,
)
from peftbench.errors import DataError

PARTS = {"train": "train", "validation": "valid", "test": "test"}  # of TFDS: in file names
NEEDS = tuple(
    f"camelyonpatch_level_2_split_{part}_{kind}.h5" for part in PARTS.values() for kind in "xy"
)


def splits(folder: Path, counts: SplitCounts = VTAB) -> Splits:
    """VTAB-1k of Patch Camelyon.

    Raises `DataError` where h5py is missing or a file is damaged. Key of a record: the part and the
    row, such as valid_7 (TFDS 4.9.9, datasets/patch_camelyon).
    """
    return cut_own((_records(folder, split, part) for split, part in PARTS.items()), counts)


def _records(folder: Path, split: str, part: str) -> Records:
    stem = f"camelyonpatch_level_2_split_{part}"
    where = folder / f"{stem}_x.h5"
    labels = hdf5.whole(folder / f"{stem}_y.h5", "y").reshape(-1).tolist()

    @functools.cache
    def images() -> Any:
        x = hdf5.array(where, "x")
        if x.shape != (len(labels), 96, 96, 3) or x.dtype != np.uint8:
            raise DataError(
                f"{where}: x is {x.dtype} {x.shape}, not the 96x96 images of {len(labels)} "
                "labels. Fetch it again."
            )
        return x

    return Records(
        str(where),
        split,
        tuple(f"{part}_{row}" for row in range(len(labels))),
        2,
        lambda row: int(labels[row]),
        lambda row: images()[row],
    )


add(
    Raw(
        "patch_camelyon",
        "the six files camelyonpatch_level_2_split_{train,valid,test}_{x,y}.h5, unpacked from .gz",
        NEEDS,
        splits,
        (ORDER_NOTE, EXACT_NOTE),
    )
)

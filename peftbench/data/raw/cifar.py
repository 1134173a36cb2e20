"""CIFAR-100 from its binary version."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from peftbench.data.layouts.cifar import pixels, read_table
from peftbench.data.raw.base import (
    EXACT_NOTE,
    ORDER_NOTE,
    VTAB,
    Raw,
    Records,
    SplitCounts,
    Splits,
    add,
    below,
    cut_tail,
    located,
)

NEEDS = below(["cifar-100-binary"], "train.bin", "test.bin")
TRAIN_PERCENT = 90


def splits(folder: Path, counts: SplitCounts = VTAB) -> Splits:
    """VTAB-1k of CIFAR-100 with its fine labels.

    Raises `DataError` where a file holds no whole rows. Key of a record: its row (TFDS 4.9.9,
    image_classification/cifar.py; VTAB, task_adaptation/data/cifar.py).
    """
    train, test = (_records(located(folder, need)) for need in NEEDS)
    return cut_tail(train, test, TRAIN_PERCENT, counts)


def _records(path: Path) -> Records:
    table = read_table(path)
    images = pixels(table)
    return Records(
        str(path),
        path.stem,
        range(len(table)),
        100,
        lambda row: int(table[row, 1]),
        lambda row: np.ascontiguousarray(images[row]),
    )


add(
    Raw(
        "cifar100",
        "cifar-100-binary as published: train.bin and test.bin (cifar-100-python is pickled and "
        "not opened)",
        NEEDS,
        splits,
        (ORDER_NOTE, EXACT_NOTE),
    )
)

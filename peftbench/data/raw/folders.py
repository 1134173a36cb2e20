"""Archives with one folder for each class and no splits: EuroSAT and RESISC45."""

from __future__ import annotations

import functools
from pathlib import Path

from peftbench.data.raw.base import (
    COPIED_NOTE,
    ORDER_NOTE,
    VTAB,
    Raw,
    Records,
    SplitCounts,
    Splits,
    add,
    cut_one,
    located,
)
from peftbench.data.tree import folders, pictures_in
from peftbench.errors import DataError

TRAIN_PERCENT, VAL_PERCENT = 60, 20


def splits(folder: Path, need: str, classes: int, counts: SplitCounts = VTAB) -> Splits:
    """VTAB-1k of images in class folders; classes are the sorted names of the folders.

    Raises `DataError` where there are not `classes` of them. Key of a record: its class and the
    name of its file, such as River_River_1.jpg (TFDS 4.9.9, image_classification/eurosat.py,
    datasets/resisc45; VTAB, task_adaptation/data/eurosat.py, resisc45.py).
    """
    root = located(folder, need)
    names = sorted(path.name for path in folders(root))
    if len(names) != classes:
        raise DataError(
            f"{root} has {len(names)} class folders, and {classes} are published. Unpack the "
            "archive again."
        )
    rows = [
        (number, path)
        for number, name in enumerate(names)
        for path in pictures_in(root / name, deep=False)
    ]
    records = Records(
        str(root),
        "train",
        tuple(f"{names[number]}_{path.name}" for number, path in rows),
        classes,
        lambda row: rows[row][0],
        lambda row: rows[row][1],
    )
    return cut_one(records, TRAIN_PERCENT, VAL_PERCENT, counts)


EUROSAT = "2750/|EuroSAT/2750/"
RESISC45 = "NWPU-RESISC45/"

add(
    Raw(
        "eurosat",
        "EuroSAT.zip (RGB) unpacked: the folder 2750/ with ten class folders",
        (EUROSAT,),
        functools.partial(splits, need=EUROSAT, classes=10),
        (ORDER_NOTE, COPIED_NOTE),
    )
)
add(
    Raw(
        "resisc45",
        "NWPU-RESISC45.rar unpacked: the folder NWPU-RESISC45/ with 45 class folders",
        (RESISC45,),
        functools.partial(splits, need=RESISC45, classes=45),
        (ORDER_NOTE, COPIED_NOTE),
    )
)

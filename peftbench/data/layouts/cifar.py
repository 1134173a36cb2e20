"""CIFAR-100 as its authors publish it, in the binary version.

Their version for Python, which torchvision downloads, is a pickle, and pickles are not opened here:
reading one can run any code.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from peftbench.data.files import ArrayPictures
from peftbench.data.layouts.base import Contents, Layout, Rows, register_layout
from peftbench.data.layouts.lists import read_text
from peftbench.errors import DataError
from peftbench.spec import DatasetSpec

SIDE = 32
PIXELS = 3 * SIDE * SIDE


def read_table(path: Path) -> np.ndarray:
    """Rows of a coarse label, a fine label and 3072 pixels, memory-mapped: (N, 3074) uint8.

    `DataError` where the file holds no whole rows.
    """
    size = path.stat().st_size
    if not size or size % (PIXELS + 2):
        raise DataError(
            f"{path} has {size} bytes, which are no rows of {PIXELS + 2}. Fetch it again."
        )
    return np.memmap(path, dtype=np.uint8, mode="r").reshape(-1, PIXELS + 2)


def pixels(table: np.ndarray) -> np.ndarray:
    """The images of a table, stored as a plane for red, green and blue: (N, 32, 32, 3) uint8."""
    return table[:, 2:].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)


def _read_binary(folder: Path, spec: DatasetSpec) -> Contents:
    arrays, rows = {}, {}
    for split in ("train", "test"):
        path = folder / f"{split}.bin"
        table = read_table(path)
        arrays[split] = pixels(table)
        names = tuple(f"{split}/{row:05d}" for row in range(len(table)))
        rows[split] = Rows(names, tuple(table[:, 1].tolist()))
    class_names = tuple(read_text(folder / "fine_label_names.txt").split())
    return Contents(class_names, rows, ArrayPictures(arrays))


register_layout(
    Layout(
        name="cifar_binary",
        about="cifar-100-binary: train.bin, test.bin and fine_label_names.txt (cifar-100-python is "
        "pickled and not opened)",
        needs=lambda spec: ("train.bin", "test.bin", "fine_label_names.txt"),
        read=_read_binary,
    )
)

"""Sun397 from its archive and the file lists of TensorFlow Datasets."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
from PIL import Image as Pillow

from peftbench.data import images
from peftbench.data.layouts.base import check_name
from peftbench.data.layouts.lists import read_text
from peftbench.data.raw.base import (
    ORDER_NOTE,
    VERSION,
    VTAB,
    Raw,
    Records,
    SplitCounts,
    Splits,
    add,
    cut_own,
    located,
)
from peftbench.errors import DataError

LISTS = {
    "train": "sun397_tfds_tr.txt",
    "validation": "sun397_tfds_va.txt",
    "test": "sun397_tfds_te.txt",
}
NEEDS = ("SUN397/", *LISTS.values())
CLASSES = 397
# left out by TFDS, because decoders fail or differ
IGNORED = (
    "/c/church/outdoor/sun_bhenjvsvrtumjuri.jpg",
    "/t/track/outdoor/sun_aophkoiosslinihb.jpg",
)
MOST_PIXELS = 120_000
QUALITY = 95  # OpenCV's default: the builder names 72 in its description and passes none


def splits(folder: Path, counts: SplitCounts = VTAB, classes: int = CLASSES) -> Splits:
    """VTAB-1k of Sun397.

    Classes are the sorted folders that the lists name; `DataError` where they are not `classes`.
    Key of a record: such as /a/abbey/sun_aaaulhwrhqgejnyt.jpg (TFDS 4.9.9, datasets/sun397).
    """
    root = located(folder, NEEDS[0])
    names = {
        split: [line.strip() for line in read_text(folder / name).splitlines() if line.strip()]
        for split, name in LISTS.items()
    }
    places = sorted({name.rpartition("/")[0] for part in names.values() for name in part})
    if len(places) != classes:
        raise DataError(
            f"{folder}: the lists name {len(places)} places, and {classes} are published. Fetch "
            "them again."
        )
    number = {place: i for i, place in enumerate(places)}

    def records(split: str) -> Records:
        keys = tuple(name for name in names[split] if name not in IGNORED)
        for key in keys:
            check_name(key.lstrip("/"), str(folder / LISTS[split]))
        return Records(
            str(folder / LISTS[split]),
            split,
            keys,
            classes,
            lambda row: number[keys[row].rpartition("/")[0]],
            lambda row: shrunk(root / keys[row].lstrip("/")),
        )

    return cut_own(map(records, ("train", "validation", "test")), counts)


def shrunk(path: Path) -> bytes:
    """A picture with at most 120,000 pixels as JPEG bytes; `DataError` where it cannot be read.

    Shrunk by the bilinear rule of OpenCV, which mixes the four nearest pixels and no more.
    """
    picture = images.decode(path, str(path))
    width, height = picture.size
    if width * height > MOST_PIXELS:
        factor = math.sqrt(MOST_PIXELS / (width * height))
        size = round(width * factor), round(height * factor)
        picture = Pillow.fromarray(bilinear(np.asarray(picture), size, 1 / factor))
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=QUALITY)
    return buffer.getvalue()


def bilinear(pixels: np.ndarray, size: tuple[int, int], step: float) -> np.ndarray:
    """An image (H, W, 3) uint8 at `size` (width, height), `step` source pixels apart.

    Pillow's own bilinear filter widens when it shrinks, which OpenCV's does not.
    """
    rows, below, down = _neighbours(size[1], pixels.shape[0], step)
    columns, right, across = _neighbours(size[0], pixels.shape[1], step)
    wide = pixels.astype(np.float32)
    across = across[None, :, None]
    down = down[:, None, None]
    mixed = wide[:, columns] * (1 - across) + wide[:, right] * across
    mixed = mixed[rows] * (1 - down) + mixed[below] * down
    return np.rint(mixed).clip(0, 255).astype(np.uint8)


def _neighbours(count: int, limit: int, step: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each new pixel the two old ones it lies between, and its share of the second."""
    centres = ((np.arange(count) + 0.5) * step - 0.5).clip(0, limit - 1)
    first = np.floor(centres).astype(np.int64)
    share = (centres - first).astype(np.float32)
    return first, np.minimum(first + 1, limit - 1), share


add(
    Raw(
        "sun397",
        "SUN397.tar.gz unpacked (SUN397/), and beside it the lists sun397_tfds_{tr,va,te}.txt, "
        "which are in tensorflow_datasets/image_classification/ of TensorFlow Datasets' source",
        NEEDS,
        splits,
        (
            ORDER_NOTE,
            "images above 120,000 pixels are shrunk and all are encoded again as JPEG, as "
            "TensorFlow Datasets does with OpenCV, whose sums round otherwise, so that pixels of "
            "shrunk images differ by about one level",
            f"the quality is 95, which the code of version {VERSION} comes to, and not the 72 of "
            "its description",
            "two images are left out, as in that version; earlier builds of the same number may "
            "have them",
        ),
    )
)

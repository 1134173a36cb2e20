"""What the raw archives of a task are, and how VTAB-1k is cut from their records."""

from __future__ import annotations

import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from peftbench.data.layouts.base import held
from peftbench.data.raw.order import Key, shuffled
from peftbench.errors import DataError
from peftbench.registry import Registry

# an array (H, W, 3) uint8, a file that is copied, or the bytes of an encoded image
Image = np.ndarray | Path | bytes

VERSION = "4.9.9"  # of TFDS, whose record order and builders are followed
ORDER_NOTE = (
    f"images are chosen by the record order of TensorFlow Datasets {VERSION}, which another "
    "version may change; a folder exported through it can number the same images otherwise, "
    "because it reads several files in turn"
)
COPIED_NOTE = (
    "JPEG files are copied byte for byte; Pillow and TensorFlow decode them with different "
    "libraries, so that pixels can differ by a few levels, and only the reader here turns "
    "pictures upright by their EXIF tag"
)
EXACT_NOTE = "images are stored without loss, pixel for pixel those of the archive"


@dataclass(frozen=True)
class SplitCounts:
    """How many images train and tune; smaller ones make the arithmetic testable on few files."""

    train: int = 800
    val: int = 200


VTAB = SplitCounts()


@dataclass(frozen=True)
class RawSplit:
    """Images of one split, in order: their classes, and the image at a position."""

    labels: tuple[int, ...]
    image: Callable[[int], Image]


Splits = Mapping[str, RawSplit]


@dataclass(frozen=True)
class Raw:
    """What must be on the disk for a task, and how it becomes splits.

    `about` is one line for people. `needs` are paths in the raw folder as in
    `peftbench.data.layouts.base.held`. `splits` gives "train800", "val200" and "test" of a folder,
    in order. `notes` say where the result may differ from the official data.
    """

    name: str
    about: str
    needs: tuple[str, ...]
    splits: Callable[[Path], Splits]
    notes: tuple[str, ...]


RAW: Registry[Raw] = Registry("raw task")


def add(raw: Raw) -> Raw:
    """Make the raw form of a task known by its name."""
    return RAW.register(raw.name)(raw)


def below(folders: Sequence[str], *paths: str) -> tuple[str, ...]:
    """Needs for `paths` that lie in the raw folder itself or in one of `folders` inside it."""
    return tuple("|".join([path, *(f"{f}/{path}" for f in folders)]) for path in paths)


def located(folder: Path, need: str) -> Path:
    """The path that meets a need, "a|b" being either; `DataError` where none does."""
    paths, _ = held(folder, (need,))
    if not paths:
        raise DataError(f"{folder} has no {need.replace('|', ' or ')}. Add it.")
    return folder / paths[0]


@dataclass(frozen=True)
class Records:
    """A split of TFDS as its builder yields it: keys, labels and images by row, not yet shuffled.

    `where` names the source in errors, `split` is the name that TFDS gives the split. `ordered`
    records lie in the order of TFDS already.
    """

    where: str
    split: str
    keys: Sequence[Key]
    classes: int
    label: Callable[[int], int]
    image: Callable[[int], Image]
    ordered: bool = False

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True)
class Portion:
    """Records of a split from `start` up to `stop` in the order of TFDS."""

    records: Records
    order: np.ndarray
    start: int
    stop: int

    @classmethod
    def whole(cls, records: Records) -> Portion:
        count = len(records)
        order = np.arange(count) if records.ordered else shuffled(records.split, records.keys)
        return cls(records, order, 0, count)

    def between(self, start: int, stop: int) -> Portion:
        return Portion(self.records, self.order, start, stop)

    def first(self, count: int) -> RawSplit:
        """The first `count` of the portion; `DataError` where it has fewer."""
        records = self.records
        if self.stop - self.start < count:
            raise DataError(
                f"{records.where}: {count:,} images are needed from records {self.start:,} to "
                f"{self.stop:,} of the split {records.split}, which has {len(records):,}. "
                "Something is missing; unpack or fetch it again."
            )
        rows = self.order[self.start : self.start + count]
        shown = tqdm(rows, f"labels of {records.split}", disable=None, delay=2)
        labels = tuple(_checked(records, int(row)) for row in shown)
        return RawSplit(labels, lambda position: records.image(int(rows[position])))

    def all(self) -> RawSplit:
        """The whole portion; `DataError` where it is empty."""
        return self.first(max(1, self.stop - self.start))


def _checked(records: Records, row: int) -> int:
    label = records.label(row)
    if not 0 <= label < records.classes:
        raise DataError(
            f"{records.where}: the record {records.keys[row]!r} of the split {records.split} has "
            f"the class {label}, and there are {records.classes} from 0 on. It is damaged, or "
            "another version; fetch it again."
        )
    return label


def cut(train: Portion, val: Portion, test: Portion, counts: SplitCounts) -> Splits:
    """VTAB-1k from its three portions: the first images of train and val, and all of test."""
    return {
        "train800": train.first(counts.train),
        "val200": val.first(counts.val),
        "test": test.all(),
    }


def cut_own(parts: Iterable[Records], counts: SplitCounts) -> Splits:
    """For data that TFDS has in three splits: train, val and test."""
    train, val, test = (Portion.whole(records) for records in parts)
    return cut(train, val, test, counts)


def cut_tail(train: Records, test: Records, percent: int, counts: SplitCounts) -> Splits:
    """For data without a val split: it is what follows the first `percent` of train."""
    whole = Portion.whole(train)
    border = percent * len(train) // 100  # rounded down, as in task_adaptation/data/svhn.py
    val = whole.between(border, len(train))
    return cut(whole.between(0, border), val, Portion.whole(test), counts)


def cut_one(records: Records, train: int, val: int, counts: SplitCounts) -> Splits:
    """For data that TFDS has in one split: percentages for train and val, the rest is test."""
    whole = Portion.whole(records)
    # each share is rounded down by itself, as in task_adaptation/data/dsprites.py and eurosat.py
    border = train * len(records) // 100
    end = border + val * len(records) // 100
    parts = whole.between(0, border), whole.between(border, end), whole.between(end, len(records))
    return cut(*parts, counts)


def scratch(chunks: Iterable[bytes], source: Path) -> np.ndarray:
    """Bytes in a temporary file that is memory-mapped and vanishes with the array: (N,) uint8."""
    try:
        with tempfile.TemporaryFile(prefix="peftbench-") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            if not file.tell():
                raise DataError(f"{source} is empty. Fetch it again.")
            return np.memmap(file, dtype=np.uint8, mode="r")
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(
            f"Cannot unpack {source} into {tempfile.gettempdir()}: {reason}. "
            "Set TMPDIR to a folder with space, or fetch the file again if it is damaged."
        ) from error


def grey(pixels: np.ndarray) -> np.ndarray:
    """A one-channel image (H, W) with its channel repeated: (H, W, 3) uint8."""
    return np.repeat(pixels[:, :, None], 3, axis=2)

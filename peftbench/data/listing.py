"""What a reader knows of a data set before any image is decoded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from PIL import Image

from peftbench.data.images import FULL, Extent, Levels
from peftbench.registry import Registry
from peftbench.spec import DatasetSpec, Preprocessing


@dataclass(frozen=True)
class SplitList:
    """The images of one split in their fixed order."""

    names: tuple[str, ...]
    labels: tuple[int, ...]
    digests: tuple[str, ...]  # SHA-256 of the stored bytes of each image

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def of(cls, rows: Sequence[Sequence[Any]]) -> SplitList:
        """From (name, label, digest) of each image."""
        names, labels, digests = zip(*rows, strict=True) if rows else ((), (), ())
        return cls(tuple(names), tuple(labels), tuple(digests))

    def rows(self, indices: np.ndarray) -> SplitList:
        """The images at `indices` (n,), in their order."""
        return SplitList(
            tuple(self.names[i] for i in indices),
            tuple(self.labels[i] for i in indices),
            tuple(self.digests[i] for i in indices),
        )

    def rollup_lines(self, split: str) -> list[str]:
        """One line an image, from which the roll-up hash is made."""
        rows = zip(self.names, self.labels, self.digests, strict=True)
        return [f"{split}\t{name}\t{label}\t{digest}\n" for name, label, digest in rows]


Decode: TypeAlias = Callable[[SplitList, Preprocessing, str], np.ndarray]


class Pictures(Protocol):
    """Something that holds pictures by name."""

    def digests(self, names: Sequence[str]) -> tuple[str, ...]:
        """SHA-256 of the stored bytes of each; `DataError` where one is not there."""

    def open(self, name: str, levels: Levels = FULL) -> Image.Image:
        """The decoded picture as RGB; `DataError` where it is broken."""

    def extent(self, name: str) -> Extent | None:
        """As `images.extent`, of pictures with more than 8 bits; `DataError` where it is broken."""

    def path(self, name: str) -> Path | None:
        """The file that holds the picture and nothing else, if there is one."""


@dataclass(frozen=True)
class Home:
    """Where a data set was read from, and as what."""

    folder: Path
    layout: str
    pictures: Pictures
    lists: tuple[str, ...] = ()  # files below its folder that say what is in which split
    # splits that the manifest covers, where they are not those of the listing
    covered: Mapping[str, SplitList] = field(default_factory=dict)


@dataclass(frozen=True)
class Origin:
    """Where a data set that a user brings was found, and how its splits came about."""

    name: str  # that the run gives it
    place: str
    kind: str  # how it lies there: "class folders"
    drawn: tuple[str, ...]  # splits that were drawn here
    split_seed: int
    remarks: tuple[str, ...] = ()  # sentences on what a reader had to decide, or left aside
    fold: str = ""  # "fold 0 of 5", where folds take turns as test


@dataclass(frozen=True)
class Listing:
    """A data set as listed: three disjoint splits, their classes, and how to get the pixels."""

    title: str
    suite: str
    suite_version: int
    group: str
    licence: str
    source: str
    notice: str
    class_names: tuple[str, ...]
    train: SplitList
    val: SplitList
    test: SplitList
    manifest: str  # roll-up hash over names, labels, bytes and splits
    # (images, preprocessing, name of the split) -> (N, S, S, 3) uint8, or whole pictures with
    # their sizes: `images.row_type`
    decode: Decode
    notes: tuple[str, ...] = ()  # what the record of a run must say about its data
    origin: Origin | None = None  # of a data set that a user brings
    home: Home | None = None  # of data that lies in a folder
    extra: str = ""  # one more line of the roll-up, about what is not in the splits
    content: str = ""  # of a data set that a user brings: hash of its images, whatever the splits
    # what is to be told of the pixels before training; wide pictures are decoded for it, once
    remarks: Callable[[], tuple[str, ...]] = tuple
    # what is black and white in pictures of more than 8 bits, where there are any
    levels: Callable[[], Levels | None] = lambda: None
    # one picture by its name, as it is decoded before it is made square, and not stored; raises
    # `DataError` where it is broken. `None` where pictures are decoded together alone
    open: Callable[[str], Image.Image] | None = None

    def covered(self) -> Mapping[str, SplitList]:
        """The splits from which the roll-up hash is made."""
        return (self.home.covered if self.home else {}) or dict(self.splits())

    def splits(self) -> tuple[tuple[str, SplitList], ...]:
        """The three splits with their names."""
        return (("train", self.train), ("val", self.val), ("test", self.test))

    def copies_in_test(self) -> int:
        """How many test images are byte for byte also in train or val."""
        trained = {*self.train.digests, *self.val.digests}
        return sum(digest in trained for digest in self.test.digests)


Reader: TypeAlias = Callable[[DatasetSpec], Listing]

READERS: Registry[Reader] = Registry("data set reader")
read_dataset = READERS.register


def content_of(splits: Mapping[str, SplitList], class_names: Sequence[str]) -> str:
    """SHA-256 over classes, names, labels and bytes of all images, whatever split they are in."""
    lines = [line for part in splits.values() for line in part.rollup_lines("image")]
    return rollup([*lines, *(f"class\t{i}\t{name}\n" for i, name in enumerate(class_names))])


def rollup_of(splits: Mapping[str, SplitList], extra: str) -> str:
    """SHA-256 over the sorted lines of all images and the `extra` one, in hexadecimal."""
    lines = [line for name, part in splits.items() for line in part.rollup_lines(name)]
    return rollup([*lines, *([extra] if extra else [])])


def rollup(lines: list[str]) -> str:
    """SHA-256 over the sorted lines, in hexadecimal."""
    return hashlib.sha256("".join(sorted(lines)).encode("utf-8", "surrogateescape")).hexdigest()

"""What a reader knows of a data set before any image is decoded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

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

    def rows(self, indices: np.ndarray) -> SplitList:
        """The images at `indices`."""
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


def rollup(lines: list[str]) -> str:
    """SHA-256 over the sorted lines, in hexadecimal."""
    return hashlib.sha256("".join(sorted(lines)).encode("utf-8", "surrogateescape")).hexdigest()

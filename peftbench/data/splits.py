"""Typed split roles: what trains, what is reported while tuning, and the test split read once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, NoReturn

import numpy as np

from peftbench.data.images import Levels
from peftbench.errors import DataError, SplitRoleError


@dataclass(frozen=True, eq=False)
class _OpenSplit:
    """Images in memory, or memory-mapped, with their labels and names; the arrays are read-only."""

    images: np.ndarray  # (N, S, S, 3) uint8
    labels: np.ndarray  # (N,) int64
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        _check(self.images, self.labels, self.names)
        self.images.flags.writeable = False
        self.labels.flags.writeable = False

    def __len__(self) -> int:
        return len(self.names)

    @property
    def num_classes(self) -> int:
        """How many classes have an image in it."""
        return len(np.unique(self.labels))


@dataclass(frozen=True, eq=False)
class TrainSplit(_OpenSplit):
    """Images that may train: the train list, or train and val together in the final phase.

    Where crops are to be cut, the images are whole pictures, squashed into squares.
    """

    sizes: np.ndarray | None = None  # (N, 2) width and height of the pictures before squashing

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sizes is not None:
            assert self.sizes.shape == (len(self.names), 2), self.sizes.shape
            self.sizes.flags.writeable = False


class ValSplit(_OpenSplit):
    """Images that choose hyper-parameters and are never trained on in the same run."""


class TestArrays(NamedTuple):
    """What opening a test split gives."""

    images: np.ndarray  # (N, S, S, 3) uint8
    labels: np.ndarray  # (N,) int64


TestArrays.__test__ = False  # type: ignore[attr-defined]  # not a pytest class


class TestSplit:
    """Images that are reported once; the arrays are handed out by the first `open_once` only."""

    __test__: ClassVar[bool] = False  # not a pytest class
    __slots__ = ("_sealed", "names", "num_classes")

    def __init__(self, images: np.ndarray, labels: np.ndarray, names: tuple[str, ...]) -> None:
        _check(images, labels, names)
        images.flags.writeable = False
        labels.flags.writeable = False
        self.names = names
        self.num_classes = len(np.unique(labels))  # that have an image in it
        self._sealed: list[TestArrays] = [TestArrays(images, labels)]

    def open_once(self) -> TestArrays:
        """The arrays; a second call raises `SplitRoleError`."""
        if not self._sealed:
            raise SplitRoleError(
                "The test split was opened a second time in one run; it is reported once. "
                "Use the tune phase to look at results while choosing."
            )
        return self._sealed.pop()

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"TestSplit({len(self)} images, {'sealed' if self._sealed else 'opened'})"

    def __reduce__(self) -> NoReturn:
        # A copy could be opened again, so there are none: neither pickle nor copy.deepcopy.
        raise SplitRoleError("A test split cannot be copied or pickled. Load the data set again.")


@dataclass(frozen=True)
class Splits:
    """What a run may see: one split that trains, one that is reported."""

    train: TrainSplit
    report: ValSplit | TestSplit
    class_names: tuple[str, ...]
    manifest: str  # roll-up hash of the data set
    notes: tuple[str, ...] = ()  # what the record of a run must say about its data
    of_files: bool = False  # whether the names of images are paths of files
    # by which pictures of more than 8 bits were read, if there are any
    levels: Levels | None = None
    # of the reported images, among all of a data set that a user brings; `None` of others
    numbers: tuple[int, ...] | None = None
    # beside test, where a final run on one's own images does not train on it
    val: ValSplit | None = None

    @property
    def reported_files(self) -> tuple[str, ...] | None:
        """Paths of the images that are reported, below the data's folder; `None` without files."""
        return self.report.names if self.of_files else None

    @property
    def num_classes(self) -> int:
        """How many classes there are, whether or not a cut left images of each."""
        return len(self.class_names)


@dataclass(frozen=True)
class Assignment:
    """Sorted row numbers of each part of a split."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


def stratified_split(
    labels: np.ndarray, val_fraction: float, test_fraction: float, generator: np.random.Generator
) -> Assignment:
    """Each class cut into train, val and test by rounded shares; `labels` are (N,).

    A part whose fraction is zero is empty; every other part gets at least one image of each class.
    A class with too few images raises `DataError`.
    """
    if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
        raise DataError(
            f"val_fraction={val_fraction:g} and test_fraction={test_fraction:g} leave nothing to "
            "train on. Use fractions that are not negative and sum to less than 1."
        )
    train, val, test = [], [], []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        num_val = share_of(len(rows), val_fraction)
        num_test = share_of(len(rows), test_fraction)
        if num_val + num_test >= len(rows):
            need = 1 + (val_fraction > 0) + (test_fraction > 0)
            raise DataError(
                f"Class number {label} has {len(rows)} images; this split needs at least "
                f"{max(need, num_val + num_test + 1)} of each class."
            )
        order = generator.permutation(rows)
        test.append(order[:num_test])
        val.append(order[num_test : num_test + num_val])
        train.append(order[num_test + num_val :])
    return Assignment(*(np.sort(np.concatenate(part)) for part in (train, val, test)))


def stratified_cut(labels: np.ndarray, limit: int, generator: np.random.Generator) -> np.ndarray:
    """Sorted rows (n,) of at most `limit` images, with the class shares of `labels` (N,) kept."""
    if limit < 1:
        raise DataError(f"limit={limit} keeps no image. Use a positive number or leave it out.")
    if len(labels) <= limit:
        return np.arange(len(labels))
    classes, counts = np.unique(labels, return_counts=True)
    exact = limit * counts / len(labels)
    quotas = np.floor(exact).astype(np.int64)
    # Largest remainders first; equal remainders go to the lower class number.
    order = np.argsort(quotas - exact, kind="stable")
    quotas[order[: limit - quotas.sum()]] += 1
    kept = [
        generator.permutation(np.flatnonzero(labels == label))[:quota]
        for label, quota in zip(classes, quotas, strict=True)
    ]
    return np.sort(np.concatenate(kept))


def share_of(count: int, fraction: float) -> int:
    """How many of `count` images are a fraction of them: at least one, unless it is zero."""
    return 0 if fraction == 0 else max(1, round(count * fraction))


def _check(images: np.ndarray, labels: np.ndarray, names: tuple[str, ...]) -> None:
    assert images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] == 3, images.shape
    assert labels.dtype == np.int64 and labels.shape == (len(images),), labels.shape
    assert len(names) == len(images), (len(names), len(images))

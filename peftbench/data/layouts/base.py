"""What a layout is: the files by which it is known, and how it is read.

An installed package adds layouts through the entry point group `peftbench.layouts`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from peftbench.data.listing import Pictures
from peftbench.errors import DataError
from peftbench.registry import Registry
from peftbench.spec import DatasetSpec


@dataclass(frozen=True)
class Rows:
    """Images of one part by name, and their classes."""

    names: tuple[str, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def of(cls, pairs: Sequence[tuple[str, int]]) -> Rows:
        """Sorted by name, so that the order in which somebody wrote a list changes nothing."""
        ordered = sorted(pairs, key=lambda pair: pair[0].encode("utf-8", "surrogateescape"))
        return cls(tuple(name for name, _ in ordered), tuple(label for _, label in ordered))


@dataclass(frozen=True)
class Contents:
    """What a folder holds: "train", "test" and, where the layout has one, "val"."""

    class_names: tuple[str, ...]
    parts: Mapping[str, Rows]
    pictures: Pictures
    notes: tuple[str, ...] = ()  # what the record of a run must say
    # parts that the manifest covers, where they are others: a few-shot set is one data set,
    # whichever of its lists trains
    covered: Mapping[str, Rows] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """One way in which people have a data set on their disk."""

    name: str
    about: str  # what it is, for people who look for it
    # paths that must exist, folders with a slash at their end; "a|b" is either
    needs: Callable[[DatasetSpec], tuple[str, ...]]
    read: Callable[[Path, DatasetSpec], Contents]


@dataclass(frozen=True)
class Match:
    """A folder held against a layout."""

    folder: Path
    layout: Layout
    found: tuple[str, ...]
    missing: tuple[str, ...]


LAYOUTS: Registry[Layout] = Registry("layout")


def register_layout(layout: Layout) -> Layout:
    """Make a layout known by its name; a taken name raises `ValueError`."""
    return LAYOUTS.register(layout.name)(layout)


def match(folder: Path, layout: Layout, spec: DatasetSpec) -> Match:
    """Which of the needed paths are there."""
    return Match(folder, layout, *held(folder, layout.needs(spec)))


def held(folder: Path, needs: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Which of the needed paths are there, and which are missing.

    A path that ends with a slash is a folder, "a|b" is either, and a star stands for any name.
    """
    found: list[str] = []
    missing: list[str] = []
    for need in needs:
        there = [path for path in need.split("|") if _exists(folder, path)]
        (found if there else missing).append(there[0] if there else need)
    return tuple(found), tuple(missing)


def _exists(folder: Path, path: str) -> bool:
    candidates = folder.glob(path.rstrip("/")) if "*" in path else [folder / path]
    return any(c.is_dir() if path.endswith("/") else c.is_file() for c in candidates)


def existing(folder: Path, *paths: str) -> Path:
    """The first of `paths` that exists below `folder`; `DataError` if none does."""
    for path in paths:
        if (folder / path).exists():
            return folder / path
    raise DataError(f"{folder} has no {' or '.join(paths)}. Add it.")


def image_root(folder: Path, candidates: Sequence[str], first: str, lists: str) -> Path:
    """The folder below which the names in a list are found, judged by its `first` name."""
    for candidate in candidates:
        if (folder / candidate / first).is_file():
            return folder / candidate
    places = ", ".join(f"{c}/" if c != "." else "the folder itself" for c in candidates)
    raise DataError(
        f"{folder}: {first!r}, the first image of {lists}, is not there. Looked in {places}. "
        "Put the images beside their lists."
    )


def check_name(name: str, where: str) -> str:
    """A relative path that stays below its folder, else `DataError`."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise DataError(f"{where}: {name!r} leads out of the data set. Use paths below its folder.")
    return name


def reindexed(pairs: Mapping[str, Sequence[tuple[str, int]]]) -> tuple[tuple[int, ...], dict]:
    """Ids in use, in their order, and the parts as rows with classes from 0 on.

    The ids of all parts together make the index: if each part had its own, a class that one part
    lacks would shift all later ones.
    """
    ids = sorted({label for part in pairs.values() for _, label in part})
    number = {label: i for i, label in enumerate(ids)}
    parts = {
        split: Rows.of([(name, number[label]) for name, label in part])
        for split, part in pairs.items()
    }
    return tuple(ids), parts

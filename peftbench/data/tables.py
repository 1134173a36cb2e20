"""Data sets listed in one file: a .csv or .tsv with a column of paths and one of labels.

Paths are relative to the folder of the file. A column `split` is optional; without it train, val
and test are drawn as for class folders, and a list of a folder's images is the same data set as the
folder. Rows are ordered by class and path, so that the order of the lines changes nothing.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from peftbench.data import files, own, tree
from peftbench.data.layouts.base import check_name
from peftbench.data.listing import Listing, Origin, SplitList
from peftbench.errors import DataError
from peftbench.spec import DatasetSpec

PATH_COLUMNS = ("path", "image", "file", "filename", "file_name", "filepath")
LABEL_COLUMNS = ("label", "class", "target", "category")
SPLIT_COLUMN = "split"
SPLITS = {"train": "train", "test": "test"} | {name: "val" for name in own.VAL_NAMES}
SUFFIXES = (".csv", ".tsv")
DELIMITERS = {".csv": ",;\t|", ".tsv": "\t"}  # the first whose header has both columns
EXAMPLE = "'path,label' and 'images/0001.jpg,robin'"


@dataclass(frozen=True)
class Entry:
    """One image of the list."""

    line: int
    name: str  # path below the folder of the list
    label: str
    split: str  # "all" where the list has no such column


def is_table(path: Path) -> bool:
    """Whether a path is that of a list, judged by its name."""
    return path.suffix.lower() in SUFFIXES and not tree.hidden(path) and path.is_file()


def read_table(path: Path, spec: DatasetSpec) -> Listing:
    """The images that a list names; every file is hashed, none is decoded.

    Raises:
        DataError: a header, line, path or split that cannot be, with its line; a missing file; a
            class or split that is missing or too small.
    """
    entries = parse(_text(path), str(path), DELIMITERS[path.suffix.lower()])
    _check_files(path, entries)
    class_names = _in_order({entry.label for entry in entries})
    number = {name: label for label, name in enumerate(class_names)}
    ordered = sorted(entries, key=lambda e: (number[e.label], e.name.encode("utf-8")))
    found = {
        split: _split_list(path.parent, [e for e in ordered if e.split == split], number)
        for split in dict.fromkeys(entry.split for entry in ordered)
    }
    if "all" not in found:
        _check_splits(path, found)
        own.check_trained(found, class_names, str(path))
    parts, drawn = own.settle(found, class_names, spec, str(path), "line of split val")
    return own.make_listing(
        spec,
        title=path.stem,
        source=str(path),
        class_names=class_names,
        parts=parts,
        pictures=files.FilePictures(path.parent),
        origin=Origin(spec.name, str(path), "list of paths and labels", drawn, spec.split_seed),
        folder=path.parent,
        lists=(path.name,),
    )


def parse(text: str, where: str, delimiters: str) -> list[Entry]:
    """The entries of a list in their order.

    Args:
        where: the file, for errors.
        delimiters: candidates, the first of them that makes sense of the header is taken.

    Raises:
        DataError: no header, a line of another length, an empty cell, a path that leads out of the
            folder or stands there twice, an unknown split.
    """
    columns, delimiter = _header(text, where, delimiters)
    entries: dict[str, Entry] = {}
    for line, cells in _rows(text, where, delimiter):
        entry = _entry(cells, columns, line, where)
        if entry is None:
            continue
        earlier = entries.setdefault(entry.name, entry)
        if earlier is not entry:
            same = (
                ""
                if earlier.label == entry.label
                else (f" with other labels, {earlier.label!r} and {entry.label!r}")
            )
            raise DataError(
                f"{where}, lines {earlier.line} and {line}: {entry.name!r} stands there "
                f"twice{same}. Remove one of the two lines."
            )
    if not entries:
        raise DataError(f"{where} has a header and no image below it. Add a line for each image.")
    return list(entries.values())


@dataclass(frozen=True)
class _Columns:
    """Where in a row things are."""

    count: int
    path: int
    label: int
    split: int | None


def _header(text: str, where: str, delimiters: str) -> tuple[_Columns, str]:
    """Columns by their names, and what stands between them."""
    first = text.partition("\n")[0].rstrip("\r")
    for delimiter in delimiters:
        names = [
            name.strip().lower() for name in next(csv.reader([first], delimiter=delimiter), [])
        ]
        paths = [name for name in names if name in PATH_COLUMNS]
        labels = [name for name in names if name in LABEL_COLUMNS]
        for kind, found in (("path", paths), ("label", labels)):
            if len(found) > 1 and paths and labels:
                raise DataError(
                    f"{where} has {len(found)} {kind} columns: {', '.join(found)}. Rename all but "
                    "the one that is meant."
                )
        if paths and labels:
            split = names.index(SPLIT_COLUMN) if SPLIT_COLUMN in names else None
            return _Columns(len(names), names.index(paths[0]), names.index(labels[0]), split), (
                delimiter
            )
    raise DataError(
        f"{where} needs a header with a path column ({', '.join(PATH_COLUMNS)}) and a label column "
        f"({', '.join(LABEL_COLUMNS)}); its first line is {first[:80]!r}. Let it begin with two "
        f"lines like {EXAMPLE}."
    )


def _rows(text: str, where: str, delimiter: str) -> list[tuple[int, list[str]]]:
    """Cells of each row below the header, with the line on which the row ends."""
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    rows = []
    try:
        for cells in reader:
            rows.append((reader.line_num, cells))
    except csv.Error as error:
        raise DataError(f"{where}, line {reader.line_num}: {error}. Repair the line.") from error
    return rows[1:]


def _entry(cells: Sequence[str], columns: _Columns, line: int, where: str) -> Entry | None:
    """What a row says; `None` for an empty one."""
    if not any(cell.strip() for cell in cells):
        return None
    if len(cells) != columns.count:
        raise DataError(
            f"{where}, line {line}: {columns.count} cells are in the header and {len(cells)} here. "
            "Put cells that hold the delimiter into double quotes."
        )
    name, label = cells[columns.path].strip(), cells[columns.label].strip()
    if not name or not label:
        raise DataError(f"{where}, line {line}: no {'label' if name else 'path'}. Fill the cell.")
    split = "all"
    if columns.split is not None:
        told = cells[columns.split].strip()
        if told.lower() not in SPLITS:
            raise DataError(
                f"{where}, line {line}: {told!r} is no split. Use one of: {', '.join(SPLITS)}."
            )
        split = SPLITS[told.lower()]
    check_name(name, f"{where}, line {line}")
    return Entry(line, PurePosixPath(name).as_posix(), label, split)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}. Save it "
            "as UTF-8."
        ) from error
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}. Check dataset.root.") from error


def _check_files(path: Path, entries: Sequence[Entry]) -> None:
    missing = [entry for entry in entries if not (path.parent / entry.name).is_file()]
    if missing:
        first = missing[0]
        raise DataError(
            f"{path}, line {first.line}: {first.name!r} is no file in {path.parent}; "
            f"{len(missing)} of {len(entries)} listed images are missing. Add them, or write paths "
            "as seen from the folder of the list."
        )


def _check_splits(path: Path, found: dict[str, SplitList]) -> None:
    sizes = ", ".join(f"{split} ({len(part)})" for split, part in found.items())
    for needed in ("train", "test"):
        if needed not in found:
            raise DataError(
                f"{path} has {sizes} in its column split, but no {needed}. Name the lines that are "
                f"to be {'trained on' if needed == 'train' else 'reported'} {needed}, or remove "
                "the column to have all three drawn."
            )


def _in_order(labels: set[str]) -> tuple[str, ...]:
    """Integers by value, words by their bytes."""
    if all(re.fullmatch(r"[+-]?\d+", label) for label in labels):
        return tuple(sorted(labels, key=lambda label: (int(label), label)))
    return tuple(sorted(labels, key=lambda label: label.encode("utf-8")))


def _split_list(folder: Path, entries: Sequence[Entry], number: dict[str, int]) -> SplitList:
    names = tuple(entry.name for entry in entries)
    labels = tuple(number[entry.label] for entry in entries)
    return SplitList(names, labels, files.digests(folder, names))

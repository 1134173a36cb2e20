"""Data sets listed in one file: a .csv or .tsv with a column of paths and one of labels.

Paths are relative to the folder of the file. A column of splits is optional; see `columns`. Without
it train, val and test are drawn as for class folders, and a list of a folder's images is the same
data set as the folder. Rows are ordered by class and path, so that the order of the lines changes
nothing.
"""

from __future__ import annotations

import codecs
import csv
import io
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from peftbench.data import alike, files, labels, own, tree
from peftbench.data.columns import SPLIT_COLUMN, SplitColumn, split_column
from peftbench.data.layouts.base import check_name
from peftbench.data.listing import Listing, Origin, SplitList
from peftbench.errors import DataError
from peftbench.registry import unknown_name
from peftbench.spec import DatasetSpec
from peftbench.untrusted import check_plain_file, read_bounded

PATH_COLUMNS = ("path", "image", "file", "filename", "file_name", "filepath")
LABEL_COLUMNS = ("label", "class", "target", "category")
SUFFIXES = (".csv", ".tsv")
DELIMITERS = {".csv": ",;\t|", ".tsv": "\t"}  # the first whose header has both columns
MOST_BYTES = 2**31  # of a list
EXAMPLE = "'path,label' and 'images/0001.jpg,robin'"


@dataclass(frozen=True)
class TableEntry:
    """One image of the list."""

    line: int
    name: str  # path below the folder of the list
    label: str
    split: str  # "all" where the list has no such column
    group: str = ""  # in the column that says what stays in one split, if one is asked for


def is_table(path: Path) -> bool:
    """Whether a path is that of a list, judged by its name."""
    return path.suffix.lower() in SUFFIXES and not tree.hidden(path) and path.is_file()


def read_table(path: Path, spec: DatasetSpec) -> Listing:
    """The images that a list names; every file is hashed, none is decoded.

    Raises:
        DataError: a header, line, path or split that cannot be, with its line; a missing file; a
            class or split that is missing or too small.
    """
    delimiters = DELIMITERS[path.suffix.lower()]
    found_entries = read_entries(_text(path), str(path), delimiters, spec.group_column)
    entries, remarks = found_entries.entries, list(found_entries.remarks)
    entries = _on_disk(path, entries)
    one_form = labels.same_form([entry.label for entry in entries])
    if one_form:
        entries = [replace(e, label=one_form.get(e.label, e.label)) for e in entries]
        first = next(iter(one_form.values()))
        remarks.append(f"Labels that differ in their Unicode form alone are one: {first!r}.")
    counts = Counter(entry.label for entry in entries)
    lines = {entry.label: entry.line for entry in reversed(entries)}
    remarks += labels.check(lines, counts, str(path))
    class_names = _in_order(set(counts))
    remarks += filter(None, (alike.remark(class_names), _unlisted(path, entries)))
    number = {name: label for label, name in enumerate(class_names)}
    ordered = sorted(entries, key=lambda e: (number[e.label], os.fsencode(e.name)))
    by_split = {
        split: [e for e in ordered if e.split == split]
        for split in dict.fromkeys(entry.split for entry in ordered)
    }
    lists = {name: _split_list(path.parent, part, number) for name, part in by_split.items()}
    if "all" not in lists:
        _check_splits(path, lists, found_entries.column)
        own.check_trained(lists, class_names, str(path))
    values = {name: tuple(entry.group for entry in part) for name, part in by_split.items()}
    pictures = files.FilePictures(path.parent)
    settled = own.settle(
        own.FoundLists(
            lists,
            class_names,
            pictures,
            str(path),
            "line of split val",
            {} if spec.group_column is None else values,
        ),
        spec,
    )
    place = files.readable(str(path))
    content = own.Content(
        title=files.readable(path.stem),
        source=place,
        class_names=class_names,
        parts=settled.parts,
        pictures=pictures,
        origin=Origin(
            spec.called,
            place,
            "list of paths and labels",
            settled.drawn,
            spec.split_seed,
            (*remarks, *settled.remarks),
            own.fold_of(spec),
        ),
    )
    return own.make_listing(spec, content, folder=path.parent, lists=(path.name,))


@dataclass(frozen=True)
class Entries:
    """What a list says, and what had to be decided to read it."""

    entries: list[TableEntry]
    column: str  # of splits
    remarks: tuple[str, ...]


def parse(text: str, where: str, delimiters: str) -> list[TableEntry]:
    """The entries of a list in their order; see `read_entries`."""
    return read_entries(text, where, delimiters).entries


def read_entries(
    text: str, where: str, delimiters: str, group_column: str | None = None
) -> Entries:
    """The entries of a list in their order.

    Args:
        where: the file, for errors.
        delimiters: candidates, the first of them that makes sense of the header is taken.
        group_column: the column that says what stays in one split, if there is one.

    Raises:
        DataError: no header, a line of another length, an empty cell, a path that leads out of the
            folder or stands there twice, an unknown split.
    """
    columns, delimiter = _header(text, where, delimiters)
    rows = [
        (line, cells)
        for line, cells in _rows(text, where, delimiter)
        if any(cell.strip() for cell in cells)
    ]
    for line, cells in rows:
        _check_length(cells, columns, line, where)
    columns = _grouping(columns, group_column, where)
    told = (columns.path, columns.label, columns.group)
    others = [i for i in range(len(columns.names)) if i not in told]
    splitting = split_column(columns.names, rows, others, where)
    entries: dict[str, TableEntry] = {}
    for line, cells in rows:
        entry = _entry(cells, columns, splitting, line, where)
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
    column = SPLIT_COLUMN if splitting.column is None else columns.names[splitting.column]
    return Entries(list(entries.values()), column, splitting.remarks)


@dataclass(frozen=True)
class _Columns:
    """Where in a row things are."""

    names: tuple[str, ...]
    path: int
    label: int
    group: int | None = None


def _grouping(columns: _Columns, name: str | None, where: str) -> _Columns:
    """The columns with the one of groups; `UnknownName` where there is no such column."""
    if name is None:
        return columns
    wanted = name.strip().lower()
    if wanted not in columns.names:
        raise unknown_name(f"column in dataset.group_column of {where}:", name, columns.names)
    return replace(columns, group=columns.names.index(wanted))


def _header(text: str, where: str, delimiters: str) -> tuple[_Columns, str]:
    """Columns by their names, and what stands between them."""
    first = text.partition("\n")[0].rstrip("\r")
    for delimiter in delimiters:
        try:
            cells = next(csv.reader([first], delimiter=delimiter), [])
        except csv.Error as error:
            raise DataError(f"{where}, line 1: {error}. Repair the line.") from error
        names = [name.strip().lower() for name in cells]
        paths = [name for name in names if name in PATH_COLUMNS]
        marked = [name for name in names if name in LABEL_COLUMNS]
        for kind, same in (("path", paths), ("label", marked)):
            if len(same) > 1 and paths and marked:
                raise DataError(
                    f"{where} has {len(same)} {kind} columns: {', '.join(same)}. Rename all but "
                    "the one that is meant."
                )
        if paths and marked:
            return _Columns(tuple(names), names.index(paths[0]), names.index(marked[0])), delimiter
        if paths:
            _check_one_hot(text, where, delimiter, names)
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


def _check_one_hot(text: str, where: str, delimiter: str, names: Sequence[str]) -> None:
    """Refuse a list with a column of 0 and 1 for each class by what it is."""
    rows = [cells for _, cells in _rows(text, where, delimiter) if len(cells) == len(names)]
    flags = [
        name
        for i, name in enumerate(names)
        if rows and all(cells[i].strip() in ("0", "1", "0.0", "1.0") for cells in rows)
    ]
    if len(flags) > 1:
        more = ", ..." if len(flags) > 3 else ""
        raise DataError(
            f"{where} has a column of 0 and 1 for each of {len(flags)} classes "
            f"({', '.join(flags[:3])}{more}). Write the name of the one class of each image into a "
            "column label."
        )


def _check_length(cells: Sequence[str], columns: _Columns, line: int, where: str) -> None:
    if len(cells) != len(columns.names):
        raise DataError(
            f"{where}, line {line}: {len(columns.names)} cells are in the header and {len(cells)} "
            "here. Put cells that hold the delimiter into double quotes."
        )


def _entry(
    cells: Sequence[str], columns: _Columns, splitting: SplitColumn, line: int, where: str
) -> TableEntry:
    """What a row says."""
    name, label = cells[columns.path].strip(), cells[columns.label].strip()
    if not name or not label:
        raise DataError(f"{where}, line {line}: no {'label' if name else 'path'}. Fill the cell.")
    split = "all"
    if splitting.column is not None and splitting.roles is not None:
        split = splitting.roles[cells[splitting.column].strip()]
    name = _below(name, Path(where).parent)
    check_name(name, f"{where}, line {line}")
    group = "" if columns.group is None else cells[columns.group].strip()
    if columns.group is not None and not group:
        raise DataError(
            f"{where}, line {line}: no value in column {columns.names[columns.group]!r}, which "
            "says what stays in one split. Fill the cell, or leave dataset.group_column out."
        )
    return TableEntry(line, PurePosixPath(name).as_posix(), label, split, group)


def _below(name: str, folder: Path) -> str:
    """An absolute path in the folder of the list as seen from there; other names as they are."""
    if PurePosixPath(name).is_absolute() and folder.is_absolute():
        path = PurePosixPath(name)
        if path.is_relative_to(folder.as_posix()) and ".." not in path.parts:
            return path.relative_to(folder.as_posix()).as_posix()
    return name


def _text(path: Path) -> str:
    try:
        content = read_bounded(path, MOST_BYTES)
    except ValueError as error:
        raise DataError(f"{path}: {error}. Check dataset.root.") from error
    except OSError as error:
        raise tree.unreadable(path, error) from error
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # as Excel writes it
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
        return text if "\n" in text else text.replace("\r", "\n")  # of an old Mac, or its Excel
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-{16 if wide else 8}: byte {error.start} is "
            f"{error.object[error.start]:#04x}. Save it as UTF-8."
        ) from error


def _on_disk(path: Path, entries: Sequence[TableEntry]) -> list[TableEntry]:
    """The entries under the names that their files have.

    A list that was written on Windows has backslashes; one that was written on a Mac, or whose
    files come from one, may have accents in their other Unicode form.

    Raises:
        DataError: files are missing, or no plain files.
    """
    memory: dict[Path, dict[str, list[str]]] = {}
    there, missing = [], []
    for entry in entries:
        name: str | None = entry.name
        if not os.path.isfile(path.parent / entry.name):
            name = _other_form(path.parent, entry.name, memory)
        if name is None:
            missing.append(entry)
        else:
            there.append(replace(entry, name=name))
    if missing:
        raise _missing(path, missing, len(entries), memory)
    twice: dict[str, TableEntry] = {}
    for entry in there:
        earlier = twice.setdefault(entry.name, entry)
        if earlier is not entry:
            raise DataError(
                f"{path}, lines {earlier.line} and {entry.line}: both are {entry.name!r}, which "
                "they write in other ways. Remove one of the two lines."
            )
    return there


def _other_form(folder: Path, name: str, memory: dict[Path, dict[str, list[str]]]) -> str | None:
    """How the file is called that a list calls `name`; `None` where there is no such file."""
    for written in dict.fromkeys((name, name.replace("\\", "/"))):
        parts: list[str] = []
        if PurePosixPath(written).is_absolute() or ".." in PurePosixPath(written).parts:
            continue
        for part in PurePosixPath(written).parts:
            if os.path.lexists(folder.joinpath(*parts, part)):
                parts.append(part)
                continue
            same = _names(folder.joinpath(*parts), memory).get(_form(part), [])
            if len(same) != 1:
                break
            parts.append(same[0])
        else:
            if os.path.isfile(folder.joinpath(*parts)):
                return PurePosixPath(*parts).as_posix()
    return None


def _names(folder: Path, memory: dict[Path, dict[str, list[str]]]) -> dict[str, list[str]]:
    """The names in a folder by their composed form."""
    if folder not in memory:
        memory[folder] = {}
        if folder.is_dir():
            for path in tree.listed(folder):
                memory[folder].setdefault(_form(path.name), []).append(path.name)
    return memory[folder]


def _form(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _missing(
    path: Path, missing: Sequence[TableEntry], total: int, memory: dict[Path, dict[str, list[str]]]
) -> DataError:
    """The refusal of a list whose files are not all there, with the likely reason."""
    first = missing[0]
    place = path.parent / first.name.replace("\\", "/")
    try:
        check_plain_file(place)
    except ValueError as error:
        return DataError(f"{path}, line {first.line}: {first.name!r}: {error}. Remove the line.")
    except PermissionError as error:
        return tree.unreadable(place, error)
    except OSError:
        pass
    names = [name for same in _names(place.parent, memory).values() for name in same]
    near = [
        name
        for name in names
        if name.casefold() == place.name.casefold() or Path(name).stem == place.name
    ]
    hint = f" There is {near[0]!r}: names must be the same to the letter." if near else ""
    return DataError(
        f"{path}, line {first.line}: {first.name!r} is no file in {path.parent}; "
        f"{len(missing)} of {total} listed images are missing.{hint} Add them, or write paths "
        "as seen from the folder of the list."
    )


def _unlisted(path: Path, entries: Sequence[TableEntry]) -> str:
    """One sentence on pictures beside the listed ones that no line names; empty without any."""
    known = {entry.name for entry in entries}
    places = dict.fromkeys(PurePosixPath(entry.name).parent for entry in entries)
    unread = [
        name
        for place in places
        for picture in tree.listed(path.parent / place)
        if tree.is_picture(picture) and (name := (place / picture.name).as_posix()) not in known
    ]
    if not unread:
        return ""
    one = len(unread) == 1
    return (
        f"Left aside: {len(unread):,} picture{'' if one else 's'} beside the listed ones that no "
        f"line names ({'' if one else 'first '}'{files.readable(unread[0])}')."
    )


def _check_splits(path: Path, lists: dict[str, SplitList], column: str) -> None:
    sizes = ", ".join(f"{split} ({len(part)})" for split, part in lists.items())
    for needed in ("train", "test"):
        if needed not in lists:
            raise DataError(
                f"{path} has {sizes} in its column {column}, but no {needed}. Name the lines that "
                f"are to be {'trained on' if needed == 'train' else 'reported'} {needed}, or "
                "remove the column to have all three drawn."
            )


def _in_order(names: set[str]) -> tuple[str, ...]:
    """Integers by value, words by their bytes."""
    if all(re.fullmatch(r"[+-]?\d+", label) for label in names):
        return tuple(sorted(names, key=lambda label: (int(label), label)))
    return tuple(sorted(names, key=lambda label: label.encode("utf-8")))


def _split_list(folder: Path, entries: Sequence[TableEntry], number: dict[str, int]) -> SplitList:
    names = tuple(entry.name for entry in entries)
    numbers = tuple(number[entry.label] for entry in entries)
    return SplitList(names, numbers, files.digests(folder, names))

"""What the records of a results folder said when they were last read, so that few are read again.

The index of a folder lies in the user's own cache, never in the folder, which may come from
somebody else. A row counts for a file of the same size, times, inode and device. A file that was
touched shortly before it was read is not in the index: a second change within the same tick of the
clock would not show. It is only a cache: whatever is wrong with it, the records are read.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from peftbench._version import __version__
from peftbench.caches import cache_dir
from peftbench.errors import StoreError
from peftbench.results.atomic import write_atomic
from peftbench.results.locks import time_at
from peftbench.results.record import RunRecord
from peftbench.results.store import ResultsStore, read, uncollected
from peftbench.tasks import TASKS
from peftbench.untrusted import read_bounded

FEWEST = 50  # files; fewer are read in a hundredth of a second
SETTLED_NS = 3 * 10**9  # age from which every clock shows a change; FAT counts in steps of 2 s
MOST_INDEXES = 100  # folders that are remembered
# what of the package decides what the row of a record holds, the schema of records among it
DECIDING = ("results/*.py", "tasks/*.py", "spec/*.py", "untrusted.py")

Row = tuple[Any, ...]
State = tuple[int, ...]


class Entry(NamedTuple):
    """The row of a record, and the state of the file that it was read from."""

    state: State
    row: Row


def rows_of(
    store: ResultsStore, names: Sequence[str], row_of: Callable[[RunRecord], Row]
) -> tuple[list[Row], list[StoreError]]:
    """The row of every readable record, in the order of the files, and an error for each other.

    Args:
        names: of the values of a row.
        row_of: the plain values of a record, one for each name.
    """
    with uncollected():
        entries = {_name(entry): entry for entry in store.entries()}
        states = {name: _state(entry) for name, entry in entries.items()}
        place = _place_of(store) if len(entries) >= FEWEST else None
        known = {} if place is None else _loaded(place, names)
        same = {name: one for name, one in known.items() if states.get(name) == one.state}
        if len(same) == len(entries) == len(known):
            return [one.row for one in same.values()], []
        began = 0 if place is None else _clock(place)
        found = {
            name: same[name].row if name in same else _row(Path(entry.path), row_of)
            for name, entry in entries.items()
        }
        rows = {name: row for name, row in found.items() if isinstance(row, tuple)}
        new = {
            name: Entry(state, row)
            for name, row in rows.items()
            if (state := states[name]) and (name in same or _last_touched(state) < began)
        }
        if place is not None and not new.keys() == same.keys() == known.keys():
            _save(place, names, new)
    return list(rows.values()), [one for one in found.values() if isinstance(one, StoreError)]


def _row(path: Path, row_of: Callable[[RunRecord], Row]) -> Row | StoreError | None:
    record = read(path, history=False)
    return row_of(record) if isinstance(record, RunRecord) else record


def _name(entry: os.DirEntry[str]) -> str:
    """The file below the folder of all runs, as "lora/0123456789abcdef.json"."""
    return "/".join(entry.path.rsplit(os.sep, 2)[1:])


def _state(entry: os.DirEntry[str]) -> State:
    """What changes when a file does; empty where it cannot be asked."""
    try:
        now = entry.stat()
    except OSError:  # it is gone, or reading it will tell
        return ()
    return (now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino, now.st_dev)


def _last_touched(state: State) -> int:
    return max(state[1:3])


def _place_of(store: ResultsStore) -> Path | None:
    """Where the index of a folder lies; `None` where there is no place for it."""
    try:
        key = hashlib.sha256(os.fsencode(store.runs.resolve())).hexdigest()
        return cache_dir() / "rows" / f"{key}.json"
    except (OSError, RuntimeError):  # links in a circle, a user without a home
        return None


def _clock(place: Path) -> int:
    """Time before which a file was touched that no tick of its clock can hide a change of, in ns.

    By the clock of this machine and that of the cache, where files are mostly as old.
    """
    try:
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # records may be private
        return min(time.time_ns(), int(time_at(place.parent) * 1e9)) - SETTLED_NS
    except OSError:
        return 0


@cache
def _code() -> str:
    """Hash of the sources that decide what a row holds: a clone changes without its version."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256(__version__.encode())
    for pattern in DECIDING:
        for path in sorted(package.glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _loaded(place: Path, names: Sequence[str]) -> dict[str, Entry]:
    """What the index holds; nothing where it is absent, damaged, or of others or other code."""
    try:
        if hasattr(os, "geteuid") and place.stat().st_uid != os.geteuid():
            return {}
        head, _, body = read_bounded(place).partition(b"\n")
        if head.decode() != _head(body, place, names):
            return {}
        files, states, columns = orjson.loads(body)
        rows = zip(*map(_decoded, columns), strict=True)
        return dict(zip(files, map(Entry, map(tuple, states), rows), strict=True))
    except (OSError, ValueError, TypeError, LookupError):
        return {}


def _head(body: bytes, place: Path, names: Sequence[str]) -> str:
    """Hash of a body, and of what it is the index of."""
    digest = hashlib.sha256(" ".join([place.stem, _code(), *sorted(TASKS), *names]).encode())
    digest.update(body)
    return digest.hexdigest()


def _save(place: Path, names: Sequence[str], new: Mapping[str, Entry]) -> None:
    try:
        body = _body(new)
    except TypeError:  # halves of surrogate pairs, integers of more than 64 bits
        body = _body({name: one for name, one in new.items() if _storable(name, one)})
    head = _head(body, place, names).encode()
    with contextlib.suppress(OSError, StoreError):
        write_atomic(place, lambda file: file.write(b"\n".join([head, body])))
        indexes = sorted(place.parent.glob("*.json"), key=lambda path: path.stat().st_mtime)
        for path in indexes[:-MOST_INDEXES]:
            path.unlink(missing_ok=True)


def _body(new: Mapping[str, Entry]) -> bytes:
    """Files, their states and the columns of their rows."""
    columns = zip(*(one.row for one in new.values()), strict=True)
    return orjson.dumps([list(new), [one.state for one in new.values()], [*map(_coded, columns)]])


def _storable(name: str, one: Entry) -> bool:
    try:
        orjson.dumps([name, one.row])
    except TypeError:
        return False
    return True


def _coded(values: Row) -> list[Any]:
    """A column as its values, or of texts, which repeat, as each of them once and their places."""
    if not set(map(type, values)) <= {str, type(None)}:
        return [values, None]
    places = {value: place for place, value in enumerate(dict.fromkeys(values))}
    return [list(places), [places[value] for value in values]]


def _decoded(column: list[Any]) -> list[Any]:
    values, places = column
    return values if places is None else [values[place] for place in places]

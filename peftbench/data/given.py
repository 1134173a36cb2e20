"""The pictures that people name: files, folders with all that is below them, and patterns."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from peftbench.data.files import by_name, readable
from peftbench.data.tree import hidden, is_picture, unreadable
from peftbench.errors import DataError


@dataclass(frozen=True)
class Given:
    """Files that are to be pictures, each once, and why others that were named are not there."""

    pictures: tuple[Path, ...]
    problems: tuple[DataError, ...]


def pictures(places: Sequence[str]) -> Given:
    """What `places` name, in their order; what is in a folder, or meets a pattern, by its name.

    A file that is named is taken whatever its ending; in a folder endings tell the pictures.
    """
    found: dict[Path, None] = {}
    problems: list[DataError] = []
    for place in places:
        path = Path(place).expanduser()
        if not os.path.lexists(path) and glob.has_magic(place):
            matching = by_name(map(Path, glob.iglob(str(path), recursive=True)))
            matching = [p for p in matching if is_picture(p) and not p.is_dir()]
            nothing = f"{readable(place)} matches no picture. Check the pattern."
        elif path.is_dir():
            matching = list(_below(path, problems))
            nothing = f"{readable(place)} has no picture in it. Check the folder."
        else:
            matching = [path] if os.path.lexists(path) else []
            nothing = f"{readable(place)} does not exist. Check the path."
        if not matching:
            problems.append(DataError(nothing))
        found |= dict.fromkeys(matching)
    return Given(tuple(found), tuple(problems))


def _below(folder: Path, problems: list[DataError]) -> Iterator[Path]:
    """Pictures in a folder and all below; a folder that links lead to twice is read once."""

    def note(error: OSError) -> None:
        problems.append(unreadable(Path(str(error.filename)), error, "folder "))

    seen: set[str] = set()
    for base, below, names in os.walk(folder, onerror=note, followlinks=True):
        real = os.path.realpath(base)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        inside = by_name(Path(base, name) for name in below)
        below[:] = [path.name for path in inside if not hidden(path)]
        files = by_name(Path(base, name) for name in names)
        yield from (path for path in files if is_picture(path) and not hidden(path))

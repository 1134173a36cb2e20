"""What a user's own data set is called: as its folder, its list or its repository, unless told."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from peftbench.untrusted import printable

# readers of images that a user brings; a data set of that very name has none of its own
OWN_READERS = ("folder", "hf")
LISTS = (".csv", ".tsv")
NAMELESS = ("", ".", "..", "/", "~")
HOMES = frozenset(("home", "homes", "Users", "users", "scratch"))  # folders named after people


def called(dataset: Mapping[str, Any]) -> str:
    """What tables call a data set, from the fields of a `DatasetSpec`, also of older records.

    Its title, or its name where that says more than how it is read, or what its place ends with.
    Looks at no file: the place may be on another machine.
    """
    name, reader = str(dataset.get("name") or ""), dataset.get("reader")
    if reader not in OWN_READERS:
        return name
    if dataset.get("title"):
        return str(dataset["title"])
    if name != reader:
        return name
    place = str(dataset.get("hub" if reader == "hf" else "root") or "")
    if reader == "hf" and not PurePath(place).is_absolute():
        return _text(place) or name
    return _last_part(PurePath(place)) or name


def title_of(name: str, reader: str, place: str | None) -> str:
    """Title of a data set of a user that has no name of its own, by where it lies; else empty.

    Args:
        name: that the user gave it; the reader's where none was given.
        place: a folder, a list of paths and labels, or ORG/NAME of the hub.
    """
    if reader not in OWN_READERS or name != reader or not place:
        return ""
    path = Path(place).expanduser()
    if reader == "hf" and not path.is_dir():
        return _text(place)
    return _last_part(PurePath(os.path.abspath(path)))


def _last_part(path: PurePath) -> str:
    """The name of a folder or a list; empty of a folder that is named after a person."""
    if path.name in NAMELESS or path.parent.name in HOMES or path == Path.home():
        return ""
    return _text(path.stem if path.suffix.lower() in LISTS else path.name)


def _text(name: str) -> str:
    """As one line of printable text."""
    return printable(os.fsencode(name).decode("utf-8", "backslashreplace")).strip()

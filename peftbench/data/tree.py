"""Folders of pictures as people have them: links, litter, other files, and what may not be read.

Each real file is listed once. What a file server or a desktop puts beside pictures is passed over;
whatever else is not read is remembered, so that a line can say so before training.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from peftbench.data.files import SUFFIXES, by_name, readable
from peftbench.errors import DataError
from peftbench.untrusted import check_plain_file

# of file servers and desktops, whatever their case; names with a dot in front are passed over too
LITTER = frozenset(
    (
        *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot"),
        *("__macosx", "__pycache__", "$recycle.bin", "recycler", "system volume information"),
        *("lost+found", "network trash folder", "temporary items", "_vti_cnf"),
        *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r"),
        *("zbthumbnail.info", "picasa.ini"),
    )
)
SHOWN = 6  # kinds of things left aside that a line names
FILE, FOLDER, DEAD, ROUND = "file", "folder", "dead link", "link in a circle"


def hidden(path: Path) -> bool:
    """Whether it is passed over: a dot in front, or the name of what is no part of a data set."""
    return path.name.startswith(".") or path.name.casefold() in LITTER


def listed(folder: Path) -> list[Path]:
    """What is directly inside, by the bytes of its names, without what is `hidden`.

    Raises:
        DataError: the folder may not be read, or is not there.
    """
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise unreadable(folder, error, "folder ") from error
    return by_name(path for path in map(folder.joinpath, names) if not hidden(path))


def unreadable(path: Path, error: OSError, what: str = "") -> DataError:
    """The refusal of a path that the system does not let us look at."""
    advice = "Repair or remove it."
    if isinstance(error, PermissionError):
        advice = "Give this user the right to read and enter it, or take it out of the data set."
    elif error.errno == errno.ELOOP:
        advice = "Its links lead in a circle. Let them end at a file or a folder."
    return DataError(f"Cannot read {what}{readable(str(path))}: {error.strerror}. {advice}")


def kind(path: Path) -> str:
    """`FILE`, `FOLDER`, `DEAD` or `ROUND`; "" for what is neither, such as a named pipe.

    Raises:
        DataError: it may not be looked at.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return DEAD
    except OSError as error:
        if error.errno == errno.ELOOP:
            return ROUND
        raise unreadable(path, error) from error
    if stat.S_ISDIR(mode):
        return FOLDER
    return FILE if stat.S_ISREG(mode) else ""


def is_picture(path: Path) -> bool:
    """Whether its name ends like a picture's."""
    return path.suffix.lower() in SUFFIXES


def folders(folder: Path) -> list[Path]:
    """Folders directly inside, those that are `hidden` left out."""
    return [path for path in listed(folder) if kind(path) == FOLDER]


def pictures_in(folder: Path, deep: bool) -> list[Path]:
    """Files that end like a picture, `deep` in all folders below too, each real file once."""
    if deep:
        return Tree(folder).pictures([folder])[0]
    return [path for path in listed(folder) if is_picture(path) and _is_file(path, kind(path))]


def _is_file(path: Path, what: str) -> bool:
    """Whether what is there (a `kind`) is a file, or a link to none, which fails when it is read.

    Raises:
        DataError: it is named like a picture and is a named pipe, a device or a circle of links.
    """
    if what == "":
        try:
            check_plain_file(path)
        except ValueError as error:
            raise DataError(
                f"{readable(str(path))}: {error}. Remove it from the data set."
            ) from error
    if what == ROUND:
        raise DataError(
            f"{readable(str(path))} is a link that leads back to itself. Remove it from the data "
            "set."
        )
    return what in (FILE, DEAD)


@dataclass
class _Visit:
    """One folder with pictures on the way through a data set."""

    pictures: list[Path] = field(default_factory=list)
    links: list[Path] = field(default_factory=list)  # pictures that are links


class Tree:
    """The folders of one data set; `aside` is what lies there and is not read, by what it is."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.aside: dict[str, list[Path]] = {}
        self._owners: dict[str, int] = {}  # real folder -> number of the class that it belongs to

    def leave(self, what: str, paths: Iterable[Path]) -> None:
        """Remember `paths` as left aside: `what` follows their number, as in "3 .heic"."""
        left = list(paths)
        if left:
            self.aside.setdefault(what, []).extend(left)

    def leave_files(self, folder: Path, pictures: str) -> None:
        """Leave all that is directly in `folder` but its folders; `pictures` says where it is."""
        for path in listed(folder):
            what = kind(path)
            if what == FILE and is_picture(path):
                self.leave(f"{{}} picture{{s}} {pictures}", [path])
            elif what != FOLDER:
                self._leave(path, what)

    def pictures(self, classes: Sequence[Path]) -> list[list[Path]]:
        """The pictures in each of these folders and below, by the bytes of their names.

        A link to a file or folder that is read anyway is left aside.

        Raises:
            DataError: a file that two classes, or two splits, have through links: it is told which.
        """
        visits = [_Visit() for _ in classes]
        pending: list[tuple[int, Path]] = []
        for straight in (True, False):  # what is really there comes before what is linked to
            for number, folder in enumerate(classes):
                if folder.is_symlink() != straight:
                    self._enter(number, folder, visits[number], pending)
        while pending:
            now, pending = pending, []
            for number, link in sorted(now, key=lambda item: os.fsencode(item[1])):
                self._enter(number, link, visits[number], pending)
        self._add_links(visits)
        return [by_name(visit.pictures) for visit in visits]

    def _enter(
        self, number: int, folder: Path, visit: _Visit, pending: list[tuple[int, Path]]
    ) -> None:
        real = os.path.realpath(folder)
        home = os.path.realpath(self.root)
        leads_up = (home + os.sep).startswith(real.rstrip(os.sep) + os.sep)
        if folder != self.root and (real in self._owners or leads_up):
            self.leave("{} link{s} to folders that are read already", [folder])
            return
        self._owners[real] = number
        for path in listed(folder):
            link = path.is_symlink()
            what = kind(path)
            if what == FOLDER:
                if link:
                    pending.append((number, path))
                else:
                    self._enter(number, path, visit, pending)
            elif is_picture(path) and _is_file(path, what):
                (visit.links if link and what == FILE else visit.pictures).append(path)
            else:
                self._leave(path, what)

    def _leave(self, path: Path, thing: str) -> None:
        ending = path.suffix.lower()
        known = re.fullmatch(r"\.[a-z0-9]{1,8}", ending)
        other = "with another ending" if ending else "without an ending"
        what = {
            FILE: f"{{}} {ending} file{{s}}" if known else f"{{}} file{{s}} {other}",
            DEAD: "{} link{s} that lead{v} nowhere",
            ROUND: "{} link{s} that lead{v} in a circle",
        }
        self.leave(what.get(thing, "{} named pipe{s}, socket{s} or device{s}"), [path])

    def _add_links(self, visits: Sequence[_Visit]) -> None:
        linked: dict[str, tuple[int, Path]] = {}
        for number, visit in enumerate(visits):
            for path in by_name(visit.links):
                real = Path(os.path.realpath(path))
                owner = self._owners.get(str(real.parent)) if is_picture(real) else None
                first, other = linked.get(str(real), (owner, real))
                if first is None:
                    linked[str(real)] = (number, path)
                    visit.pictures.append(path)
                elif first == number:
                    self.leave("{} link{s} to pictures that are read already", [path])
                else:
                    raise DataError(
                        f"{readable(str(path))} is a link to {readable(str(other))}, which "
                        "another class or split has as well. Keep one of the two."
                    )

    def remark(self) -> str:
        """One sentence on everything that was left aside; empty where nothing was."""
        if not self.aside:
            return ""
        kinds = sorted(self.aside.items(), key=lambda item: (-len(item[1]), item[0]))
        clauses = [self._told(what, paths) for what, paths in kinds[:SHOWN]]
        rest = sum(len(paths) for _, paths in kinds[SHOWN:])
        more = f", and {rest:,} more" if rest else ""
        return f"Left aside: {', '.join(clauses)}{more}."

    def _told(self, what: str, paths: list[Path]) -> str:
        one = len(paths) == 1
        count = what.format(f"{len(paths):,}", s="" if one else "s", v="s" if one else "")
        first = by_name(paths)[0]
        if first.is_relative_to(self.root):
            first = first.relative_to(self.root)
        return f"{count} ({'' if one else 'first '}'{readable(first.as_posix())}')"

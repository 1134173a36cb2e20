"""What a bundle may hold, checked before any of it is used."""

from __future__ import annotations

import contextlib
import hashlib
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peftbench._version import __version__
from peftbench.errors import StoreError
from peftbench.results.identity import run_id_of
from peftbench.results.predictions import UNREADABLE
from peftbench.results.record import (
    SCHEMA,
    RunRecord,
    parsed,
)
from peftbench.untrusted import (
    MOST_BYTES,
    MOST_RECORD,
    check_directory,
    check_plain_file,
    printable,
    read_member,
)

FORMAT = 1  # raised when a bundle is laid out in another way
INDEX, ROWS = "bundle.json", "rows.csv"
CARD, PREDICTIONS = "card.json", "predictions.npz"
RECORD_NAME = re.compile(r"runs/([^/\\.][^/\\]*)/([0-9a-f]{16})\.json")
EXTRA_NAME = re.compile(
    rf"runs/([^/\\.][^/\\]*)/([0-9a-f]{{16}})/({re.escape(CARD)}|{PREDICTIONS})"
)
MADE = (1980, 1, 1, 0, 0, 0)  # the oldest date that a zip file can hold: no date of its own
MOST_INDEX = 32 * 2**20  # bytes of the index of about 70,000 runs
MOST_ROW = 64 * 2**10  # bytes of one run in the table of a bundle
# bytes that a bundle of this many unpacks to; records and predictions shrink to a fifth
MOST_UNPACKED, MOST_RATIO = 64 * 2**20, 100


@contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    with contextlib.ExitStack() as stack:
        try:
            check_plain_file(path)
            file = stack.enter_context(open(path, "rb"))
            check_directory(file)
            archive = stack.enter_context(zipfile.ZipFile(file))
        except UNREADABLE as error:
            reason = getattr(error, "strerror", None) or error
            raise StoreError(
                f"{path} cannot be read as a bundle of results: {printable(str(reason))}."
            ) from error
        try:
            yield archive
        except UNREADABLE as error:
            raise StoreError(
                f"{path} is damaged or encrypted: {printable(str(error))}. Copy it again."
            ) from error


def index_of(path: Path, archive: zipfile.ZipFile) -> tuple[dict[str, Any], bytes]:
    """What the bundle lists, checked against what it holds, and the bytes of the index."""
    names = [info.filename for info in archive.infolist()]
    if INDEX not in names:
        raise StoreError(
            f"{path} holds no {INDEX}, so it is no bundle of results. "
            "`peftbench export-results` writes one."
        )
    try:
        raw = read_member(archive, INDEX, MOST_INDEX)
        about = parsed(raw)
        listed = dict(about["files"])
        versions = {key: _integer(about, key) for key in ("format", "schema")}
        runs = _integer(about, "runs")
        sizes = [_integer(entry, "bytes") for entry in listed.values()]
        if not all(isinstance(entry["sha256"], str) for entry in listed.values()):
            raise ValueError("a hash is no text")
    except (zipfile.BadZipFile, EOFError) as error:
        raise StoreError(f"{path} is damaged: {error}. Copy it again.") from error
    except UNREADABLE as error:
        raise StoreError(
            f"{path} was altered: its {INDEX} cannot be read ({printable(str(error))})."
        ) from error
    for (name, version), known in zip(versions.items(), (FORMAT, SCHEMA), strict=True):
        if not 1 <= version <= known:
            raise StoreError(
                f"{path} has {name} {version}, written by peftbench "
                f"{printable(str(about.get('peftbench')))[:40]}; "
                f"peftbench {__version__} knows {name} 1 to {known}. Install a newer peftbench."
            )
    if sorted(names) != sorted([*listed, INDEX]):
        odd = sorted(set(names) ^ {*listed, INDEX}) or ["a name that is there twice"]
        raise StoreError(
            f"{path} was altered: {short(odd[0])} is in it or in its list, but not in both."
        )
    strange = [
        name
        for name in listed
        if name != ROWS and not RECORD_NAME.fullmatch(name) and not EXTRA_NAME.fullmatch(name)
    ]
    if strange or ROWS not in listed:
        odd_name = short((strange or [ROWS])[0])
        raise StoreError(f"{path} was altered: '{odd_name}' does not belong there.")
    if runs != sum(bool(RECORD_NAME.fullmatch(name)) for name in listed):
        raise StoreError(f"{path} was altered: it does not hold the {runs} runs that it announces.")
    most = max(MOST_UNPACKED, MOST_RATIO * path.stat().st_size)
    if sum(sizes) > most:
        raise StoreError(
            f"{path} is refused: it unpacks to {sum(sizes) / 2**20:,.0f} MB, more than "
            f"{most / 2**20:,.0f} MB, which no bundle of its size does."
        )
    return listed, raw


def _integer(about: Mapping[str, Any], key: str) -> int:
    value = about[key]
    if type(value) is not int or value < 0:
        raise ValueError(f"{key} is {short(repr(value))}, not a count")
    return value


def short(text: str) -> str:
    """A name of somebody else's for a message."""
    text = printable(text)
    return text if len(text) <= 100 else f"{text[:97]}..."


def read_file(path: Path, archive: zipfile.ZipFile, name: str, index: Mapping[str, Any]) -> bytes:
    """One file of the bundle, of the size and hash that its index says."""
    size, sha256 = index[name]["bytes"], index[name]["sha256"]
    runs = sum(1 for listed in index if RECORD_NAME.fullmatch(listed)) if name == ROWS else 0
    most = (
        MOST_ROW * (runs + 1)
        if name == ROWS
        else MOST_BYTES
        if name.endswith(PREDICTIONS)
        else MOST_RECORD
    )
    if size > most or archive.getinfo(name).file_size != size:
        raise StoreError(
            f"{path} was altered: {short(name)} does not have the size that {INDEX} says, or more "
            "than any such file."
            if size > most
            else f"{path} was altered: {short(name)} does not have the size that {INDEX} says."
        )
    data = read_member(archive, name, most)
    if sha256_of(data) != sha256:
        raise StoreError(f"{path} was altered: the hash of {short(name)} is not that in {INDEX}.")
    return data


def misfit(record: RunRecord) -> str | None:
    """Why a record does not belong to its run id, if it does not."""
    try:
        expected = run_id_of(record.spec)
    except UNREADABLE as error:
        return str(error)
    if expected != record.run_id:
        return f"its configuration has run id {expected}, so one of them was changed"
    return None


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()

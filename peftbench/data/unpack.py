"""Archives unpacked without trust: nothing outside the target, no links, no bombs.

An archive is looked through before anything is written, and unpacked into a folder that becomes
the target only when all of it is there. What comes out of a compressed stream is counted whether
it is written, skipped or a header, and `.peftbench`, which is trusted beside data, is refused.
"""

from __future__ import annotations

import bz2
import functools
import gzip
import io
import lzma
import os
import shutil
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from tqdm import tqdm

from peftbench.data.images import BESIDE
from peftbench.errors import DataError
from peftbench.untrusted import READABLE, printable

MAX_RATIO = 100  # unpacked bytes for each byte of the archive; photographs have about 1
SMALLEST_LIMIT = 2**26  # bytes that any archive may unpack to: lists of labels pack well
MAX_FILES = 5_000_000  # ImageNet-C has 3.75 million
CHUNK = 2**20
MOST_HEADER = 2**20  # bytes of the headers of one file of a tar: a name has at most 4,096
PADDING = 1024  # bytes of headers and padding that every file of a tar may have
SMALL_CHUNK = 4096  # of zip methods that unpack what they are given at once: 80 MB at most
PACKED: tuple[tuple[bytes, Callable[[Path], Any]], ...] = (  # how tars are packed, by their start
    (b"\x1f\x8b", gzip.open),
    (b"BZh", bz2.open),
    (b"\xfd7zXZ\0", lzma.open),
)
_BROKEN = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    lzma.LZMAError,
    zlib.error,
    EOFError,
    NotImplementedError,  # a zip with a method of compression that is not known here
    RuntimeError,  # a zip with a password
    UnicodeDecodeError,  # a zip whose names are not what it says
    OverflowError,
    struct.error,
)


@dataclass(frozen=True)
class Limits:
    """What an archive may unpack to."""

    bytes: int
    files: int = MAX_FILES

    @classmethod
    def of(cls, archive: Path) -> Limits:
        """`MAX_RATIO` times the size of the archive, and at least `SMALLEST_LIMIT`."""
        return cls(max(MAX_RATIO * archive.stat().st_size, SMALLEST_LIMIT))


@dataclass(frozen=True)
class _Member:
    path: PurePosixPath
    size: int  # as declared
    open: Callable[[], IO[bytes]]
    chunk: int = CHUNK  # bytes to be read at once


def is_archive(path: Path) -> bool:
    """Whether the name is that of a tar, a zip or a compressed file."""
    return path.name.lower().endswith(
        (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip", ".gz")
    )


def unpack(
    archive: Path,
    target: Path,
    strip: str = "",
    limits: Limits | None = None,
    replace: bool = False,
) -> int:
    """Unpack into the folder `target`, beside what is there; gives the number of files.

    Args:
        archive: .tar (also .gz, .bz2, .xz), .zip, or a single file as .gz.
        target: is made if needed.
        strip: only what is below this folder of the archive, without it.
        limits: `Limits.of(archive)` unless given.
        replace: put files in the place of those that are there, which are refused otherwise.

    Raises:
        DataError: the archive is broken, holds absolute paths, `..`, links, devices or a path
            twice, or unpacks to more than the limits. Nothing is left in `target` then.
    """
    limits = limits or Limits.of(archive)
    part = target.with_name(f".{target.name}.unpacking")
    if part.exists():
        shutil.rmtree(part)  # of an interrupted process
    try:
        part.mkdir(parents=True)
        with _Opened(archive, limits) as members:
            count = _write_all(archive, members, part, strip, limits)
        if not count:
            raise DataError(f"{archive} has no files{f' below {strip}' if strip else ''}.")
        _move_into(part, target, replace)
    except _BROKEN as error:
        reason = printable(str(error)) or type(error).__name__
        raise DataError(
            f"{archive} is no intact archive: {reason}. Remove it and fetch it again."
        ) from error
    except OSError as error:
        raise DataError(f"Cannot unpack {archive}: {error}. Check the disk.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return count


def _write_all(
    archive: Path, members: Iterator[_Member], part: Path, strip: str, limits: Limits
) -> int:
    prefix = PurePosixPath(strip).parts
    room, count = limits.bytes, 0
    with tqdm(  # None: shown when stderr is a terminal
        unit="B", unit_scale=True, desc=f"unpacking {archive.name}", disable=None
    ) as bar:
        for member in members:
            _check_path(archive, member.path)
            if member.path.parts[: len(prefix)] != prefix or member.path.parts == prefix:
                continue
            count += 1
            if count > limits.files:
                raise DataError(f"{archive} holds more than {limits.files:,} files; refused.")
            place = part.joinpath(*member.path.parts[len(prefix) :])
            place.parent.mkdir(parents=True, exist_ok=True)
            if place.exists():
                raise DataError(f"{archive} holds {str(member.path)[:200]!r} twice; refused.")
            with member.open() as source, place.open("xb") as file:
                while chunk := source.read(member.chunk):
                    room -= len(chunk)  # what comes out, not what is declared
                    if room < 0:
                        raise _bomb(archive, limits)
                    file.write(chunk)
                    bar.update(len(chunk))
            if place.stat().st_size < member.size:
                raise EOFError(f"{str(member.path)[:200]!r} is cut short")
    return count


def _bomb(archive: Path, limits: Limits) -> DataError:
    return DataError(
        f"{archive} ({archive.stat().st_size:,} bytes) unpacks to more than {limits.bytes:,} "
        "bytes; refused as a bomb."
    )


def _check_path(archive: Path, path: PurePosixPath) -> None:
    text = str(path)
    drive = len(path.parts) > 0 and ":" in path.parts[0]
    if path.is_absolute() or ".." in path.parts or "\\" in text or "\0" in text or drive:
        raise DataError(
            f"{archive} holds the path {text[:200]!r}, which leads out of its folder; refused."
        )
    if any(map(is_ours, path.parts)):
        raise DataError(
            f"{archive} holds {text[:200]!r}, and {BESIDE} is where what was derived from data "
            "lies; refused. Remove it from the archive."
        )
    if not path.parts:
        raise DataError(f"{archive} holds a file without a name; refused.")


def is_ours(name: str) -> bool:
    """Whether a name is that of `BESIDE`, or a file system may take it for that.

    Some of them know no case, drop invisible characters (HFS+), dots and spaces at the end or what
    follows a colon (NTFS), or have short names.
    """
    shown = "".join(c for c in name if unicodedata.category(c) not in ("Cf", "Cc", "Mn"))
    plain = unicodedata.normalize("NFKC", shown).casefold().partition(":")[0].rstrip(". ").lstrip()
    return plain == BESIDE or plain.startswith("peftbe~")


def _move_into(part: Path, target: Path, replace: bool) -> None:
    """All files of `part` into `target`."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        part.rename(target)
        return
    files = [path for path in part.rglob("*") if path.is_file()]
    for path in files:
        place = target / path.relative_to(part)
        if place.exists() and not replace:
            raise DataError(f"{place} is there already; nothing was unpacked. Remove it first.")
    for path in files:
        place = target / path.relative_to(part)
        place.parent.mkdir(parents=True, exist_ok=True)
        path.replace(place)


class _Opened:
    """The files of an archive, refused as a whole where one of them is no plain file."""

    def __init__(self, archive: Path, limits: Limits) -> None:
        self.archive = archive
        self.name = archive.name.lower()
        self.limits = limits

    def __enter__(self) -> Iterator[_Member]:
        if self.name.endswith(".zip"):
            self.zip = zipfile.ZipFile(self.archive)
            self.close = self.zip.close
            return self._zip_members()
        if self.name.endswith(".gz") and not self.name.endswith(".tar.gz"):
            self.close = lambda: None
            return iter([self._single()])
        self.stream = _Stream(self.archive, self.limits)
        self.close = self.stream.close
        self.tar = tarfile.open(fileobj=self.stream, mode="r:")
        return self._tar_members()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _single(self) -> _Member:
        def opened() -> IO[bytes]:
            return gzip.open(self.archive)  # type: ignore[return-value]

        path = PurePosixPath(self.archive.name[: -len(".gz")])
        _check_path(self.archive, path)
        return _Member(path, 0, opened)

    def _zip_members(self) -> Iterator[_Member]:
        entries = self.zip.infolist()
        if len(entries) > self.limits.files:
            raise DataError(f"{self.archive} holds more than {self.limits.files:,} files; refused.")
        for entry in entries:
            kind = stat.S_IFMT(entry.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise self._link(entry.filename)
            _check_path(self.archive, PurePosixPath(entry.filename))
        for entry in entries:
            if not entry.is_dir():
                path = PurePosixPath(entry.filename)
                chunk = CHUNK if entry.compress_type in READABLE else SMALL_CHUNK
                opened = functools.partial(self.zip.open, entry)
                yield _Member(path, entry.file_size, opened, chunk)

    def _tar_members(self) -> Iterator[_Member]:
        while (entry := self._next_entry()) is not None:
            path = PurePosixPath(entry.name)
            if entry.isdir():
                if path.parts:  # "./" is the archive itself
                    _check_path(self.archive, path)
                continue
            if not entry.isreg():
                raise self._link(entry.name)
            yield _Member(path, entry.size, functools.partial(self._extract, entry))

    def _next_entry(self) -> tarfile.TarInfo | None:
        self.stream.headers = MOST_HEADER
        self.stream.entries += 1
        if self.stream.entries > 2 * self.limits.files:  # folders are entries too
            raise DataError(f"{self.archive} holds more than {self.limits.files:,} files; refused.")
        entry = self.tar.next()
        self.tar.members.clear()  # type: ignore[attr-defined]  # kept by it to be looked up, which nobody does here
        self.stream.headers = None
        return entry

    def _extract(self, entry: tarfile.TarInfo) -> IO[bytes]:
        content = self.tar.extractfile(entry)
        assert content is not None  # it is a plain file
        return content

    def _link(self, name: str) -> DataError:
        return DataError(f"{self.archive} holds {name[:200]!r}, a link or a device; refused.")


class _Stream(io.RawIOBase):
    """A tar unpacked, which is read in one direction and counted.

    `tarfile` reads a header of any size at once and skips what is not asked for: both are bounded
    here, by raising `DataError`.
    """

    def __init__(self, archive: Path, limits: Limits) -> None:
        self.archive = archive
        self.limits = limits
        self.headers: int | None = MOST_HEADER  # bytes left for headers; None: content is read
        with archive.open("rb") as file:
            head = file.read(6)
        known = (opener for start, opener in PACKED if head.startswith(start))
        unpacked = next(known, None)
        self.plain = unpacked is None
        self.file: Any = archive.open("rb") if unpacked is None else unpacked(archive)
        self.entries = 0
        self.position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def read(self, size: int = -1) -> bytes:
        if self.headers is not None:
            self.headers -= size if size >= 0 else MOST_HEADER + 1
            if self.headers < 0:
                raise DataError(
                    f"{self.archive} has headers of more than {MOST_HEADER:,} bytes for one file; "
                    "refused as a bomb."
                )
        data: bytes = self.file.read(size if size >= 0 else CHUNK)
        self._advance(len(data))
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence != os.SEEK_SET:
            raise io.UnsupportedOperation("only positions from the start")
        if self.plain or offset < self.position:
            self.file.seek(offset)
            self.position = offset
            return offset
        while self.position < offset:
            skipped = self.file.read(min(CHUNK, offset - self.position))
            if not skipped:
                break
            self._advance(len(skipped))
        return self.position

    def close(self) -> None:
        self.file.close()
        super().close()

    def _advance(self, count: int) -> None:
        self.position += count
        if not self.plain and self.position > self.limits.bytes + PADDING * self.entries:
            raise _bomb(self.archive, self.limits)

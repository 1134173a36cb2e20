"""Archives unpacked without trust: nothing outside the target, no links, no bombs.

An archive is looked through before anything is written, and unpacked into a folder that becomes
the target only when all of it is there.
"""

from __future__ import annotations

import functools
import gzip
import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from tqdm import tqdm

from peftbench.errors import DataError

MAX_RATIO = 100  # unpacked bytes for each byte of the archive; photographs have about 1
SMALLEST_LIMIT = 2**26  # bytes that any archive may unpack to: lists of labels pack well
MAX_FILES = 5_000_000  # ImageNet-C has 3.75 million
CHUNK = 2**20
_BROKEN = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    lzma.LZMAError,
    zlib.error,
    EOFError,
    NotImplementedError,  # a zip with a method of compression that is not known here
    RuntimeError,  # a zip with a password
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
        with _Opened(archive) as members:
            count = _write_all(archive, members, part, strip, limits)
        if not count:
            raise DataError(f"{archive} has no files{f' below {strip}' if strip else ''}.")
        _move_into(part, target, replace)
    except _BROKEN as error:
        reason = str(error) or type(error).__name__
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
                raise DataError(f"{archive} holds {str(member.path)!r} twice; refused.")
            with member.open() as source, place.open("xb") as file:
                while chunk := source.read(CHUNK):
                    room -= len(chunk)  # what comes out, not what is declared
                    if room < 0:
                        raise DataError(
                            f"{archive} ({archive.stat().st_size:,} bytes) unpacks to more than "
                            f"{limits.bytes:,} bytes; refused as a bomb."
                        )
                    file.write(chunk)
                    bar.update(len(chunk))
            if place.stat().st_size < member.size:
                raise EOFError(f"{member.path} is cut short")
    return count


def _check_path(archive: Path, path: PurePosixPath) -> None:
    text = str(path)
    drive = len(path.parts) > 0 and ":" in path.parts[0]
    if path.is_absolute() or ".." in path.parts or "\\" in text or "\0" in text or drive:
        raise DataError(
            f"{archive} holds the path {text!r}, which leads out of its folder; refused."
        )
    if not path.parts:
        raise DataError(f"{archive} holds a file without a name; refused.")


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

    def __init__(self, archive: Path) -> None:
        self.archive = archive
        self.name = archive.name.lower()

    def __enter__(self) -> Iterator[_Member]:
        if self.name.endswith(".zip"):
            self.zip = zipfile.ZipFile(self.archive)
            self.close = self.zip.close
            return self._zip_members()
        if self.name.endswith(".gz") and not self.name.endswith(".tar.gz"):
            self.close = lambda: None
            return iter([self._single()])
        self.tar = tarfile.open(self.archive)  # finds out how it is compressed
        self.close = self.tar.close
        return self._tar_members()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _single(self) -> _Member:
        def opened() -> IO[bytes]:
            return gzip.open(self.archive)  # type: ignore[return-value]

        return _Member(PurePosixPath(self.archive.name[: -len(".gz")]), 0, opened)

    def _zip_members(self) -> Iterator[_Member]:
        entries = self.zip.infolist()
        for entry in entries:
            kind = stat.S_IFMT(entry.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise self._link(entry.filename)
            _check_path(self.archive, PurePosixPath(entry.filename))
        for entry in entries:
            if not entry.is_dir():
                path = PurePosixPath(entry.filename)
                yield _Member(path, entry.file_size, functools.partial(self.zip.open, entry))

    def _tar_members(self) -> Iterator[_Member]:
        for entry in self.tar:
            path = PurePosixPath(entry.name)
            if entry.isdir():
                if path.parts:  # "./" is the archive itself
                    _check_path(self.archive, path)
                continue
            if not entry.isreg():
                raise self._link(entry.name)
            yield _Member(path, entry.size, functools.partial(self._extract, entry))

    def _extract(self, entry: tarfile.TarInfo) -> IO[bytes]:
        content = self.tar.extractfile(entry)
        assert content is not None  # it is a plain file
        return content

    def _link(self, name: str) -> DataError:
        return DataError(f"{self.archive} holds {name!r}, a link or a device; refused.")

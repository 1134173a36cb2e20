"""Guards at every door through which somebody else's files come in; all pure, no torch.

They raise `ValueError` with one clause that says what was found, so that each reader names its own
file and what to do about it.
"""

from __future__ import annotations

import functools
import io
import math
import os
import re
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

MOST_BYTES = 256 * 2**20  # of one small file: a record, a card, predictions, a manifest
MOST_RECORD = 16 * 2**20  # of a record or a card: values take up to 25 times their text in memory
MOST_DIRECTORY = 32 * 2**20  # of the list of contents of a zip file, about 300,000 files
MOST_HEADER = 4096  # bytes of the header of a .npy file, which numpy evaluates as a literal
READABLE = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # bzip2 and LZMA unpack without a bound
FORMULA = re.compile(r"'*[=+\-@\t\r]")
NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
# what reading a damaged zip file raises, beside OSError; NotImplementedError is a RuntimeError
DAMAGED = (ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
# what a terminal obeys or hides: controls, surrogates, formats (U+202E among them), separators
UNPRINTABLE = frozenset(("Cc", "Cs", "Cf", "Co", "Cn", "Zl", "Zp"))


def printable(text: str) -> str:
    r"""`text` for a terminal or a page: one line, everything that a terminal obeys as `\x1b`."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode("ascii")
        if unicodedata.category(character) in UNPRINTABLE
        else character
        for character in text
    )


def printable_lines(text: str) -> str:
    """The same for a text of several lines, whose line ends stay."""
    return "\n".join(map(printable, text.split("\n")))


def guarded(cell: str) -> str:
    """A cell of a CSV file that no spreadsheet takes for a formula: such a one begins with `'`.

    Numbers stay numbers, and `unguarded` gives back what went in.
    """
    return f"'{cell}" if FORMULA.match(cell) and not NUMBER.fullmatch(cell) else cell


def unguarded(cell: str) -> str:
    """What `guarded` made a cell of."""
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell


def check_plain_file(path: Path) -> None:
    """Refuse what `open` would wait for, or never get to the end of: FIFOs, devices, sockets.

    Raises:
        ValueError: `path` is there and is neither a file nor a link to one.
        OSError: it is not there or may not be looked at.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kinds: tuple[tuple[Callable[[int], bool], str], ...] = (
            (stat.S_ISDIR, "a folder"),
            (stat.S_ISFIFO, "a named pipe"),
            (stat.S_ISSOCK, "a socket"),
            (stat.S_ISCHR, "a device"),
            (stat.S_ISBLK, "a device"),
        )
        kind = next((name for test, name in kinds if test(mode)), "something else")
        raise ValueError(f"it is no plain file but {kind}")


def read_bounded(path: Path, most: int = MOST_BYTES) -> bytes:
    """The bytes of a plain file of at most `most` bytes.

    Raises:
        ValueError: it is no plain file, or larger.
        OSError: it cannot be read.
    """
    check_plain_file(path)
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise ValueError(f"it has {size / 2**20:,.0f} MB, more than {most / 2**20:.0f} MB")
        data = file.read(size + 1)  # not `most`, which would be set aside each time
        if len(data) > size:  # it grows
            data += file.read(most + 1 - len(data))
    if len(data) > most:
        raise ValueError(f"it has more than {most / 2**20:.0f} MB")
    return data


def check_directory(file: IO[bytes]) -> None:
    """Refuse a zip file whose list of contents would fill the memory before any is read.

    Raises:
        ValueError: the list is larger than `MOST_DIRECTORY`.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 2**16 - 128))  # its end may be followed by a comment of 64 KB
    tail = file.read()
    file.seek(0)
    for mark, at, code in ((b"PK\5\6", 12, "<L"), (b"PK\6\6", 40, "<Q")):  # the latter of zip64
        place = tail.find(mark)
        while place >= 0:
            if place + at + struct.calcsize(code) <= len(tail):
                (listed,) = struct.unpack_from(code, tail, place + at)
                if listed > MOST_DIRECTORY and listed != 2**32 - 1:
                    raise ValueError(f"its list of contents has {listed / 2**20:,.0f} MB")
            place = tail.find(mark, place + 1)


def _member(archive: zipfile.ZipFile, name: str, most: int) -> zipfile.ZipInfo:
    info = archive.getinfo(name)
    if info.compress_type not in READABLE:
        raise ValueError(f"{name} is packed as no zip file of ours is (neither stored nor deflate)")
    if info.file_size > most:
        raise ValueError(f"{name} unpacks to {info.file_size:,} bytes, more than {most:,}")
    return info


def read_member(archive: zipfile.ZipFile, name: str, most: int = MOST_BYTES) -> bytes:
    """One file of a zip file, unpacked: at most `most` bytes, whatever its directory says.

    Raises:
        ValueError: it is larger, or packed in a way that unpacks without a bound.
        zipfile.BadZipFile, zlib.error, EOFError, RuntimeError: damaged or encrypted.
    """
    info = _member(archive, name, most)
    with archive.open(info) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"{name} unpacks to more than {most:,} bytes")
    return data


def read_npz(source: Path | IO[bytes], most: int = MOST_BYTES) -> dict[str, np.ndarray]:
    """The arrays of a `.npz`, by name, of at most `most` bytes together; never unpickles.

    Nothing is unpacked before the sizes of all members were summed, and no array is made before
    its header was held against the size of its member.

    Raises:
        ValueError: too large, Python objects, or a header that announces another size.
        zipfile.BadZipFile, zlib.error, EOFError, RuntimeError: damaged or encrypted.
    """
    arrays: dict[str, np.ndarray] = {}
    if isinstance(source, Path):
        check_plain_file(source)
        with open(source, "rb") as file:
            return read_npz(file, most)
    check_directory(source)
    with zipfile.ZipFile(source) as archive:
        total = sum(info.file_size for info in archive.infolist())
        if total > most:
            raise ValueError(f"it unpacks to {total:,} bytes, more than {most:,}")
        for info in archive.infolist():
            if info.compress_type not in READABLE:
                raise ValueError(f"{info.filename} is packed in a way that numpy does not write")
            with archive.open(info) as file:
                arrays[info.filename.removesuffix(".npy")] = _array(file, info)
    return arrays


def read_array(archive: zipfile.ZipFile, name: str, most: int = MOST_BYTES) -> np.ndarray:
    """One array of a `.npz`, by the name of its file, as `read_npz` reads all.

    Raises:
        ValueError, KeyError: as `read_npz`; there is no such file.
        zipfile.BadZipFile, zlib.error, EOFError, RuntimeError: damaged or encrypted.
    """
    info = _member(archive, name, most)
    with archive.open(info) as file:
        return _array(file, info)


def read_header(file: IO[bytes], name: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, order and type that the header of a `.npy` announces; `ValueError` for no such one."""
    import numpy as np

    try:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            size = file.read(2)
            header = _header(size + file.read(int.from_bytes(size, "little")))
        elif version == (2, 0):
            header = np.lib.format.read_array_header_2_0(file, max_header_size=MOST_HEADER)
        else:
            raise ValueError(f"{name} is of version {version} of numpy's format")
    except (SyntaxError, TypeError, RecursionError, MemoryError) as error:  # of the literal
        raise ValueError(f"{name} has no header of numpy: {error}") from error
    shape, fortran, dtype = header
    if dtype.hasobject:
        raise ValueError(f"{name} holds Python objects")
    if any(not isinstance(side, int) or side < 0 for side in shape):
        raise ValueError(f"{name} has the shape {shape}")
    return shape, fortran, dtype


@functools.lru_cache(maxsize=256)
def _header(content: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    """What a header with its size before it says; many files have the same, and numpy is slow."""
    import numpy as np

    read = np.lib.format.read_array_header_1_0
    header: tuple[tuple[int, ...], bool, np.dtype] = read(
        io.BytesIO(content), max_header_size=MOST_HEADER
    )
    return header


def _array(file: IO[bytes], info: zipfile.ZipInfo) -> np.ndarray:
    import numpy as np

    shape, fortran, dtype = read_header(file, info.filename)
    count = math.prod(shape)
    wanted = count * dtype.itemsize
    if wanted > info.file_size:
        raise ValueError(f"{info.filename} announces {wanted:,} bytes and has {info.file_size:,}")
    data = file.read(wanted + 1)
    if len(data) != wanted:
        raise ValueError(f"{info.filename} announces {wanted:,} bytes and has another number")
    flat = np.frombuffer(data, dtype=dtype, count=count)
    return flat.reshape(shape, order="F" if fortran else "C")

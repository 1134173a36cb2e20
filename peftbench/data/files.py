"""Pictures and where they are: in files below a folder, or in arrays."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, features
from tqdm import tqdm

from peftbench.caches import cache_dir
from peftbench.data import images, pixels, threads
from peftbench.data.images import FULL, Extent, Levels
from peftbench.data.listing import Pictures, SplitList
from peftbench.errors import DataError
from peftbench.spec import WHOLE, Preprocessing
from peftbench.untrusted import check_plain_file

Item = TypeVar("Item")
Result = TypeVar("Result")
SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jfif",
    ".jpe", ".pbm", ".pnm", ".apng", *((".avif",) if features.check("avif") else ()),
)  # fmt: skip


@dataclass(frozen=True)
class FilePictures:
    """Files, named by their path below a folder."""

    root: Path

    def digests(self, names: Sequence[str]) -> tuple[str, ...]:
        return digests(self.root, names)

    def open(self, name: str, levels: Levels = FULL) -> Image.Image:
        path = self.root / name
        return images.decode(path, str(path), levels)

    def extent(self, name: str) -> Extent | None:
        return images.extent_of_file(self.root / name)

    def path(self, name: str) -> Path:
        return self.root / name


@dataclass(frozen=True, eq=False)
class ArrayPictures:
    """Arrays (N, H, W, 3) uint8 by the name of their part; row 3 of "train" is "train/00003"."""

    arrays: Mapping[str, np.ndarray]

    def digests(self, names: Sequence[str]) -> tuple[str, ...]:
        return tuple(hashlib.sha256(self._array(name).tobytes()).hexdigest() for name in names)

    def open(self, name: str, levels: Levels = FULL) -> Image.Image:
        return Image.fromarray(self._array(name))

    def extent(self, name: str) -> None:
        return None

    def path(self, name: str) -> None:
        return None

    def _array(self, name: str) -> np.ndarray:
        part, _, row = name.partition("/")
        array: np.ndarray = self.arrays[part][int(row)]
        return array


def decode(
    pictures: Pictures,
    part: SplitList,
    preprocessing: Preprocessing,
    title: str,
    beside: Path | None = None,
    levels: Levels = FULL,
) -> np.ndarray:
    """The images of a part, in its order: (N, size, size, 3) uint8, as `pixels.stored` gives them.

    They come from the pixel store or go into it; see `Listing.decode`.
    """

    def make(row: int) -> Any:
        return images.row(pictures.open(part.names[row], levels), preprocessing)

    key = pixels.key(part.digests, preprocessing, levels)
    whole = preprocessing.resize == WHOLE
    rows = pixels.PixelRows(len(part), preprocessing.size, make, title, whole)
    return pixels.stored(key, rows, beside)


def each(act: Callable[[Item], Result], items: Sequence[Item], title: str) -> Iterator[Result]:
    """`act` on every item in threads, in order, with a progress bar on a terminal.

    What has not begun when the caller stops is never done.
    """
    pool = ThreadPoolExecutor(threads.count())
    try:
        done = threads.in_order(pool, act, items)
        yield from tqdm(done, total=len(items), desc=title, disable=None)
    finally:
        pool.shutdown(cancel_futures=True)


def put(source: Path, place: Path) -> None:
    """The same file under another name, or a copy where the disk has no hard links."""
    with images.replaced(place) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def by_name(paths: Iterable[Path]) -> list[Path]:
    """Sorted by bytes: the order must not depend on the machine's locale or file system."""
    return sorted(paths, key=lambda path: os.fsencode(path.as_posix()))


def readable(name: str) -> str:
    r"""A name of the file system as text: what is no UTF-8 in it becomes `\xe9`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def digests(root: Path, names: Sequence[str]) -> tuple[str, ...]:
    """SHA-256 of each file. Files whose size and time are unchanged are not read again."""
    key = hashlib.sha256(os.fsencode(root)).hexdigest()[:32]
    memory = cache_dir() / "digests" / f"{key}.json"
    known: dict[str, list[object]] = {}
    try:
        loaded = json.loads(memory.read_text(encoding="utf-8"))
        known = loaded if isinstance(loaded, dict) else {}
    except (OSError, ValueError):  # absent or damaged: everything is hashed again
        pass

    def digest(name: str) -> list[object]:
        status = (root / name).stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device may never end
            raise _no_plain_file(root / name)
        seen = known.get(name)
        if isinstance(seen, list) and seen[:2] == [status.st_size, status.st_mtime_ns]:
            return seen
        return [status.st_size, status.st_mtime_ns, images.file_digest(root / name)]

    try:
        digest_of = dict(zip(names, threads.of_all(digest, names), strict=True))
    except OSError as error:
        raise DataError(
            f"Cannot read {error.filename}: {error.strerror}. Repair or remove it."
        ) from error
    if any(known.get(name) != entry for name, entry in digest_of.items()):
        try:
            memory.parent.mkdir(parents=True, exist_ok=True)
            with images.replaced(memory) as temporary:
                temporary.write_text(json.dumps({**known, **digest_of}), encoding="utf-8")
        except OSError:  # it only saves time, so a read-only cache is no error here
            pass
    return tuple(str(digest_of[name][2]) for name in names)


def _no_plain_file(path: Path) -> DataError:
    try:
        check_plain_file(path)
        reason = "it changed while it was read"
    except ValueError as error:
        reason = str(error)
    return DataError(f"{readable(str(path))}: {reason}. Remove it from the data set.")

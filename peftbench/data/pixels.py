"""The pixel store: images decoded and resized once, as memory-mapped arrays beside the data.

One array holds the images of one part of a data set under one transform. Its key is a hash of
the bytes of each image and of the transform, so a changed file or another size is another array.
Processes share it: the first one builds while the others wait, and all read the same pages.
The size that a whole picture had stands in the same row of the same file as its pixels, so that
neither is ever there without the other.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from tqdm import tqdm

from peftbench.data.images import (
    BESIDE,
    FULL,
    Levels,
    cache_dir,
    file_digest,
    geometry_key,
    replaced,
    row_type,
)
from peftbench.errors import DataError
from peftbench.spec import Preprocessing

FORMAT = 2  # of the key; raised when the same key would mean other pixels
_VERIFIED_BYTES = 2**30  # larger arrays are checked by shape and size only: hashing takes too long
_SAVED_EVERY = 2.0  # seconds between notes of how far a build has come
_SPARE_BYTES = 2**28  # of the disk, that a build leaves free


def key(digests: Sequence[str], preprocessing: Preprocessing, levels: Levels = FULL) -> str:
    """Names the array of the images with these SHA-256 `digests`, in this order.

    The version of Pillow is part of it: another one may resize to other pixels.
    """
    content = [str(FORMAT), PIL.__version__, geometry_key(preprocessing), *digests]
    if levels != FULL:
        content.append(f"levels {levels.black} {levels.white}")
    return hashlib.sha256("\n".join(content).encode()).hexdigest()[:32]


def place(beside: Path | None) -> Path:
    """The folder of the store: beside the data, unless `PEFTBENCH_CACHE` names another.

    Data that cannot be written to, or that is in no folder, has its arrays in the user's cache.
    """
    if beside is not None and not os.environ.get("PEFTBENCH_CACHE") and os.access(beside, os.W_OK):
        return beside / BESIDE / "pixels"
    return cache_dir() / "pixels"


def stored(
    name: str,
    count: int,
    size: int,
    make: Callable[[int], Any],
    *,
    title: str,
    beside: Path | None = None,
    whole: bool = False,
) -> np.ndarray:
    """The images `make(row)` of `count` rows, memory-mapped: (count, size, size, 3) uint8.

    Of `whole` pictures (count,) records; see `images.row_type`. They are made where no intact array
    of this `name` is stored. A build that was interrupted is taken up where it stopped.

    Args:
        name: see `key`.
        title: of the progress bar, which is shown on a terminal only.
        beside: the folder of the data.

    Raises:
        DataError: an image cannot be decoded, or the store cannot be written.
    """
    path = place(beside) / f"{name}.npy"
    kind = row_type(size, whole)
    found = _open_checked(path, count, kind)
    if found is None:
        with _writable(path.parent), _only_builder(path):
            found = _open_checked(path, count, kind)  # another process may have built it meanwhile
            if found is None:
                _build(path, count, kind, make, title)
                found = np.load(path, mmap_mode="r", allow_pickle=False)
    return found


def _build(
    path: Path, count: int, kind: np.dtype[Any], make: Callable[[int], Any], title: str
) -> None:
    part = path.with_suffix(".part")
    done = _rows_done(part, count, kind)
    if not done:
        _check_space(path.parent, count * kind.itemsize)
    array = np.lib.format.open_memmap(
        part,
        mode="r+" if done else "w+",
        dtype=kind.base,
        shape=None if done else (count, *kind.shape),
    )
    try:
        saved = time.monotonic()
        rows = range(done, count)
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            for number, image in zip(
                rows,
                tqdm(  # None: shown when stderr is a terminal
                    pool.map(make, rows), total=count, initial=done, desc=title, disable=None
                ),
                strict=True,
            ):
                array[number] = image
                if time.monotonic() - saved > _SAVED_EVERY:
                    array.flush()
                    _note(part, number + 1)
                    saved = time.monotonic()
        array.flush()
    except Exception:  # the key of repaired images is another one; nobody would take this up
        _forget(part)
        raise
    del array
    side = (kind["pixels"] if kind.names else kind).shape[0]
    facts = {"title": title, "images": count, "size": side, "pillow": PIL.__version__}
    with replaced(_facts_path(path)) as facts_file:
        content = json.dumps({**facts, "sha256": file_digest(part)}, indent=1)
        facts_file.write_text(content + "\n", encoding="utf-8")
    os.replace(part, path)
    _forget(part)


def _rows_done(part: Path, count: int, kind: np.dtype[Any]) -> int:
    """How many rows a build that was stopped has left behind."""
    try:
        done = int(_progress_path(part).read_text(encoding="ascii"))
        array = np.load(part, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return 0
    return done if _fits(array, count, kind) and 0 < done < count else 0


def _fits(array: np.ndarray, count: int, kind: np.dtype[Any]) -> bool:
    return array.shape == (count, *kind.shape) and array.dtype == kind.base


def _note(part: Path, done: int) -> None:
    with replaced(_progress_path(part)) as progress:
        progress.write_text(str(done), encoding="ascii")


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _progress_path(part).unlink(missing_ok=True)


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed + _SPARE_BYTES > free:
        raise DataError(
            f"The resized images need {needed / 1e9:.1f} GB in {folder}, where {free / 1e9:.1f} GB "
            "are free. Set PEFTBENCH_CACHE to a folder with more space, or dataset.limit."
        )


def _open_checked(path: Path, count: int, kind: np.dtype[Any]) -> np.ndarray | None:
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        if not _fits(array, count, kind):
            return None
        if array.nbytes <= _VERIFIED_BYTES:
            facts = json.loads(_facts_path(path).read_text(encoding="utf-8"))
            if facts["sha256"] != _digest_now(path, path.stat().st_mtime_ns):
                return None
        return array
    except (OSError, ValueError, EOFError, KeyError, TypeError):  # absent, cut short, no array
        return None


@functools.lru_cache(maxsize=256)
def _digest_now(path: Path, changed: int) -> str:
    """Hash of a file that was last changed then; a process that opens it again need not hash."""
    return file_digest(path)


def _facts_path(path: Path) -> Path:
    return path.with_suffix(".json")


def _progress_path(part: Path) -> Path:
    return part.with_suffix(".rows")


@contextlib.contextmanager
def _only_builder(path: Path) -> Iterator[None]:
    """Held by one process at a time, and let go of when it dies."""
    from filelock import FileLock, Timeout

    lock = FileLock(path.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        tqdm.write(f"waiting for another process to decode {path.stem[:12]}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise DataError(
            f"Cannot write resized images to {folder}: {error.strerror or error}. "
            "Set PEFTBENCH_CACHE to a folder with space that you may write to."
        ) from error

"""The pixel store: images decoded and resized once, as memory-mapped arrays beside the data.

One array holds the images of one part of a data set under one transform. Its key is a hash of
the bytes of each image and of the transform, so a changed file or another size is another array.
Processes share it: the first one builds while the others wait, and all read the same pages.
The size that a whole picture had stands in the same row of the same file as its pixels, so that
neither is ever there without the other.

What lies beside the data may come from whoever gave the data. So the hash of every array, and of
the finished part of one that is being built, is kept in the user's cache, and an array that is not
known there is compared with its images, all of them decoded again, before anything is read of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL
from tqdm import tqdm

from peftbench.caches import cache_dir
from peftbench.data import threads
from peftbench.data.images import (
    BESIDE,
    FULL,
    Levels,
    file_digest,
    geometry_key,
    replaced,
    row_type,
)
from peftbench.data.pixel_memory import (
    digest_now,
    facts_path,
    forget,
    memory_of,
    memory_path,
    note_progress,
    progress_path,
    remember,
    seen_hash,
    state_of,
)
from peftbench.errors import DataError
from peftbench.spec import Preprocessing
from peftbench.untrusted import check_plain_file

_log = logging.getLogger(__name__)

FORMAT = 2  # of the key; raised when the same key would mean other pixels
_HASHED_EACH_TIME = 2**30  # bytes; of larger arrays, those whose file has not changed are not
_KEPT_DAYS = 7  # that a build which was stopped can be gone on with
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


def places(beside: Path | None) -> tuple[Path, ...]:
    """Folders in which arrays are looked for, the preferred one first.

    Beside the data, and in the user's cache; nowhere else where `PEFTBENCH_CACHE` names it.
    """
    cache = cache_dir() / "pixels"
    if beside is None or os.environ.get("PEFTBENCH_CACHE"):
        return (cache,)
    return (beside / BESIDE / "pixels", cache)


def _may_write(folder: Path) -> bool:
    """Whether arrays may be put into a folder, which need not be there."""
    there = next((f for f in (folder, *folder.parents) if os.path.lexists(f)), folder)
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def _may_lock(path: Path) -> bool:
    lock = path.with_suffix(".lock")
    return not lock.exists() or os.access(lock, os.R_OK)


@dataclass(frozen=True)
class PixelRows:
    """What an array holds and how each of its rows is made."""

    count: int
    size: int  # side of an image
    make: Callable[[int], Any]  # from the number of a row
    title: str  # of the progress bar, which is shown on a terminal only
    whole: bool = False  # pictures as they are; see `images.row_type`

    @property
    def kind(self) -> np.dtype[Any]:
        """The type of a row."""
        return row_type(self.size, self.whole)

    def fit(self, array: np.ndarray) -> bool:
        """Whether an array has the shape (count, ...) and the type of these rows."""
        kind = self.kind
        return array.shape == (self.count, *kind.shape) and array.dtype == kind.base


def stored(name: str, rows: PixelRows, beside: Path | None = None) -> np.ndarray:
    """The images of `rows`, memory-mapped: (count, size, size, 3) uint8.

    Of whole pictures (count,) records. They are made where no intact array of this `name` is
    stored. A build that was interrupted is taken up where it stopped.

    Args:
        name: see `key`.
        beside: the folder of the data.

    Raises:
        DataError: an image cannot be decoded, or the store cannot be written.
    """
    paths = [folder / f"{name}.npy" for folder in places(beside)]
    array = _known(paths, rows)
    if array is None:
        path = next((p for p in paths if _may_write(p.parent) and _may_lock(p)), paths[-1])
        with _writable(path.parent), _only_builder(path):
            array = _known(paths, rows)  # another process may have built it meanwhile
            array = _compared(paths, rows) if array is None else array
            if array is None:
                _build(path, rows)
                array = np.load(path, mmap_mode="r", allow_pickle=False)
            path.with_suffix(".lock").unlink(missing_ok=True)  # who waits for it finds the array
            for folder in (path.parent, memory_path(path).parent):
                _sweep(folder)
    return array


def _build(path: Path, rows: PixelRows) -> None:
    part, kind = path.with_suffix(".part"), rows.kind
    done = 0 if part.is_symlink() else _rows_done(part, rows)
    if not done:
        part.unlink(missing_ok=True)  # a link, or another user's, that could not be written to
        _check_space(path.parent, rows.count * kind.itemsize)
    array = np.lib.format.open_memmap(
        part,
        mode="r" if done else "w+",  # the header, and room for all rows
        dtype=kind.base,
        shape=None if done else (rows.count, *kind.shape),
    )
    digest, start = _digest_of_rows(part, array, done), array.offset + done * kind.itemsize
    del array
    try:
        with part.open("r+b") as file:  # pages of a map would stay in memory
            file.seek(start)
            _write_rows(file, digest, rows, done)
    except Exception:  # the key of repaired images is another one; nobody would take this up
        forget(part)
        raise
    side = (kind["pixels"] if kind.names else kind).shape[0]
    facts = {"title": rows.title, "images": rows.count, "size": side, "pillow": PIL.__version__}
    sha256 = digest.hexdigest()  # of what was decoded, whatever is on the disk now
    with replaced(facts_path(path)) as facts_file:
        content = json.dumps({**facts, "sha256": sha256}, indent=1)
        facts_file.write_text(content + "\n", encoding="utf-8")
    os.replace(part, path)
    forget(part)
    remember(path, sha256)


def _write_rows(file: BinaryIO, digest: Any, rows: PixelRows, done: int) -> None:
    """Make the rows that are left, and take them into a file and the `digest` of its bytes."""
    left, saved = range(done, rows.count), time.monotonic()
    with ThreadPoolExecutor(threads.count()) as pool:
        images = tqdm(  # None: shown when stderr is a terminal
            threads.in_order(pool, rows.make, left),
            total=rows.count,
            initial=done,
            desc=rows.title,
            disable=None,
        )
        for number, image in zip(left, images, strict=True):
            row = _bytes_of(image, rows.kind)
            file.write(row)
            digest.update(row)
            if time.monotonic() - saved > _SAVED_EVERY:
                _to_disk(file)
                note_progress(Path(file.name), number + 1, digest.hexdigest())
                saved = time.monotonic()
    _to_disk(file)


def _bytes_of(image: Any, kind: np.dtype[Any]) -> bytes:
    row = np.empty(1, dtype=kind)
    row[0] = image
    return row.tobytes()


def _to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _digest_of_rows(part: Path, array: np.memmap, rows: int) -> Any:
    """SHA-256 of the header of an array and of so many of its rows, to be gone on with."""
    digest = hashlib.sha256()
    left = array.offset + rows * array[:1].nbytes
    with part.open("rb") as file:
        while left and (chunk := file.read(min(left, 2**20))):
            digest.update(chunk)
            left -= len(chunk)
    return digest


def _rows_done(part: Path, rows: PixelRows) -> int:
    """How many rows a build that was stopped has left behind, as the user's cache knows them."""
    try:
        note = json.loads(progress_path(part).read_text(encoding="ascii"))
        done, sha256 = note["rows"], note["sha256"]
        array = np.load(part, mmap_mode="r", allow_pickle=False)
        if not (rows.fit(array) and isinstance(done, int) and 0 < done < rows.count):
            return 0
        return done if _digest_of_rows(part, array, done).hexdigest() == sha256 else 0
    except (OSError, ValueError, EOFError, KeyError, TypeError, AttributeError, RecursionError):
        return 0


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed + _SPARE_BYTES > free:
        raise DataError(
            f"The resized images need {needed / 1e9:.1f} GB in {folder}, where {free / 1e9:.1f} GB "
            "are free. Set PEFTBENCH_CACHE to a folder with more space, or dataset.limit."
        )


def _opened(path: Path, rows: PixelRows) -> np.ndarray | None:
    try:
        check_plain_file(path)
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        return array if rows.fit(array) else None
    except (OSError, ValueError, EOFError):  # absent, cut short, no array
        return None


def _known(paths: Sequence[Path], rows: PixelRows) -> np.ndarray | None:
    """The first array whose bytes are those that the user's cache knows."""
    for path in paths:
        array = _opened(path, rows)
        if array is not None and _is_known(path):
            return array
    return None


def _is_known(path: Path) -> bool:
    memory = memory_of(path)
    sha256 = memory.get("sha256") or seen_hash(path)
    if sha256 is None:
        return False
    state = state_of(path)
    if os.path.getsize(path) > _HASHED_EACH_TIME and memory.get("state") == [str(path), *state]:
        return True
    if digest_now(path, tuple(state)) != sha256:
        return False
    if os.path.getsize(path) > _HASHED_EACH_TIME:
        remember(path, sha256)
    return True


def _compared(paths: Sequence[Path], rows: PixelRows) -> np.ndarray | None:
    """The first array that nobody knows and that holds what its images decode to."""
    for path in paths:
        array = _opened(path, rows)
        if array is None:
            continue
        if memory_of(path):
            _log.warning("%s: %s has changed since it was made, and is not used", rows.title, path)
            continue
        _log.warning(
            "%s: the resized images in %s were not made by you, or %s has forgotten it: "
            "they are compared with all %s images, once",
            rows.title, path.parent, cache_dir(), f"{rows.count:,}",
        )  # fmt: skip
        digest = _digest_of_rows(path, array, rows.count)  # type: ignore[arg-type]
        if _holds(path, array.offset, rows):  # type: ignore[attr-defined]
            remember(path, digest.hexdigest())
            return array if _is_known(path) else None
        _log.warning("%s: %s does not hold its images, and is not used", rows.title, path)
    return None


def verify(beside: Path | None) -> list[str]:
    """Hash every array of a data set as a whole; remarks about those that nobody here has made.

    Raises:
        DataError: names one that has changed since.
    """
    strange = 0
    for path in sorted((places(beside)[0] if beside else Path()).glob("*.npy")):
        memory = memory_of(path)
        if not memory:
            strange += 1
        elif file_digest(path) != memory["sha256"]:
            raise DataError(
                f"The resized images {path} have changed since they were made. Remove the file; "
                "it is made again when it is used."
            )
    if not strange:
        return []
    return [
        f"{strange} array{'s' * (strange > 1)} of resized images beside it were not made here and "
        "will be compared with the images when they are used"
    ]


def _holds(path: Path, start: int, rows: PixelRows) -> bool:
    """Whether a file has what `rows` are made of, from byte `start` on."""
    with path.open("rb") as file, ThreadPoolExecutor(threads.count()) as pool:
        file.seek(start)
        images = tqdm(
            threads.in_order(pool, rows.make, range(rows.count)),
            total=rows.count,
            desc=f"check {rows.title}",
            disable=None,
        )
        for image in images:
            if _bytes_of(image, rows.kind) != file.read(rows.kind.itemsize):
                pool.shutdown(cancel_futures=True)
                return False
    return True


@contextlib.contextmanager
def _only_builder(path: Path) -> Iterator[None]:
    """Held by one process at a time, and let go of when it dies."""
    from filelock import FileLock, Timeout

    place = path.with_suffix(".lock")
    if place.is_symlink():
        place.unlink()
    elif place.exists() and not os.access(place, os.W_OK):
        # another user's: in a folder that both may write to it can be put aside, unless held
        with _read_only(place):
            yield
        return
    lock = FileLock(place)
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
def _read_only(place: Path) -> Iterator[None]:
    """The lock of a file that may not be written to, which the system grants all the same."""
    import fcntl  # a file of another user that can be read is met on such systems alone

    handle = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tqdm.write(f"waiting for another user to decode {place.stem[:12]}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)  # which lets go of it


def _sweep(folder: Path) -> None:
    """Remove what builds left behind that nobody holds and nobody has gone on with for days."""
    from filelock import FileLock, Timeout

    oldest = time.time() - _KEPT_DAYS * 86_400
    for left in (
        p for pattern in ("*.part", "*.rows", "*.lock", ".*.tmp") for p in folder.glob(pattern)
    ):
        with contextlib.suppress(OSError, Timeout):
            if left.lstat().st_mtime > oldest or left.is_symlink():
                continue
            if left.suffix == ".tmp":
                left.unlink()
                continue
            lock = left.with_suffix(".lock")
            with FileLock(lock, timeout=0):
                left.unlink(missing_ok=True)
                lock.unlink(missing_ok=True)


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

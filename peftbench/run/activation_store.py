"""Activations of frozen prefixes on disk, shared by methods, trials and seeds.

An entry is named by a digest of all that decides its numbers, and is used only while its facts and
the hash of its bytes are those with which it was written: what was cut short, changed or put there
by somebody else is computed again. It lies in the user's cache, where it may be lost at any time.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from peftbench.caches import cache_dir
from peftbench.canonical import digest
from peftbench.data.images import file_digest

_log = logging.getLogger(__name__)

FORMAT = 1  # of the name; raised when the same name would mean other bytes
SPARE_BYTES = 2**28  # of the disk, that are left free
MOST_SHARE = 1 / 2  # of the budget, that one entry may take: another phase has its own
LEFT_BEHIND_DAYS = 1  # after which a lock that nobody holds is removed


@dataclass(frozen=True)
class KeptRows:
    """Rows of bytes, one an image."""

    rows: np.ndarray  # (N, bytes of a row) uint8, memory-mapped
    found: bool  # whether it was there, and nothing was computed
    seconds: float  # that computing it took, now or then


@dataclass(frozen=True)
class ActivationStore:
    """A folder of entries that takes no more than a number of bytes."""

    folder: Path
    budget: int

    @classmethod
    def of_user(cls, budget: int) -> ActivationStore:
        """The one in the user's cache, of so many bytes."""
        return cls(cache_dir() / "activations", budget)

    def takes(self, size: int) -> bool:
        """Whether an entry of so many bytes has a place in it."""
        return size <= self.budget * MOST_SHARE

    def entry(
        self,
        facts: Mapping[str, Any],
        shape: tuple[int, int],
        make: Callable[[], Iterator[np.ndarray]],
    ) -> KeptRows | None:
        """The entry of `facts`, computed where there is none; `None` where it cannot be kept.

        Processes that ask for the same one wait for the first of them.

        Args:
            facts: all that decides the bytes, as plain values.
            shape: number of rows, and bytes of one.
            make: computes the rows, some (n, bytes) uint8 at a time.
        """
        described = {**facts, "format": FORMAT, "shape": list(shape)}
        path = self.folder / f"{digest(described)}.npy"
        known = _known(path, described)
        if known is not None:
            return known
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_suffix(".lock")):
                known = _known(path, described)  # another process may have made it meanwhile
                if known is None:
                    self._make_room(shape[0] * shape[1])
                    _write(path, described, make())
                    known = _known(path, described, found=False)
        except OSError as error:
            _log.warning(
                "activations cannot be kept in %s (%s): they are computed again. Set "
                "PEFTBENCH_CACHE to a folder with space, or cache=off.",
                self.folder,
                error.strerror or error,
            )
            return None
        return known

    def _make_room(self, size: int) -> None:
        """Remove what was not used for longest, until `size` more bytes fit into the budget.

        Raises:
            OSError: the disk has no room for them.
        """
        used = []
        for facts in self.folder.glob("*.json"):
            with contextlib.suppress(OSError):
                rows = facts.with_suffix(".npy")
                used.append((facts.stat().st_mtime, rows.stat().st_size, rows))
        for part in self.folder.glob("*.part"):
            _remove_unless_held(part)
        total = sum(length for _, length, _ in used)
        for _, length, rows in sorted(used):
            if total + size <= self.budget:
                break
            remove(rows)
            total -= length
        _remove_old_locks(self.folder)
        if shutil.disk_usage(self.folder).free < size + SPARE_BYTES:
            raise OSError(f"{size / 1e9:.1f} GB do not fit on the disk")


def remove(path: Path) -> None:
    """Remove an entry; who has it mapped keeps it."""
    for own in (path.with_suffix(".json"), path):
        own.unlink(missing_ok=True)


def _known(path: Path, described: Mapping[str, Any], found: bool = True) -> KeptRows | None:
    """The entry at `path` if it is what was written there for these facts."""
    beside = path.with_suffix(".json")
    try:
        noted = json.loads(beside.read_text(encoding="utf-8"))
        if noted["facts"] != json.loads(json.dumps(described)):
            return None
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
        if list(rows.shape) != described["shape"] or rows.dtype != np.uint8:
            return None
        if file_digest(path) != noted["sha256"]:
            return None
        seconds = float(noted["seconds"])
        with contextlib.suppress(OSError):  # of another user
            os.utime(beside)
    except (OSError, ValueError, KeyError, TypeError, EOFError, RecursionError):
        return None
    return KeptRows(rows, found, seconds)


def _write(path: Path, described: Mapping[str, Any], made: Iterator[np.ndarray]) -> None:
    part = path.with_suffix(".part")
    part.unlink(missing_ok=True)
    began = time.perf_counter()
    try:
        written = 0
        with part.open("xb") as file:
            np.lib.format.write_array_header_1_0(file, _header(described["shape"]))
            for rows in made:
                file.write(np.ascontiguousarray(rows).data)
                written += len(rows)
        if written != described["shape"][0]:
            raise ValueError(f"{written} rows were made instead of {described['shape'][0]}")
        seconds = time.perf_counter() - began
        noted = {"facts": described, "sha256": file_digest(part), "seconds": seconds}
        beside = path.with_suffix(".json")
        beside.unlink(missing_ok=True)  # an entry without its facts is none
        os.replace(part, path)
        temporary = beside.with_suffix(".part")
        temporary.write_text(json.dumps(noted) + "\n", encoding="utf-8")
        os.replace(temporary, beside)
    finally:
        part.unlink(missing_ok=True)


def _header(shape: list[int]) -> dict[str, Any]:
    """Of a file of rows of bytes, as numpy reads it."""
    return {"descr": "|u1", "fortran_order": False, "shape": tuple(shape)}


def _remove_unless_held(part: Path) -> None:
    """Remove what a process that was killed left behind."""
    with contextlib.suppress(OSError, Timeout), FileLock(part.with_suffix(".lock"), timeout=0):
        part.unlink(missing_ok=True)


def _remove_old_locks(folder: Path) -> None:
    oldest = time.time() - LEFT_BEHIND_DAYS * 86_400
    for lock in folder.glob("*.lock"):
        with contextlib.suppress(OSError, Timeout):
            if lock.stat().st_mtime < oldest:
                with FileLock(lock, timeout=0):
                    lock.unlink(missing_ok=True)

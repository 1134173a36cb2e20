"""Records of runs on disk: one JSON file a run, safe with many writers and after a crash.

root/runs/<method>/<run_id>.json    the record
root/runs/<method>/<run_id>/        its artefacts: tuned tensors, card, predictions, log, warnings
root/runs/<method>/<run_id>.lock    present while a process holds the run
root/runs/.store.lock               held for milliseconds around each change
"""

from __future__ import annotations

import contextlib
import gc
import os
import secrets
import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftbench.errors import DiskFull, StoreError
from peftbench.results.atomic import write_atomic
from peftbench.results.disk import explained, full_number, reason, writing
from peftbench.results.guard import Busy, lock_file, open_guard, unlock_file, write_lock
from peftbench.results.locks import (
    STALE_SECONDS,
    SUBMISSION_VARIABLE,
    Owner,
    age_of,
    beating,
    gone,
    left_over,
    time_at,
)
from peftbench.results.predictions import (
    UNREADABLE,
    Predictions,
    names_array,
    predictions_of,
)
from peftbench.results.record import RunRecord, Status, method_of, preference
from peftbench.tasks import CLASSIFICATION, Task
from peftbench.untrusted import MOST_RECORD, read_bounded, read_npz

if sys.platform != "win32":
    pass

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["STALE_SECONDS", "SUBMISSION_VARIABLE"]  # of the locks, for those who use the store


CUT_SHORT = "a process that its lock does not name, as it was cut short"
# half-written files, below the root: of records, their artefacts, tables, checkpoints, submissions
TEMPORARIES = (
    *(
        f"{folder}.*.{suffix}"
        for folder in ("", "*/", "runs/*/", "runs/*/*/", "submitted/*/")
        for suffix in ("tmp", "part")
    ),
    "runs/.write-test-*",
)


class StoreWarning(UserWarning):
    """A file in the store that could not be read."""


@dataclass(frozen=True)
class Scan:
    """Every readable record and, for every other file, the error that names it."""

    records: tuple[RunRecord, ...]
    broken: tuple[StoreError, ...]


class ResultsStore:
    """Records and artefacts below one folder, which is made when the first record is added."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self.runs = self.root / "runs"

    def path(self, method: str, run_id: str) -> Path:
        """File of one record, whether or not it exists."""
        return self.runs / _part("method", method) / f"{_part('run id', run_id)}.json"

    def artefacts(self, of: RunRecord | tuple[str, str]) -> Path:
        """Folder for the files of a record or of (method, run_id), whether or not it exists."""
        method, run_id = (method_of(of), of.run_id) if isinstance(of, RunRecord) else of
        return self.path(method, run_id).with_suffix("")

    def add(self, record: RunRecord, *, replace: bool = False, data: bytes | None = None) -> Path:
        """File of the record, complete on disk.

        A record already there gives way to the new one, except that an `OK` record stays when the
        new one is not `OK`: a failed rerun loses nothing. `replace=True` overwrites in every case.
        `data` is the file of a record that was written elsewhere, kept as it is.
        """
        path = self.path(method_of(record), record.run_id)
        data = record.to_json().encode() if data is None else data
        with self._exclusive():
            if not replace and record.status is not Status.OK and _is_ok(path):
                return path
            write_atomic(path, lambda file: file.write(data))
        return path

    def get(self, run_id: str, method: str | None = None) -> RunRecord | None:
        """The record of `run_id`, or `None`; `StoreError` names a file that cannot be read."""
        if method is not None:
            paths = [self.path(method, run_id)]
        else:
            paths = [path for path in self._files() if path.stem == run_id]
        records: list[RunRecord] = []
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                records.append(_read(path))
        return max(records, key=preference, default=None)

    def scan(self, *, history: bool = True) -> Scan:
        """Everything in the store, in the order of the file names.

        Without `history` no record has its epochs, which saves most of time and memory.
        """
        with uncollected():
            found = [one for path in self._files() if (one := read(path, history=history))]
        return Scan(
            tuple(one for one in found if isinstance(one, RunRecord)),
            tuple(one for one in found if isinstance(one, StoreError)),
        )

    def records(self, *, history: bool = True) -> Iterator[RunRecord]:
        """Every readable record; a `StoreWarning` for each file that `broken()` would list."""
        scan = self.scan(history=history)
        for error in scan.broken:
            warnings.warn(str(error), StoreWarning, stacklevel=2)
        yield from scan.records

    def broken(self) -> list[StoreError]:
        """One error for each file that is not a readable record."""
        return list(self.scan(history=False).broken)

    def done(self) -> frozenset[str]:
        """Ids that need no rerun. A broken file is not among them: the rerun repairs it."""
        return frozenset(r.run_id for r in self.scan(history=False).records if r.status.settled)

    def check_writable(self) -> None:
        """`StoreError` unless a file can really be made, replaced and removed below the root."""
        probe = self.runs / f".write-test-{os.getpid()}-{secrets.token_hex(4)}"
        try:
            write_atomic(probe, lambda file: file.write(b"peftbench\n"))
            probe.unlink()
        except (OSError, StoreError) as error:
            if isinstance(error, DiskFull):
                raise
            cause = error.__cause__ if isinstance(error, StoreError) else error
            raise StoreError(
                f"Results go to {self.root}, which cannot be written: {reason(cause)}. "
                "Choose another results folder or make this one writable."
            ) from error

    @contextlib.contextmanager
    def claim(self, run_id: str, method: str, *, brief: bool = False) -> Iterator[Path]:
        """Hold the run; `Busy` when a living process already does.

        Another process may have finished the run before this one got hold of it: look it up again
        inside the block. A lock whose process is gone is taken over; where that cannot be seen (a
        process on another host), it is taken over when its process has not touched the lock file,
        which this yields, for `SILENT_SECONDS`: those who hold a lock touch it all the time. A
        `brief` one, of milliseconds, is neither touched nor synchronised with the disk.
        """
        lock = self.path(method, run_id).with_suffix(".lock")
        owner = Owner.current()
        with self._exclusive() as now:
            held = Owner.read(lock)
            if lock.exists() and not gone(held, age_of(lock, now)):
                raise Busy(
                    f"Run {run_id} of {method} is already running: {held or CUT_SHORT}. "
                    f"Wait for it, or delete {lock} if that process is gone."
                )
            write_lock(lock, owner, synced=not brief)
        try:
            with contextlib.nullcontext() if brief else beating(lock, owner):
                yield lock
        finally:
            if os.getpid() == owner.pid and Owner.read(lock) == owner:
                lock.unlink(missing_ok=True)

    def holder(self, run_id: str, method: str) -> str | None:
        """Who holds a run now, as text; `None` where nobody does or its process is gone."""
        lock = self.path(method, run_id).with_suffix(".lock")
        with self._exclusive() as now:
            owner = Owner.read(lock)
            if not lock.exists() or gone(owner, age_of(lock, now)):
                return None
            return str(owner or CUT_SHORT)

    def release(self, run_id: str, method: str, submission: str) -> None:
        """Remove the lock on a run that a process of `submission` left; any other lock stays.

        For those who know from their cluster that the process is gone, which its host alone sees.
        """
        lock = self.path(method, run_id).with_suffix(".lock")
        if not lock.exists():
            return
        with self._exclusive():
            owner = Owner.read(lock)
            if owner is not None and owner.submission == submission != "":
                lock.unlink(missing_ok=True)

    def tidy(self) -> list[Path]:
        """What processes that are gone left behind and nobody needs, and which is gone now.

        Locks, half-written files and the scratch folders of runs that nobody holds.
        """
        if not self.runs.is_dir():
            return []
        removed: list[Path] = []
        with self._exclusive() as now:
            held: set[str] = set()
            for lock in sorted(self.runs.glob("*/*.lock")):
                if gone(Owner.read(lock), age_of(lock, now)):
                    removed += _removed(lock)
                else:
                    held.add(lock.stem)
            for folder in sorted(self.root.glob(".scratch/*/")):
                if folder.name not in held and not folder.is_symlink():
                    shutil.rmtree(folder, ignore_errors=True)
                    removed += [] if folder.exists() else [folder]
            with contextlib.suppress(OSError):
                (self.root / ".scratch").rmdir()  # unless a run is using it
        for pattern in TEMPORARIES:
            for path in sorted(self.root.glob(pattern)):
                if left_over(path, _age_of_all(path, now)):
                    removed += _removed(path)
        return removed

    def save_predictions(
        self,
        method: str,
        run_id: str,
        task: Task = CLASSIFICATION,
        *,
        names: Sequence[str] | None = None,
        numbers: Sequence[int] | None = None,
        **rows: npt.ArrayLike,
    ) -> Path:
        """File with the rows of one run that its task stores, in the order of the images.

        Args:
            names: paths of the images' files below the folder of their data, if they have any.
            numbers: of the images among all of the data set, where it is split in several ways.
        """
        import numpy as np

        arrays: dict[str, Any] = {
            name: np.asarray(rows[name], dtype=kind) for name, kind in task.stored.items()
        }
        if names is not None and (listed := names_array(names)) is not None:
            arrays["names"] = listed
        if numbers is not None:
            arrays["numbers"] = np.asarray(numbers, dtype="int32")
        shapes = {name: array.shape for name, array in arrays.items()}
        if len({shape[:1] for shape in shapes.values()}) != 1 or () in shapes.values():
            raise StoreError(
                f"Predictions of run {run_id} need arrays of one length, found {shapes}."
            )
        path = self.artefacts((method, run_id)) / "predictions.npz"
        write_atomic(path, lambda file: np.savez_compressed(file, **arrays))
        return path

    def load_predictions(self, method: str, run_id: str) -> Predictions | None:
        """Predictions of one run, or `None` where it saved none."""
        path = self.artefacts((method, run_id)) / "predictions.npz"
        try:
            return predictions_of(read_npz(path))
        except FileNotFoundError:
            return None
        except UNREADABLE as error:
            raise StoreError(
                f"{path} does not hold predictions: {error}. Delete it and rerun {run_id}."
            ) from error

    def entries(self) -> list[os.DirEntry[str]]:
        """Every file that should be a record, in the order of folders and names."""
        try:
            folders = sorted(path for path in self.runs.iterdir() if path.is_dir())
            return [entry for folder in folders for entry in _named_as_records(folder)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise StoreError(
                f"Records are read from {self.runs}, which cannot be listed: {reason(error)}. "
                "Make the folder readable."
            ) from error

    def _files(self) -> list[Path]:
        return [Path(entry.path) for entry in self.entries()]

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[float]:
        """Alone among the writers of this store; yields the clock of its file system.

        Ages of locks are measured on that clock, so hosts need not agree on the time.
        """
        guard = self.runs / ".store.lock"
        try:
            self.runs.mkdir(parents=True, exist_ok=True)
            descriptor = open_guard(guard)
        except OSError as error:
            if full_number(error) is not None:
                raise explained(error, self.runs) from error
            raise StoreError(
                f"Records go to {self.runs}, which cannot be written: {reason(error)}. "
                "Choose another results folder or make this one writable."
            ) from error
        try:
            lock_file(descriptor)
            yield self._now(guard, descriptor)
        finally:
            unlock_file(descriptor)  # a forked child may still hold the descriptor
            os.close(descriptor)

    def _now(self, guard: Path, descriptor: int) -> float:
        """The time on the clock of the file system."""
        try:
            os.utime(guard)
            return os.fstat(descriptor).st_mtime
        except PermissionError:  # it is another user's
            with writing(self.runs):
                return time_at(self.runs)


def _part(kind: str, name: str) -> str:
    """`name`, checked to be one component of a path."""
    if not name or name.startswith(".") or "/" in name or "\\" in name or "\0" in name:
        raise StoreError(f"{kind} {name!r} cannot be a file name. Use letters, digits, '_', '-'.")
    return name


def _named_as_records(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as found:
        named = [one for one in found if one.name.endswith(".json") and one.name[0] != "."]
    return sorted(named, key=attrgetter("name"))


def read(path: Path, *, history: bool = True) -> RunRecord | StoreError | None:
    """The record in `path`, or the error that names it; `None` where it is gone by now."""
    try:
        return _read(path, history=history)
    except FileNotFoundError:
        return None
    except StoreError as error:
        return error


def _read(path: Path, *, history: bool = True) -> RunRecord:
    """The record in `path`; `FileNotFoundError` where there is none, `StoreError` if broken."""
    try:
        record = RunRecord.from_json(read_bounded(path, MOST_RECORD), history=history)
        if record.run_id != path.stem:
            raise ValueError(f"it holds run {record.run_id!r}")
        method_of(record)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, StoreError) as error:
        raise StoreError(
            f"{path} is not a readable run record: {reason(error)}. Rerun it or delete the file."
        ) from error
    return record


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Without the garbage collector, which walks over all records again and again: a quarter of
    the time of a large store. Nothing of a record refers to itself."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _is_ok(path: Path) -> bool:
    try:
        return _read(path, history=False).status is Status.OK
    except (FileNotFoundError, StoreError):
        return False


def _age_of_all(path: Path, now: float) -> float:
    """The same of a folder and of everything in it: seconds since anything there was touched."""
    inside = path.rglob("*") if path.is_dir() and not path.is_symlink() else ()
    return min(age_of(one, now) for one in (path, *inside))


def _removed(path: Path) -> list[Path]:
    """The path, where it could be removed; a folder, such as of an import, with all that it has."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return [] if path.exists() else [path]
    try:
        path.unlink()
    except OSError:
        return []
    return [path]

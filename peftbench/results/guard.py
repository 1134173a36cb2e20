"""The lock around every change of a store, and who holds it."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from peftbench.errors import StoreError
from peftbench.results.disk import reason, writing
from peftbench.results.locks import (
    Owner,
)

if sys.platform != "win32":
    import fcntl
if TYPE_CHECKING:
    pass


class Busy(StoreError):
    """A run that another process holds."""


def write_lock(lock: Path, owner: Owner, *, synced: bool = True) -> None:
    """A new lock file that names a process; `StoreError` where it cannot be made."""
    try:
        with writing(lock):
            lock.parent.mkdir(parents=True, exist_ok=True)
            lock.unlink(missing_ok=True)  # of a process that is gone
            descriptor = os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                with open(descriptor, "w", encoding="utf-8") as file:
                    file.write(owner.text())
                    file.flush()
                    if synced:
                        os.fsync(file.fileno())
            except OSError:  # such as a full disk
                lock.unlink(missing_ok=True)
                raise
    except StoreError as error:
        if isinstance(error.__cause__, FileExistsError):
            # only where the file system has no advisory locks
            raise Busy(f"Another process took {lock} at the same moment.") from error
        if isinstance(error.__cause__, PermissionError) and lock.exists():
            raise StoreError(
                f"{lock} was left by {_user_of(lock)} and cannot be removed: "
                f"{reason(error.__cause__)}. Ask them to delete it."
            ) from error
        raise


def _user_of(path: Path) -> str:
    try:
        return f"user {path.owner()}"
    except (OSError, KeyError, NotImplementedError):
        return "another user"


def open_guard(guard: Path) -> int:
    """Descriptor of a file to lock; those who share the folder may use it too, as they may that."""
    try:
        descriptor = os.open(guard, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:
        return os.open(guard, os.O_RDONLY)  # of another user; local file systems can lock it
    with contextlib.suppress(OSError):
        shared = os.stat(guard.parent).st_mode & 0o022
        mode = os.fstat(descriptor).st_mode & 0o777
        if shared & ~mode:
            os.fchmod(descriptor, mode | shared | (shared << 1))
    return descriptor


def lock_file(descriptor: int) -> None:
    if sys.platform != "win32":
        with contextlib.suppress(OSError):  # a file system without locks; renames stay atomic
            fcntl.flock(descriptor, fcntl.LOCK_EX)


def unlock_file(descriptor: int) -> None:
    if sys.platform != "win32":
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)

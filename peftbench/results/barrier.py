"""One wait for the disk for many files, in place of one for each."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from peftbench.results.atomic import sync_folder

MOST_FILES, MOST_WAITING = 512, 256 * 2**20  # that wait for the disk together
# ext2 to ext4, XFS and Btrfs, by their numbers in linux/magic.h: what `syncfs` promises for them is
# what `fsync` promises for each file. File servers and FUSE are asked file by file.
LOCAL = frozenset((0xEF53, 0x58465342, 0x9123683E))
HONEST = (5, 8)  # the first Linux whose `syncfs` tells that a file could not be written


def barrier(files: Iterable[Path], folders: Iterable[Path] = ()) -> None:
    """Return when these files and the names in these folders would survive a power cut.

    All of them lie on the file system of the first one, or are names of folders around it.

    Raises:
        OSError: the disk is full or broken.
    """
    files, folders = list(files), list(folders)
    if not (files or folders) or _sync_all_at(Path((files or folders)[0])):
        return
    for path in files:
        with open(path, "r+b") as file:
            os.fsync(file.fileno())
    for folder in folders:
        sync_folder(folder)


def _sync_all_at(path: Path) -> bool:
    """Synchronise the file system of `path`; false where that promises less than `fsync`."""
    libc = _libc()
    if libc is None:
        return False
    status = ctypes.create_string_buffer(512)  # begins with the kind of the file system
    if libc.statfs(os.fsencode(path), status) != 0:
        return False
    if ctypes.c_long.from_buffer(status).value not in LOCAL:
        return False
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if libc.syncfs(descriptor) == 0:
            return True
        number = ctypes.get_errno()
    finally:
        os.close(descriptor)
    if number == errno.ENOSYS:
        return False
    raise OSError(number, os.strerror(number), str(path))


@cache
def _libc() -> Any:
    """The C library, where its `syncfs` can be relied on; else `None`."""
    if sys.platform != "linux":
        return None
    version = re.match(r"(\d+)\.(\d+)", os.uname().release)
    if version is None or (int(version[1]), int(version[2])) < HONEST:
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    return libc if hasattr(libc, "syncfs") and hasattr(libc, "statfs") else None

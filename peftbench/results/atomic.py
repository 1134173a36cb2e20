"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

from peftbench.results.disk import writing
from peftbench.results.locks import (
    temporary_tag,
)

if sys.platform != "win32":
    pass


def write_atomic(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """`path` with what `write` wrote, all of it or nothing; the folder is made when missing."""
    temporary = path.with_name(f".{path.name}.{temporary_tag()}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "xb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut, where the file system lets a folder be synchronised."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

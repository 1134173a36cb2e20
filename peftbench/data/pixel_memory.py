"""What the user's own cache knows of arrays of pixels: hashes, and how far a build has come."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

from peftbench.caches import cache_dir
from peftbench.data.images import (
    file_digest,
    replaced,
)

_log = logging.getLogger(__name__)


def note_progress(part: Path, done: int, sha256: str) -> None:
    path = progress_path(part)
    with contextlib.suppress(OSError):  # without a note the build begins anew
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced(path) as progress:
            progress.write_text(json.dumps({"rows": done, "sha256": sha256}), encoding="ascii")


def forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        progress_path(part).unlink()


@functools.lru_cache(maxsize=256)
def digest_now(path: Path, state: tuple[int, ...]) -> str:
    """Hash of a file in that state; a process that opens it again need not hash."""
    return file_digest(path)


def state_of(path: Path) -> list[int]:
    """What changes when a file does; the time of its last change of any kind cannot be set."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev]


_SEEN: dict[str, str] = {}  # hashes that this process has found, should no cache keep them


def memory_path(path: Path) -> Path:
    """Where the hash of an array is kept, named as the array is: like its key, by content."""
    return cache_dir() / "arrays" / f"{path.stem}.json"


def memory_of(path: Path) -> dict[str, Any]:
    for place in (memory_path(path), *([facts_path(path)] if is_in_cache(path) else [])):
        try:
            memory = json.loads(place.read_text(encoding="utf-8"))
            if isinstance(memory, dict) and isinstance(memory.get("sha256"), str):
                return memory
        except (OSError, ValueError, RecursionError):  # absent or damaged
            continue
    return {}


def seen_hash(path: Path) -> str | None:
    """The hash that this process has found of an array of this name, if it has."""
    return _SEEN.get(path.stem)


def remember(path: Path, sha256: str) -> None:
    _SEEN[path.stem] = sha256
    memory = memory_path(path)
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        with replaced(memory) as temporary:
            content = {"sha256": sha256, "state": [str(path), *state_of(path)]}
            temporary.write_text(json.dumps(content), encoding="utf-8")
    except OSError as error:
        _log.warning(
            "%s cannot be written (%s): the resized images will be checked again by the next run. "
            "Set PEFTBENCH_CACHE to a folder that stays.",
            memory.parent, error.strerror or error,
        )  # fmt: skip


def is_in_cache(path: Path) -> bool:
    return path.parent == cache_dir() / "pixels"


def facts_path(path: Path) -> Path:
    return path.with_suffix(".json")


def progress_path(part: Path) -> Path:
    """Beside what is in the user's cache; of what is beside the data in that cache as well."""
    if is_in_cache(part):
        return part.with_suffix(".rows")
    key = hashlib.sha256(os.fsencode(part)).hexdigest()[:32]
    return cache_dir() / "arrays" / f"{key}.rows"

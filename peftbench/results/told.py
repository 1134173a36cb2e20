"""What the logger of a run had to say, kept beside its artefacts for the sweep that started it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

from peftbench.errors import StoreError
from peftbench.results.atomic import write_atomic
from peftbench.untrusted import read_bounded

FILE = "warnings.json"
MOST_BYTES = 2**20


def leave(folder: Path, lines: Sequence[str]) -> None:
    """Put `lines` into the artefacts of a run; where they cannot be written, nothing happens."""
    data = json.dumps(list(lines)).encode()
    with contextlib.suppress(StoreError, OSError):
        write_atomic(folder / FILE, lambda file: file.write(data))


def take(folder: Path) -> tuple[str, ...]:
    """The lines that were left in the artefacts of a run, once; a file of no lines has none."""
    try:
        lines = json.loads(read_bounded(folder / FILE, MOST_BYTES))
    except (OSError, ValueError, RecursionError):
        lines = []
    with contextlib.suppress(OSError):
        (folder / FILE).unlink(missing_ok=True)
    if not isinstance(lines, list):
        return ()
    return tuple(line for line in lines if isinstance(line, str))

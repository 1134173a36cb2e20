"""What has been sent where: one small file a run, so that nothing is uploaded twice.

root/wandb/peftbench/<name>.json    name is a run id, or that of a report
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from peftbench.results.atomic import write_atomic


@dataclass(frozen=True)
class LedgerEntry:
    """The last thing sent under one name."""

    group: str | None  # sweep that the run belongs to
    place: str = ""  # "online entity/project at URL"; empty while nothing has arrived anywhere
    version: str = ""  # of what was sent: when its record was finished


def read(root: Path, name: str) -> LedgerEntry | None:
    """The entry of `name`; `None` where there is none or the file is damaged."""
    try:
        return LedgerEntry(**json.loads(_path(root, name).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None  # at worst something is sent again, under the same id


def write(root: Path, name: str, entry: LedgerEntry) -> None:
    """Note that `entry` was sent; `StoreError` where that cannot be written."""
    text = json.dumps(dataclasses.asdict(entry)) + "\n"
    write_atomic(_path(root, name), lambda file: file.write(text.encode()))


def _path(root: Path, name: str) -> Path:
    return root / "wandb" / "peftbench" / f"{name}.json"

"""Where what is derived is kept for later, and can be derived again when it is lost."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """The user's own folder for it: `PEFTBENCH_CACHE`, or `~/.cache/peftbench`."""
    named = os.environ.get("PEFTBENCH_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "peftbench"

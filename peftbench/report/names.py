"""Names of the files of a report."""

from __future__ import annotations

import re


def slug(text: str) -> str:
    """`text` as a file name."""
    return re.sub(r"[^A-Za-z0-9.+-]+", "_", text).strip("._") or "all"

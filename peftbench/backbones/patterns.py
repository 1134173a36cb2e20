"""Patterns of dotted paths."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable


def match(pattern: str, paths: Iterable[str]) -> list[str]:
    """Those of `paths` that fit `pattern`, name by name; * stands for any part of one name."""
    want = pattern.split(".")
    matching = []
    for path in paths:
        names = path.split(".")
        if len(names) == len(want) and all(map(fnmatch.fnmatchcase, names, want)):
            matching.append(path)
    return matching

"""Small texts that tables and pages share."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd


def mark_of(index: int) -> str:
    """a, b, ..., z, aa, ab, ..."""
    letters = string.ascii_lowercase
    return (mark_of(index // 26 - 1) if index >= 26 else "") + letters[index % 26]


def magnitude(count: Any) -> str:
    """A count with three digits: 768, 36.9k, 85.8M."""
    if pd.isna(count):
        return "–"
    value, unit = scaled(count)
    if not unit:
        return f"{count:.0f}"
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}{unit}"


def scaled(count: float) -> tuple[float, str]:
    """A count in the largest of thousands, millions and billions that it reaches, and its sign."""
    for unit, text in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return count / unit, text
    return count, ""


def counted(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def some_of(texts: Iterable[str], most: int = 5) -> str:
    """The first few different texts and the number of the others."""
    unique = list(dict.fromkeys(texts))
    more = [f"and {len(unique) - most} more"] if len(unique) > most else []
    return ", ".join([*unique[:most], *more])


def first_of(texts: Sequence[str], most: int) -> str:
    """The first few texts and the number of the others, as in a sentence: `a, b and 2 more`."""
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


def short(digest: str) -> str:
    return digest[:8] or "unknown"


def text_of(value: Any) -> str:
    return "" if value is None else str(value)


def commonest(values: Iterable[Any]) -> Any:
    """The most frequent value; of equally frequent ones, the first in order."""
    counts = Counter(values)
    return min(counts, key=lambda value: (-counts[value], value), default="")

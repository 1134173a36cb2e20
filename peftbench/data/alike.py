"""Names of classes that may be two spellings of one."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

SHOWN = 3  # pairs that a line names


def key(name: str) -> str:
    """What names have in common that look alike: "Cat ", "cat" and "CAT"; "1", "01" and "1.0"."""
    text = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
    number = re.fullmatch(r"([+-]?)0*(\d+)(?:[.,]0*)?", text)
    if number:
        return f"{number[1].strip('+')}{number[2]}"
    # an accent may be one letter or two, and letters of other alphabets stay what they are
    return re.sub(r"[\s_-]+", " ", text).strip() or text


def remark(names: Sequence[str]) -> str:
    """One sentence on classes whose names look alike; empty where none do."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(key(name), []).append(name)
    pairs = [group for group in groups.values() if len(group) > 1]
    if not pairs:
        return ""
    alike = "; ".join(" and ".join(map(repr, group[:4])) for group in pairs[:SHOWN])
    more = f"; and {len(pairs) - SHOWN} more" if len(pairs) > SHOWN else ""
    return (
        f"Classes whose names look alike are classes of their own: {alike}{more}. If they are one, "
        "write them alike."
    )

"""Names of one's own data sets in a table of runs: two of them are never called the same."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection

import pandas as pd

LEAST_DIGITS = 6  # of a hash behind a name


def with_names_apart(table: pd.DataFrame) -> pd.DataFrame:
    """The same rows; names that stand for several of one's own data sets end with their hashes.

    Data sets are told apart by `content`. Runs from before there was such a hash have that of
    their files and splits there, and are of the same data set as later runs with equal ones.
    """
    own = table["content"].notna() & table["dataset"].notna()
    if not own.any():
        return table
    mine = table[own]
    exact = mine[mine["content"] != mine["manifest"]]
    known = dict(zip(exact["manifest"], exact["content"], strict=True))
    content = mine["content"].map(lambda value: known.get(value, value))
    hashes: dict[str, set[str]] = defaultdict(set)
    for name, value in zip(mine["dataset"], content, strict=True):
        hashes[name].add(value)
    texts = [
        name if len(hashes[name]) == 1 else f"{name}-{value[: _digits(hashes[name])]}"
        for name, value in zip(mine["dataset"], content, strict=True)
    ]
    result = table.copy()
    result.loc[own, "content"] = content
    result.loc[own, "dataset"] = pd.array(texts, dtype="string")
    return result


def _digits(hashes: Collection[str]) -> int:
    """How many first digits tell all of these hashes apart."""
    length = LEAST_DIGITS
    while len({text[:length] for text in hashes}) < len(hashes):
        length += 1
    return length

"""The order in which TensorFlow Datasets (TFDS) stores its records."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from peftbench.errors import DataError

Key = str | bytes | int


def shuffled(split: str, keys: Sequence[Key]) -> np.ndarray:
    """Rows of `keys` in the order of TFDS: (N,) int64.

    Records are sorted by the MD5 of the split's name and their key, read as a 128-bit integer
    (TFDS 4.9.9: core/hashing.py, core/shuffle.py, core/split_builder.py). Equal keys raise
    `DataError`, as they do in TFDS.
    """
    salted = hashlib.md5(split.encode("utf-8"), usedforsecurity=False)
    digests = bytearray()
    for key in keys:
        digest = salted.copy()
        digest.update(_encoded(key))
        digests += digest.digest()
    halves = np.frombuffer(bytes(digests), dtype=">u8").reshape(-1, 2)
    order = np.lexsort((halves[:, 1], halves[:, 0]))
    ordered = halves[order]
    twice = np.flatnonzero((ordered[1:] == ordered[:-1]).all(axis=1))
    if len(twice):
        raise DataError(
            f"The split {split} holds the record {keys[int(order[twice[0]])]!r} twice. Unpack the "
            "archive again, into an empty folder."
        )
    return order


def _encoded(key: Key) -> bytes:
    return key if isinstance(key, bytes) else str(key).encode("utf-8")

"""Damaged copies of a file, the same for the same seed: what readers of files must bear."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

COPIES = int(os.environ.get("DAMAGED_COPIES", "2000"))  # of each kind of file; fewer in CI


def mutations(data: bytes, count: int, seed: int) -> Iterator[bytes]:
    """`count` damaged copies of `data`, each with one to four faults.

    A fault is a flipped bit, a replaced byte, a run of the bytes that parsers trip over (0, 255,
    the ends of text and number formats), an insertion, a cut range, a doubled or a moved range, or
    a cut end.
    """
    source = random.Random(seed)
    for _ in range(count):
        damaged = bytearray(data)
        for _ in range(source.choice((1, 1, 1, 2, 2, 3, 4))):
            _damage(damaged, source)
        yield bytes(damaged)


def _damage(data: bytearray, source: random.Random) -> None:
    if not data:
        data.extend(source.randbytes(8))
        return
    at = source.randrange(len(data))
    span = slice(at, at + source.choice((1, 2, 4, 8, 16, 64, 1024)))
    fault = source.randrange(8)
    if fault == 0:
        data[at] ^= 1 << source.randrange(8)
    elif fault == 1:
        data[at] = source.randrange(256)
    elif fault == 2:
        run = bytes([source.choice((0, 1, 9, 10, 34, 45, 57, 91, 123, 127, 128, 255))])
        data[span] = run * len(data[span])
    elif fault == 3:
        data[at:at] = source.randbytes(source.choice((1, 4, 16)))
    elif fault == 4:
        del data[span]
    elif fault == 5:
        data[at:at] = data[span]
    elif fault == 6:
        moved = data[span]
        del data[span]
        to = source.randrange(len(data) + 1)
        data[to:to] = moved
    else:
        del data[at:]

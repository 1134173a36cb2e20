"""Work in threads whose results are taken in order, with a bound on how far the threads run ahead.

`ThreadPoolExecutor.map` begins with a task for every item and keeps what is done until it is
taken: of a million images, a million tasks, and as many pictures as the threads are ahead.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
AHEAD = 4  # results for each thread that may wait to be taken
TOGETHER = 64  # short items that are one task: a task of its own costs 50 microseconds


def count() -> int:
    """Threads for work that waits for a disk, or decodes outside of Python's lock."""
    return min(8, os.cpu_count() or 1)


def in_order(
    pool: Executor, act: Callable[[Item], Result], items: Iterable[Item], window: int = 0
) -> Iterator[Result]:
    """`act` on every item by the threads of `pool`, in order.

    At most `window` items are begun and not yet taken; `AHEAD` for each of `count` threads unless
    given. Items are asked for by who takes the results. An error of `act` is raised there as well,
    in its turn; what has not begun then, or when this is closed, is never done.
    """
    window = window or AHEAD * count()
    begun: deque[Future[Result]] = deque()
    try:
        for item in items:
            begun.append(pool.submit(act, item))
            if len(begun) == window:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        for left in begun:
            left.cancel()


def of_all(act: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """`act`, which is short, on every item by threads, in order; the first error is raised."""

    def several(start: int) -> list[Result]:
        return [act(item) for item in items[start : start + TOGETHER]]

    with ThreadPoolExecutor(count()) as pool:
        parts = in_order(pool, several, range(0, len(items), TOGETHER))
        return [result for part in parts for result in part]

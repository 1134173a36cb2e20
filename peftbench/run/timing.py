"""Whether a timing can be believed: how far it spreads, and what else the machine was doing."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

LEAST_TIMINGS = 8  # fewer have no quartiles to speak of
LEAST_SECONDS = 0.25  # the kernel counts in hundredths; below, its counts say nothing
MOST_SPREAD = 0.25  # between the quartiles, of the median; a quiet machine has a few percent
MOST_WAITING = 0.10  # of the time without any core
MOST_TAKEN = 0.10  # of the cores, beyond those that the timed work leaves free


@dataclass(frozen=True)
class Clock:
    """Seconds so far: of the wall, of this process, and of all programs on its cores."""

    wall: float
    own: float
    busy: float | None  # stolen time included; `None` where the system does not tell
    cores: int

    @classmethod
    def now(cls) -> Clock:
        """As they are now."""
        cores = _usable()
        return cls(time.perf_counter(), time.process_time(), _busy(cores), max(1, len(cores)))


def disturbance(
    seconds: Sequence[float], before: Clock | None, after: Clock | None, threads: int
) -> str | None:
    """What disturbed a timing, in a few words; `None` for one that can be believed.

    Args:
        seconds: of repetitions of the same work.
        before: where it began, on a CPU; `None` on a GPU, which other programs do not slow down.
        after: where it ended.
        threads: that the work could use.
    """
    found = []
    if len(seconds) >= LEAST_TIMINGS:
        low, middle, high = statistics.quantiles(seconds, n=4)
        spread = (high - low) / middle if middle > 0 else 0.0
        if spread > MOST_SPREAD:
            found.append(f"spread {100 * spread:.0f} %")
    if before is not None and after is not None and after.wall - before.wall >= LEAST_SECONDS:
        found += _of_machine(before, after, threads)
    return ", ".join(found) or None


def _of_machine(before: Clock, after: Clock, threads: int) -> list[str]:
    wall, own = after.wall - before.wall, after.own - before.own
    found = []
    waited = 1 - own / wall  # one thread at least has something to compute at any time
    if waited > MOST_WAITING:
        found.append(f"waited for a core {100 * waited:.0f} % of the time")
    if before.busy is not None and after.busy is not None:
        taken = (after.busy - before.busy - own) / (wall * after.cores)
        free = max(0, after.cores - threads) / after.cores
        if taken > free + MOST_TAKEN:
            found.append(f"other programs took {100 * min(taken, 1.0):.0f} % of the cores")
    return found


def _usable() -> frozenset[int]:
    """Numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def _busy(cores: frozenset[int]) -> float | None:
    """Seconds that `cores` have worked since the start of the machine, for whomever; Linux only."""
    try:
        lines = Path("/proc/stat").read_text(encoding="ascii").splitlines()
        rows = [line.split() for line in lines if line.startswith("cpu")]
        own = [row for row in rows if row[0][3:].isdecimal() and int(row[0][3:]) in cores]
        # user, nice, system, idle, iowait, irq, softirq, steal; guests are counted as user
        ticks = sum(int(row[i]) for row in own for i in (1, 2, 3, 6, 7, 8))
        return ticks / os.sysconf("SC_CLK_TCK") if len(own) == len(cores) else None
    except (OSError, ValueError, IndexError, AttributeError):
        return None

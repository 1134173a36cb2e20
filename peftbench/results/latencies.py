"""Latencies that runs share: measured once for a network on a machine, kept beside the records.

root/latencies/<digest>.json    two medians, when they were measured, of what, its multiply-adds;
                                or what a training step of a network takes

A cache of this machine: no record is made of it, and no bundle carries it. A file that is damaged
or is not what its name says is measured anew and replaced. Runs at the same time may both measure;
the last one wins, and nobody waits.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from peftbench.canonical import digest
from peftbench.errors import StoreError
from peftbench.results.atomic import write_atomic
from peftbench.untrusted import printable, read_bounded

MOST_BYTES = 2**16
LONGEST_LINE = 200  # of what disturbed a latency
T = TypeVar("T")


@dataclass(frozen=True)
class Latency:
    """Median milliseconds of one forward pass."""

    one_ms: float  # of one image
    batch_ms: float  # of a batch
    measured: str  # ISO 8601, UTC
    disturbed: str | None = None  # how, where other programs were at work
    forward_gmacs: float | None = None  # multiply-adds of one image, in 1e9; `None` after merging
    one_iqr_ms: float | None = None  # between the quartiles of the passes that a median is of
    batch_iqr_ms: float | None = None


@dataclass(frozen=True)
class StepCost:
    """What a training step takes, found without computing it."""

    kept_bytes: int  # activations that its forward pass keeps for the backward pass
    training_gflops: float  # forward and backward of one image, in 1e9 floating-point operations
    peak_bytes: int  # weights, gradients, state of the optimiser, activations and tensors between


class Latencies:
    """The latencies that are known in one results folder."""

    def __init__(self, root: Path | str, *, renew: bool = False) -> None:
        """Those below the folder `root`; with `renew` none is taken over, and new ones are kept."""
        self.folder = Path(root) / "latencies"
        self.renew = renew
        self.busy = False  # whether other programs have disturbed a timing of this run

    def find(self, of: Mapping[str, Any]) -> Latency | None:
        """What was measured of exactly `of`; `None` where nothing was, or nothing readable."""
        return self._find(of, Latency, _plausible)

    def find_step(self, of: Mapping[str, Any]) -> StepCost | None:
        """What a step of exactly `of` takes; `None` where nobody found out, or not readably."""
        return self._find(of, StepCost, _plausible_step)

    def _find(
        self, of: Mapping[str, Any], kind: Callable[..., T], plausible: Callable[[T], bool]
    ) -> T | None:
        if self.renew:
            return None
        try:
            raw = json.loads(read_bounded(self._path(of), MOST_BYTES))
            if raw.pop("of") != of:
                return None
            found = kind(**raw)
            return found if plausible(found) else None
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None

    def keep(self, of: Mapping[str, Any], latency: Latency | StepCost) -> None:
        """Let other runs know; where that cannot be written, they measure for themselves."""
        text = json.dumps({"of": of, **asdict(latency)}, indent=1) + "\n"
        with contextlib.suppress(StoreError, OSError):
            write_atomic(self._path(of), lambda file: file.write(text.encode()))

    def _path(self, of: Mapping[str, Any]) -> Path:
        return self.folder / f"{digest(dict(of))}.json"


def _plausible(found: Latency) -> bool:
    """Whether these can be two durations, a time and a line of a record.

    Raises:
        ValueError, TypeError: it is no time.
    """
    datetime.fromisoformat(found.measured)
    line = "" if found.disturbed is None else found.disturbed
    numbers = [found.one_ms, found.batch_ms]
    numbers += [] if found.forward_gmacs is None else [found.forward_gmacs]
    spreads = [s for s in (found.one_iqr_ms, found.batch_iqr_ms) if s is not None]
    return (
        all(type(number) is float and 0 < number < math.inf for number in numbers)
        and all(type(spread) is float and 0 <= spread < math.inf for spread in spreads)
        and isinstance(line, str)
        and len(line) <= LONGEST_LINE
        and printable(line) == line
    )


def _plausible_step(found: StepCost) -> bool:
    """Whether these can be two sizes and a count of operations."""
    sizes = (found.kept_bytes, found.peak_bytes)
    return (
        all(type(size) is int and 0 <= size < 2**63 for size in sizes)
        and type(found.training_gflops) is float
        and 0 <= found.training_gflops < math.inf
    )

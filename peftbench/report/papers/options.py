"""What a table of a paper is asked for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """What may fill a table."""

    where: tuple[str, ...] = ()  # conditions on runs, as in `peftbench.results.frame.select`
    best_on_test: bool = False  # also runs that selected the epoch on test
    limited: bool = False  # also runs on a part of the images
    incomplete: bool = False  # averages over rows with holes, marked
    dirty: bool = False  # also runs whose code differed from its commit

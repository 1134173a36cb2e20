"""Which trials of a search are hopeless before they end.

A trial is looked at on val after a few of its epochs and stops where it is worse than the trials
before it suggest. What it must reach is fixed when it starts, so that a trial is a run like any
other: the same declaration gives the same record, and a search that was killed goes on as it was.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from peftbench.errors import ConfigError
from peftbench.registry import unknown_name

PRUNERS = ("none", "median", "halving")

# (epoch, score on val to reach by then or to stop)
ValChecks = tuple[tuple[int, float | None], ...]


@dataclass(frozen=True)
class Curve:
    """What a trial reached at each look."""

    values: Mapping[int, float]  # epoch -> score on val
    whole: bool  # it was not stopped


@dataclass(frozen=True)
class Pruner:
    """A rule for stopping trials.

    Attributes:
        rule: what the best score on val of a trial so far must reach. `median`: the median of what
            whole trials had at the same epoch (Golovin et al., 2017, section 3.2.2). `halving`: a
            place among the best 1/`reduction` of all trials that came as far (asynchronous
            successive halving, Li et al., 2020, algorithm 2).
        at: fractions of the epochs of a trial after which it is looked at.
        startup: whole trials before `median` stops any.
        reduction: of which one goes on, for `halving`.

    Raises:
        ConfigError: an unknown rule, or numbers that make no sense.
    """

    rule: str = "none"
    at: tuple[float, ...] = (0.25, 0.5)
    startup: int = 4
    reduction: int = 3

    def __post_init__(self) -> None:
        if self.rule not in PRUNERS:
            raise unknown_name("tuner.pruner", self.rule, PRUNERS)
        if self.rule == "none":
            return
        if not self.at or not all(0 < share < 1 for share in self.at):
            raise ConfigError(
                f"tuner.look_at={list(self.at)}: give fractions of the epochs between 0 and 1."
            )
        if self.startup < 1 or self.reduction < 2:
            raise ConfigError(
                f"tuner.startup={self.startup}, tuner.reduction={self.reduction}: use 1 or more, "
                "and 2 or more."
            )

    def epochs(self, total: int) -> tuple[int, ...]:
        """Epochs, counted from 1, after which a trial of `total` epochs is looked at."""
        if self.rule == "none":
            return ()
        return tuple(sorted({e for share in self.at if (e := math.ceil(share * total)) < total}))

    def val_checks(self, curves: Sequence[Curve], total: int) -> ValChecks:
        """When val is checked in the next trial, and what it must have reached then."""
        return tuple((epoch, self._bound(curves, epoch)) for epoch in self.epochs(total))

    def _bound(self, curves: Sequence[Curve], epoch: int) -> float | None:
        if self.rule == "median":
            whole = [c.values[epoch] for c in curves if c.whole and epoch in c.values]
            return statistics.median(whole) if len(whole) >= self.startup else None
        arrived = sorted((c.values[epoch] for c in curves if epoch in c.values), reverse=True)
        # of the n trials that will have arrived, n // reduction go on, and always the best one
        kept = max(1, (len(arrived) + 1) // self.reduction)
        return arrived[kept - 1] if len(arrived) >= kept else None

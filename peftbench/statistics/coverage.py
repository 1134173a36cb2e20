"""How often the intervals held the truth in simulations of so many data sets and seeds.

`coverage.csv` is written by `python tests/statistics/simulate_coverage.py`. Few runs do not show
how skewed their distribution is, so that no interval of three skewed scores holds as often as it
does for normal ones; the figures are therefore printed beside the intervals.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

FILE = "coverage.csv"


@dataclass(frozen=True)
class Coverage:
    """Shares of the simulations whose 95 % interval held the truth."""

    normal: float  # normal scores
    skewed: float  # exponential scores (skewness 2)


def describe(coverages: Iterable[Coverage | None]) -> str:
    """How often intervals of these hold, for a reader; empty where none was simulated."""
    known = [one for one in coverages if one is not None]
    if not known:
        return ""
    normal, skewed = ({round(100 * share) for share in shares} for shares in _both(known))
    size = "this size" if len(normal) == len(skewed) == 1 else "these sizes"
    return f"holds in {_range(normal)} of normal, {_range(skewed)} of skewed simulations at {size}"


def _both(known: Sequence[Coverage]) -> tuple[list[float], list[float]]:
    return [one.normal for one in known], [one.skewed for one in known]


def _range(percents: set[int]) -> str:
    low, high = min(percents), max(percents)
    return f"{low} %" if low == high else f"{low} to {high} %"


def coverage(statistic: str, over: str, datasets: int, seeds: int) -> Coverage | None:
    """Of the largest simulated shape that is not larger; `None` where there is none.

    Args:
        statistic: "mean", "interquartile mean" or "improvement" (the probability of it).
        over: what the interval is about, as `Interval.over`.
        datasets: behind the estimate.
        seeds: of the data set that has fewest.
    """
    shapes = [
        (number * each, number, each)
        for name, claim, number, each in simulated()
        if (name, claim) == (statistic, over) and number <= datasets and each <= seeds
    ]
    if not shapes:
        return None
    _, number, each = max(shapes)
    return simulated()[statistic, over, number, each]


@lru_cache(maxsize=1)
def simulated() -> dict[tuple[str, str, int, int], Coverage]:
    """By statistic, claim, number of data sets and of seeds."""
    text = files(__package__).joinpath(FILE).read_text(encoding="utf-8")
    return {
        (row["statistic"], row["over"], int(row["datasets"]), int(row["seeds"])): Coverage(
            float(row["normal"]), float(row["skewed"])
        )
        for row in csv.DictReader(text.splitlines())
    }

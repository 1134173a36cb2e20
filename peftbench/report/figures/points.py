"""Points of a figure of accuracy against cost, and the frontier among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from peftbench.report.costs import COSTS, measured
from peftbench.report.spreads import spreads
from peftbench.report.tables.cells import OK, overall
from peftbench.report.view import View
from peftbench.statistics.coverage import Coverage
from peftbench.statistics.intervals import Interval


@dataclass(frozen=True)
class Point:
    """One row of a table; accuracies in percent, a range is missing where it has no width."""

    label: str
    method: str
    cost: float
    cost_range: tuple[float, float] | None
    mean: float
    mean_range: tuple[float, float] | None  # 95 % interval
    n: int
    holds: Coverage | None = None  # how often such an interval does, in simulations
    over: str = ""  # what the interval is over


@dataclass(frozen=True)
class Panel:
    """What belongs on one pair of axes: a backbone, a suite and, for a measured cost, a device."""

    backbone: str
    suite: str
    device: str  # empty where the cost is the same on every device
    over: str  # "mean of 4 tasks", or the only data set
    points: tuple[Point, ...]
    missing: tuple[str, ...]  # labels of rows without a complete accuracy or a cost

    @property
    def title(self) -> str:
        return " · ".join(part for part in (self.backbone, self.suite, self.device) if part)


def panels(view: View, cost: str = "parameters") -> list[Panel]:
    """Panels of a view, in the order of its tables; `cost` is a name in `COSTS`."""
    whole = overall(view.cells).assign(suite=lambda c: c["suite"].fillna(""))
    prices = measured(view.labelled)
    prices = prices[prices["cost"] == cost].assign(suite=lambda c: c["suite"].fillna(""))
    known = spreads(view)
    price_of = {
        (p["backbone"], p["suite"], p["label"]): p
        for p in prices.dropna(subset="value").to_dict("records")
    }
    result: list[Panel] = []
    for (backbone, suite), rows in whole.groupby(["backbone", "suite"], sort=False):
        by_device: dict[str, list[Point]] = {}
        missing: list[str] = []
        for row in rows.to_dict("records"):
            price = price_of.get((backbone, suite, row["label"]))
            if row["state"] != OK or price is None:
                missing.append(str(row["label"]))
                continue
            device = str(price["device"]) if COSTS[cost].measured else ""
            interval = known.get((str(backbone), str(suite), str(row["label"])), {})
            by_device.setdefault(device, []).append(
                _point(row, price, interval.get(str(row["column"])))
            )
        over = str(rows["column"].iloc[0])
        for device, points in sorted(by_device.items()) or [("", [])]:
            result.append(
                Panel(str(backbone), str(suite), device, over, tuple(points), tuple(missing))
            )
    return result


def _point(row: dict[Any, Any], price: dict[Any, Any], interval: Interval | None) -> Point:
    low, high = price["low"], price["high"]
    return Point(
        label=str(row["label"]),
        method=str(row["method"]),
        cost=float(price["value"]),
        cost_range=None if pd.isna(low) or low == high else (float(low), float(high)),
        mean=100 * float(row["mean"]),
        mean_range=_range(interval),
        n=int(row["n"]),
        holds=None if interval is None else interval.holds,
        over="" if interval is None else interval.over,
    )


def _range(interval: Interval | None) -> tuple[float, float] | None:
    if interval is None or interval.low is None or interval.high is None:
        return None
    return 100 * interval.low, 100 * interval.high


def frontier(points: Sequence[Point]) -> list[Point]:
    """Points more accurate than every point that costs as little or less."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.cost, -p.mean)):
        if not best or point.mean > best[-1].mean:
            best.append(point)
    return best

"""What the rows of a table cost: one number for each cost, with its range over seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import pandas as pd

from peftbench.report.frames import typed_frame
from peftbench.report.units import units
from peftbench.results.columns import Column
from peftbench.results.record import Status


@dataclass(frozen=True)
class CostColumn:
    """A price of a method, computed from columns of the table of runs."""

    name: str
    heading: str  # of an axis or a column, with its unit
    short: str
    of: Callable[[pd.DataFrame], pd.Series]
    measured: bool = True  # depends on the device, so devices are never mixed


def _latency(runs: pd.DataFrame, size: str) -> pd.Series:
    """After merging where a method merges, since nobody would deploy it otherwise."""
    return runs[f"merged_latency_ms_{size}"].fillna(runs[f"latency_ms_{size}"])


COSTS = {
    cost.name: cost
    for cost in (
        CostColumn(
            "parameters",
            "tuned parameters, head excluded",
            "tuned parameters",
            lambda runs: runs["params_tuned"],
            measured=False,
        ),
        CostColumn(
            "parameters_with_head",
            "tuned parameters with the head, mean over data sets",
            "with head",
            lambda runs: runs["params_tuned"] + runs["params_head"],
            measured=False,
        ),
        CostColumn(
            "memory",
            "peak memory in MiB",
            "peak memory, MiB",
            lambda runs: runs["peak_bytes"] / 2**20,
        ),
        CostColumn(
            "kept",
            "kept activations of a batch in MiB",
            "kept, MiB",
            lambda runs: runs["kept_bytes"] / 2**20,
        ),
        CostColumn(
            "operations",
            "training operations of one image in 1e9, mean over data sets",
            "training, GFLOP",
            lambda runs: runs["training_gflops"],
            measured=False,
        ),
        CostColumn(
            "train_time",
            "training time in s, mean over data sets",
            "training, s",
            # what was kept from other runs was not free: every run counts as if by itself
            lambda runs: runs["seconds_train"] + runs["seconds_saved"].fillna(0.0),
        ),
        CostColumn(
            "latency",
            "latency of one image in ms, merged where possible",
            "latency, ms",
            lambda runs: _latency(runs, "batch1"),
        ),
        CostColumn(
            "stored",
            "stored kB of one task, mean over data sets",
            "stored, kB",
            lambda runs: runs["stored_bytes"] / 1000,
            measured=False,
        ),
    )
}

MEASURED_COLUMNS = (
    Column("backbone", "string", "title as in tables"),
    Column("suite", "string", "suite of the data sets"),
    Column("method", "string", "registered name"),
    Column("label", "string", "method and variant as in tables"),
    Column("device", "string", "that the runs trained on; empty where there are several"),
    Column("cost", "string", "name in `COSTS`"),
    Column("value", "Float64", "mean over data sets of the means over seeds"),
    Column("low", "Float64", "smallest mean over data sets of one seed"),
    Column("high", "Float64", "largest mean over data sets of one seed"),
)
ROW = ("heading", "suite", "method", "label")


def measured(runs: pd.DataFrame) -> pd.DataFrame:
    """One row for each row of a table and each cost, with the columns of `MEASURED_COLUMNS`.

    `runs` come from `tables.labelled`. Means are over the runs that finished; `value` is missing
    where no run measured the cost, and where runs of one row were measured on several devices.
    """
    done = runs[runs["status"] == str(Status.OK)]
    prices = {cost.name: _numbers(cost.of(done)) for cost in COSTS.values()}
    members: dict[tuple[str, ...], list[int]] = defaultdict(list)
    keys = zip(*(done[name].fillna("") for name in ROW), strict=True)
    for i, key in enumerate(keys):
        members[key].append(i)
    devices, places = done["device"].fillna("").tolist(), _places(done)
    result: list[tuple[Any, ...]] = []
    for key, rows in members.items():
        names = {devices[i] for i in rows}
        device = names.pop() if len(names) == 1 else ""
        for cost in COSTS.values():
            spread = _spread({places[i]: prices[cost.name][i] for i in rows})
            known = device or not cost.measured
            result.append((*key, device, cost.name, *(spread if known else (None,) * 3)))
    columns = [column.name for column in MEASURED_COLUMNS]
    return typed_frame(MEASURED_COLUMNS, [dict(zip(columns, row, strict=True)) for row in result])


def _numbers(series: pd.Series) -> list[float | None]:
    return [None if pd.isna(value) else float(value) for value in series]


def _places(runs: pd.DataFrame) -> list[tuple[str, int]]:
    """Data set of each run, and its seed; with splits of a data set, its split and seed."""
    return list(zip(runs["dataset"].fillna(""), units(runs), strict=True))


def _spread(
    values: Mapping[tuple[str, int], float | None],
) -> tuple[float | None, float | None, float | None]:
    """Mean, and the range over the seeds that every data set has."""
    by_dataset: dict[str, dict[int, float]] = defaultdict(dict)
    for (dataset, seed), value in values.items():
        if value is not None:
            by_dataset[dataset][seed] = value
    if not by_dataset:
        return None, None, None
    mean = fmean(fmean(seeds.values()) for seeds in by_dataset.values())
    common = set.intersection(*(set(seeds) for seeds in by_dataset.values()))
    means = [fmean(seeds[s] for seeds in by_dataset.values()) for s in sorted(common)]
    return (mean, min(means), max(means)) if len(means) > 1 else (mean, None, None)

"""What the numbers of a report are, asked of the task that they measure and of its runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftbench.registry import unknown_name
from peftbench.tasks import CLASSIFICATION

if TYPE_CHECKING:
    import pandas as pd

SCORE = CLASSIFICATION.score.name  # of runs that declare nothing else
SCORES = {metric.name: metric.title for metric in CLASSIFICATION.scores}
SHORT = {metric.name: metric.short for metric in CLASSIFICATION.scores}
IN_FIGURE_NAMES = {metric.name: metric.figure for metric in CLASSIFICATION.scores}


def check_metric(metric: str | None) -> None:
    """Raise `UnknownName` for a metric that no table shows."""
    if metric is not None and metric not in SCORES:
        raise unknown_name("metric", metric, SCORES)


def declared_by(table: pd.DataFrame) -> pd.Series:
    """The metric that each run of a table declares to be judged by."""
    return table["selection_metric"].fillna(SCORE).astype(str)


def declared(table: pd.DataFrame) -> tuple[str, ...]:
    """The metrics that final runs of a table declare, in the order of the task; at least one."""
    if "selection_metric" not in table:  # a frame of few columns, for a figure
        return (SCORE,)
    found = set(declared_by(table)[(table["phase"] == "final").fillna(False).astype(bool)])
    return tuple(name for name in SCORES if name in found) or (SCORE,)


def metric_of(table: pd.DataFrame) -> str:
    """What a table shows by one metric alone: the declared one, or where several are the first."""
    return declared(table)[0]

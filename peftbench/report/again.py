"""Metrics that a run did not record, measured again from the predictions that it kept.

Records from before a metric existed lack it. Predictions are kept in float32, so that an area under
the ROC curve may count pairs as ties that were none (`Metric.rounding`).
"""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from peftbench.errors import StoreError
from peftbench.results.predictions import UNREADABLE
from peftbench.results.record import Status
from peftbench.results.store import ResultsStore
from peftbench.tasks import CLASSIFICATION, Metric


def measured_again(
    table: pd.DataFrame, store: ResultsStore, metrics: Iterable[str]
) -> pd.DataFrame:
    """`table` with these metrics of the final runs that lack them, where predictions are kept."""
    for name in metrics:
        metric = CLASSIFICATION.metric(name)
        found = table[name].copy()
        done = (table["status"] == str(Status.OK)) & (table["phase"] == "final")
        lacking = done.fillna(False) & found.isna() & table[CLASSIFICATION.score.name].notna()
        if metric.classes is not None:
            lacking &= (table["classes"] == metric.classes).fillna(False)
        for place in table.index[lacking.astype(bool)]:
            value = _of_run(metric, store, str(table["method"][place]), str(table["run_id"][place]))
            if value is not None:
                found[place] = value
        table = table.assign(**{name: found})
    return table


def _of_run(metric: Metric, store: ResultsStore, method: str, run_id: str) -> float | None:
    """`None` where no predictions are kept, or none that it is defined for."""
    try:
        kept = store.load_predictions(method, run_id)
        value = None if kept is None else metric.of(vars(kept))
    except (StoreError, *UNREADABLE):
        return None
    return value if value is not None and value == value else None

"""Which runs the page has predictions of, and in which turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from peftbench.errors import StoreError
from peftbench.report.page.images import finding
from peftbench.report.view import Views
from peftbench.results.predictions import Predictions
from peftbench.results.record import RunRecord, Status
from peftbench.results.store import ResultsStore
from peftbench.tasks import TOP1

MOST_CLASSES = 2_000  # a matrix of more would be seen by nobody


@dataclass(frozen=True)
class Sources:
    """Where the section comes from."""

    store: ResultsStore
    records: Mapping[str, RunRecord]  # by id, trials among them
    pictures: bool  # whether the page has any, and names of files


@dataclass(frozen=True)
class ShownRun:
    """One finished run and what it said of each image."""

    record: RunRecord
    heading: str  # of its backbone
    label: str  # of its row
    predictions: Predictions | None  # `None` where there are none, or no room for them


def groups(views: Views, sources: Sources) -> list[list[ShownRun]]:
    """The finished runs of each data set of one's own, without predictions.

    The best method is first, and the first seed of every method before the second of any, so that
    no method lacks one where room is short.
    """
    table = views.view().labelled
    table = table[table["status"] == str(Status.OK)]
    by_data: dict[tuple[str, str], list[Mapping[Any, Any]]] = {}
    for row in table.to_dict("records"):
        record = sources.records.get(str(row["run_id"]))
        if record is not None and finding.is_own(record.spec) and not pd.isna(row["manifest"]):
            by_data.setdefault((str(row["dataset"]), str(row["manifest"])), []).append(row)
    return [
        [
            ShownRun(sources.records[str(row["run_id"])], *_key(row), predictions=None)
            for row in _in_turn(rows)
        ]
        for _, rows in sorted(by_data.items())
    ]


def _in_turn(rows: Sequence[Mapping[Any, Any]]) -> list[Mapping[Any, Any]]:
    scores: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        score = 0.0 if pd.isna(row[TOP1]) else float(row[TOP1])
        scores.setdefault(_key(row), []).append(score)
    mean = {key: sum(values) / len(values) for key, values in scores.items()}
    ordered = sorted(rows, key=lambda row: (-mean[_key(row)], _key(row), _seed(row)))
    turns: dict[tuple[str, str], int] = {}
    placed = []
    for row in ordered:
        turn = turns[_key(row)] = turns.get(_key(row), -1) + 1
        placed.append((turn, row))
    return [row for _, row in sorted(placed, key=lambda pair: pair[0])]


def _key(row: Mapping[Any, Any]) -> tuple[str, str]:
    return str(row["heading"]), str(row["label"])


def _seed(row: Mapping[Any, Any]) -> int:
    return 0 if pd.isna(row["seed"]) else int(row["seed"])


def with_predictions(
    runs: Sequence[ShownRun], store: ResultsStore, most_images: int, most_runs: int
) -> tuple[list[ShownRun], int]:
    """The runs, the first of them with what they said; and of how many images they do together."""
    result, used, count = [], 0, 0
    labels: np.ndarray | None = None
    for run in runs:
        room = used < most_images and count < most_runs
        found = _predictions(run.record, store) if room else None
        if found is not None and labels is not None and not np.array_equal(labels, found.labels):
            found = None  # of other images than the best run
        if found is not None and used + len(found.labels) <= most_images:
            labels = found.labels
            used, count = used + len(labels), count + 1
        else:
            found = None
        result.append(ShownRun(run.record, run.heading, run.label, found))
    return result, used


def _predictions(record: RunRecord, store: ResultsStore) -> Predictions | None:
    """Of a run, where they are there and sound: a file may be somebody else's."""
    try:
        found = store.load_predictions(str(record.spec["method"]["name"]), record.run_id)
    except StoreError:
        return None
    if found is None or not len(found.labels):
        return None
    numbers = np.concatenate([found.labels, found.classes])
    return found if numbers.min() >= 0 and numbers.max() < MOST_CLASSES else None

"""Which runs the page has predictions of, and in which turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
    fold: int | None  # that was test, of a data set whose parts take turns
    predictions: Predictions | None  # `None` where there are none, or no room for them


def groups(views: Views, sources: Sources) -> list[list[ShownRun]]:
    """The finished runs of each data set of one's own, without predictions.

    All folds of a data set are one group. The best method of those that were tested on most folds
    is first, and the first seed of every
    method before the second of any, so that no method lacks one where room is short.
    """
    table = views.view().labelled
    table = table[table["status"] == str(Status.OK)]
    by_data: dict[tuple[str, ...], list[Mapping[Any, Any]]] = {}
    for row in table.to_dict("records"):
        record = sources.records.get(str(row["run_id"]))
        if record is not None and finding.is_own(record.spec) and not pd.isna(row["manifest"]):
            by_data.setdefault(_data_of(row), []).append(row)
    return [
        [
            ShownRun(sources.records[str(row["run_id"])], *_key(row), _fold(row), predictions=None)
            for row in _in_turn(rows)
        ]
        for _, rows in sorted(by_data.items())
    ]


def _data_of(row: Mapping[Any, Any]) -> tuple[str, ...]:
    """What is looked at together: a split of a data set, or all folds of one way to divide it."""
    if _fold(row) is None:
        return str(row["dataset"]), str(row["manifest"])
    drawn = (row[name] for name in ("content", "folds", "split_seed", "data_settings"))
    return (str(row["dataset"]), *map(str, drawn))


def _fold(row: Mapping[Any, Any]) -> int | None:
    return None if pd.isna(row["folds"]) or pd.isna(row["fold"]) else int(row["fold"])


def _in_turn(rows: Sequence[Mapping[Any, Any]]) -> list[Mapping[Any, Any]]:
    scores: dict[tuple[str, str], list[float]] = {}
    folds: dict[tuple[str, str], set[int | None]] = {}
    for row in rows:
        score = 0.0 if pd.isna(row[TOP1]) else float(row[TOP1])
        scores.setdefault(_key(row), []).append(score)
        folds.setdefault(_key(row), set()).add(_fold(row))
    mean = {key: sum(values) / len(values) for key, values in scores.items()}

    def place(row: Mapping[Any, Any]) -> tuple[Any, ...]:
        key = _key(row)  # some folds are easier than others
        return -len(folds[key]), -mean[key], key, _seed(row), _fold(row) or 0

    turns: dict[tuple[Any, ...], int] = {}
    placed = []
    for row in sorted(rows, key=place):
        one = _key(row), _fold(row)
        turn = turns[one] = turns.get(one, -1) + 1
        placed.append((turn, row))
    return [row for _, row in sorted(placed, key=lambda pair: pair[0])]


def _key(row: Mapping[Any, Any]) -> tuple[str, str]:
    return str(row["heading"]), str(row["label"])


def _seed(row: Mapping[Any, Any]) -> int:
    return 0 if pd.isna(row["seed"]) else int(row["seed"])


def with_predictions(
    runs: Sequence[ShownRun], store: ResultsStore, most_images: int, most_runs: int
) -> tuple[list[ShownRun], int]:
    """The runs, the first of them with what they said; and of how many images they do together.

    All folds together count as one run.
    """
    result, used, count = list[ShownRun](), 0, 0
    most_runs *= len({run.fold for run in runs})
    labels: dict[int | None, np.ndarray] = {}  # by fold
    for run in runs:
        room = used < most_images and count < most_runs
        found = _predictions(run.record, store) if room else None
        if found is not None and used + len(found.labels) > most_images:
            found = None
        if found is not None:
            known = labels.setdefault(run.fold, found.labels)
            if np.array_equal(known, found.labels):
                used, count = used + len(known), count + 1
            else:
                found = None  # of other images than the best run
        result.append(replace(run, predictions=found))
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

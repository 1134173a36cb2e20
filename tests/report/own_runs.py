"""Facts of runs on one's own data sets, and stores with what they said of single images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from peftbench.results.record import RunRecord
from peftbench.results.store import ResultsStore


def own_data(name: str, **fields: Any) -> dict[str, Any]:
    """Facts of a record about one's own folder of images."""
    data = {"reader": "folder", "root": f"/data/{name}", "content": f"{name}-" * 8, **fields}
    return {"dataset": "folder", "suite": "", "suite_version": 0, "data": data}


def predicted_run(
    make_record: Callable[..., RunRecord],
    method: str,
    hits: str,
    numbers: Sequence[int],
    *,
    trained: int = 80,
    **facts: Any,
) -> tuple[RunRecord, dict[str, Any]]:
    """A final run that was right on the images as told by "101", and its predictions."""
    hit = np.array([letter == "1" for letter in hits])
    metrics = {"test/num_images": float(len(hits))}
    record = make_record(
        method, top1=float(hit.mean()), metrics=metrics, train_images=trained, **facts
    )
    ones = np.ones(len(hits))
    rows = {"classes": np.where(hit, 0, 1), "labels": 0 * ones, "confidence": ones, "margin": ones}
    return record, {**rows, "numbers": list(numbers)}


def stored(root: Path, runs: Sequence[tuple[RunRecord, dict[str, Any]]]) -> ResultsStore:
    """A results folder with the runs and their predictions."""
    store = ResultsStore(root)
    for record, rows in runs:
        store.add(record)
        store.save_predictions(record.spec["method"]["name"], record.run_id, **rows)
    return store

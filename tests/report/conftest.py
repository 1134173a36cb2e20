"""Records of runs that never ran."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from peftbench.results.record import Cost, EpochRow, Parameters, Provenance, RunRecord, Status

MakeRecord = Callable[..., RunRecord]


def _make_record(
    method: str = "lora",
    dataset: str = "digits",
    seed: int = 0,
    top1: float | None = 0.5,
    *,
    hyperparameters: dict[str, Any] | None = None,
    backbone: str = "vit_mini",
    group: str = "",
    suite: str = "mini",
    suite_version: int = 1,
    manifest: str = "m0",
    weights: str | None = "w0",
    status: Status = Status.OK,
    error: str | None = None,
    tuned: int = 1000,
    unfrozen: int = 0,
    head: int = 100,
    phase: str = "final",
    recipe: dict[str, Any] | None = None,
    limit: int | None = None,
    selection: str = "last",
    version: int = 1,
    train_images: int | None = None,
    shots: int | None = None,
    history: Sequence[float] = (),
    **cost: Any,
) -> RunRecord:
    ok = status is Status.OK
    spec = {
        "method": {
            "name": method,
            "version": version,
            "hyperparameters": {} if hyperparameters is None else hyperparameters,
        },
        "backbone": {"name": f"{backbone}.tag", "title": backbone, "pretrained": True},
        "dataset": {
            "name": dataset,
            "suite": suite,
            "suite_version": suite_version,
            "group": group,
            "manifest": manifest,
            "limit": limit,
            "shots": shots,
        },
        "recipe": {"name": "default", "lr": 1e-3, "epochs": 10, **(recipe or {})},
        "seed": seed,
        "phase": phase,
        "precision": "auto",
    }
    split = "test" if phase == "final" else "val"
    return RunRecord(
        run_id=hashlib.sha256(repr(spec).encode()).hexdigest()[:16],
        spec=spec,
        status=status,
        error=error,
        metrics={f"{split}/top1": top1} if ok and top1 is not None else {},
        selection=selection,
        parameters=Parameters(tuned - unfrozen, head, unfrozen, 5_000_000, 4 * (tuned + head))
        if ok
        else None,
        cost=Cost(**{"device": "cpu", "dtype": "float32", **cost}) if ok else None,
        history=[EpochRow(i, 1 - a, a, 1e-3, 1.0) for i, a in enumerate(history, 1)] if ok else [],
        provenance=Provenance(
            "0",
            "3",
            {},
            None,
            None,
            "h",
            "p",
            1,
            backbone_sha256=weights,
            data={"train_images": train_images} if train_images else {},
        ),
    )


@pytest.fixture(scope="session")
def make_record() -> MakeRecord:
    """Builds a record from what matters to a table."""
    return _make_record

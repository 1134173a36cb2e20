"""Records of runs that never ran."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from peftbench.results.record import Cost, EpochRow, Parameters, Provenance, RunRecord, Status

MakeRecord = Callable[..., RunRecord]


def _make_record(
    run_id: str = "0123456789abcdef", method: str = "lora", **changes: Any
) -> RunRecord:
    spec = {
        "method": {
            "name": method,
            "version": 2,
            "hyperparameters": {"rank": 8, "alpha": 8.0, "roles": ["qkv", "fc1"]},
        },
        "backbone": {
            "name": "vit_mini.tag",
            "title": "vit_mini",
            "pretrained": True,
            "checkpoint": None,
            "checkpoint_sha256": "",
            "image_size": None,
            "drop_path": 0.1,
            "seed": 0,
        },
        "dataset": {
            "name": "digits",
            "suite": "mini",
            "suite_version": 3,
            "group": "natural",
            "limit": None,
            "manifest": "declared",
            "shots": 4,
        },
        "preprocessing": {"normalisation": "checkpoint", "resize": "squash"},
        "recipe": {"name": "default", "lr": 0.001, "epochs": 10, "flip": False},
        "seed": 1,
        "phase": "final",
        "precision": "auto",
    }
    fields: dict[str, Any] = {
        "status": Status.OK,
        "metrics": {
            "test/top1": 0.1 + 0.2,  # 0.30000000000000004: no decimal rounding survives it
            "test/mean_per_class": 1 / 3,
            "test/loss": 2e-308,
            "test/ece": 5e-324,
            "test/num_images": 1797.0,
        },
        "parameters": Parameters(
            method=300, head=650, unfrozen=20, backbone=5_000_000, stored_bytes=3_880
        ),
        "cost": Cost(device="cpu", dtype="float32", step_ms=1.1, peak_bytes=2**40),
        "merge": {"max_logit_difference": 1.1e-6},
        "history": [EpochRow(1, 2.3, 0.1, 1e-3, 0.7)],
        "provenance": Provenance(
            peftbench="0.1.0",
            python="3.11",
            versions={"torch": "2.9", "timm": "1.0"},
            git_commit="c0ffee",
            git_dirty=False,
            host="here",
            platform="linux",
            cpu_threads=2,
            backbone_sha256="ab" * 32,
            data={"manifest": "loaded", "train_images": 800, "classes": 10},
        ),
        "tuning": {"tuner": "grid", "trials": 12, "epochs": 50, "val_top1": 0.5},
        "started": "2025-01-01T00:00:00+00:00",
        "finished": "2025-01-01T00:01:00+00:00",
    }
    return RunRecord(run_id=run_id, spec=spec, **{**fields, **changes})


@pytest.fixture
def make_record() -> MakeRecord:
    """Builds a complete record; keywords replace its fields."""
    return _make_record

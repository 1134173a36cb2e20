"""Runs on a folder of pictures that say what a test wants of each of them; nothing is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from peftbench import data
from peftbench.data.listing import Listing
from peftbench.report.page.images.parts import parts
from peftbench.report.page.images.runs import Sources
from peftbench.report.view import Views
from peftbench.results.frame import frame
from peftbench.results.record import EpochRow, Provenance, RunRecord, Status
from peftbench.results.store import ResultsStore
from peftbench.spec import DatasetSpec, Phase
from support.tiny_runs import tiny_spec

SQUARE = {"size": 12, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}
SQUARE |= {"resize": "squash", "crop_fraction": 1.0, "backend": "pillow", "train_size": None}


def write_classes(root: Path, sizes: Mapping[str, int], side: tuple[int, int] = (40, 30)) -> Path:
    """PNG files `root/<class>/<number>.png`, so many of each class, all different."""
    generator = np.random.default_rng(0)
    for name, count in sizes.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 256, (side[1], side[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def listed(spec: DatasetSpec) -> tuple[DatasetSpec, Listing]:
    """A data set with its hash, and what is in which split."""
    seen: list[Listing] = []
    found = data.identify(spec, seen.append)
    return found, seen[0]


def folder(root: Path) -> tuple[DatasetSpec, Listing]:
    return listed(DatasetSpec("folder", reader="folder", root=str(root)))


def add_run(
    store: ResultsStore,
    dataset: DatasetSpec,
    labels: Sequence[int],
    said: Sequence[int],
    confidence: Sequence[float] | None = None,
    names: Sequence[str] | None = None,
    **changes: Any,
) -> RunRecord:
    """A finished run that said these classes of the test images; `changes` are to its spec."""
    method = changes.pop("method", "linear")
    tuning = changes.pop("tuning", None)
    looks = changes.pop("looks", {})
    spec = tiny_spec(method, dataset=dataset, **changes)
    right = float(np.mean(np.asarray(labels) == np.asarray(said)))
    split = "val" if spec.phase is Phase.TUNE else "test"
    record = RunRecord(
        spec.run_id,
        spec.describe(),
        Status.OK,
        metrics={f"{split}/top1": right, f"{split}/mean_per_class": right},
        tuning=tuning,
        looks=looks,
        history=[EpochRow(1, 0.5, 0.5, spec.recipe.lr, 1.0)],
        provenance=Provenance("0", "3", {}, None, None, "h", "p", 1, preprocessing=SQUARE),
    )
    store.add(record)
    if spec.phase is Phase.FINAL:
        sure = [0.5] * len(labels) if confidence is None else confidence
        rows = {"classes": said, "confidence": sure, "margin": sure, "labels": labels}
        store.save_predictions(spec.method.name, spec.run_id, names=names, **rows)
    return record


def shown(store: ResultsStore, pictures: bool = True) -> list[dict[str, Any]]:
    """What the page would have of these runs."""
    records = store.scan().records
    found = {record.run_id: record for record in records}
    return parts(Views(frame(records)), Sources(store, found, pictures))


def with_root(record: RunRecord, root: str) -> RunRecord:
    """The same run, of a folder that lies elsewhere."""
    dataset = {**record.spec["dataset"], "root": root}
    return dataclasses.replace(record, spec={**record.spec, "dataset": dataset})

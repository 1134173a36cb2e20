"""Promises of final runs that train on train alone: val is measured beside test."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from support.tiny_runs import tiny_spec, write_images

from peftbench import data
from peftbench.results.frame import frame
from peftbench.results.store import ResultsStore
from peftbench.run import experiment
from peftbench.spec import DatasetSpec, Phase


@pytest.fixture
def own(tmp_path: Path) -> DatasetSpec:
    """Ten cats and ten dogs, of each of which 1 is val and 2 are test."""
    root = write_images(tmp_path / "pets", per_class=10)
    return DatasetSpec("folder", reader="folder", root=str(root), final_trains_on="train")


def test_val_of_ones_own_images_is_measured_by_the_final_model(
    store: ResultsStore, own: DatasetSpec
) -> None:
    spec = tiny_spec(dataset=data.identify(own))
    record = experiment.run(spec, store)
    # a trial of the same settings trains on the same images with the same seed: the same model
    trial = experiment.run(dataclasses.replace(spec, phase=Phase.TUNE), store)
    assert record.metrics["test/num_images"] == 4 and record.metrics["val/num_images"] == 2
    for name in ("top1", "mean_per_class", "loss"):
        assert record.metrics[f"val/{name}"] == trial.metrics[f"val/{name}"]
    row = frame([record]).iloc[0]
    assert row["val_top1"] == record.metrics["val/top1"]
    assert row["split"] == "test" and row["top1"] == record.metrics["test/top1"]


def test_val_that_trains_is_not_measured_nor_is_that_of_a_suite(
    store: ResultsStore, own: DatasetSpec
) -> None:
    both = data.identify(dataclasses.replace(own, final_trains_on="train+val"))
    suite = data.identify(dataclasses.replace(tiny_spec().dataset, final_trains_on="train"))
    for dataset in (both, suite):
        record = experiment.run(tiny_spec(dataset=dataset), store)
        assert not [name for name in record.metrics if name.startswith("val/")]

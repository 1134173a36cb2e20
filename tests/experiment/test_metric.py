"""Runs that declare what they are judged by: what chooses, what is recorded, what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tiny_runs import compose, digits, tiny_spec, write_images

from peftbench import data
from peftbench.config.build import build
from peftbench.config.schema import TunerConfig
from peftbench.errors import ConfigError
from peftbench.results.bundles.incoming import import_results
from peftbench.results.bundles.outgoing import export_results
from peftbench.results.identity import run_id_of
from peftbench.results.record import RunRecord, Status
from peftbench.results.store import ResultsStore
from peftbench.run import experiment
from peftbench.spec import DatasetSpec, Phase, RunSpec, Selection
from peftbench.sweep.jobs import outcome
from peftbench.sweep.tuning.cells import make_cells
from peftbench.tasks import CLASSIFICATION

AUROC = CLASSIFICATION.metric("auroc")


def judged(metric: str | None, **changes: Any) -> RunSpec:
    """Thirty-three digits of each split, of some classes four and of others three."""
    selection = Selection(changes.pop("rule", "last"), metric=metric)
    return tiny_spec("bias", dataset=digits(33), selection=selection, **changes)


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> DatasetSpec:
    """Eight pictures of cats and eight of dogs, of which four each are tested."""
    root = write_images(tmp_path_factory.mktemp("pets"), per_class=8)
    cut = {"val_fraction": 0.25, "test_fraction": 0.5}
    return data.identify(DatasetSpec("pets", reader="folder", root=str(root), **cut))


@pytest.fixture
def store(tmp_path: Path) -> ResultsStore:
    return ResultsStore(tmp_path / "results")


def test_a_metric_is_part_of_the_identity_where_it_is_not_the_default() -> None:
    plain = judged(None)
    assert judged("top1").run_id == plain.run_id and judged("top1") == plain
    assert "selection" not in plain.identity()
    assert plain.describe()["selection"] == {"rule": "last", "every": 1, "first": 1}
    ids = {plain.run_id}
    for phase in (Phase.FINAL, Phase.TUNE):
        for rule in ("last", "best_on_test"):
            spec = judged("f1_macro", phase=phase, rule=rule)
            ids.add(spec.run_id)
            assert spec.describe()["selection"]["metric"] == "f1_macro"
            assert run_id_of(spec.describe()) == spec.run_id
    # the rule does not act on a trial, the metric does
    assert len(ids) == 4
    assert judged("f1_macro").identity() == {
        **plain.identity(),
        "selection": {"metric": "f1_macro"},
    }


def test_a_run_records_all_metrics_and_is_judged_by_its_own(store: ResultsStore) -> None:
    record = experiment.run(judged("mean_per_class"), store)
    assert record.status is Status.OK, record.error
    assert record.metrics.keys() >= {
        f"test/{key}" for key in ("top1", "mean_per_class", "f1_macro")
    }
    assert "test/auroc" not in record.metrics  # of ten classes
    assert record.judged_by.name == "mean_per_class"
    assert record.score == record.metrics["test/mean_per_class"] != record.metrics["test/top1"]
    percent = [100 * (record.metrics[f"test/{key}"] or 0) for key in ("mean_per_class", "top1")]
    told = f"{percent[0]:.1f} % mean per class, {percent[1]:.1f} % top-1 of 33 test images, "
    assert outcome(record).startswith(told)
    assert RunRecord.from_json(record.to_json()) == store.get(record.run_id)


def test_the_metric_chooses_the_epoch_and_is_looked_at(store: ResultsStore) -> None:
    looks = ((1, None), (2, None))
    trial = experiment.run(judged("f1_macro", phase=Phase.TUNE, looks=looks), store)
    assert trial.status is Status.OK, trial.error
    assert trial.looks["2"] == trial.metrics["val/f1_macro"] == trial.score
    assert trial.looks["2"] != trial.metrics["val/top1"]
    chosen = experiment.run(judged("f1_macro", rule="best_on_test", recipe={"epochs": 4}), store)
    assert chosen.status is Status.OK, chosen.error
    assert chosen.score is not None and chosen.score >= chosen.metrics["last_epoch/f1_macro"]


def test_two_classes_have_an_area_under_the_curve(
    store: ResultsStore, pets: DatasetSpec, tmp_path: Path
) -> None:
    spec = tiny_spec("bias", dataset=pets, selection=Selection(metric="auroc"))
    record = experiment.run(spec, store)
    assert record.status is Status.OK, record.error
    assert record.score == record.metrics["test/auroc"]
    with np.load(store.artefacts(record) / "predictions.npz") as file:
        rows = dict(file)
    assert set(rows) == {*CLASSIFICATION.stored, "names", "numbers"}
    assert abs(AUROC.of(rows) - (record.score or 0)) <= AUROC.rounding(rows) + 1e-9
    # a bundle is checked against the predictions, as exactly as the file has them
    there = tmp_path / "there"
    bundle = export_results(store.root, tmp_path / "runs.zip", predictions=True)
    assert import_results(bundle.path, there).added == (record.run_id,)
    # and runs that are judged by something else have it too
    other = experiment.run(dataclasses.replace(spec, selection=Selection()), store)
    assert other.run_id != record.run_id
    assert {k: other.metrics[k] for k in record.metrics} == record.metrics


def test_more_classes_are_refused_before_anything_trains() -> None:
    message = (
        "selection.metric=auroc is defined for 2 classes, and mini/digits has 10. Use one of: "
        "top1, mean_per_class, f1_macro."
    )
    with pytest.raises(ConfigError) as refused:
        build(compose("selection.metric=auroc"))
    assert str(refused.value) == message
    with pytest.raises(
        ConfigError, match=r"Unknown selection\.metric 'auroq'\. Did you mean: auroc"
    ):
        build(compose("selection.metric=auroq"))


def test_a_split_of_one_class_alone_is_refused_before_training(
    store: ResultsStore, tmp_path: Path
) -> None:
    root = write_images(tmp_path / "pictures", per_class=4)
    rows = [
        f"{name}/{i}.png,{name},{part}"
        for name in ("cat", "dog")
        for i, part in enumerate(("train", "train", "val", "test"))
        if name + part != "dogtest"
    ]
    (root / "pets.csv").write_text("\n".join(["path,label,split", *rows]))
    found = DatasetSpec("pets", reader="folder", root=str(root / "pets.csv"))
    spec = tiny_spec("bias", dataset=data.identify(found), selection=Selection(metric="auroc"))
    record = experiment.run(spec, store)
    assert (record.status, record.history) == (Status.ERROR, [])
    assert record.error is not None and record.error.startswith(
        "selection.metric=auroc needs images of 2 classes, and the test split of pets has images "
        "of 1 of 2. Use another metric, or other splits."
    )
    trial = experiment.run(dataclasses.replace(spec, phase=Phase.TUNE), store)  # val has both
    assert trial.status is Status.OK, trial.error


def test_the_winner_of_a_search_is_the_best_by_the_metric(tmp_path: Path) -> None:
    space = {"recipe": {"lr": [0.1, 0.01]}}
    tuner = TunerConfig(name="grid", space=space, trials=2)
    for metric, winner, value in (("mean_per_class", 0.01, 0.6), (None, 0.1, 0.8)):
        spec = judged(metric)
        (cell,) = make_cells([(("method=bias", "seed=1"), spec)], tuner, str(tmp_path))
        for top1, mean in ((0.8, 0.5), (0.7, 0.6)):
            trial = cell.search.ask()
            assert trial is not None
            metrics = {"val/top1": top1, "val/mean_per_class": mean}
            cell.tell(trial, RunRecord("id", spec.describe(), Status.OK, metrics=metrics))
        (final,) = cell.final_overrides()
        assert f"recipe.lr={winner}" in final
        assert f'"val_{metric or "top1"}": {value}}}' in final[-1]

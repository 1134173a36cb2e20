"""Selecting the epoch on test: only where a protocol declares it, and never unsaid."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_runs import compose, digits, tiny_spec

from peftbench.backbones.load import load
from peftbench.config.build import build
from peftbench.data import TestSplit
from peftbench.errors import ConfigError, UnknownName
from peftbench.results.frame import frame
from peftbench.results.record import RunRecord, Status
from peftbench.results.store import ResultsStore
from peftbench.run import experiment, measure
from peftbench.run.selection import BestOnTest
from peftbench.spec import Phase, Precision, Protocol, RunSpec, Selection
from peftbench.sweep.jobs import outcome
from peftbench.training.device import Compute
from peftbench.training.evaluate import predict

pytestmark = pytest.mark.arithmetic
EPOCHS = 5
RULE = Selection("best_on_test", every=2)


def spec_of(selection: Selection = RULE, **changes: Any) -> RunSpec:
    recipe = {"lr": 0.05, "epochs": EPOCHS, "batch_size": 8, **changes.pop("recipe", {})}
    return tiny_spec("bias", dataset=digits(20), recipe=recipe, selection=selection, **changes)


@pytest.mark.parametrize(
    ("selection", "total", "expected"),
    [
        (Selection("best_on_test"), 3, {1, 2, 3}),
        (Selection("best_on_test", every=10), 100, {10, 20, 30, 40, 50, 60, 70, 80, 90, 100}),
        (Selection("best_on_test", every=10, first=90), 100, {90, 100}),
        (Selection("best_on_test", every=10), 15, {10, 15}),  # the last one in any case
        (Selection(), 3, set()),
    ],
)
def test_a_protocol_says_after_which_epochs_test_is_evaluated(
    selection: Selection, total: int, expected: set[int]
) -> None:
    assert selection.epochs(total) == expected


@pytest.fixture
def accuracies(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """What test says after each epoch that was evaluated, as a `last` run of that length would."""
    found: dict[int, float] = {}
    look = BestOnTest.__call__

    def watched(self: BestOnTest, epoch: int) -> None:
        look(self, epoch)
        if self.epochs and epoch in self.epochs:
            found[epoch] = self.last["top1"]

    monkeypatch.setattr(BestOnTest, "__call__", watched)
    return found


def test_the_best_epoch_and_the_last_are_reported(
    store: ResultsStore, accuracies: dict[int, float]
) -> None:
    record = experiment.run(spec_of(), store)
    assert record.status is Status.OK, record.error
    assert list(accuracies) == [2, 4, 5]
    best = max(accuracies.values())
    first = next(epoch for epoch, value in accuracies.items() if value == best)
    assert record.metrics["test/top1"] == best
    assert record.metrics["last_epoch/top1"] == accuracies[5]
    assert (record.selection, record.selected_epoch) == ("best_on_test", first)
    # what is stored beside the record is what is reported
    stored = store.load_predictions("bias", record.run_id)
    assert stored is not None
    assert (stored.classes == stored.labels).mean() == pytest.approx(best)
    assert f" test images (best on test: epoch {first}), " in outcome(record)
    row = frame([record]).iloc[0]
    assert (row["selection"], row["selected_epoch"]) == ("best_on_test", first)
    assert (row["top1"], row["top1_last"]) == (best, accuracies[5])


def test_the_last_epoch_is_that_of_a_run_that_never_looked(store: ResultsStore) -> None:
    looked = experiment.run(spec_of(), store)
    honest = experiment.run(spec_of(Selection()), store)
    assert looked.run_id != honest.run_id
    assert looked.metrics["last_epoch/top1"] == honest.metrics["test/top1"]
    assert [row.loss for row in looked.history] == [row.loss for row in honest.history]
    assert (honest.selection, honest.selected_epoch) == ("last", None)
    assert not [key for key in honest.metrics if not key.startswith("test/")]


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [(Precision.FLOAT32, torch.float32), (Precision.BFLOAT16, torch.bfloat16)],
    ids=str,
)
def test_the_saved_tensors_are_those_of_the_reported_epoch(
    store: ResultsStore, precision: Precision, dtype: torch.dtype
) -> None:
    from peftbench import data
    from peftbench.artefacts import task_file as tuned
    from peftbench.backbones.describe import describe
    from peftbench.methods.applied import apply

    spec = spec_of(precision=precision)
    record = experiment.run(spec, store)
    backbone = load(spec.backbone, 2, spec.preprocessing, dtype=dtype)
    anatomy = describe(backbone.model, backbone.image_size)
    again = apply(spec.method, backbone.model, anatomy, 10, torch.Generator().manual_seed(0))
    tuned.load(again, store.artefacts(record))
    splits = data.load(spec.dataset, spec.phase, backbone.preprocessing)
    assert isinstance(splits.report, TestSplit)
    test = splits.report.open_once()
    compute = Compute(torch.device("cpu"), dtype)
    outputs = predict(again.model, test.images, backbone.preprocessing, compute)
    rows = spec.task.rows(outputs, test.labels)
    assert spec.task.score.of(rows) == record.metrics["test/top1"]
    stored = store.load_predictions("bias", record.run_id)
    assert stored is not None and np.array_equal(rows["classes"], stored.classes)


def test_the_test_split_is_opened_once_all_the_same(
    store: ResultsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    open_once = TestSplit.open_once
    monkeypatch.setattr(
        TestSplit, "open_once", lambda split: [calls.append(split), open_once(split)][1]
    )
    experiment.run(spec_of(), store)
    assert len(calls) == 1


def test_tuning_never_looks_at_test(store: ResultsStore, accuracies: dict[int, float]) -> None:
    spec = spec_of(phase=Phase.TUNE)
    assert spec.run_id == spec_of(Selection(), phase=Phase.TUNE).run_id
    record = experiment.run(spec, store)
    assert (record.status, record.selection) == (Status.OK, "last")
    assert accuracies == {}
    assert set(record.metrics) == {
        f"val/{key}" for key in ("top1", "mean_per_class", "f1_macro", "loss", "ece", "num_images")
    }


def test_a_moving_average_is_what_is_evaluated_and_saved(store: ResultsStore) -> None:
    averaged = {"ema_decay": 0.9}
    looked = experiment.run(spec_of(Selection("best_on_test"), recipe=averaged), store)
    honest = experiment.run(spec_of(Selection(), recipe=averaged), store)
    plain = experiment.run(spec_of(Selection()), store)
    for record in (looked, honest):
        assert record.status is Status.OK, record.error  # saved and reloaded alike
    assert looked.metrics["last_epoch/loss"] == honest.metrics["test/loss"]
    assert honest.metrics["test/loss"] != plain.metrics["test/loss"]
    assert [row.loss for row in honest.history] == [row.loss for row in plain.history]


def test_rules_and_their_epochs_are_part_of_the_identity_where_they_act() -> None:
    ids = {
        spec_of(selection).run_id
        for selection in (Selection(), RULE, Selection("best_on_test", every=3))
    }
    assert len(ids) == 3
    assert spec_of(Selection(every=7)).run_id == spec_of(Selection()).run_id
    named = spec_of(protocol=Protocol("ssf", seeds=(42,), average="mean_19"))
    assert named.run_id == spec_of().run_id


def test_a_failed_run_says_too_how_it_would_have_selected(
    store: ResultsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(*args: object, **kwargs: object) -> None:
        raise MemoryError

    monkeypatch.setattr(measure, "fit", fit)
    record = experiment.run(spec_of(), store)
    assert (record.status, record.selection) == (Status.OUT_OF_MEMORY, "best_on_test")
    assert record.selected_epoch is None


def test_a_record_survives_its_file(store: ResultsStore) -> None:
    record = experiment.run(spec_of(), store)
    assert RunRecord.from_json(record.to_json()) == store.get(record.run_id)


@pytest.mark.parametrize("protocol", ["peftbench", "vpt", "adapter_plus"])
def test_a_protocol_that_does_not_declare_it_cannot_select_on_test(protocol: str) -> None:
    with pytest.raises(ConfigError) as refused:
        build(compose(f"protocol={protocol}", "selection.rule=best_on_test"))
    assert str(refused.value) == (
        f"selection.rule=best_on_test flatters, and protocol={protocol} does not declare it. "
        "Use selection.rule=last, or a protocol that does: fact, ssf, vpetl."
    )


@pytest.mark.parametrize("protocol", ["fact", "ssf", "vpetl"])
def test_a_protocol_that_declares_it_can_also_be_run_honestly(protocol: str) -> None:
    stated = build(compose(f"protocol={protocol}", "method=norm"))
    assert stated.selects_on_test
    honest = build(compose(f"protocol={protocol}", "method=norm", "selection.rule=last"))
    assert not honest.selects_on_test
    assert dataclasses.replace(honest, selection=stated.selection) == stated


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rule": "best"}, "Unknown selection.rule 'best'. Did you mean: last, best_on_test?"),
        ({"every": 0}, "selection.every=0; use 1 or more."),
        ({"first": 0}, "selection.first=0; use 1 or more."),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, UnknownName)) as refused:
        Selection(**change)
    assert str(refused.value).startswith(message)

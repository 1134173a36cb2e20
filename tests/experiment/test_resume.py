"""A run that is stopped anywhere and started again, against one that was left alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import digits, repeatable, short_timings, tiny_spec

import peftbench
from peftbench import experiment
from peftbench.methods.vpt import VPTDeep
from peftbench.results.record import RunRecord, Status
from peftbench.results.store import ResultsStore
from peftbench.spec import BEST_ON_TEST, Phase, RunSpec, Selection
from peftbench.training import loop
from peftbench.training.checkpoint import Saving

pytestmark = pytest.mark.arithmetic
# 11 images in batches of 4: three steps an epoch; everything that draws random numbers is on
RECIPE = {
    "epochs": 3,
    "batch_size": 4,
    "warmup_epochs": 1,
    "augmentation": "crop_flip",
    "mixup": 0.8,
    "random_erasing": 0.3,
    "ema_decay": 0.9,
    "frozen_mode": "train",
}
SPEC = tiny_spec(VPTDeep(dropout=0.3), dataset=digits(11), recipe=RECIPE)


@contextmanager
def stopped_after(steps: int) -> Iterator[None]:
    """Training is interrupted in the forward pass that follows so many steps of the optimiser."""
    taken = 0
    make = loop.make_optimizer

    def counting(*arguments: Any) -> torch.optim.Optimizer:
        optimizer = make(*arguments)
        step = optimizer.step

        def counted(*args: Any) -> Any:
            nonlocal taken
            if taken == steps:
                raise KeyboardInterrupt
            taken += 1
            return step(*args)

        optimizer.step = counted  # type: ignore[method-assign]
        return optimizer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_optimizer", counting)
        yield


def outcome(record: RunRecord, store: ResultsStore) -> dict[str, Any]:
    """All that a record says, and the predictions, without clocks and the count of resumptions."""
    raw = repeatable(record)
    del raw["cost"]["resumed"]
    found = store.load_predictions(record.spec["method"]["name"], record.run_id)
    assert found is not None
    return raw | {"classes": found.classes.tolist(), "confidence": found.confidence.tolist()}


def checkpoints(store: ResultsStore) -> list[Path]:
    return [path for path in store.root.glob("checkpoints/*") if path.is_file()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    store = ResultsStore(tmp_path_factory.mktemp("whole"))
    with short_timings():
        record = experiment.run(SPEC, store)
    assert record.status is Status.OK
    return outcome(record, store)


# saved every two steps: in an epoch, at the end of one (6), and before anything was saved (1)
@pytest.mark.parametrize("steps", [1, 3, 5, 6, 8])
def test_a_stopped_run_goes_on_to_the_same_record_bit_for_bit(
    store: ResultsStore, whole: dict[str, Any], steps: int
) -> None:
    with stopped_after(steps):
        stopped = experiment.run(SPEC, store, saving=Saving(steps=2))
    assert stopped.status is Status.INTERRUPTED
    assert len(checkpoints(store)) == (steps >= 2)
    torch.manual_seed(99)  # another process has drawn other numbers
    record = experiment.run(SPEC, store, saving=Saving(steps=2))
    assert record.cost is not None
    assert record.cost.resumed == (steps >= 2)
    assert outcome(record, store) == whole
    assert checkpoints(store) == []


def test_a_run_that_is_stopped_twice_counts_both(
    store: ResultsStore, whole: dict[str, Any]
) -> None:
    for steps in (3, 2):  # of each process
        with stopped_after(steps):
            experiment.run(SPEC, store, saving=Saving(steps=1))
    record = experiment.run(SPEC, store, saving=Saving(steps=1))
    assert record.cost is not None and record.cost.resumed == 2
    assert outcome(record, store) == whole


@pytest.mark.parametrize(
    "spec",
    [
        tiny_spec("bias", selection=Selection(rule=BEST_ON_TEST), recipe={"epochs": 4}),
        tiny_spec("bias", phase=Phase.TUNE, looks=((1, None), (3, None)), recipe={"epochs": 4}),
        tiny_spec("full", recipe={"epochs": 4, "optimizer": "sgd", "momentum": 0.9}),
    ],
    ids=["best_on_test", "looks", "sgd"],
)
def test_what_was_seen_on_the_way_is_kept(store: ResultsStore, spec: RunSpec) -> None:
    elsewhere = ResultsStore(store.root.parent / "whole")
    expected = outcome(experiment.run(spec, elsewhere), elsewhere)
    with stopped_after(5):  # of eight
        experiment.run(spec, store, saving=Saving(steps=1))
    assert outcome(experiment.run(spec, store, saving=Saving(steps=1)), store) == expected


def test_a_state_of_another_version_is_not_taken_up(
    store: ResultsStore, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with stopped_after(5), monkeypatch.context() as older:
        older.setattr(peftbench, "__version__", "0.0")
        experiment.run(SPEC, store, saving=Saving(steps=2))
    (path,) = checkpoints(store)
    record = experiment.run(SPEC, store, saving=Saving(steps=2))
    assert record.cost is not None and record.cost.resumed == 0
    assert record.notes == [f"started anew: {path} has another peftbench"]
    assert outcome(record, store) | {"notes": []} == whole


def test_a_damaged_state_is_not_taken_up(store: ResultsStore, whole: dict[str, Any]) -> None:
    with stopped_after(5):
        experiment.run(SPEC, store, saving=Saving(steps=2))
    (path,) = checkpoints(store)
    path.write_bytes(path.read_bytes()[:-40])
    record = experiment.run(SPEC, store, saving=Saving(steps=2))
    (note,) = record.notes
    assert note.startswith(f"started anew: {path} cannot be read (SafetensorError: ")
    assert outcome(record, store) | {"notes": []} == whole


def test_force_starts_anew(store: ResultsStore) -> None:
    with stopped_after(5):
        experiment.run(SPEC, store, saving=Saving(steps=2))
    record = experiment.run(SPEC, store, force=True, saving=Saving(steps=2))
    assert record.cost is not None and record.cost.resumed == 0


def test_the_clock_saves_too(store: ResultsStore) -> None:
    with stopped_after(4):
        experiment.run(SPEC, store, saving=Saving(minutes=1e-9))
    assert len(checkpoints(store)) == 1
    record = experiment.run(SPEC, store, saving=Saving(minutes=60))
    assert record.cost is not None and record.cost.resumed == 1, record.error


def test_predictions_are_compared_as_they_are(store: ResultsStore, whole: dict[str, Any]) -> None:
    other = experiment.run(tiny_spec(VPTDeep(dropout=0.3), dataset=digits(11), seed=1), store)
    assert not np.array_equal(outcome(other, store)["confidence"], whole["confidence"])

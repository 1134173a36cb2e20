"""Trials of one search in one process: each leaves the record that it leaves by itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.tiny_runs import digits, tiny_spec

from peftbench.methods import METHODS
from peftbench.results.record import RunRecord
from peftbench.results.store import ResultsStore
from peftbench.run import experiment, trials
from peftbench.run.experiment import RunOptions
from peftbench.spec import Phase, Precision, RunSpec

pytestmark = pytest.mark.arithmetic
KEEPING = RunOptions(activations=10**9)
POINTS = ((1e-3, 0.0), (3e-2, 1e-2), (1e-1, 1e-3))
OWN = sorted(n for n in METHODS if not n.startswith("hf_") and not METHODS[n].card.solved)
# of a network of two tokens on 11 images; `full` and `vpt` change what the network itself computes
NOTE = "trained in one pass with 2 other trials"


@pytest.fixture(autouse=True)
def _always(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Trials share their steps whether that is faster here or not."""
    monkeypatch.setattr(trials, "is_faster", lambda bench, step: step is not None)
    yield
    trials._waiting.clear()
    trials._apart.clear()


def grid(method: str, *points: tuple[float, float], **changes: Any) -> list[RunSpec]:
    """Trials that differ in rate and decay."""
    recipe = {"optimizer": "momentum", "batch_size": 4} | changes.pop("recipe", {})
    changes = {"dataset": digits(11), "precision": Precision.FLOAT32} | changes
    return [
        tiny_spec(
            method,
            phase=Phase.TUNE,
            recipe={**recipe, "lr": lr, "weight_decay": decay},
            **changes,
        )
        for lr, decay in points or POINTS
    ]


def ran(root: Path, specs: list[RunSpec], *, together: bool) -> list[RunRecord]:
    """Their records, of runs one after another in this process."""
    store = ResultsStore(root)
    found = []
    for number, spec in enumerate(specs):
        beside = tuple(specs[number + 1 :]) if together else ()
        options = dataclasses.replace(KEEPING, beside=beside)
        found.append(experiment.run(spec, store, options))
    return found


def assert_same(record: RunRecord, alone: RunRecord) -> None:
    """The same but for the note, up to rounding of float32."""
    assert record.status is alone.status, record.error
    assert record.metrics.keys() == alone.metrics.keys()
    assert record.parameters == alone.parameters and record.looks == alone.looks
    for key, value in alone.metrics.items():
        assert record.metrics[key] == pytest.approx(value, rel=1e-4, abs=1e-5)
    assert len(record.history) == len(alone.history)
    for one, other in zip(record.history, alone.history, strict=True):
        assert (one.epoch, one.lr, one.accuracy) == (other.epoch, other.lr, other.accuracy)
        assert one.loss == pytest.approx(other.loss, rel=1e-5)


@pytest.mark.parametrize("method", OWN)
def test_trials_of_every_method_leave_the_records_of_runs_by_themselves(
    tmp_path: Path, method: str
) -> None:
    specs = grid(method)
    alone = ran(tmp_path / "alone", specs, together=False)
    together = ran(tmp_path / "together", specs, together=True)
    print("STACKED", method, NOTE in together[0].notes)
    for record, plain in zip(together, alone, strict=True):
        assert_same(record, plain)
        assert [note for note in record.notes if note != NOTE] == plain.notes

"""One run in two processes, against the same run in one."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from support.command_line import shorten_timings_of_processes
from support.rounding import BFLOAT16_UNIT, UNIT
from support.tiny_runs import QUICK, digits, tiny_spec
from support.together import together

from peftbench.methods import Method
from peftbench.methods.mlp import MLPHead
from peftbench.results.record import RunRecord, Status
from peftbench.results.store import ResultsStore
from peftbench.run import experiment, measure
from peftbench.run.measure import measure_run
from peftbench.run.selection import BestOnTest
from peftbench.spec import Precision, RunSpec
from peftbench.training.saving import WHEN_STOPPED, CheckpointPolicy

pytestmark = [
    pytest.mark.arithmetic,
    pytest.mark.skipif(sys.platform != "linux", reason="forks after torch has started"),
]

# 11 images in batches of 4, shared unevenly as 2 + 2, 2 + 2 and 1 + 2; all that draws for images
# confidences and losses that may differ where sums are rounded in another order, and six steps make
# something of that: a thousand units of float32 where 420 were measured, and 16 of bfloat16, in
# which single values are rounded but not sums and steps, where 5 were
TOLERANCES = {Precision.FLOAT32: 2048 * UNIT, Precision.BFLOAT16: 16 * BFLOAT16_UNIT}
PRECISIONS = pytest.mark.parametrize("precision", TOLERANCES, ids=str)
SHARED = {"full": 2, "mlp": 2, "lora": 3, "ssf": 2}  # methods, and among how many processes
# what bfloat16 changes is the same for all methods but for norms of batches, which mlp has
BY_DEFAULT = {("full", Precision.BFLOAT16), ("mlp", Precision.BFLOAT16)}
RECIPE = {"batch_size": 4, "augmentation": "crop_flip", "mixup": 0.8, "lr": 1e-2}


def run_together(
    spec: RunSpec, store: ResultsStore, size: int = 2, saving: CheckpointPolicy = WHEN_STOPPED
) -> list[int]:
    def task(rank: int) -> None:
        call = experiment.run if rank == 0 else experiment.run_worker
        call(spec, store, experiment.RunOptions(device="cpu", saving=saving))  # type: ignore[operator]

    return together(size, task)


def recorded(spec: RunSpec, store: ResultsStore) -> RunRecord:
    record = store.get(spec.run_id, spec.method.name)
    assert record is not None
    return record


def confidence(spec: RunSpec, store: ResultsStore) -> np.ndarray:
    found = store.load_predictions(spec.method.name, spec.run_id)
    assert found is not None
    return np.asarray(found.confidence)


def assert_close(actual: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        pytest.param(name, precision, marks=() if kept else pytest.mark.slow)
        for name in SHARED
        for precision in TOLERANCES
        for kept in [precision is Precision.FLOAT32 or (name, precision) in BY_DEFAULT]
    ],
)
def test_processes_that_share_the_batches_predict_what_one_does(
    store: ResultsStore, name: str, precision: Precision
) -> None:
    tolerance, size = TOLERANCES[precision], SHARED[name]
    method: str | Method = MLPHead(num_layers=2, dropout=0.0) if name == "mlp" else name
    recipe = dict(RECIPE)
    if name == "mlp":
        # batch norm takes a bias away again, whose gradient is zero but for rounding: Adam would
        # make a whole step of that. At 1e-2 its statistics of four images turn a unit in the last
        # place of a pixel into 6e-3 of confidence, at 1e-3 into 5e-5
        recipe |= {"optimizer": "momentum", "momentum": 0.9, "lr": 1e-3}
    spec = tiny_spec(method, dataset=digits(11), recipe=recipe, precision=precision)
    alone = ResultsStore(store.root.parent / "alone")
    expected = experiment.run(spec, alone)
    assert run_together(spec, store, size) == [0] * size
    record = recorded(spec, store)
    assert record.status is Status.OK
    assert record.cost is not None and record.cost.processes == size
    assert [r.run_id for r in store.records()] == [spec.run_id]
    assert record.cost.dtype == expected.cost.dtype == precision
    assert_close(confidence(spec, store), confidence(spec, alone), tolerance)
    for row, other in zip(record.history, expected.history, strict=True):
        assert row.loss == pytest.approx(other.loss, abs=tolerance)
        if precision is Precision.FLOAT32:  # else two classes may be nearly tied
            assert row.accuracy == other.accuracy
    if precision is Precision.FLOAT32:
        assert record.metrics["test/top1"] == expected.metrics["test/top1"]


def test_what_is_done_is_not_done_again(store: ResultsStore) -> None:
    spec = tiny_spec("linear")
    assert run_together(spec, store) == [0, 0]
    before = recorded(spec, store)
    assert run_together(spec, store) == [0, 0]
    assert recorded(spec, store) == before


def test_a_failure_in_one_process_is_the_record_of_the_run(
    store: ResultsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(pending, scratch, compute, *rest):
        if compute.world.rank == 1:
            raise MemoryError("out of memory")
        measure_run(pending, scratch, compute, *rest)

    monkeypatch.setattr("peftbench.run.measure.measure_run", fails)
    spec = tiny_spec("linear", dataset=digits(11), recipe={"epochs": 3})
    assert run_together(spec, store) == [0, 1]
    record = recorded(spec, store)
    assert record.status is Status.OUT_OF_MEMORY
    assert record.error is not None and record.error.startswith("in process 1 of 2: out of memory")
    assert not (store.root / ".scratch").exists()


@PRECISIONS
def test_a_stopped_run_goes_on_in_as_many_processes_or_others(
    store: ResultsStore, precision: Precision
) -> None:
    recipe = RECIPE | {"epochs": 3}
    spec = tiny_spec("lora", dataset=digits(11), recipe=recipe, precision=precision)
    alone = ResultsStore(store.root.parent / "alone")
    expected = experiment.run(spec, alone)

    def interrupted(rank: int) -> None:
        class Stop(BestOnTest):
            def __call__(self, epoch: int) -> None:
                if epoch == 2:
                    raise KeyboardInterrupt

        measure.BestOnTest = Stop  # type: ignore[misc]
        call = experiment.run if rank == 0 else experiment.run_worker
        call(spec, store, experiment.RunOptions(device="cpu", saving=CheckpointPolicy(steps=2)))  # type: ignore[operator]

    together(2, interrupted)
    assert recorded(spec, store).status is Status.INTERRUPTED
    assert len(list((store.root / "checkpoints").iterdir())) == 1
    record = experiment.run(
        spec, store, experiment.RunOptions(device="cpu", saving=CheckpointPolicy(steps=2))
    )
    assert record.cost is not None and (record.cost.resumed, record.cost.processes) == (1, 1)
    assert_close(confidence(spec, store), confidence(spec, alone), TOLERANCES[precision])
    assert [row.epoch for row in record.history] == [1, 2, 3]
    for row, other in zip(record.history, expected.history, strict=True):
        assert row.loss == pytest.approx(other.loss, abs=TOLERANCES[precision])


def test_the_command_starts_its_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from peftbench.cli.main import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    shorten_timings_of_processes(tmp_path / "site", monkeypatch)
    with pytest.raises(SystemExit) as exit:
        main(["run", *QUICK, "method=bias", "processes=2", "results_dir=two"])
    said = capfd.readouterr()
    assert exit.value.code == 0, said.err
    assert said.out.startswith("bias x vit_mini x mini/digits, seed 0: ")
    (record,) = ResultsStore(tmp_path / "two").records()
    assert record.cost is not None and record.cost.processes == 2

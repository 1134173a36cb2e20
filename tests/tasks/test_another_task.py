"""A second kind of task, defined here: what a run asks of a task, and of nothing else."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from support.tiny_runs import digits, tiny_spec
from torch import Tensor

import peftbench
from peftbench.cli import listing
from peftbench.results.frame import frame
from peftbench.results.record import RunRecord, Status
from peftbench.results.store import ResultsStore
from peftbench.run import experiment
from peftbench.spec import Phase, RunSpec, Selection
from peftbench.sweep.jobs import outcome
from peftbench.tasks import CLASSIFICATION, TASKS, ImageRows, Metric, Task, register_task, task_of

PACKAGE = Path(peftbench.__file__).parent


def near(rows: ImageRows) -> float:
    return float((np.abs(rows["number"] - rows["labels"]) <= 1).mean())


def exact(rows: ImageRows) -> float:
    return float((np.abs(rows["number"] - rows["labels"]) <= 0.5).mean())


@dataclass(frozen=True)
class Counting(Task):
    """How many: the classes of digits are numbers, and being one off is right."""

    scores: ClassVar[tuple[Metric, ...]] = (
        Metric("near", "accuracy within 1", "near", "near", near),
        Metric("exact", "accuracy within a half", "exact", "exact", exact),
    )
    fractions: ClassVar[frozenset[str]] = frozenset(("near", "exact"))
    stored: ClassVar[Mapping[str, str]] = {"number": "float32", "labels": "int32"}

    def outputs(self, raw: Tensor) -> Tensor:
        return raw.float()[:, 0]

    def loss(self, outputs: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
        return (outputs - targets).square().mean()

    def correct(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return (outputs - labels).abs() <= 1

    def among(self, outputs: np.ndarray, classes: np.ndarray) -> np.ndarray:
        return outputs

    def rows(self, outputs: np.ndarray, labels: np.ndarray) -> ImageRows:
        return {"number": outputs, "labels": labels}

    def metrics(self, rows: ImageRows, num_classes: int) -> dict[str, float]:
        off = float(np.abs(rows["number"] - rows["labels"]).mean())
        counted = {"off": off, "num_images": float(len(rows["labels"]))}
        return {**self.scored(rows, num_classes), **counted}


@pytest.fixture
def counting() -> Iterator[Counting]:
    register_task("counting")(Counting)
    yield Counting()
    del TASKS._entries["counting"]


@pytest.fixture
def store(tmp_path: Path) -> ResultsStore:
    return ResultsStore(tmp_path / "results")


def spec_of(task: Task, **changes: object) -> RunSpec:
    return tiny_spec("bias", dataset=digits(20), task=task, **changes)


def stored_rows(store: ResultsStore, record: RunRecord) -> dict[str, np.ndarray]:
    with np.load(store.artefacts(record) / "predictions.npz") as file:
        return dict(file)


def test_a_run_is_trained_scored_and_stored_as_its_task_says(
    counting: Counting, store: ResultsStore
) -> None:
    record = experiment.run(spec_of(counting, recipe={"epochs": 3, "lr": 0.05}), store)
    assert record.status is Status.OK, record.error
    assert record.metrics.keys() == {"test/near", "test/exact", "test/off", "test/num_images"}
    rows = stored_rows(store, record)
    assert {name: row.dtype.name for name, row in rows.items()} == dict(counting.stored)
    near = (np.abs(rows["number"] - rows["labels"]) <= 1).mean()
    assert record.score == record.metrics["test/near"] == near
    # squares of errors on numbers up to 9: a cross-entropy of 10 classes is near log(10) = 2.3
    assert record.history[0].loss > 10
    # what is reloaded is judged by the same score
    assert record.reload is not None and record.reload.keys() == {
        "train_near",
        "max_logit_difference",
    }
    # the file of the record is read back with it
    again = store.get(record.run_id, "bias")
    assert again is not None and (again.task, again.score) == (counting, near)


def test_the_score_of_the_task_chooses_the_epoch(counting: Counting, store: ResultsStore) -> None:
    rule = Selection("best_on_test")
    record = experiment.run(spec_of(counting, selection=rule, recipe={"epochs": 3}), store)
    assert record.status is Status.OK, record.error
    assert record.metrics.keys() >= {"test/near", "last_epoch/near"}
    assert record.score is not None
    assert record.score >= record.metrics["last_epoch/near"]


def test_a_trial_is_looked_at_by_the_score_of_the_task(
    counting: Counting, store: ResultsStore
) -> None:
    looks = ((1, None), (2, None))
    record = experiment.run(spec_of(counting, phase=Phase.TUNE, looks=looks), store)
    assert record.status is Status.OK, record.error
    assert record.looks["2"] == record.metrics["val/near"] == record.score


def test_what_is_told_of_a_run_names_its_score(counting: Counting, store: ResultsStore) -> None:
    record = experiment.run(spec_of(counting), store)
    percent = f"{100 * (record.score or 0):.1f} %"
    told = outcome(record)
    assert told.startswith(f"{percent} near, ") and " % exact of 20 test images, " in told
    assert f"{percent} test near" in listing.text("runs", str(store.root), None)
    # and the table of runs, whose columns are those of classes, leaves them empty
    table = frame(store)
    assert table["status"].tolist() == ["OK"] and table["top1"].isna().all()


def test_another_task_is_another_run_and_classification_is_as_before(counting: Counting) -> None:
    plain = tiny_spec("bias", dataset=digits(20))
    assert spec_of(CLASSIFICATION).run_id == plain.run_id
    assert "task" not in plain.identity() and "task" not in plain.describe()
    other = spec_of(counting)
    assert other.run_id != plain.run_id
    assert other.identity() == {**plain.identity(), "task": "counting"}
    assert task_of(other.describe()) == counting and task_of(plain.describe()) == CLASSIFICATION


def test_a_record_of_an_unknown_task_is_told_and_left_out(
    counting: Counting, store: ResultsStore
) -> None:
    record = experiment.run(spec_of(counting), store)
    foreign = dataclasses.replace(record, spec={**record.spec, "task": "chess"})
    with pytest.raises(ValueError, match=r"spec\.task is 'chess', and there are classification, c"):
        RunRecord.from_json(foreign.to_json())


def test_only_the_task_knows_what_its_metrics_are_called() -> None:
    """Beside it: the columns of the tables of runs and of published numbers, which are formats."""
    formats = {"results/columns.py", "results/published.py", "results/rows.py"}
    formats |= {"results/bundles/incoming.py", "report/papers/printed.py"}
    metrics = {metric.name for metric in CLASSIFICATION.scores} | {"ece"}
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and set(node.value.split("/")) & metrics
    }
    assert found == {"tasks/classification.py", *formats}

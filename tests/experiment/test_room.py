"""A batch that does not fit the memory is divided before it is tried; what cannot be is noted."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from support.tiny_runs import digits, tiny_spec

from peftbench.methods.lora import LoRA
from peftbench.results.latencies import Latencies, StepCost
from peftbench.results.record import RunRecord, Status
from peftbench.results.store import ResultsStore
from peftbench.run import experiment, room
from peftbench.run.bench import prepare
from peftbench.run.ending import PendingRecord
from peftbench.run.profile import planned_step
from peftbench.run.simulation import step_cost
from peftbench.spec import BackboneSpec, Phase, Precision, RunSpec
from peftbench.sweep.jobs import Attempt, Job
from peftbench.sweep.queues.slots import make_slots
from peftbench.training.device import Compute
from peftbench.training.hardware import MEMORY_SHARE, memory_share

SPEC = tiny_spec(
    LoRA(rank=2),
    dataset=digits(16),
    recipe={"batch_size": 8, "epochs": 1},
    phase=Phase.TUNE,
    precision=Precision.FLOAT32,
)
CPU = Compute(torch.device("cpu"), torch.float32)


def run(spec: RunSpec, store: ResultsStore) -> RunRecord:
    record = experiment.run(spec, store)
    assert record.status is Status.OK, record.error
    return record


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes that are said to be free: those in its last place."""
    said = [2**60]
    monkeypatch.setattr(room, "memory_of", lambda device: room.Memory(said[-1], 2**60))
    return said


def chosen(
    spec: RunSpec, folder: Path, micro_batch: int | None = None
) -> tuple[int | None, list[str]]:
    """Images at a time of a run before its first step, and its notes."""
    pending = PendingRecord(spec, started="")
    bench = prepare(pending, dataclasses.replace(CPU, micro_batch=micro_batch))
    bench, _ = room.fitted(pending, bench, Latencies(folder))
    assert bench.compute.micro_batch == pending.micro_batch
    return pending.micro_batch, pending.notes


def needed(images: int) -> int:
    """Bytes beside the weights that are asked to be free for so many images at a time."""
    plan = planned_step(SPEC, 10)
    weights = sum(t.nbytes for t in (*plan.tuned.model.parameters(), *plan.tuned.model.buffers()))
    return int(room.HOLES["cpu"] * (step_cost(plan, images, CPU).peak_bytes - weights))


def test_a_batch_is_halved_until_it_fits_and_trains_as_the_whole(
    free: list[int], store: ResultsStore, tmp_path: Path
) -> None:
    whole = run(SPEC, store)
    assert (whole.micro_batch, whole.notes) == (None, [])
    free.append(needed(2))
    parts = run(SPEC, ResultsStore(tmp_path / "parts"))
    assert parts.micro_batch == 2
    assert parts.notes == ["trained with 2 images in memory at a time"]
    assert [row.loss for row in parts.history] == pytest.approx(
        [row.loss for row in whole.history], rel=1e-5
    )
    assert parts.run_id == whole.run_id
    assert parts.cost is not None and whole.cost is not None
    assert parts.cost.kept_bytes == whole.cost.kept_bytes  # of a batch of the recipe


def test_a_batch_is_divided_where_a_byte_is_missing_and_not_before(
    free: list[int], tmp_path: Path
) -> None:
    free.append(needed(8))
    assert chosen(SPEC, tmp_path) == (None, [])
    free[-1] -= 1
    assert chosen(SPEC, tmp_path) == (4, ["trained with 4 images in memory at a time"])


def test_where_not_even_one_image_fits_one_is_tried(free: list[int], tmp_path: Path) -> None:
    free.append(0)
    assert chosen(SPEC, tmp_path) == (1, ["trained with 1 images in memory at a time"])


def test_a_micro_batch_that_was_asked_for_stays(free: list[int], tmp_path: Path) -> None:
    free.append(0)
    assert chosen(SPEC, tmp_path, 4) == (4, ["trained with 4 images in memory at a time"])


def test_a_batch_whose_statistics_train_is_not_divided(free: list[int], tmp_path: Path) -> None:
    free.append(0)
    net = BackboneSpec("test_resnet", pretrained=False, image_size=32)
    spec = dataclasses.replace(tiny_spec("full", phase=Phase.TUNE), backbone=net)
    micro_batch, (*_, note) = chosen(spec, tmp_path)
    assert micro_batch is None
    assert note.startswith("a step may need 0.") and "where 0.00 GiB are free" in note
    assert note.endswith("because batch normalisation trains")


def test_a_second_run_of_a_network_counts_nothing_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pending = PendingRecord(SPEC, started="")
    bench = prepare(pending, CPU)
    _, first = room.fitted(pending, bench, Latencies(tmp_path))
    monkeypatch.setattr(room, "step_cost", lambda *_: pytest.fail("counted again"))
    again = dataclasses.replace(bench, spec=dataclasses.replace(SPEC, seed=1))
    _, second = room.fitted(pending, again, Latencies(tmp_path))
    assert second == first is not None


def test_a_step_that_has_no_form_without_storage_costs_a_note_and_no_result(
    store: ResultsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise NotImplementedError("aten::own has no meta kernel\nmore")

    monkeypatch.setattr(room, "step_cost", fails)
    record = run(SPEC, store)
    assert record.notes == [
        "training_gflops and kept_bytes: not counted, aten::own has no meta kernel"
    ]
    assert record.cost is not None
    assert (record.cost.training_gflops, record.cost.kept_bytes) == (None, None)


def test_freed_memory_is_kept_where_a_quarter_of_what_is_free_is_enough(free: list[int]) -> None:
    cpu, step = torch.device("cpu"), StepCost(0, 0.0, peak_bytes=1000)
    free.append(8000)
    assert room.is_ample(cpu, step, trials=2)
    free.append(7999)
    assert not room.is_ample(cpu, step, trials=2)
    assert not room.is_ample(cpu, None, trials=1)
    assert not room.is_ample(torch.device("cuda"), step, trials=1)


def test_what_is_free_counts_as_far_as_it_is_within_ones_share() -> None:
    memory = room.Memory(free=600, total=1000)
    assert [memory.share(part) for part in (1.0, 0.5, 0.25)] == [600, 500, 250]


def test_a_container_has_what_its_limit_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("3000\n")
    assert room.memory_of(torch.device("cpu")) == room.Memory(2000, 5000)
    (tmp_path / "memory.max").write_text("max\n")
    assert room.memory_of(torch.device("cpu")).total > 5000


def test_jobs_that_share_a_device_know_their_share(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = make_slots(["0"], jobs_per_gpu=4, cores=4)[0]
    monkeypatch.setenv(MEMORY_SHARE, pair.environment({})[MEMORY_SHARE])
    assert memory_share() == 0.25
    assert MEMORY_SHARE not in make_slots(["0"], cores=4)[0].environment({})
    assert make_slots([], jobs=2, cores=4)[1].environment({})[MEMORY_SHARE] == "0.5000"
    for nonsense in ("", "0", "-1", "2", "half", "nan"):
        monkeypatch.setenv(MEMORY_SHARE, nonsense)
        assert memory_share() == 1.0


def test_another_try_has_half_of_what_was_in_memory() -> None:
    first = Attempt(Job((), SPEC), None)
    assert (first.micro_batch, first.extra) == (8, ())
    assert first.with_half_the_batch().extra == ("micro_batch=4",)
    # the run itself had found that 2 fit
    second = first.with_half_the_batch(2)
    assert (second.retries, second.extra) == (1, ("micro_batch=1",))
    assert second.with_half_the_batch().extra == ("micro_batch=1",)

"""A latency is measured once for a network on a machine, and runs say where theirs is from."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.tiny_runs import digits, repeatable, tiny_spec

from peftbench.methods.lora import LoRA
from peftbench.results.bundles.outgoing import export_results
from peftbench.results.record import RunRecord, Status
from peftbench.results.store import ResultsStore
from peftbench.run import cost, experiment, timing
from peftbench.spec import RunSpec

CALM = "2026-01-02T03:04:05+00:00"


@dataclasses.dataclass
class Stopwatch:
    """Stands in for the clock: says what it is told, and counts."""

    batches: list[int] = dataclasses.field(default_factory=list)  # sizes that were timed
    disturbed: list[str | None] = dataclasses.field(default_factory=list)  # next ones; then calm

    def __call__(self, model: object, batch_size: int, *_: object) -> cost.Timed:
        self.batches.append(batch_size)
        cause = self.disturbed.pop(0) if self.disturbed else None
        return cost.Timed([0.001 * len(self.batches)] * 3, cause)


@pytest.fixture
def stopwatch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stopwatch]:
    watch = Stopwatch()
    monkeypatch.setattr(cost, "time_forward", watch)
    monkeypatch.setattr("peftbench.run.latency.now", lambda: CALM)
    yield watch


def run(spec: RunSpec, store: ResultsStore, *, force: bool = False) -> RunRecord:
    record = experiment.run(spec, store, force=force)
    assert record.status is Status.OK, record.error
    assert record.cost is not None
    return record


def latencies(record: RunRecord) -> tuple[float | None, ...]:
    found = record.cost
    assert found is not None
    return (
        found.latency_ms_batch1,
        found.latency_ms_batch,
        found.merged_latency_ms_batch1,
        found.merged_latency_ms_batch,
    )


def measured(record: RunRecord) -> str | None:
    assert record.cost is not None
    return record.cost.latency_measured


def test_runs_of_one_network_measure_its_latency_once(
    store: ResultsStore, stopwatch: Stopwatch
) -> None:
    sets = [digits(), digits(5)]  # of ten classes both
    specs = [tiny_spec("linear", dataset=data, seed=seed) for data in sets for seed in (0, 1)]
    records = [run(spec, store) for spec in specs]
    # one image and a batch (of two in these tests), as trained and merged
    assert stopwatch.batches == [1, 2, 1, 2]
    assert latencies(records[0]) == (1.0, 2.0, 3.0, 4.0)
    assert {latencies(record) for record in records} == {(1.0, 2.0, 3.0, 4.0)}
    assert [measured(record) for record in records] == [None, CALM, CALM, CALM]


def test_a_record_that_measured_for_itself_does_not_name_the_field(
    store: ResultsStore, stopwatch: Stopwatch
) -> None:
    for seed, named in ((0, False), (1, True)):
        record = run(tiny_spec("linear", seed=seed), store)
        raw = json.loads(store.path("linear", record.run_id).read_text())
        assert ("latency_measured" in raw["cost"]) is named
        assert store.get(record.run_id) == record


def test_another_network_is_measured_for_itself(store: ResultsStore, stopwatch: Stopwatch) -> None:
    for rank in (1, 2):
        assert measured(run(tiny_spec(LoRA(rank=rank)), store)) is None
    assert len(stopwatch.batches) == 8


def test_another_number_of_threads_is_measured_for_itself(
    store: ResultsStore, stopwatch: Stopwatch
) -> None:
    spec = tiny_spec("linear")
    run(spec, store)
    options = experiment.RunOptions(threads=2)
    record = experiment.run(dataclasses.replace(spec, seed=1), store, options)
    assert measured(record) is None
    assert len(stopwatch.batches) == 8


def test_a_forced_run_measures_anew_and_others_take_that_over(
    store: ResultsStore, stopwatch: Stopwatch
) -> None:
    spec = tiny_spec("linear")
    run(spec, store)
    again = run(spec, store, force=True)
    assert (latencies(again), measured(again)) == ((5.0, 6.0, 7.0, 8.0), None)
    later = run(dataclasses.replace(spec, seed=1), store)
    assert latencies(later) == (5.0, 6.0, 7.0, 8.0)


def test_a_damaged_file_is_measured_anew_and_replaced(
    store: ResultsStore, stopwatch: Stopwatch
) -> None:
    first = run(tiny_spec("linear"), store)
    for path in (store.root / "latencies").iterdir():
        path.write_text("{")
    second = run(tiny_spec("linear", seed=1), store)
    assert measured(second) is None
    third = run(tiny_spec("linear", seed=2), store)
    assert latencies(first) != latencies(second) == latencies(third)


def test_a_disturbed_latency_is_measured_again_until_it_is_not(
    store: ResultsStore, stopwatch: Stopwatch
) -> None:
    stopwatch.disturbed = ["spread 34 %", "spread 40 %", None]
    record = run(tiny_spec("linear"), store)
    assert stopwatch.batches == [1, 1, 1, 2, 1, 2]
    assert latencies(record) == (3.0, 4.0, 5.0, 6.0)
    assert record.notes == []


def test_what_stays_disturbed_is_the_fastest_try_and_is_noted(
    store: ResultsStore, stopwatch: Stopwatch
) -> None:
    stopwatch.disturbed = ["spread 34 %", "spread 40 %", "spread 50 %"]
    record = run(tiny_spec("linear"), store)
    assert stopwatch.batches == [1, 1, 1, 2, 1, 2]
    assert latencies(record) == (1.0, 4.0, 5.0, 6.0)
    assert record.notes == ["latency: disturbed, spread 34 %"]


def test_a_disturbed_latency_is_taken_over_while_the_machine_is_no_calmer(
    store: ResultsStore, stopwatch: Stopwatch
) -> None:
    stopwatch.disturbed = ["spread 34 %"] * 3
    first = run(tiny_spec("linear"), store)
    stopwatch.disturbed = ["spread 60 %"]
    second = run(tiny_spec("linear", seed=1), store)
    assert latencies(second) == latencies(first)
    assert second.notes == first.notes == ["latency: disturbed, spread 34 %"]
    assert measured(second) == CALM
    third = run(tiny_spec("linear", seed=2), store)
    assert third.notes == []
    assert latencies(third)[0] != latencies(first)[0]


def test_a_machine_that_one_timing_shows_to_be_busy_is_not_asked_again(
    store: ResultsStore, stopwatch: Stopwatch
) -> None:
    stopwatch.disturbed = ["spread 34 %"] * 3 + [None] + ["spread 34 %"] * 3
    first = run(tiny_spec("linear"), store)
    assert [note.partition(":")[0] for note in first.notes] == ["latency", "merged latency"]
    stopwatch.batches.clear()
    stopwatch.disturbed = ["spread 60 %"]
    second = run(tiny_spec("linear", seed=1), store)
    assert stopwatch.batches == [1]
    assert (second.notes, latencies(second)) == (first.notes, latencies(first))


def test_steps_that_were_disturbed_are_noted(
    store: ResultsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter(range(1000))

    def now() -> timing.Clock:  # one second each time, of which half was waited for
        tick = next(ticks)
        return timing.Clock(float(tick), 0.5 * tick, None, 2)

    monkeypatch.setattr(timing, "LEAST_SECONDS", 0.25)
    monkeypatch.setattr(timing.Clock, "now", now)
    monkeypatch.setattr(cost, "time_forward", Stopwatch())
    record = run(tiny_spec("linear", recipe={"epochs": 3}), store)
    assert record.notes == ["step_ms: disturbed, waited for a core 50 % of the time"]


def test_a_bundle_leaves_the_latencies_where_they_are(
    store: ResultsStore, stopwatch: Stopwatch, tmp_path: Path
) -> None:
    run(tiny_spec("linear"), store)
    export_results(store.root, tmp_path / "runs.zip")
    assert any((store.root / "latencies").iterdir())
    with zipfile.ZipFile(tmp_path / "runs.zip") as bundle:
        assert not [name for name in bundle.namelist() if "latenc" in name]


def test_two_runs_that_share_a_latency_are_otherwise_what_they_were_alone(
    store: ResultsStore, tmp_path: Path
) -> None:
    spec = tiny_spec("linear", seed=1)
    run(tiny_spec("linear"), store)
    alone = run(spec, ResultsStore(tmp_path / "alone"))
    assert repeatable(run(spec, store)) == repeatable(alone)

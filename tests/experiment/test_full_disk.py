"""A run on a disk that fills up: one line, no half-written file, nothing finished is lost."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError
from support.tiny_runs import QUICK, compose, tiny_spec
from test_failures import assert_tidy

from peftbench.artefacts import task_file as tuned
from peftbench.cli.exit import FAILED
from peftbench.config.build import build
from peftbench.errors import DiskFull
from peftbench.methods.linear import Linear
from peftbench.results.record import Status
from peftbench.results.store import ResultsStore
from peftbench.run import experiment
from peftbench.run.measure import measure_run
from peftbench.sweep import jobs
from peftbench.sweep.launchers.base import sums
from peftbench.sweep.queues.pool import Finished

NO_SPACE = OSError(errno.ENOSPC, "No space left on device")
RUST = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
STAGES = {
    "predictions": ("peftbench.results.atomic.os.fsync", NO_SPACE),
    "tuned tensors": ("peftbench.artefacts.task_file.save_file", RUST),
    "moving them": ("peftbench.run.experiment._move", NO_SPACE),
}


def failing(error: BaseException) -> Callable[..., Any]:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize(("place", "error"), STAGES.values(), ids=STAGES.keys())
def test_the_record_says_that_the_disk_was_full_and_the_next_run_is_whole(
    store: ResultsStore, monkeypatch: pytest.MonkeyPatch, place: str, error: BaseException
) -> None:
    spec = tiny_spec(Linear())
    measure = measure_run

    def measured(*arguments: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(place, failing(error))
            measure(*arguments)

    if place.endswith("_move"):
        with monkeypatch.context() as patch:
            patch.setattr(place, failing(error))
            record = experiment.run(spec, store)
    else:
        monkeypatch.setattr("peftbench.run.measure.measure_run", measured)
        record = experiment.run(spec, store)
        monkeypatch.setattr("peftbench.run.measure.measure_run", measure)
    assert record.status is Status.ERROR
    assert record.error is not None and "disk full" in record.error
    assert "\n" not in record.error and "trace in" not in record.error
    assert store.get(spec.run_id) == record
    assert not (store.artefacts(record) / "log.txt").exists()
    assert_tidy(store)

    again = experiment.run(spec, store)
    assert again.status is Status.OK
    assert (store.artefacts(again) / tuned.TASK).is_file()


def test_a_record_that_cannot_be_written_keeps_the_one_before_and_frees_the_run(
    store: ResultsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tiny_spec(Linear())
    good = experiment.run(spec, store)
    assert good.status is Status.OK
    add = ResultsStore.add
    with monkeypatch.context() as patch:
        patch.setattr(ResultsStore, "add", failing(DiskFull("a.json: disk full")))
        with pytest.raises(DiskFull, match="disk full"):
            experiment.run(spec, store, force=True)
    assert ResultsStore.add is add
    assert store.get(spec.run_id) == good
    assert_tidy(store)


def test_a_sweep_tells_what_it_cannot_record_once(
    store: ResultsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    endings = []
    with monkeypatch.context() as patch:
        patch.setattr("peftbench.results.atomic.os.fsync", failing(NO_SPACE))
        for seed in (0, 1, 2):
            spec = build(compose(*QUICK, f"seed={seed}"))
            attempt = jobs.Attempt(jobs.Job((), spec), None)
            endings.append(jobs.ending_of(Finished(attempt, "cpu 0", 1.0, 1), store))
    assert [ending.failed for ending in endings] == [True, True, True]
    assert list(store.records()) == []
    ((message, count),) = sums(ending.message for ending in endings)
    assert count == 3 and message.startswith("ERROR: ") and "disk full" in message


def test_the_command_line_ends_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from peftbench.cli import main as cli

    for error in (NO_SPACE, RUST, DiskFull("a.csv cannot be written: disk full")):
        monkeypatch.setattr(cli, "_dispatch", failing(error))
        with pytest.raises(SystemExit) as ended:
            cli.main([])
        assert ended.value.code == FAILED
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("peftbench: ") and "disk full" in line

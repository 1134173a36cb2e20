"""`logger=csv` and `logger=tensorboard` write what the record holds."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from records import record
from support.tiny_runs import QUICK, compose, tiny_spec

from peftbench.config.build import build
from peftbench.loggers import WARNING, LoggerSettings, make
from peftbench.methods.partial import Partial
from peftbench.results import told
from peftbench.results.record import RunRecord, Status
from peftbench.results.store import ResultsStore
from peftbench.run import experiment
from peftbench.run.bench import Bench
from peftbench.sweep.launchers import pool
from peftbench.sweep.queues.pool import Finished, Pool

pytestmark = pytest.mark.usefixtures("quick")

CPU = experiment.RunOptions(device="cpu")
DIVERGES = {"lr": 1e30, "optimizer": "sgd", "epochs": 4}


def run(store: ResultsStore, logger: str, **changes: object) -> RunRecord:
    guard = make(LoggerSettings(name=logger), store.root)
    spec = tiny_spec(**changes)
    return experiment.run(spec, store, CPU, logger=guard, force=True)


def read(path: Path) -> list[dict[str, float]]:
    with open(path, encoding="utf-8", newline="") as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def test_csv_holds_every_digit_of_every_epoch(store: ResultsStore) -> None:
    record = run(store, "csv")
    assert len(record.history) == 2
    path = store.artefacts(record) / "epochs.csv"
    assert read(path) == [vars(row) for row in record.history]
    assert not (path.parent / "epochs.partial.csv").exists()


def test_csv_of_a_failed_rerun_leaves_the_epochs_of_the_record_that_stays(
    store: ResultsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = run(store, "csv")
    path = store.artefacts(record) / "epochs.csv"
    before = path.read_text()

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(Bench, "predict", fail)
    assert run(store, "csv").status is Status.ERROR
    assert store.get(record.run_id) == record
    assert path.read_text() == before
    assert not (path.parent / "epochs.partial.csv").exists()


def test_csv_of_a_run_that_failed_holds_the_epochs_that_it_had(
    store: ResultsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(Bench, "predict", fail)
    record = run(store, "csv")
    assert record.status is Status.ERROR
    assert len(read(store.artefacts(record) / "epochs.csv")) == 2


def test_csv_of_a_run_without_epochs_is_no_file(store: ResultsStore) -> None:
    record = run(store, "csv", method=Partial(num_blocks=7))
    assert record.status is Status.UNSUPPORTED
    assert not store.artefacts(record).exists()


def test_tensorboard_shows_curves_and_hyper_parameters(store: ResultsStore) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    run(store, "tensorboard")
    record = run(store, "tensorboard")  # a rerun takes the place of the first try
    folder = store.root / "tensorboard" / "linear" / record.run_id
    events = EventAccumulator(str(folder)).Reload()

    def curve(name: str) -> list[tuple[int, float]]:
        return [(event.step, event.value) for event in events.Scalars(name)]

    for name in ("loss", "accuracy", "lr"):
        expected = [(row.epoch, pytest.approx(getattr(row, name))) for row in record.history]
        assert curve(f"train/{name}") == expected
    assert curve("test/top1") == [(2, pytest.approx(record.metrics["test/top1"]))]

    found = {}
    for content in events.PluginTagToContent("hparams").values():
        data = HParamsPluginData.FromString(content)
        found |= {key: value for key, value in data.session_start_info.hparams.items()}
    assert found["method/name"].string_value == "linear"
    assert found["recipe/lr"].number_value == 1e-3
    assert found["seed"].number_value == 0
    assert found["status"].string_value == "OK"


def test_a_logger_that_cannot_write_says_so_once(cli, work: Path) -> None:
    blocked = work / "results" / "runs" / "linear" / tiny_run_id() / "epochs.partial.csv"
    blocked.mkdir(parents=True)
    done = cli("run", *QUICK, "logger=csv")
    assert done.status == 0
    (line,) = [line for line in done.err.splitlines() if line.startswith(WARNING)]
    assert "logger=csv" in line and "epochs.partial.csv" in line


def tiny_run_id() -> str:
    return build(compose(*QUICK)).run_id


AWAY = "logger=wandb: the server is away. The record is complete without it."


def stand_in(monkeypatch: pytest.MonkeyPatch, printed: str, left: list[str]) -> None:
    """For the processes of jobs: leaves a record, what they print and what their logger said."""

    class Done(Pool):
        def run(self) -> Iterator[Finished]:
            for (command,) in self._queue:
                folder = command.output.parent
                folder.mkdir(parents=True)
                command.output.write_text(printed)
                if left:
                    told.leave(folder, left)
                done = dataclasses.replace(record(), run_id=folder.name)
                ResultsStore("results").add(done)
                yield Finished(command.job, "cpu 0", 1.0, 0)

    monkeypatch.setattr(pool, "Pool", Done)


def test_a_sweep_says_a_warning_of_many_jobs_once(
    cli, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, "", [AWAY])
    done = cli("run", "-m", *QUICK, "seed=0,1,2", "logger=csv", "hydra.launcher.jobs=1")
    assert done.status == 0
    assert "3 of 3 jobs ended: 3 OK" in done.out
    assert done.err == f"{WARNING}{AWAY}\n"
    folder = work / "results" / "runs" / "linear"
    assert {path.suffix for path in folder.iterdir()} == {".json"}  # what was told is gone


def test_a_line_that_looks_like_a_warning_is_no_warning(
    cli, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, f"{WARNING}{AWAY}\n", [])
    done = cli("run", "-m", *QUICK, "logger=csv", "hydra.launcher.jobs=1")
    assert (done.status, done.err) == (0, "")


def test_what_a_logger_said_is_taken_once_and_damage_is_nothing(tmp_path: Path) -> None:
    assert told.take(tmp_path) == ()
    told.leave(tmp_path, ["first", "second"])
    assert told.take(tmp_path) == ("first", "second")
    assert told.take(tmp_path) == ()
    for damaged in (b'[1, "a"', b"{}", b"\xff", b"[1, null]"):
        (tmp_path / told.FILE).write_bytes(damaged)
        assert told.take(tmp_path) == ()
    (tmp_path / "file").write_text("")
    told.leave(tmp_path / "file" / "below", ["a"])  # what cannot be written ends nothing

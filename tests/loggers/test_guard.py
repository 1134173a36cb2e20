"""Whatever a logger does, the run and its record stay the same."""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from support.tiny_runs import compose, repeatable, short_timings, tiny_spec

from peftbench.config.build import build, logger_settings
from peftbench.errors import ConfigError, StoreError
from peftbench.loggers import WARNING, Guard, Logger, LoggerSettings, make
from peftbench.results import told
from peftbench.results.record import EpochRow, RunRecord, Status
from peftbench.results.store import ResultsStore
from peftbench.run import experiment

pytestmark = pytest.mark.usefixtures("quick")

CPU = experiment.RunOptions(device="cpu")
SETTINGS = LoggerSettings(name="odd")


class Listener(Logger):
    """Notes what it hears."""

    def __init__(self) -> None:
        super().__init__(SETTINGS, Path("nowhere"))
        self.heard: list[Any] = []
        self.threads: set[str] = set()

    def hear(self, what: Any) -> None:
        self.heard.append(what)
        self.threads.add(threading.current_thread().name)

    def start(self, run_id: str, spec: Mapping[str, Any]) -> None:
        self.hear((run_id, spec))

    def epoch(self, row: EpochRow) -> None:
        self.hear(row)

    def finish(self, record: RunRecord) -> None:
        self.hear(record)

    def close(self) -> None:
        self.heard.append("closed")


class Broken(Listener):
    """Raises in every method from the one of this name on."""

    def __init__(self, first: str, error: BaseException) -> None:
        super().__init__()
        self.first, self.error = first, error

    def start(self, run_id: str, spec: Mapping[str, Any]) -> None:
        super().start(run_id, spec)
        if self.first == "start":
            raise self.error

    def epoch(self, row: EpochRow) -> None:
        super().epoch(row)
        if self.first == "epoch":
            raise self.error

    def finish(self, record: RunRecord) -> None:
        super().finish(record)
        raise self.error

    def close(self) -> None:
        super().close()
        raise self.error


class Stuck(Listener):
    """Never comes back from the first epoch, until it is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = threading.Event()

    def epoch(self, row: EpochRow) -> None:
        self.closed.wait(600)

    def close(self) -> None:
        self.closed.set()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The record of a run that nothing logs."""
    with short_timings():
        store = ResultsStore(tmp_path_factory.mktemp("plain"))
        return repeatable(experiment.run(tiny_spec(), store, CPU))


def test_a_logger_hears_of_the_run_in_order_and_not_in_its_thread(store: ResultsStore) -> None:
    spec, listener = tiny_spec(), Listener()
    record = experiment.run(spec, store, CPU, logger=Guard(listener))
    assert record.status is Status.OK
    assert listener.heard == [(spec.run_id, record.spec), *record.history, record]
    assert listener.threads == {"logger"}


@pytest.mark.parametrize(
    ("first", "error"),
    [
        ("start", RuntimeError("no\nluck")),
        ("epoch", SystemExit(3)),
        ("finish", OSError(28, "full")),
    ],
)
def test_a_logger_that_raises_changes_nothing_but_one_line(
    store: ResultsStore,
    plain: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    first: str,
    error: BaseException,
) -> None:
    spec, broken = tiny_spec(), Broken(first, error)
    logged = experiment.run(spec, store, CPU, logger=Guard(broken))
    assert repeatable(logged) == plain
    assert store.get(spec.run_id) == logged
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    reason = " ".join(str(error).split())
    words = f"logger=odd: {reason} The record is complete without it."
    assert line == f"{WARNING}{words}"
    assert told.take(store.artefacts(logged)) == (words,)
    calls = {"start": 1, "epoch": 2, "finish": 4}[first]
    assert len(broken.heard) == calls + 1
    assert broken.heard[-1] == "closed"


def test_a_logger_that_hangs_is_left_behind(
    store: ResultsStore, capsys: pytest.CaptureFixture[str]
) -> None:
    stuck = Stuck()
    record = experiment.run(tiny_spec(), store, CPU, logger=Guard(stuck, timeout=0.2))
    assert record.status is Status.OK
    (line,) = capsys.readouterr().err.splitlines()
    assert "no answer within 0.2 s of the end of the run" in line
    assert stuck.closed.is_set()


def test_epochs_do_not_wait_for_a_slow_logger() -> None:
    guard = Guard(Stuck(), timeout=5)
    began = time.perf_counter()
    guard.start("0" * 16, {})
    for number in range(1000):
        guard.epoch(EpochRow(number, 1.0, 0.5, 1e-3, 1.0))
    assert time.perf_counter() - began < 60  # the logger is busy for ten minutes
    guard.close()


def test_a_failed_run_is_told_as_such(store: ResultsStore) -> None:
    listener = Listener()
    spec = tiny_spec("full", recipe={"lr": 1e30, "optimizer": "sgd", "epochs": 4})
    record = experiment.run(spec, store, CPU, logger=Guard(listener))
    assert record.status is Status.DIVERGED
    assert listener.heard[-1] == record


def test_a_run_forgets_what_the_logger_of_an_earlier_try_said(store: ResultsStore) -> None:
    spec = tiny_spec()
    experiment.run(spec, store, CPU, logger=Guard(Broken("epoch", OSError("away"))))
    record = experiment.run(spec, store, CPU, force=True, logger=Guard(Listener()))
    assert told.take(store.artefacts(record)) == ()


def test_a_run_without_a_record_lets_go_of_its_logger(
    store: ResultsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(record: RunRecord) -> Path:
        raise StoreError("the disk is full")

    listener = Listener()
    monkeypatch.setattr(store, "add", full)
    with pytest.raises(StoreError, match="the disk is full"):
        experiment.run(tiny_spec(), store, CPU, logger=Guard(listener))
    assert listener.heard[-1] == "closed"


def test_a_run_that_is_done_is_not_logged_again(store: ResultsStore) -> None:
    experiment.run(tiny_spec(), store, CPU)
    listener = Listener()
    experiment.run(tiny_spec(), store, CPU, logger=Guard(listener))
    assert listener.heard in ([], ["closed"])


def test_no_logger_is_no_thread() -> None:
    guard = make(LoggerSettings(), "nowhere")
    before = threading.active_count()
    guard.start("0" * 16, {})
    assert threading.active_count() == before
    guard.close()


@pytest.mark.parametrize(("package", "words"), [("wandb", ["run"]), ("tensorboard", ["run", "-m"])])
def test_a_missing_package_is_said_before_the_run(
    cli, monkeypatch: pytest.MonkeyPatch, work: Path, package: str, words: list[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == package else find(n, *a)
    )
    done = cli(*words, f"logger={package}", "dataset.limit=4")
    assert (done.status, done.err) == (
        2,
        f"peftbench: logger={package} needs {package}, which is not installed. "
        f"Run: pip install {package}\n",
    )
    assert list(work.iterdir()) == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("logger=wandbb", "Unknown logger 'wandbb'. Did you mean: wandb"),
        ("logger.name=wandbb", "Unknown logger 'wandbb'. Did you mean: wandb"),
        ("logger.mode=onlin", "Unknown logger.mode 'onlin'. Did you mean: online"),
        ("logger.timeout=0", "logger.timeout=0.0 is no time to wait"),
        ("+logger.api_key=1", "Unknown key in logger: 'api_key'"),
    ],
)
def test_a_wrong_setting_is_refused(cli, override: str, message: str) -> None:
    done = cli("run", "dataset.limit=4", override)
    assert done.status == 2
    assert message in done.err
    assert len(done.err.splitlines()) == 1


def test_the_logger_is_no_part_of_the_identity() -> None:
    plain, logged = compose(), compose("logger=csv", "logger.group=a", "logger.tags=[x,y]")
    assert build(plain).run_id == build(logged).run_id
    settings = logger_settings(logged)
    assert (settings.name, settings.group, settings.tags) == ("csv", "a", ("x", "y"))
    assert logger_settings(plain) == LoggerSettings()


def test_a_tag_list_is_a_tuple_and_a_bad_mode_is_refused() -> None:
    assert LoggerSettings(tags=["a"]).tags == ("a",)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="Known: auto, offline, online"):
        LoggerSettings(mode="x")

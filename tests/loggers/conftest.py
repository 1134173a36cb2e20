"""No account, no network: loggers see an empty home folder and nothing of this machine's W&B."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tiny_runs import short_timings

from peftbench.cli import main
from peftbench.results.store import ResultsStore


@pytest.fixture(autouse=True)
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder of a user who never logged in."""
    home = tmp_path / "home"
    home.mkdir()
    for name in list(os.environ):
        if name.startswith("WANDB_") or name.lower().endswith("_proxy") or name == "NETRC":
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(home / name))
    return home


@pytest.fixture
def store(tmp_path: Path) -> ResultsStore:
    return ResultsStore(tmp_path / "results")


@pytest.fixture
def quick() -> Iterator[None]:
    """Runs measure no latency worth the name."""
    with short_timings():
        yield


@dataclass(frozen=True)
class Done:
    """How a command ended and what it said."""

    status: int
    out: str
    err: str


Cli = Callable[..., Done]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # for the processes of sweeps
    return folder


@pytest.fixture
def cli(work: Path, quick: None, capfd: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    """Calls `main` in the test's process."""

    def call(*arguments: str) -> Done:
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit:
            main(arguments)
        said = capfd.readouterr()
        assert isinstance(exit.value.code, int)
        return Done(exit.value.code, said.out, said.err)

    before = signal.getsignal(signal.SIGTERM)
    yield call
    signal.signal(signal.SIGTERM, before)

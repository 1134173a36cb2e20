"""`peftbench` called inside the test's process, in an empty working directory."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hydra._internal.hydra import Hydra
from hydra.types import RunMode

from peftbench.cli.main import main
from peftbench.waiting import SPINS
from support.tiny_runs import short_timings


@dataclass(frozen=True)
class Done:
    """How a command ended and what it said."""

    status: int
    out: str
    err: str


Cli = Callable[..., Done]
_mode_of_hydra = Hydra.get_mode

# `short_timings` for the processes of sweeps: imported there as installed packages of methods are
SHORT = """
from peftbench.run import cost, timing

cost.BUDGET_SECONDS, cost.WARMUP_RUNS, cost.LATENCY_BATCH = 0.0, 0, 2
timing.LEAST_SECONDS = timing.LEAST_TIMINGS = float("inf")
"""


def shorten_timings_of_processes(site: Path, patch: pytest.MonkeyPatch) -> None:
    """Puts `SHORT` on the path of processes that are started from here, as a package in `site`."""
    (site / "short-1.0.dist-info").mkdir(parents=True)
    (site / "short.py").write_text(SHORT)
    (site / "short-1.0.dist-info" / "METADATA").write_text("Name: short\nVersion: 1.0\n")
    (site / "short-1.0.dist-info" / "entry_points.txt").write_text(
        "[peftbench.methods]\nshort = short\n"
    )
    paths = (str(site), os.environ.get("PYTHONPATH"))
    patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PEFTBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # for the processes of sweeps
    monkeypatch.setenv("GOMP_SPINCOUNT", SPINS)  # as the command does, but for one test
    shorten_timings_of_processes(tmp_path / "site", monkeypatch)
    return folder


@pytest.fixture
def cli(work: Path, capfd: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    """Calls `main`; file descriptors are captured, so libraries that write there are seen too."""

    def call(*arguments: str) -> Done:
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit:
            main(arguments)
        said = capfd.readouterr()
        assert isinstance(exit.value.code, int)
        return Done(exit.value.code, said.out, said.err)

    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    with short_timings() as patch:
        patch.setattr(Hydra, "get_mode", mode_of)
        yield call
    for signum, handler in before.items():
        signal.signal(signum, handler)


def mode_of(hydra: Hydra, config_name: str | None, overrides: list[str]) -> RunMode | None:
    """What `Hydra.get_mode` says, at once.

    It composes the whole configuration for the value of `hydra.mode`, which is none unless it is
    given, and none too if composing fails; then Hydra composes again for the run. That is a third
    of the time of these tests. Commands in processes of their own have Hydra's own.
    """
    given = any(text.lstrip("+").startswith("hydra.mode=") for text in overrides)
    return _mode_of_hydra(hydra, config_name, overrides) if given else None

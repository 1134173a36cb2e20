"""Multiruns in real processes: what runs, what is skipped, what a crash or Ctrl-C costs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from tiny_runs import QUICK, compose

from peftbench import launcher
from peftbench.config import build
from peftbench.launcher import Ending, Job, ProcessLauncher
from peftbench.results.record import RunRecord, Status
from peftbench.results.store import ResultsStore

PATIENCE = 60.0  # seconds; processes start slowly on a busy machine


def wait_for(condition: Callable[[], object], given_up: Callable[[], object]) -> object:
    """What `condition` gives once it gives something; None when there is no more hope of it."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and not given_up():
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    return None


def locks(root: Path) -> list[Path]:
    return [path for path in root.rglob("*.lock") if path.name != ".store.lock"]


def statuses(root: Path) -> Counter[str]:
    return Counter(str(record.status) for record in ResultsStore(root).records())


@pytest.fixture
def ragged(work: Path) -> None:
    """Choices of `method` that make no sense, or diverge."""
    folder = work / "conf" / "method"
    folder.mkdir(parents=True)
    (folder / "partial_99.yaml").write_text(
        "defaults: [/schema/method/partial@_here_]\nnum_blocks: 99\n"
    )
    (folder / "bias_hot.yaml").write_text(
        "# @package _global_\ndefaults: [/schema/method/bias@method]\nrecipe: {lr: 1e30}\n"
    )


def test_a_sweep_runs_every_job_in_a_process_and_a_rerun_what_is_left(
    cli, work: Path, ragged: None
) -> None:
    sweep = ("run", "-m", *QUICK, "recipe.epochs=2", "hydra.launcher.jobs=2")
    sweep += ("method=linear,lora,partial_99,bias_hot", "seed=0,1")
    done = cli(*sweep)
    assert done.status == 1  # something failed
    first, *endings, summary = done.out.splitlines()
    assert first == "8 jobs: 0 already done, 8 to run, 2 at a time"
    # jobs end in any order, but each in a line of its own with its number
    assert [line.split("]")[0] for line in endings] == [f"[{i}/8" for i in range(1, 9)]
    ends = sorted(line.split("] ")[1] for line in endings)
    title = "x vit_mini x mini/digits, seed"
    assert ends[0].startswith(f"bias {title} 0: DIVERGED: the loss of epoch 1 of 2 is nan.")
    assert ends[1].startswith(f"bias {title} 1: DIVERGED: ")
    for line, name in zip(ends[2:6], ("linear", "linear", "lora", "lora"), strict=True):
        assert re.fullmatch(rf"{name} {title} [01]: \d+\.\d % of 4 test images, \d+ s", line)
    assert ends[6].startswith(f"partial {title} 0: UNSUPPORTED: partial asks for the last 99 ")
    assert summary == "8 of 8 jobs ended: 2 DIVERGED, 4 OK, 2 UNSUPPORTED"
    assert done.err.splitlines() == [
        "  failed 2 x: DIVERGED: the loss of epoch 1 of 2 is nan. Lower recipe.lr (now 1e+30) or "
        "set recipe.clip_grad."
    ]

    store = ResultsStore(work / "results")
    assert statuses(store.root) == {"OK": 4, "UNSUPPORTED": 2, "DIVERGED": 2}
    assert locks(store.root) == []
    assert not list(store.root.rglob("output.txt"))
    assert not (store.root / ".scratch").exists()
    before = {record.run_id: record for record in store.records()}
    # the processes compute the same identity as the one that composed the sweep
    assert build(compose("method=lora", "seed=1", *QUICK, "recipe.epochs=2")).run_id in before

    again = cli(*sweep)
    assert again.status == 1
    assert again.out.splitlines()[0] == "8 jobs: 6 already done, 2 to run, 2 at a time"
    assert again.out.splitlines()[-1] == "2 of 2 jobs ended: 2 DIVERGED"
    after = {record.run_id: record for record in store.records()}
    assert {i for i in after if after[i] == before[i]} >= store.done()


def test_plan_takes_the_overrides_of_the_sweep_that_it_is_about(cli) -> None:
    done = cli("plan", *QUICK, "seed=0", "hydra.launcher.jobs=2", "hydra.launcher.on_failure=stop")
    assert (done.status, done.err) == (0, "")
    assert "1 jobs: 0 done, 0 unsupported, 1 to run" in done.out


def test_a_killed_job_is_a_failure_and_the_others_finish(cli, work: Path) -> None:
    endless = build(compose(*QUICK, "recipe.epochs=100000")).run_id
    lock = ResultsStore(work / "results").path("linear", endless).with_suffix(".lock")

    def holder() -> int | None:
        try:
            return int(json.loads(lock.read_text())["pid"])
        except (OSError, ValueError, KeyError):  # not there, or being written
            return None

    over = threading.Event()

    def kill() -> None:
        pid = wait_for(holder, over.is_set)
        if isinstance(pid, int):
            os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    sweep = [a for a in QUICK if not a.startswith("recipe.epochs")]
    try:
        done = cli("run", "-m", *sweep, "recipe.epochs=100000,1,2", "hydra.launcher.jobs=2")
    finally:
        over.set()
        killer.join()
    assert done.status == 1
    log = lock.with_suffix("") / "output.txt"
    assert (
        "linear x vit_mini x mini/digits, seed 0: ended with status -9: no output "
        f"(see {log.relative_to(work)})"
    ) in done.out
    assert done.out.splitlines()[-1] == "3 of 3 jobs ended: 1 ERROR, 2 OK"
    assert statuses(work / "results") == {"OK": 2}
    # the lock of a dead process holds nobody up
    with ResultsStore(work / "results").claim(endless, "linear"):
        pass
    assert locks(work / "results") == []


def test_ctrl_c_is_recorded_leaves_nothing_running_and_a_rerun_finishes(cli, work: Path) -> None:
    sweep = (*QUICK, "recipe.epochs=150", "seed=0,1", "hydra.launcher.jobs=1")
    with subprocess.Popen(
        [sys.executable, "-m", "peftbench", "run", "-m", *sweep],
        cwd=work,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a group of its own, as a terminal gives to a command
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        try:
            assert wait_for(lambda: locks(work), lambda: process.poll() is not None)
            family = psutil.Process(process.pid).children(recursive=True)
            assert family
            os.killpg(process.pid, signal.SIGINT)
            out, err = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert process.returncode == 130
    assert out.splitlines()[0] == "2 jobs: 0 already done, 2 to run, 1 at a time"
    assert err.splitlines() == [
        "stopping the running jobs; a rerun continues",
        "peftbench: interrupted; the same command continues",
    ]
    assert statuses(work / "results") == {"INTERRUPTED": 1}
    assert locks(work) == []
    assert psutil.wait_procs(family, timeout=PATIENCE)[1] == []

    done = cli("run", "-m", *sweep)
    assert done.status == 0
    assert done.out.splitlines()[0] == "2 jobs: 0 already done, 2 to run, 1 at a time"
    assert statuses(work / "results") == {"OK": 2}


class Started:
    """A bare process with the face that `launcher._stop` knows."""

    def __init__(self, code: str) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-ISc", code], stdout=subprocess.PIPE, start_new_session=True
        )
        self.pid = self.popen.pid
        assert self.popen.stdout is not None and self.popen.stdout.readline() == b"ready\n"

    def is_alive(self) -> bool:
        return self.popen.poll() is None

    def join(self, timeout: float) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(timeout)


@pytest.mark.parametrize("inherited", ["SIG_DFL", "SIG_IGN"])
def test_a_job_is_stopped_gently_even_where_ctrl_c_is_ignored(
    monkeypatch: pytest.MonkeyPatch, inherited: str
) -> None:
    """`nohup peftbench ... &` and schedulers start processes that ignore SIGINT."""
    monkeypatch.setattr(launcher, "STOP_SECONDS", 5.0)
    job = Started(
        # what `main` does to SIGTERM, in a process that inherited its SIGINT
        "import signal, sys, time\n"
        f"signal.signal(signal.SIGINT, signal.{inherited})\n"
        "signal.signal(signal.SIGTERM, lambda *a: sys.exit(130))\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    try:
        launcher._stop(job)
        assert job.popen.returncode in (130, -signal.SIGINT)
    finally:
        job.popen.kill()
        job.popen.communicate()


def test_a_job_that_does_not_listen_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "STOP_SECONDS", 0.1)
    job = Started(
        "import signal, time\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    launcher._stop(job)
    assert job.popen.returncode == -signal.SIGKILL
    job.popen.communicate()


class FakeTask:
    """What a launcher reads and fills."""

    def __init__(self) -> None:
        self.failures: list[Ending] = []
        self.flags: list[str] = []


def endings_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, on_failure: str) -> list[str]:
    """Overrides of the jobs that a launcher with one slot would start; the second one fails."""
    started = []

    def run(job: Job, store: ResultsStore, *rest: object) -> Ending:
        started.append(job.overrides[0])
        status = Status.ERROR if job.overrides[0] == "b" else Status.OK
        return Ending(job, RunRecord(job.overrides[0], {}, status), "")

    monkeypatch.setattr(launcher, "_run", run)
    process = ProcessLauncher(jobs=1, on_failure=on_failure)
    process.task = FakeTask()  # type: ignore[assignment]
    jobs = [Job((name,), None) for name in "abc"]  # type: ignore[arg-type]
    endings = list(process._endings(jobs, ResultsStore(tmp_path), slots=1))
    assert [ending.failed for ending in endings] == [name == "b" for name in started]
    return started


@pytest.mark.parametrize(
    ("on_failure", "expected"), [("continue", ["a", "b", "c"]), ("stop", ["a", "b"])]
)
def test_a_failure_stops_a_sweep_only_when_asked_to(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, on_failure: str, expected: list[str]
) -> None:
    assert endings_of(monkeypatch, tmp_path, on_failure) == expected


def test_cores_are_shared_among_jobs_unless_the_user_said_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "5")
    with launcher._shared_cores(3):
        assert os.environ["OMP_NUM_THREADS"] == "2"
        assert os.environ["MKL_NUM_THREADS"] == "5"
    assert "OMP_NUM_THREADS" not in os.environ
    assert os.environ["MKL_NUM_THREADS"] == "5"

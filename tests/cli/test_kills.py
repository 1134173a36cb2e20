"""A sweep that is killed at random moments and started again, against one that was left alone."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.tiny_runs import QUICK, repeatable

from peftbench.results.record import RunRecord, Status
from peftbench.results.store import ResultsStore

PATIENCE = 300.0
KILLS = 20
SEEDS = 10  # times four methods: about a minute, so that much is left at the last kill
SWEEP = ("run", "-m", *QUICK, "recipe.epochs=40", "method=linear,bias,lora,partial")
SWEEP += ("hydra.launcher.jobs=2",)
# cells of 8 trials, of which those of heads train in one pass, on activations that are kept
SEARCH = ("run", "-m", *QUICK, "recipe.epochs=200", "method=linear,mlp,partial", "tuner=grid")
SEARCH += ("dataset=mini/digits", "dataset.limit=40", "hydra.launcher.jobs=2", "precision=float32")


def start(work: Path, sweep: tuple[str, ...]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "peftbench", *sweep],
        cwd=work,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [
        p for p in processes if p.is_running() and p.status() not in (psutil.STATUS_ZOMBIE, "dead")
    ]


def jobs_of(launcher: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """What the servers of a launcher have forked."""
    servers = psutil.Process(launcher.pid).children()
    return [p for server in servers for p in server.children()]


def wait_for_work(launcher: subprocess.Popen[bytes]) -> None:
    """Until a job runs, or the launcher has none left."""
    deadline = time.monotonic() + PATIENCE
    while launcher.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(psutil.NoSuchProcess):
            if jobs_of(launcher):
                return
        time.sleep(0.05)


def kill(launcher: subprocess.Popen[bytes], victim: str, rng: random.Random) -> bool:
    """Whether there was anything to kill; nothing is left of a sweep whose launcher is dead."""
    try:
        below = psutil.Process(launcher.pid).children(recursive=True)
        jobs = jobs_of(launcher)
    except psutil.NoSuchProcess:
        return False
    if victim == "job" and jobs:
        os.kill(rng.choice(jobs).pid, signal.SIGKILL)
        return True
    if launcher.poll() is not None:
        return False
    for process in [psutil.Process(launcher.pid), *(below if victim == "all" else [])]:
        process.kill()
    launcher.wait(PATIENCE)
    assert psutil.wait_procs(below, timeout=PATIENCE)[1] == []  # no orphan
    return True


def finished(root: Path) -> dict[str, bytes]:
    """Every record that needs no rerun, as it lies on disk; all of them can be read."""
    store = ResultsStore(root)
    whole: dict[str, RunRecord] = {record.run_id: record for record in store.records()}
    for path in store.runs.rglob("*.json"):
        json.loads(path.read_text())
    return {
        run_id: store.path(str(record.spec["method"]["name"]), run_id).read_bytes()
        for run_id, record in whole.items()
        if record.status is Status.OK
    }


def table(root: Path) -> dict[str, dict[str, Any]]:
    """Records without what time decides."""
    return {
        record.run_id: {k: v for k, v in repeatable(record).items() if k != "provenance"}
        for record in ResultsStore(root).records()
    }


def struck_down(work: Path, sweep: tuple[str, ...], rng: random.Random) -> dict[str, bytes]:
    """Finished records after `KILLS` kills of launches of a sweep; what was done stays as it is."""
    root, settled = work / "results", dict[str, bytes]()
    launcher, struck = start(work, sweep), 0
    try:
        while struck < KILLS:
            kind = ("launcher", "job", "all")[struck % 3]
            if kind == "launcher":
                time.sleep(rng.uniform(0.0, 20.0))  # a launch is at work after about 14 s
            else:
                wait_for_work(launcher)
                time.sleep(rng.uniform(0.0, 5.0))
            struck += kill(launcher, kind, rng)
            if launcher.poll() is not None:
                after = finished(root)
                # what was done was not done again
                assert {i: after[i] for i in settled} == settled
                settled = after
                launcher = start(work, sweep)
        print(f"{len(finished(root))} were done after the last kill")
    finally:
        below = psutil.Process(launcher.pid).children(recursive=True)
        launcher.kill()
        launcher.wait()
        psutil.wait_procs(below, timeout=PATIENCE)
    with start(work, sweep) as process:
        assert process.wait(PATIENCE * 4) == 0
    after = finished(root)
    assert {i: after[i] for i in settled} == settled
    strangers = [p for p in root.rglob("*") if p.suffix in (".tmp", ".lock") or "scratch" in p.name]
    assert [p for p in strangers if p.name != ".store.lock"] == []
    return after


@pytest.mark.slow  # 8 minutes; single kills are tested beside the sweeps
def test_a_sweep_that_is_killed_at_random_ends_with_the_table_of_one_that_is_not(
    work: Path,
) -> None:
    sweep = (*SWEEP, f"seed={','.join(map(str, range(SEEDS)))}")
    with start(work, (*sweep, "results_dir=whole", "cache=off")) as process:
        assert process.wait(PATIENCE * 4) == 0
    expected = table(work / "whole")
    assert len(expected) == 4 * SEEDS
    struck_down(work, sweep, random.Random(20))
    assert table(work / "results") == expected


@pytest.mark.slow  # 5 minutes
def test_a_search_on_kept_activations_that_is_killed_at_random_loses_nothing(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEFTBENCH_CACHE", str(work / "cache"))
    with start(work, (*SEARCH, "results_dir=whole", "cache=off")) as process:
        assert process.wait(PATIENCE * 4) == 0
    whole = {record.run_id: record for record in ResultsStore(work / "whole").records()}
    assert len(whole) == 3 * (8 + 1)
    after = struck_down(work, SEARCH, random.Random(21))
    assert after.keys() == whole.keys()
    for record in ResultsStore(work / "results").records():
        plain = whole[record.run_id]
        # which trials share a pass depends on the kills; what they reach does not
        assert record.score == plain.score
        assert [row.lr for row in record.history] == [row.lr for row in plain.history]
        for one, other in zip(record.history, plain.history, strict=True):
            assert one.loss == pytest.approx(other.loss, rel=1e-3, abs=1e-4)
    kept = list((work / "cache" / "activations").iterdir())
    assert not [path for path in kept if path.suffix == ".part"]
    assert len([path for path in kept if path.suffix == ".npy"]) > 0

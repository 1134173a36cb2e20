"""Sweeps with a tuner: trials judged on val with one budget, winners trained and tested once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from support.forked_servers import forked_servers
from support.tiny_runs import QUICK

from peftbench.results.record import RunRecord, Status
from peftbench.results.store import ResultsStore

PATIENCE = 120.0
GRID = ("tuner=grid", "tuner.space.recipe.lr=[0.03,0.01,0.003]", "~tuner.space.recipe.weight_decay")
OPTUNA = ("tuner=optuna", "tuner.trials=3")
# one process for all jobs of a slot; that they record the same is tested with plain sweeps
SHARED = "hydra.launcher.jobs_per_process=8"
SMALL = [a for a in QUICK if not a.startswith("dataset.limit")] + ["dataset.limit=40"]


def records(root: Path) -> dict[str, RunRecord]:
    return {r.run_id: r for r in ResultsStore(root).records()}


def finals(root: Path) -> list[tuple[str, int, float, dict | None]]:
    """Method, seed, chosen rate and note of each final run."""
    return sorted(
        (r.spec["method"]["name"], r.spec["seed"], r.spec["recipe"]["lr"], r.tuning)
        for r in records(root).values()
        if r.spec["phase"] == "final" and r.status is Status.OK
    )


@pytest.mark.parametrize(
    "tuner", [GRID, pytest.param(OPTUNA, marks=pytest.mark.slow)], ids=["grid", "optuna"]
)
def test_every_method_gets_the_same_budget_and_the_winner_is_tested_once_a_seed(
    cli, work: Path, tuner: tuple[str, ...]
) -> None:
    sweep = ("run", "-m", *SMALL, *tuner, "method=linear,bias,vpt_pad", "seed=3,4", SHARED)
    with forked_servers():
        done = cli(*sweep, "hydra.launcher.jobs=2")
    assert (done.status, done.err) == (0, "")
    first = "2 cells of 3 trials x 1 epochs, 4 final runs: 0 already done, 12 to run, 2 at a time"
    assert done.out.splitlines()[0] == first
    assert done.out.splitlines()[-1] == "12 of 12 jobs ended: 10 OK, 2 UNSUPPORTED"
    found = records(work / "results")
    trials = [r for r in found.values() if r.spec["phase"] == "tune"]
    for method in ("linear", "bias"):
        own = [r for r in trials if r.spec["method"]["name"] == method]
        assert len(own) == 3
        assert {r.spec["seed"] for r in own} == {0}
        assert all("test/top1" not in r.metrics for r in own)  # the test split was not opened
        best = max(r.metrics["val/top1"] or 0.0 for r in own)
        winners = [r.spec["recipe"]["lr"] for r in own if r.metrics["val/top1"] == best]
        chosen = [f for f in finals(work / "results") if f[0] == method]
        assert [(seed, lr) for _, seed, lr, _ in chosen] == [(3, min(winners)), (4, min(winners))]
        assert {f["trials"] for *_, f in chosen if f} == {3}
        assert all("recipe.lr" in f["searched"] for *_, f in chosen if f)
        assert {f["val_top1"] for *_, f in chosen if f} == {best}
    assert all("val/top1" not in r.metrics for r in found.values() if r.spec["phase"] == "final")

    again = cli(*sweep, "hydra.launcher.jobs=2")
    assert again.status == 0
    assert "10 already done, 0 to run" in again.out
    assert records(work / "results") == found


@pytest.mark.slow  # a minute of two cores each
@pytest.mark.parametrize("tuner", [GRID, OPTUNA], ids=["grid", "optuna"])
def test_a_killed_search_goes_on_and_finds_the_same_winner(
    cli, work: Path, tuner: tuple[str, ...]
) -> None:
    sweep = ["run", "-m", *SMALL, *tuner, "method=bias", "seed=0", "hydra.launcher.jobs=1", SHARED]
    assert cli(*sweep, "results_dir=whole").status == 0
    with subprocess.Popen(
        [sys.executable, "-m", "peftbench", *sweep],
        cwd=work,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        deadline = time.monotonic() + PATIENCE
        while not records(work / "results") and time.monotonic() < deadline:
            time.sleep(0.02)
        below = psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, signal.SIGKILL)
    assert psutil.wait_procs(below, timeout=PATIENCE)[1] == []
    assert 0 < len(records(work / "results")) < 4
    assert cli(*sweep).status == 0
    assert finals(work / "results") == finals(work / "whole")
    assert records(work / "results").keys() == records(work / "whole").keys()


def test_a_tuner_is_refused_for_a_single_run(cli, work: Path) -> None:
    done = cli("run", *QUICK, "tuner=grid")
    assert done.status == 2
    assert done.err.startswith("peftbench: tuner=grid is for sweeps, which train many times.")
    assert records(work / "results") == {}


def test_budgets_that_differ_are_refused(cli, work: Path) -> None:
    done = cli("run", "-m", *QUICK, "tuner=optuna", "tuner.trials=0")
    assert done.status == 2
    assert done.err == "peftbench: tuner=optuna needs a budget: tuner.trials=N, at least 1.\n"

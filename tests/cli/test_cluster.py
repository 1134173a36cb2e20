"""Multiruns through submitit and Ray: what is recorded, what a rerun starts, what is refused."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from support.tiny_runs import BIAS_HOT, QUICK, statuses

from peftbench.errors import ConfigError
from peftbench.results.store import ResultsStore
from peftbench.sweep.launchers.base import QueueLauncher
from peftbench.sweep.launchers.cluster import RayLauncher, SlurmLauncher


@pytest.fixture
def hot(work: Path) -> None:
    """A choice of `method` that diverges."""
    folder = work / "conf" / "method"
    folder.mkdir(parents=True)
    (folder / "bias_hot.yaml").write_text(BIAS_HOT)


@pytest.mark.slow  # a minute of two cores; tests/sweep/test_slurm.py tries the same with stand-ins
def test_submitit_runs_a_sweep_on_this_machine_and_a_rerun_what_failed(
    cli, work: Path, hot: None
) -> None:
    sweep = ("run", "-m", *QUICK, "recipe.epochs=2", "method=linear,bias_hot")
    sweep += ("hydra/launcher=slurm", "hydra.launcher.executor=local", "hydra.launcher.jobs=1")
    done = cli(*sweep, "hydra.launcher.jobs_per_process=2")
    assert done.status == 1
    first, *endings, summary = done.out.splitlines()
    place = "on this machine through submitit's local executor"
    assert first == f"2 jobs: 0 already done, 2 to run, {place}"
    assert [line.split(" ")[1] for line in endings] == ["linear", "bias"]
    assert summary == "2 of 2 jobs ended: 1 DIVERGED, 1 OK"
    assert done.err.splitlines() == [
        "  failed 1 x: DIVERGED: the loss of epoch 1 of 2 is nan. Lower recipe.lr (now 1e+30) or "
        "set recipe.clip_grad."
    ]
    assert statuses(work / "results") == {"OK": 1, "DIVERGED": 1}
    before = {r.run_id: r for r in ResultsStore(work / "results").records()}

    again = cli(*sweep)
    assert again.status == 1
    assert again.out.splitlines()[0] == f"2 jobs: 1 already done, 1 to run, {place}"
    assert again.out.splitlines()[-1] == "1 of 1 jobs ended: 1 DIVERGED"
    after = {r.run_id: r for r in ResultsStore(work / "results").records()}
    assert {str(r.status) for i, r in after.items() if r == before[i]} == {"OK"}
    assert sorted(path.name for path in (work / "results").iterdir()) == ["latencies", "runs"]


@pytest.mark.slow
def test_ray_runs_a_sweep_on_gpus_that_it_is_told_of(
    cli, work: Path, hot: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(work.parent))  # where Ray leaves a token
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    sweep = ("run", "-m", *QUICK, "recipe.epochs=2", "method=linear,bias_hot")
    sweep += ("hydra/launcher=ray", "hydra.launcher.gpus=1", "hydra.launcher.gpus_per_job=0.5")
    done = cli(*sweep)
    assert done.status == 1
    assert done.out.splitlines()[-1] == "2 of 2 jobs ended: 1 DIVERGED, 1 OK"
    assert statuses(work / "results") == {"OK": 1, "DIVERGED": 1}
    again = cli(*sweep, "method=linear")
    assert (again.status, again.out) == (0, "1 jobs: 1 already done, 0 to run, on Ray\n")


@pytest.mark.parametrize(
    ("launcher", "options", "message"),
    [
        (SlurmLauncher, {"executor": "kubernetes"}, "Unknown hydra.launcher.executor 'kubernetes'"),
        (SlurmLauncher, {"executor": "slurm"}, "executor=slurm finds no srun here."),
        (SlurmLauncher, {"executor": "local", "detach": True}, "detach=true leaves jobs to Slurm"),
        (SlurmLauncher, {"time": 0}, "hydra.launcher.time=0; use 1 or more."),
        (
            SlurmLauncher,
            {"executor": "local", "time": 60, "timeout": 3000.0, "jobs_per_process": 2},
            "hydra.launcher.time=60 minutes are too few for jobs_per_process=2 with timeout=3000 "
            "seconds each. Use time=110.",
        ),
        (RayLauncher, {"gpus": 2, "address": "head:6379"}, "hydra.launcher.gpus=2 is for a Ray of"),
        (RayLauncher, {"jobs": 0}, "hydra.launcher.jobs=0; use 1 or more."),
    ],
)
def test_options_that_make_no_sense_are_refused_before_anything_starts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    launcher: type[QueueLauncher],
    options: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))  # a machine may well have Slurm
    with pytest.raises(ConfigError) as refused:
        launcher(**options).place(ResultsStore(tmp_path / "results"))
    assert message in str(refused.value)
    assert not (tmp_path / "results").exists()


def test_a_launcher_without_its_package_says_how_to_get_it(
    cli, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "submitit" else find(name)
    )
    done = cli("run", "-m", *QUICK, "hydra/launcher=slurm")
    assert (done.status, done.err) == (
        2,
        "peftbench: hydra/launcher=slurm needs submitit, which is not installed. "
        "Run: pip install 'peftbench[slurm]'\n",
    )
    assert not (work / "results").exists()


def test_plan_takes_the_overrides_of_a_sweep_for_a_cluster(cli) -> None:
    sweep = (*QUICK, "seed=0,1", "hydra/launcher=slurm", "hydra.launcher.partition=gpu")
    done = cli("plan", *sweep, "device=cuda")  # which the machine of the job has
    assert (done.status, done.err) == (0, "")
    assert "2 jobs: 0 done, 0 unsupported, 2 to run" in done.out
    ray = ("hydra/launcher=ray", "hydra.launcher.address=head:1", "hydra.launcher.gpus_per_job=0.5")
    done = cli("plan", *QUICK, "seed=0,1,2", *ray, "hydra.launcher.jobs=2")
    assert (done.status, done.err) == (0, "")
    assert "3 jobs: 0 done, 0 unsupported, 3 to run" in done.out


@pytest.mark.parametrize("command", [("plan",), ("run", "-m")], ids=" ".join)
@pytest.mark.parametrize(
    ("words", "key"),
    [
        (("hydra.launcher.partition=gpu",), "partition"),
        (("hydra/launcher=slurm", "hydra.launcher.gpus=2"), "gpus"),
        (("hydra/launcher=ray", "hydra.launcher.detach=true"), "detach"),
    ],
)
def test_a_key_of_another_launcher_is_refused(
    cli, work: Path, command: tuple[str, ...], words: tuple[str, ...], key: str
) -> None:
    done = cli(*command, *QUICK, "seed=0,1", *words)
    assert done.status == 2
    assert done.err.startswith(f"peftbench: Unknown key in hydra.launcher: '{key}'.")
    assert len(done.err.splitlines()) == 1
    assert not (work / "results").exists()


def test_a_launcher_that_cannot_plan_is_refused_and_trains_nothing(cli, work: Path) -> None:
    done = cli("plan", *QUICK, "seed=0,1", "hydra/launcher=basic")
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("peftbench: hydra/launcher is none that can tell what it would do.")
    assert not (work / "results").exists()

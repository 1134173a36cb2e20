"""A job that a real Slurm requeues goes on where it was; skipped where there is none."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from peftbench.results.record import Status
from peftbench.results.store import ResultsStore

PATIENCE = 900.0  # seconds; Slurm makes a requeued job wait


def answers() -> bool:
    if shutil.which("sinfo") is None:
        return False
    told = subprocess.run(["sinfo", "--noheader"], capture_output=True, check=False)
    return told.returncode == 0


def wait_until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.skipif(not answers(), reason="no Slurm answers here")
def test_a_requeued_job_goes_on_and_the_launcher_ends_well(work: Path) -> None:
    sweep = ["method=linear", "dataset=mini/digits", "recipe.epochs=200", "checkpoint.steps=5"]
    sweep += ["device=cpu", "hydra/launcher=slurm", "hydra.launcher.gpus_per_job=0"]
    sweep += ["hydra.launcher.cpus_per_job=1", "hydra.launcher.time=60"]
    with subprocess.Popen(
        [sys.executable, "-m", "peftbench", "run", "-m", *sweep],
        cwd=work,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as launcher:
        try:
            results = work / "results"
            wait_until(
                lambda: (
                    launcher.poll() is not None or list(results.glob("checkpoints/*.safetensors"))
                )
            )
            (events,) = results.glob("submitted/*/*.events")
            (handle,) = results.glob("submitted/*/*.handle")
            number = handle.read_text().partition('"id": "')[2].partition('"')[0]
            subprocess.run(["scontrol", "requeue", number], check=True)
            wait_until(lambda: "stopped" in events.read_text())
            assert launcher.poll() is None and events.exists()
            subprocess.run(["scontrol", "update", f"JobId={number}", "StartTime=now"], check=True)
            out, err = launcher.communicate(timeout=PATIENCE)
        finally:
            launcher.terminate()
    assert (launcher.returncode, err) == (0, "")
    assert out.splitlines()[-1] == "1 of 1 jobs ended: 1 OK"
    (record,) = ResultsStore(results).records()
    assert record.status is Status.OK and record.cost is not None and record.cost.resumed == 1
    assert not (results / "submitted").exists()

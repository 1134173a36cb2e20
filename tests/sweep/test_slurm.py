"""Submissions through submitit to a Slurm of stand-in commands; jobs are those of the stand-in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from support.fake_jobs import FAKE_CLI, command, notes

from peftbench.errors import ConfigError
from peftbench.sweep.queues.pool import Finished
from peftbench.sweep.queues.remote import RemoteQueue, Terms
from peftbench.sweep.queues.slurm import SubmititEngine
from peftbench.sweep.queues.submission import new_folder

PATIENCE = 300.0  # seconds; processes start slowly on a busy machine

Open = Callable[..., RemoteQueue[str]]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Slurm's commands; the folder in which they note what they were asked."""
    home, commands = tmp_path / "slurm", tmp_path / "bin"
    home.mkdir()
    commands.mkdir()
    script = Path(__file__).with_name("fake_slurm.py")
    for name in ("sbatch", "srun", "squeue", "sacct", "scontrol", "scancel"):
        (commands / name).write_text(f'#!/bin/sh\nexec {sys.executable} {script} {name} "$@"\n')
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(home))
    yield home
    for path in home.glob("*.pid"):
        try:
            os.killpg(int(path.read_text()), signal.SIGKILL)
        except ProcessLookupError:
            continue


@pytest.fixture
def opened(slurm: Path, jobs: Path, tmp_path: Path) -> Open:
    """Queues over that Slurm, one for each launch."""

    def make(*, parameters: dict[str, object] | None = None, **options: object) -> RemoteQueue[str]:
        folder = new_folder(tmp_path / "submitted")
        engine = SubmititEngine("slurm", folder / "submitit", parameters or {}, threads=3)
        engine.pause, engine.grace, engine.states.seconds = 0.05, 0.2, 0.05
        return RemoteQueue(engine, folder, **options)  # type: ignore[arg-type]

    return make


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.02)


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ran(queue: RemoteQueue[str]) -> dict[str, Finished[str]]:
    return {finished.job: finished for finished in queue.run()}


def test_batches_are_tasks_of_one_array_and_jobs_end_there_as_they_would_here(
    opened: Open, jobs: Path, slurm: Path, tmp_path: Path
) -> None:
    parameters = {
        "timeout_min": 90,
        "cpus_per_task": 3,
        "gpus_per_node": 2,
        "slurm_partition": "long",
        "slurm_setup": ["export OMP_NUM_THREADS=5"],
        "slurm_array_parallelism": 1,
        "slurm_additional_parameters": {"reservation": "us"},
    }
    queue = opened(parameters=parameters)
    begun: list[tuple[str, str]] = []
    queue.on_begin = lambda job, slot: begun.append((job, slot))
    queue.add([command("a", folder=jobs), command("failed", "fail", folder=jobs)])
    queue.add([command("dead", "die", folder=jobs)])
    finished = ran(queue)
    assert {n: f.status for n, f in finished.items()} == {"a": 0, "failed": 3, "dead": -9}
    assert all(f.cause == "" and not f.timed_out for f in finished.values())
    script = (slurm / "script.sh").read_text()
    for flag in (
        "--array=0-1%1",
        "--time=90",
        "--partition=long",
        "--cpus-per-task=3",
        "--gpus-per-node=2",
        "--reservation=us",
    ):
        assert f"#SBATCH {flag}\n" in script
    found = notes(jobs)
    assert {note["slot"] for note in found.values()} == {"slurm"}
    assert {note["threads"] for note in found.values()} == {"5"}  # what the set-up says stays
    assert (jobs / "a.txt").read_text() == "said a\n"
    where = {job: slot.partition(" on ")[0] for job, slot in begun}
    assert where == {"a": "slurm 17_0", "failed": "slurm 17_0", "dead": "slurm 17_1"}
    assert not (tmp_path / "submitted").exists()


def test_a_detached_launch_leaves_jobs_that_the_next_one_follows_and_does_not_submit_again(
    opened: Open, jobs: Path, slurm: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    first = opened(terms=Terms(detach=True), say=said.append)
    first.add([command("long", "sleep", "3", folder=jobs)])
    assert ran(first) == {}
    assert (first.left, said) == (1, ["submitted: slurm 17"])

    second = opened(say=said.append)
    second.add([command("long", "sleep", "3", folder=jobs)])
    second.add([command("other", folder=jobs)])
    finished = ran(second)
    assert {n: f.status for n, f in finished.items()} == {"long": 0, "other": 0}
    assert said[1] == "1 of the jobs are under way since an earlier launch: slurm 17"
    assert sorted(path.stem for path in slurm.glob("*.job")) == ["17", "18"]
    # nothing is left to follow once the first launch is gone
    third = opened()
    third.add([command("long", folder=jobs)])
    assert ran(third)["long"].status == 0
    assert len(list(slurm.glob("*.job"))) == 3


def test_a_machine_that_fails_costs_the_job_under_way_and_no_other(
    opened: Open, jobs: Path, slurm: Path
) -> None:
    released: list[tuple[str, str]] = []
    queue = opened(release=lambda output, submission: released.append((output.stem, submission)))
    queue.add(
        [
            command("a", folder=jobs),
            command("lost", "sleep", "600", folder=jobs),
            command("b", folder=jobs),
        ]
    )
    finished = {}
    for ended in queue.run():
        finished[ended.job] = ended
        if ended.job == "a":
            wait_for(jobs / "lost.begun")
            note = notes(jobs)["a"]
            (slurm / "17.state").write_text("NODE_FAIL")
            parent = int((slurm / "17.pid").read_text())
            for process in psutil.Process(parent).children(recursive=True):
                process.kill()
            os.killpg(parent, signal.SIGKILL)
    assert {n: f.status for n, f in finished.items()} == {"a": 0, "lost": 1, "b": 0}
    cause = finished["lost"].cause
    assert cause.startswith("slurm 17 ended as NODE_FAIL: ") and "17_0_log.out" in cause
    assert notes(jobs)["b"]["submission"] != note["submission"]
    assert ("lost", note["submission"]) in released


def test_an_interrupted_launch_cancels_what_waits_and_lets_what_runs_end(
    opened: Open, jobs: Path, slurm: Path, tmp_path: Path
) -> None:
    running = opened()
    running.add([command("a", folder=jobs), command("stopped", "stop", "600", folder=jobs)])
    running.add([command("b", folder=jobs)])
    with pytest.raises(KeyboardInterrupt):
        for ended in running.run():
            if ended.job == "a":
                wait_for(jobs / "stopped.begun")
                raise KeyboardInterrupt
    assert set((slurm / "cancelled").read_text().split()) <= {"17_0", "17_1"}
    assert not (jobs / "stopped.json").exists()
    family = [int(path.read_text()) for path in slurm.glob("*.pid")]
    for pid in family:
        if psutil.pid_exists(pid):
            psutil.Process(pid).wait(timeout=PATIENCE)
    assert not (tmp_path / "submitted").exists()

    waiting = opened(parameters={"slurm_partition": "full"})
    waiting.add([command("never", folder=jobs)])
    looks = waiting._look

    def interrupted() -> Iterator[Finished[str]]:
        yield from looks()
        raise KeyboardInterrupt

    waiting._look = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        ran(waiting)
    assert (slurm / "cancelled").read_text() == "18"


def begun_again(jobs: Path, name: str) -> Path:
    """What a job leaves when it begins, without that of the time before."""
    path = jobs / f"{name}.begun"
    wait_for(path)
    path.unlink()
    return path


def fake(*arguments: str) -> None:
    script = Path(__file__).with_name("fake_slurm.py")
    subprocess.run([sys.executable, script, *arguments], check=True)


def follow(queue: RemoteQueue[str]) -> tuple[threading.Thread, list[Finished[str]]]:
    """Run a queue in a thread, so that a test can play Slurm meanwhile."""
    finished: list[Finished[str]] = []
    thread = threading.Thread(target=lambda: finished.extend(queue.run()), daemon=True)
    thread.start()
    return thread, finished


def test_a_job_that_slurm_requeues_goes_on_and_the_launcher_waits_for_it(
    opened: Open, jobs: Path, slurm: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    queue = opened(say=said.append)
    queue.add([command("first", folder=jobs), command("long", "stop", "600", folder=jobs)])
    queue.add([command("other", folder=jobs)])
    thread, finished = follow(queue)
    begun_again(jobs, "long")
    fake("scontrol", "requeue", "17_0")
    events = next((tmp_path / "submitted").glob("*/*-1.events"))
    wait_until(lambda: "stopped" in events.read_text())
    time.sleep(0.5)  # ten looks of the launcher
    assert thread.is_alive() and (tmp_path / "submitted").exists()
    assert "long" not in {f.job for f in finished}
    for state in ("PENDING", "REQUEUED", "CONFIGURING"):
        (slurm / "17_0.state").write_text(state)
    (tmp_path / "fake" / "peftbench" / "cli" / "main.py").write_text(
        FAKE_CLI.replace("time.sleep(float(rest[1]))", "pass")
    )
    fake("start", "17_0")
    thread.join(PATIENCE)
    assert {f.job: (f.status, f.cause) for f in finished} == {
        "first": (0, ""),
        "long": (0, ""),
        "other": (0, ""),
    }
    assert said == []
    assert not (tmp_path / "submitted").exists()
    assert len(list(slurm.glob("*.job"))) == 1  # nothing was submitted again


@pytest.mark.parametrize("state", ["NODE_FAIL", "BOOT_FAIL", "PREEMPTED", "COMPLETED"])
def test_a_job_that_lost_its_machine_for_good_is_submitted_again_a_bounded_number_of_times(
    opened: Open, jobs: Path, slurm: Path, state: str
) -> None:
    said: list[str] = []
    queue = opened(terms=Terms(retries=1), say=said.append)
    queue.add([command("long", "stop", "600", folder=jobs), command("behind", folder=jobs)])
    thread, finished = follow(queue)
    for number in (17, 18):
        begun_again(jobs, "long")
        # the last is one that Slurm asked to stop in its time of grace, and which ended in it
        (slurm / f"{number}.state").write_text(state)
        os.killpg(int((slurm / f"{number}.pid").read_text()), signal.SIGTERM)
    thread.join(PATIENCE)
    assert {f.job: f.status for f in finished} == {"long": 1, "behind": 0}
    (long,) = (f for f in finished if f.job == "long")
    assert long.cause.startswith(f"slurm 18 ended as {state}")
    assert said == [f"slurm 17 ended as {state}; its jobs are submitted again, 1 of 1"]


@pytest.mark.parametrize(
    ("state", "cause", "timed_out"),
    [
        ("CANCELLED by 1000", "slurm 17 was cancelled", False),
        ("TIMEOUT", "slurm 17 reached its time limit", True),
        (
            "OUT_OF_MEMORY",
            "slurm 17 ended as OUT_OF_MEMORY, which more of hydra.launcher.mem_gb",
            0,
        ),
        ("DEADLINE", "slurm 17 ended as DEADLINE", False),
    ],
)
def test_a_job_that_slurm_ended_for_a_cause_of_its_own_is_not_submitted_again(
    opened: Open, jobs: Path, slurm: Path, state: str, cause: str, timed_out: bool
) -> None:
    queue = opened(terms=Terms(retries=3))
    queue.add([command("long", "sleep", "600", folder=jobs)])
    thread, finished = follow(queue)
    begun_again(jobs, "long")
    (slurm / "17.state").write_text(state)
    os.killpg(int((slurm / "17.pid").read_text()), signal.SIGKILL)
    thread.join(PATIENCE)
    (long,) = finished
    assert long.cause.startswith(cause) and long.timed_out == timed_out
    assert len(list(slurm.glob("*.job"))) == 1


def test_a_launcher_waits_for_what_slurm_holds_and_says_how_it_goes_on(
    opened: Open, jobs: Path, slurm: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    queue = opened(parameters={"slurm_partition": "full"})
    queue.add([command("held", folder=jobs)])
    thread, finished = follow(queue)
    wait_for(slurm / "17.state")
    (slurm / "17.state").write_text("SPECIAL_EXIT")
    told = ""
    deadline = time.monotonic() + PATIENCE
    while "scontrol release 17" not in told and time.monotonic() < deadline:
        told += capfd.readouterr().err
        time.sleep(0.05)
    assert "slurm 17 is held by Slurm (SPECIAL_EXIT); `scontrol release 17` lets it go on" in told
    fake("start", "17")
    thread.join(PATIENCE)
    assert [f.status for f in finished] == [0]


def test_what_slurm_refuses_is_told_in_one_line(opened: Open, jobs: Path) -> None:
    queue = opened(parameters={"slurm_partition": "missing"})
    queue.add([command("a", folder=jobs)])
    with pytest.raises(ConfigError, match=r"invalid partition specified: missing\. Check hydra"):
        ran(queue)
    with pytest.raises(ConfigError, match=r"hydra\.launcher: submitit says .*slurm_color"):
        opened(parameters={"slurm_color": "red"})

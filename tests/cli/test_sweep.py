"""Multiruns in real processes: what runs, what is skipped, what a crash or Ctrl-C costs."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from support.forked_servers import forked_servers
from support.tiny_runs import BIAS_HOT, QUICK, compose, repeatable, statuses

from peftbench.config.build import build
from peftbench.results.store import ResultsStore

PATIENCE = 300.0  # seconds; processes start slowly on a busy machine


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


@pytest.fixture
def ragged(work: Path) -> None:
    """Choices of `method` that make no sense, or diverge."""
    folder = work / "conf" / "method"
    folder.mkdir(parents=True)
    (folder / "partial_99.yaml").write_text(
        "defaults: [/schema/method/partial@_here_]\nnum_blocks: 99\n"
    )
    (folder / "bias_hot.yaml").write_text(BIAS_HOT)


def test_a_sweep_runs_every_job_in_a_process_and_a_rerun_what_is_left(
    cli, work: Path, ragged: None
) -> None:
    sweep = ("run", "-m", *QUICK, "recipe.epochs=2", "hydra.launcher.jobs=2")
    sweep += ("method=partial_99,bias_hot,linear", "seed=1")
    done = cli(*sweep)
    assert done.status == 1  # something failed
    first, *endings, summary = done.out.splitlines()
    assert first == "3 jobs: 0 already done, 3 to run, 2 at a time"
    # jobs end in any order, but each in a line of its own with its number
    assert [line.split("]")[0] for line in endings] == [f"[{i}/3" for i in range(1, 4)]
    ends = sorted(line.split("] ")[1] for line in endings)
    title = "x vit_mini x mini/digits, seed 1"
    assert ends[0].startswith(f"bias {title}: DIVERGED: the loss of epoch 1 of 2 is nan.")
    accuracies = r"\d+\.\d % top-1, \d+\.\d % mean per class"
    assert re.fullmatch(rf"linear {title}: {accuracies} of 4 test images, \d+ s", ends[1])
    assert ends[2].startswith(f"partial {title}: UNSUPPORTED: partial asks for the last 99 ")
    assert summary == "3 of 3 jobs ended: 1 DIVERGED, 1 OK, 1 UNSUPPORTED"
    assert done.err.splitlines() == [
        "  failed 1 x: DIVERGED: the loss of epoch 1 of 2 is nan. Lower recipe.lr (now 1e+30) or "
        "set recipe.clip_grad."
    ]

    store = ResultsStore(work / "results")
    assert statuses(store.root) == {"OK": 1, "UNSUPPORTED": 1, "DIVERGED": 1}
    assert locks(store.root) == []
    assert not list(store.root.rglob("output.txt"))
    assert not (store.root / ".scratch").exists()
    before = {record.run_id: record for record in store.records()}
    # the processes compute the same identity as the one that composed the sweep
    assert build(compose("method=linear", "seed=1", *QUICK, "recipe.epochs=2")).run_id in before

    with forked_servers():
        again = cli(*sweep)
    assert again.status == 1
    assert again.out.splitlines()[0] == "3 jobs: 2 already done, 1 to run, 1 at a time"
    assert again.out.splitlines()[-1] == "1 of 1 jobs ended: 1 DIVERGED"
    after = {record.run_id: record for record in store.records()}
    assert {i for i in after if after[i] == before[i]} >= store.done()

    # jobs that share a process record what jobs in fresh ones do, a failure between them included
    shared = ("hydra.launcher.jobs=1", "hydra.launcher.jobs_per_process=3", "results_dir=shared")
    assert cli(*sweep, *shared).status == 1
    own = {record.run_id: record for record in ResultsStore(work / "shared").records()}
    assert {i: repeatable(r) for i, r in own.items()} == {
        i: repeatable(r) for i, r in before.items()
    }


def test_each_pretended_gpu_gets_jobs_of_its_own(
    cli, work: Path, jobs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    seeds = ",".join(map(str, range(12)))
    where = f"results_dir={work / 'results'}"
    done = cli("run", "-m", *QUICK, where, f"seed={seeds}", "hydra.launcher.gpus=4")
    assert done.out.splitlines()[0] == "12 jobs: 0 already done, 12 to run, 4 at a time"
    found = [json.loads(path.read_text()) for path in jobs.glob("*.json")]
    assert {note["argv"][-1] for note in found} == {f"seed={seed}" for seed in range(12)}
    assert {note["gpu"] for note in found} == set("0123")
    assert all(note["slot"] == f"gpu {note['gpu']}" for note in found)
    for gpu in "0123":
        spans = sorted((n["began"], n["ended"]) for n in found if n["gpu"] == gpu)
        assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))
    # a process that ends well and leaves no record is a failure all the same
    assert done.status == 1
    assert statuses(work / "results") == {"ERROR": 12}


def test_plan_takes_the_overrides_of_the_sweep_that_it_is_about(cli) -> None:
    done = cli("plan", *QUICK, "seed=0", "hydra.launcher.jobs=2", "hydra.launcher.on_failure=stop")
    assert (done.status, done.err) == (0, "")
    assert "1 jobs: 0 done, 0 unsupported, 1 to run" in done.out


@pytest.mark.slow  # half a minute; a job that crashes is in test_sweep_failures.py
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
    cause = (
        "its process was ended by SIGKILL, as the system does when memory runs out: no output "
        f"(see {log.relative_to(work)})"
    )
    assert f"linear x vit_mini x mini/digits, seed 0: ERROR: {cause}" in done.out
    assert done.out.splitlines()[-1] == "3 of 3 jobs ended: 1 ERROR, 2 OK"
    assert statuses(work / "results") == {"OK": 2, "ERROR": 1}
    record = ResultsStore(work / "results").get(endless, "linear")
    assert record is not None and record.error == cause
    # the lock of a dead process holds nobody up
    with ResultsStore(work / "results").claim(endless, "linear"):
        pass
    assert locks(work / "results") == []


def test_ctrl_c_is_recorded_leaves_nothing_running_and_a_rerun_finishes(cli, work: Path) -> None:
    sweep = (*QUICK, "recipe.epochs=30", "seed=0,1", "hydra.launcher.jobs=1")
    sweep += ("hydra.launcher.jobs_per_process=2",)
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
            time.sleep(0.5)  # it holds its lock, and is on its way
            family = psutil.Process(process.pid).children(recursive=True)
            assert family
            os.killpg(process.pid, signal.SIGINT)
            out, err = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert process.returncode == 130
    assert out.splitlines() == [
        "2 jobs: 0 already done, 2 to run, 1 at a time",
        "1 of 2 jobs ended: 1 INTERRUPTED",
    ]
    assert err.splitlines() == [
        "stopping the running jobs; a rerun continues",
        "peftbench: interrupted; the same command continues",
    ]
    assert statuses(work / "results") == {"INTERRUPTED": 1}
    assert not list((work / "results").rglob("output.txt"))
    assert locks(work) == []
    assert psutil.wait_procs(family, timeout=PATIENCE)[1] == []

    with forked_servers():
        done = cli("run", "-m", *sweep)
    assert done.status == 0
    assert done.out.splitlines()[0] == "2 jobs: 0 already done, 2 to run, 1 at a time"
    assert statuses(work / "results") == {"OK": 2}


@pytest.mark.parametrize(
    ("options", "started"), [((), 3), (("on_failure=stop",), 1), (("stop_after=2",), 2)]
)
def test_failures_stop_a_sweep_only_when_asked_to(
    cli, work: Path, jobs: Path, options: tuple[str, ...], started: int
) -> None:
    extra = [f"hydra.launcher.{option}" for option in ("jobs=1", *options)]
    where = f"results_dir={work / 'results'}"
    done = cli("run", "-m", *QUICK, where, "seed=0,1,2", *extra)  # they leave no record
    assert done.status == 1
    assert done.out.splitlines()[-1] == f"{started} of 3 jobs ended: {started} ERROR"
    assert statuses(work / "results") == {"ERROR": started}
    assert len(list(jobs.glob("*.json"))) == started


def test_a_run_that_another_launch_holds_is_left_to_it(cli, work: Path) -> None:
    spec = build(compose(*QUICK))
    store = ResultsStore(work / "results")
    with store.claim(spec.run_id, "linear"), forked_servers():
        done = cli("run", "-m", *QUICK, "hydra.launcher.jobs=1")
    assert done.status == 1  # it is not done
    assert f"held by process {os.getpid()}" in done.out
    assert done.out.splitlines()[-1] == "1 of 1 jobs ended: 1 held elsewhere"
    (told,) = done.err.splitlines()
    assert told.startswith(f"  held elsewhere 1 x: held by process {os.getpid()} on ")
    assert told.endswith(
        ". These are not done: when that has ended, the same command finds or runs them"
    )
    assert statuses(store.root) == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("on_failure=panic",),
            "Unknown hydra.launcher.on_failure 'panic'. Known: continue, stop.",
        ),
        (("stop_after=0",), "hydra.launcher.stop_after=0; use 1 or more."),
        (("jobs_per_process=0",), "hydra.launcher.jobs_per_process=0; use 1 or more."),
        (("gpus=2", "gpus_per_job=3"), "hydra.launcher.gpus_per_job=3, but 2 GPUs can be used."),
    ],
)
def test_options_that_make_no_sense_are_refused_before_anything_starts(
    cli, work: Path, options: tuple[str, ...], message: str
) -> None:
    done = cli("run", "-m", *QUICK, *(f"hydra.launcher.{option}" for option in options))
    assert done.status == 2
    assert done.err.startswith(f"peftbench: {message}")
    assert statuses(work / "results") == {}

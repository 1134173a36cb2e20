"""The queue over slots in real processes; jobs are small command lines of peftbench."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from support.fake_jobs import command, notes

from peftbench.sweep.queues.pool import Finished, Pool
from peftbench.sweep.queues.slots import Slot, make_slots

PATIENCE = 300.0  # seconds; processes start slowly on a busy machine


def ran(pool: Pool[str]) -> dict[str, Finished[str]]:
    return {finished.job: finished for finished in pool.run()}


def cpu(count: int) -> list[Slot]:
    return make_slots([], jobs=count, cores=count)


def test_every_job_runs_once_in_a_process_of_its_own(jobs: Path) -> None:
    pool: Pool[str] = Pool(cpu(2))
    names = [f"job{i}" for i in range(6)]
    for name in names:
        pool.add([command(name, folder=jobs)])
    finished = ran(pool)
    assert sorted(finished) == names
    assert {f.status for f in finished.values()} == {0}
    assert len({note["pid"] for note in notes(jobs).values()}) == 6
    assert [(jobs / f"{name}.txt").read_text() for name in names] == [f"said {n}\n" for n in names]


def test_no_device_runs_two_jobs_at_once_and_a_slow_one_holds_nobody_back(jobs: Path) -> None:
    pool: Pool[str] = Pool(make_slots(["0", "1", "2", "3"], cores=8))
    pool.add([command("slow", "sleep", "1.5", folder=jobs)])
    for i in range(11):
        pool.add([command(f"job{i}", "sleep", "0.05", folder=jobs)])
    finished = ran(pool)
    assert len(finished) == 12
    found = notes(jobs)
    for gpu in "0123":
        spans = sorted((n["began"], n["ended"]) for n in found.values() if n["gpu"] == gpu)
        assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))
    slow = found.pop("slow")
    assert max(note["ended"] for note in found.values()) < slow["ended"]
    assert slow["gpu"] not in {n["gpu"] for n in found.values() if n["began"] < slow["ended"]}
    for note in [*found.values(), slow]:
        assert note["slot"] == f"gpu {note['gpu']}"
        assert note["threads"] == "2"


def test_two_jobs_of_one_gpu_overlap_where_they_may(jobs: Path) -> None:
    pool: Pool[str] = Pool(make_slots(["0"], jobs_per_gpu=2, cores=4))
    for name in ("a", "b"):
        pool.add([command(name, "sleep", "1.0", folder=jobs)])
    ran(pool)
    a, b = (notes(jobs)[name] for name in ("a", "b"))
    assert a["gpu"] == b["gpu"] == "0"
    assert max(a["began"], b["began"]) < min(a["ended"], b["ended"])


def test_a_crash_is_a_negative_status_and_the_slot_goes_on(jobs: Path) -> None:
    pool: Pool[str] = Pool(cpu(1))
    pool.add([command("dead", "die", folder=jobs)])
    pool.add([command("failed", "fail", folder=jobs)])
    pool.add([command("good", folder=jobs)])
    finished = ran(pool)
    assert {n: f.status for n, f in finished.items()} == {
        "dead": -signal.SIGKILL,
        "failed": 3,
        "good": 0,
    }


def test_jobs_may_share_a_process_and_a_crash_costs_only_one(jobs: Path) -> None:
    pool: Pool[str] = Pool(cpu(1))
    batch = [command(name, folder=jobs) for name in "ab"]
    pool.add([*batch, command("dead", "die", folder=jobs), command("c", folder=jobs)])
    finished = ran(pool)
    assert {n: f.status for n, f in finished.items()} == {
        "a": 0,
        "b": 0,
        "dead": -signal.SIGKILL,
        "c": 0,
    }
    found = notes(jobs)
    assert found["a"]["pid"] == found["b"]["pid"] != found["c"]["pid"]


def test_a_process_that_dies_before_its_job_begins_is_the_end_of_that_job_alone(
    jobs: Path,
) -> None:
    pool: Pool[str] = Pool(cpu(1))
    (jobs / "blocked.txt").mkdir()  # where the process is to write what the job prints
    pool.add([command("a", folder=jobs), command("blocked", folder=jobs)])
    pool.add([command("b", folder=jobs)])
    assert {n: f.status for n, f in ran(pool).items()} == {"a": 0, "blocked": 1, "b": 0}


def only_first_is_timed(pool: Pool[str], jobs: Path) -> None:
    """Its time is over when it is at work, and the next has all that a busy machine needs."""

    def begun(job: str, slot: str) -> None:
        if pool.timeout != PATIENCE:
            assert wait_for((jobs / f"{job}.begun").exists)
            pool.timeout = PATIENCE

    pool.on_begin = begun


def test_a_job_that_takes_too_long_is_stopped(jobs: Path) -> None:
    pool: Pool[str] = Pool(cpu(1), timeout=0.5)
    pool.add([command("endless", "sleep", "600", folder=jobs)])
    pool.add([command("good", folder=jobs)])
    only_first_is_timed(pool, jobs)
    finished = ran(pool)
    assert finished["endless"].timed_out
    assert finished["endless"].status == -signal.SIGTERM
    assert 0.5 <= finished["endless"].seconds < PATIENCE
    assert (finished["good"].status, finished["good"].timed_out) == (0, False)


def test_a_job_that_was_stopped_leaves_the_next_one_of_its_process_all_its_time(jobs: Path) -> None:
    pool: Pool[str] = Pool(cpu(1), timeout=0.5)
    late, good = command("late", "stop", "600", folder=jobs), command("good", folder=jobs)
    pool.add([late, good])
    only_first_is_timed(pool, jobs)
    finished = ran(pool)
    assert (finished["late"].status, finished["late"].timed_out) == (130, True)
    assert (finished["good"].status, finished["good"].timed_out) == (0, False)


def test_an_interrupted_pool_begins_no_further_job_of_a_shared_process(jobs: Path) -> None:
    pool: Pool[str] = Pool(cpu(1))
    stopped, never = command("stopped", "stop", "600", folder=jobs), command("never", folder=jobs)
    pool.add([command("a", folder=jobs), stopped, never])
    with pytest.raises(KeyboardInterrupt):
        for _ in pool.run():
            deadline = time.monotonic() + PATIENCE
            while not (jobs / "stopped.begun").exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            raise KeyboardInterrupt
    assert sorted(notes(jobs)) == ["a"]


def test_nothing_more_starts_once_a_pool_is_stopping(jobs: Path) -> None:
    pool: Pool[str] = Pool(cpu(1))
    for name in "abc":
        pool.add([command(name, folder=jobs)])
    seen = []
    for finished in pool.run():
        seen.append(finished.job)
        pool.stopping = True
    assert seen == ["a"]
    assert sorted(notes(jobs)) == ["a"]


def test_a_job_may_be_added_while_the_pool_runs(jobs: Path) -> None:
    pool: Pool[str] = Pool(cpu(1))
    pool.add([command("a", folder=jobs)])
    seen = []
    for finished in pool.run():
        seen.append(finished.job)
        if finished.job == "a":
            pool.add([command("b", folder=jobs)], first=True)
    assert seen == ["a", "b"]


def family() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def test_an_interrupt_stops_every_process(jobs: Path) -> None:
    pool: Pool[str] = Pool(cpu(2))
    for name in "abc":
        pool.add([command(name, "sleep", "600", folder=jobs)])
    begun: list[str] = []
    pool.on_begin = lambda job, slot: begun.append(job)

    def interrupt() -> None:
        deadline = time.monotonic() + PATIENCE
        while len(begun) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    before = set(family())
    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        ran(pool)
    assert sorted(begun) == ["a", "b"]  # two slots start them at the same moment
    assert set(family()) <= before


def wait_for(condition: Callable[[], object]) -> object:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    return None


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux ends orphans")
@pytest.mark.parametrize("victim", ["launcher", "server"])
def test_nothing_outlives_a_killed_launcher_or_server(jobs: Path, victim: str) -> None:
    pool: Pool[str] = Pool(cpu(1))
    pool.add([command("long", "sleep", "600", folder=jobs)])
    launcher = os.fork()
    if launcher == 0:
        try:
            ran(pool)
        finally:
            os._exit(0)
    process = psutil.Process(launcher)
    # the server, and the job that it forked
    wait_for(lambda: len(process.children(recursive=True)) == 2)
    below = process.children(recursive=True)
    assert len(below) == 2
    wait_for((jobs / "long.txt").exists)
    if victim == "launcher":
        process.kill()
        os.waitpid(launcher, 0)
    else:
        (server,) = process.children()
        server.kill()
        # its job ended with it: the launcher records that and is done
        assert wait_for(lambda: os.waitpid(launcher, os.WNOHANG)[0])
    _, alive = psutil.wait_procs(below, timeout=PATIENCE)
    assert alive == []

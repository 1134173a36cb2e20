"""Submissions as tasks of a real Ray that is told of two GPUs; jobs are those of the stand-in."""

from __future__ import annotations

import gc
import os
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.fake_jobs import FAKE_CLI, command, notes

from peftbench.errors import ConfigError
from peftbench.results.store import ResultsStore
from peftbench.sweep.launchers.cluster import RayLauncher
from peftbench.sweep.queues.ray import RayEngine, Share, _resolve
from peftbench.sweep.queues.remote import RemoteQueue, Terms
from peftbench.sweep.queues.submission import new_folder, process

PATIENCE = 60.0  # seconds; only bounds how long a broken promise is waited for


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Ray takes seconds to start, so all tests share it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # where it leaves a token
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # 15 starves them where others work too
        patch.delenv("OMP_NUM_THREADS", raising=False)  # Ray sets it to the cores of a task
        import ray

        engine = None
        for attempt in range(5):  # it gives up after 30 s, which a busy machine may take
            try:
                engine = RayEngine(
                    {
                        "address": "local",
                        "num_cpus": 4,
                        "num_gpus": 2,
                        "object_store_memory": 80 * 2**20,
                    },
                    Share(),
                )
                break
            except ConfigError:
                if attempt == 4:
                    raise
                with warnings.catch_warnings():  # of what it leaves of its processes
                    warnings.simplefilter("ignore", ResourceWarning)
                    ray.shutdown()
                    gc.collect()
        assert engine is not None and (engine.gpus, engine.cpus) == (1.0, 2.0)
        yield ray
        ray.shutdown()


def open_queue(folder: Path, share: Share, **options: Any) -> RemoteQueue[str]:
    made = new_folder(folder / "submitted")
    return RemoteQueue(RayEngine({}, share), made, **options)


def test_jobs_get_the_gpus_that_ray_gives_them_whole_or_in_parts(
    cluster: Any, jobs: Path, tmp_path: Path
) -> None:
    queue = open_queue(tmp_path, Share(gpus=0.5))
    assert (queue.engine.gpus, queue.engine.cpus) == (0.5, 1.0)  # type: ignore[attr-defined]
    names = ["a", "b", "c"]
    for name in names:
        queue.add([command(name, "sleep", "1", folder=jobs)])
    assert {f.job: f.status for f in queue.run()} == dict.fromkeys(names, 0)
    found = notes(jobs)
    assert sorted(note["gpu"] for note in found.values()) == ["0", "0", "1"]  # two share one
    assert {note["threads"] for note in found.values()} == {"1"}
    assert len({note["submission"] for note in found.values()}) == 3
    assert not (tmp_path / "submitted").exists()

    both = open_queue(tmp_path, Share(gpus=2))
    assert both.engine.cpus == 4.0  # type: ignore[attr-defined]
    both.add([command("both", folder=jobs), command("failed", "fail", folder=jobs)])
    assert {f.job: f.status for f in both.run()} == {"both": 0, "failed": 3}
    assert notes(jobs)["both"]["gpu"] == "0,1"
    assert notes(jobs)["both"]["threads"] == "4"


def test_an_interrupted_launch_stops_its_tasks_and_those_that_wait(
    cluster: Any, jobs: Path, tmp_path: Path
) -> None:
    launcher = RayLauncher(gpus_per_job=2)  # it uses the Ray that runs
    place = launcher.place(ResultsStore(tmp_path))(2)
    queue: Any = place.queue()
    assert place.title == "on Ray"
    queue.add([command("stopped", "stop", "600", folder=jobs)])
    queue.add([command("waiting", folder=jobs)])
    looks = queue._look

    def interrupted() -> Iterator[Any]:
        yield from looks()
        if (jobs / "stopped.begun").exists():
            raise KeyboardInterrupt

    queue._look = interrupted
    with pytest.raises(KeyboardInterrupt):
        list(queue.run())
    assert (jobs / "stopped.told").exists()  # it was asked, and not killed
    assert notes(jobs) == {}
    assert not (tmp_path / "submitted").exists()


def kill_the_worker(jobs: Path) -> None:
    """Kill the process of Ray in which a submission runs, once its job has begun."""
    begun = jobs / "long.begun"
    deadline = time.monotonic() + 4 * PATIENCE
    while not begun.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    begun.unlink()
    ours = psutil.Process().children(recursive=True)
    (worker,) = (p for p in ours if p.name().startswith("ray::serve"))
    worker.kill()


@pytest.mark.slow
def test_a_job_whose_process_of_ray_dies_is_submitted_again_a_bounded_number_of_times(
    cluster: Any, jobs: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    queue = open_queue(tmp_path, Share(gpus=2), terms=Terms(retries=1), say=said.append)
    queue.add([command("long", "stop", "600", folder=jobs), command("behind", folder=jobs)])
    finished: list[Any] = []
    thread = threading.Thread(target=lambda: finished.extend(queue.run()), daemon=True)
    thread.start()
    kill_the_worker(jobs)
    kill_the_worker(jobs)
    thread.join(4 * PATIENCE)
    assert {f.job: f.status for f in finished} == {"long": 1, "behind": 0}
    (told,) = said
    assert told.startswith("ray 1 ended with WorkerCrashedError: ")
    assert told.endswith("; its jobs are submitted again, 1 of 1")


@pytest.mark.slow
def test_a_job_whose_node_dies_goes_to_another(
    jobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_worker_niceness", "0")
    ray.shutdown()
    machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    first = machines.add_node(num_cpus=1)
    said: list[str] = []
    made = new_folder(tmp_path / "submitted")
    try:
        engine = RayEngine({"address": machines.address}, Share(gpus=0, cpus=1))
        queue: RemoteQueue[str] = RemoteQueue(engine, made, Terms(retries=2), say=said.append)
        queue.add([command("long", "stop", "600", folder=jobs)])
        finished: list[Any] = []
        thread = threading.Thread(target=lambda: finished.extend(queue.run()), daemon=True)
        thread.start()
        deadline = time.monotonic() + 10 * PATIENCE
        while not (jobs / "long.begun").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        cli = tmp_path / "fake" / "peftbench" / "cli" / "main.py"
        cli.write_text(FAKE_CLI.replace("time.sleep(float(rest[1]))", "pass"))
        machines.add_node(num_cpus=1)
        machines.remove_node(first, allow_graceful=False)
        thread.join(10 * PATIENCE)
        assert [(f.job, f.status) for f in finished] == [("long", 0)]
        assert len(said) == 1 and said[0].endswith("its jobs are submitted again, 1 of 2")
    finally:
        ray.shutdown()
        machines.shutdown()


def test_a_machine_that_ray_lost_is_told_from_a_task_that_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray
    from ray import exceptions

    engine = object.__new__(RayEngine)
    engine.tasks = {1: "reference"}
    handle = {"id": 1, **process(os.getpid())}
    monkeypatch.setattr(ray, "wait", lambda references, timeout: (references, []))
    for error, machine in (
        (exceptions.NodeDiedError("node 7 is dead"), True),
        (exceptions.WorkerCrashedError(), True),
        (exceptions.LocalRayletDiedError(), True),
        (exceptions.OutOfMemoryError("node 7 runs out of memory"), False),
        (ValueError("3 is odd"), False),
    ):

        def fail(reference: str, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(ray, "get", fail)
        gone = engine.gone(handle)
        assert gone is not None and gone.machine is machine
        assert gone.cause.startswith(f"ended with {type(error).__name__}: ")


def test_a_machine_without_what_a_job_asks_for_is_told_before_anything_waits() -> None:
    machines = [{"CPU": 16.0, "GPU": 4.0}, {"CPU": 8.0, "GPU": 2.0}, {"CPU": 64.0}]
    # 4 cores go with each GPU on both machines that have any
    assert _resolve(Share(), machines) == (1.0, 4.0)
    assert _resolve(Share(gpus=0.25), machines) == (0.25, 1.0)
    assert _resolve(Share(gpus=4), machines) == (4, 16.0)
    assert _resolve(Share(gpus=0), machines) == (0, 1.0)
    assert _resolve(Share(), [{"CPU": 2.0}]) == (0.0, 1.0)
    assert _resolve(Share(gpus=1, cpus=6), machines) == (1, 6)
    for share, message in (
        (Share(gpus=5), "gpus_per_job=5, but the largest machine of the Ray cluster has 4 GPUs"),
        (Share(gpus=1.5), "gpus_per_job=1.5; use a whole number or a part of one GPU"),
        (Share(cpus=65), "cpus_per_job=65, but the largest machine of the Ray cluster has 64"),
    ):
        with pytest.raises(ConfigError, match=message):
            _resolve(share, machines)

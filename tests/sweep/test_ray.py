"""Submissions as tasks of a real Ray that is told of two GPUs; jobs are those of the stand-in."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_jobs import command, notes

from peftbench.cluster import RayLauncher
from peftbench.errors import ConfigError
from peftbench.results.store import ResultsStore
from peftbench.sweep.ray import RayEngine, Share, _resolve
from peftbench.sweep.remote import RemoteQueue
from peftbench.sweep.submission import new_folder


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

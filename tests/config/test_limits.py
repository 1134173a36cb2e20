"""Numbers that no machine takes are refused in one line that says which it takes."""

from __future__ import annotations

import math

import pytest

from peftbench.cli import processes
from peftbench.config import limits
from peftbench.errors import ConfigError
from peftbench.sweep.launchers.base import sums
from peftbench.sweep.launchers.pool import PoolConfig
from peftbench.sweep.queues.slots import make_slots, visible_gpus


@pytest.mark.parametrize(
    ("cores", "threads", "taken"),
    [
        (2, 1, True),
        (2, 64, True),
        (2, 65, False),
        (2, 1_000_000, False),
        (2, 0, False),
        (2, -1, False),
        (None, 64, True),
        (96, 384, True),
        (96, 385, False),
    ],
)
def test_threads_are_bounded_by_the_cores_of_the_machine(
    monkeypatch: pytest.MonkeyPatch, cores: int | None, threads: int, taken: bool
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    if taken:
        limits.check_threads(threads)
    else:
        with pytest.raises(ConfigError, match=rf"^threads={threads}; use 1 ") as refused:
            limits.check_threads(threads)
        assert "\n" not in str(refused.value)


def test_threads_of_a_machine_that_is_not_seen_are_bounded_by_the_largest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    limits.check_threads(256, anywhere=True)
    with pytest.raises(ConfigError, match=r"^threads=1000000; use 1 to 4096, or null\.$"):
        limits.check_threads(1_000_000, anywhere=True)


@pytest.mark.parametrize(("count", "message"), [(0, "1 or more"), (-3, "1 or more"), (10**6, "1 ")])
def test_processes_are_bounded(count: int, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^processes={count}; use {message}"):
        processes.check_count(count, "cpu")


def test_processes_on_a_cpu_are_bounded_by_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    processes.check_count(16, "cpu")
    with pytest.raises(ConfigError, match=r"^processes=17; use 1 to 16, as this machine has 2"):
        processes.check_count(17, "cpu")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("jobs", 10**9, "use 1 to 10000"),
        ("jobs", 0, "use 1 or more"),
        ("jobs_per_process", 0, "use 1 or more"),
        ("jobs_per_gpu", 10**9, "use 1 to 64"),
        ("retry_out_of_memory", -1, "use 0 or more"),
        ("timeout", -5.0, "use 0.001 or more"),
        ("timeout", math.nan, "use 0.001 to 1000000000"),
        ("stagger", math.inf, "use 0 to 1000000"),
        ("stop_after", 0, "use 1 or more"),
    ],
)
def test_options_of_launchers_are_bounded(option: str, value: float, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        limits.check_launcher(PoolConfig(**{option: value}))  # type: ignore[arg-type]
    assert str(refused.value) == f"hydra.launcher.{option}={value}; {message}."
    limits.check_launcher(PoolConfig())


def test_slots_that_no_machine_has_are_refused_before_they_are_listed() -> None:
    for gpus in ("1000000000000", "-1", "1.5", "0+-1", "0 1"):
        with pytest.raises(ConfigError, match=r"hydra\.launcher\.gpus="):
            visible_gpus(gpus)
    for options in ({"jobs": 10**12}, {"jobs_per_gpu": 10**12}, {"gpus_per_job": 10**12}):
        with pytest.raises(ConfigError, match=rf"hydra.launcher.{next(iter(options))}="):
            make_slots(["0"], **options)
    assert visible_gpus("GPU-5f3c-11+MIG-ab/1") == ["GPU-5f3c-11", "MIG-ab/1"]


@pytest.mark.parametrize("images", [0, -1])
def test_a_micro_batch_has_an_image(images: int) -> None:
    with pytest.raises(ConfigError, match=rf"^micro_batch={images}; use 1 or more, or null\.$"):
        limits.check_micro_batch(images)


def test_failures_of_one_cause_are_summed_whatever_their_files_are_called() -> None:
    full = "ERROR: results/runs/lora/{} cannot be written: No space left on device (disk full, {})."
    assert sums(
        [
            "ERROR: died (see a.txt)",
            full.format("a.json", "0.1 MB free"),
            "ERROR: died (see b.txt)",
            full.format("b/card.json", "0.0 MB free"),
            "ERROR: slurm 17_0 ended as FAILED",
            "ERROR: ValueError: 3 is odd. (trace in a/log.txt)",
            full.format("c.npz", "0.2 MB free"),
            "ERROR: slurm 17_1 ended as FAILED",
            "ERROR: ValueError: 5 is odd. (trace in b/log.txt)",
        ]
    ) == [
        (full.format("a.json", "0.1 MB free"), 3),
        ("ERROR: died (see a.txt)", 2),
        ("ERROR: slurm 17_0 ended as FAILED", 2),
        ("ERROR: ValueError: 3 is odd. (trace in a/log.txt)", 1),
        ("ERROR: ValueError: 5 is odd. (trace in b/log.txt)", 1),
    ]
    held = "held by process {} on {}, since 2026-01-02 03:04:{}"
    assert sums([held.format(1, "a", 10), held.format(2, "b", 11), held.format(3, "a", 12)]) == [
        (held.format(1, "a", 10), 2),
        (held.format(2, "b", 11), 1),
    ]

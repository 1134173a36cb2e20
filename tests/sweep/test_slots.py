"""Which devices and how many threads each slot gets."""

from __future__ import annotations

import pytest

from peftbench.errors import ConfigError
from peftbench.sweep.queues.slots import Slot, make_slots, visible_gpus


def test_each_gpu_is_a_slot_with_its_share_of_the_cores() -> None:
    slots = make_slots(["0", "1", "2", "3"], cores=16)
    assert [slot.devices for slot in slots] == [("0",), ("1",), ("2",), ("3",)]
    assert [slot.name for slot in slots] == ["gpu 0", "gpu 1", "gpu 2", "gpu 3"]
    assert {slot.threads for slot in slots} == {4}


def test_two_jobs_share_a_gpu_only_after_every_gpu_has_one() -> None:
    slots = make_slots(["0", "1"], jobs_per_gpu=2, cores=16)
    assert [slot.devices for slot in slots] == [("0",), ("1",), ("0",), ("1",)]
    assert len({slot.name for slot in slots}) == 4
    assert {slot.threads for slot in slots} == {4}
    assert [s.devices for s in make_slots(["0", "1"], jobs_per_gpu=2, jobs=3)] == [
        ("0",),
        ("1",),
        ("0",),
    ]


def test_a_job_on_several_gpus_holds_them_alone() -> None:
    slots = make_slots(["0", "1", "2", "3", "4"], gpus_per_job=2, cores=8)
    assert [slot.devices for slot in slots] == [("0", "1"), ("2", "3")]  # the fifth stays idle


def test_without_gpus_cores_are_slots() -> None:
    slots = make_slots([], jobs=3, cores=8)
    assert [(slot.devices, slot.threads) for slot in slots] == [((), 2)] * 3
    assert make_slots([], jobs=5, cores=2)[0].threads == 1


def test_the_environment_of_a_slot_keeps_threads_that_the_user_set() -> None:
    slot = Slot("gpu 1", ("1", "3"), threads=2)
    inherited = {"OMP_NUM_THREADS": "5", "CUDA_VISIBLE_DEVICES": "0,1,2,3", "HOME": "/home/me"}
    assert slot.environment(inherited) == {
        "OMP_NUM_THREADS": "5",
        "MKL_NUM_THREADS": "2",
        "CUDA_VISIBLE_DEVICES": "1,3",
        "HOME": "/home/me",
        "PEFTBENCH_SLOT": "gpu 1",
    }
    assert "CUDA_VISIBLE_DEVICES" not in Slot("cpu 0", (), 1).environment({})
    assert inherited["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"


@pytest.mark.parametrize(
    ("visible", "asked", "expected"),
    [
        (None, "3", ["0", "1", "2"]),
        (None, "0", []),
        (None, "1,3", ["1", "3"]),
        (None, "1+3", ["1", "3"]),
        ("4,5,6", "2", ["4", "5"]),  # within what a scheduler gave to this process
        (None, "GPU-5d9f,GPU-7ac1", ["GPU-5d9f", "GPU-7ac1"]),
    ],
)
def test_gpus_are_asked_for_by_number_or_name(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, asked: str, expected: list[str]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_gpus(asked) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpus_per_job": 0}, r"hydra\.launcher\.gpus_per_job=0; use 1 or more\."),
        ({"jobs_per_gpu": 0}, r"hydra\.launcher\.jobs_per_gpu=0; use 1 or more\."),
        ({"jobs": 0}, r"hydra\.launcher\.jobs=0; use 1 or more, or null\."),
        ({"gpus_per_job": 3}, r"gpus_per_job=3, but 2 GPUs can be used\. Ask for fewer\."),
    ],
)
def test_numbers_that_make_no_sense_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_slots(["0", "1"], **options)

"""What shows of a machine without torch, and where torch is asked all the same."""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from peftbench.training import hardware
from peftbench.waiting import share_cores

LOOKS = (hardware.gpus_are_possible, hardware.has_amx, hardware.has_avx512_bf16)


@pytest.fixture(autouse=True)
def looked_at_anew() -> Iterator[None]:
    for look in LOOKS:
        look.cache_clear()
    yield
    for look in LOOKS:
        look.cache_clear()


def driver(monkeypatch: pytest.MonkeyPatch, *, there: bool) -> None:
    def load(name: str) -> None:
        assert name == "libcuda.so.1"
        if not there:
            raise OSError("no such file")

    monkeypatch.setattr(ctypes, "CDLL", load)


@pytest.mark.parametrize(
    ("system", "library", "device", "expected"),
    [
        ("linux", False, False, False),
        ("linux", True, False, True),
        ("linux", False, True, True),  # ROCm needs no library of NVIDIA
        ("darwin", False, False, False),
        ("win32", False, False, True),
    ],
)
def test_a_gpu_is_possible_where_its_driver_is(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    system: str,
    library: bool,
    device: bool,
    expected: bool,
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    driver(monkeypatch, there=library)
    place = tmp_path if device else tmp_path / "none"
    monkeypatch.setattr(hardware, "ROCM_DEVICES", (str(place),))
    assert hardware.gpus_are_possible() is expected


def test_torch_finds_no_gpu_where_none_is_possible() -> None:
    if not hardware.gpus_are_possible():
        assert not torch.cuda.is_available()


def test_amx_is_what_torch_says() -> None:
    assert hardware.has_amx() is torch.cpu._is_amx_tile_supported()


def test_another_kind_of_cpu_has_no_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert hardware.has_amx() is False
    assert hardware.has_avx512_bf16() is False


@pytest.mark.parametrize("flags", ["fpu avx2 avx512_bf16", "fpu avx2 avx512f"])
def test_bfloat16_in_vectors_is_what_the_kernel_names(
    monkeypatch: pytest.MonkeyPatch, flags: str
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(Path, "read_text", lambda self, encoding: f"flags : {flags}")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    assert hardware.has_avx512_bf16() is ("avx512_bf16" in flags)


@pytest.mark.parametrize("amx", [True, False])
def test_torch_is_asked_where_an_older_kernel_names_no_amx(
    monkeypatch: pytest.MonkeyPatch, amx: bool
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(platform, "release", lambda: "5.15.0-91-generic")
    monkeypatch.setattr(Path, "read_text", lambda self, encoding: "flags : fpu sse avx2")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert hardware.has_amx() is amx


@pytest.mark.parametrize("release", ["5.16", "6.1.0-18-amd64", "10.0.1"])
def test_a_kernel_that_would_name_an_instruction_set_is_believed(
    monkeypatch: pytest.MonkeyPatch, release: str
) -> None:
    def asked() -> bool:
        raise AssertionError("torch was asked")

    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(platform, "release", lambda: release)
    monkeypatch.setattr(hardware.sys, "platform", "linux")
    monkeypatch.setattr(Path, "read_text", lambda self, encoding: "flags : fpu sse avx2")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", asked)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", asked, raising=False)
    assert hardware.has_amx() is hardware.has_avx512_bf16() is False


def test_threads_that_wait_leave_their_core_to_others_soon() -> None:
    variables = {"HOME": "/home/me"}
    share_cores(variables)
    assert variables == {"HOME": "/home/me", "GOMP_SPINCOUNT": "1000"}


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_how_threads_wait_is_the_users_choice_where_there_is_one(name: str) -> None:
    variables = {name: "as I say"}
    share_cores(variables)
    assert variables == {name: "as I say"}

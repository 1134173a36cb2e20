"""Devices and arithmetic."""

from __future__ import annotations

import contextlib

import pytest
import torch
from support.tiny_runs import cpu_of

from peftbench.errors import ConfigError
from peftbench.spec import Precision
from peftbench.training.device import (
    Compute,
    autocast,
    choose_device,
    choose_dtype,
    explain_dtype,
    seeded,
)

pytestmark = pytest.mark.arithmetic
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("precision", "amx", "expected"),
    [
        (Precision.FLOAT32, True, torch.float32),
        (Precision.BFLOAT16, False, torch.bfloat16),
        (Precision.AUTO, True, torch.bfloat16),
        (Precision.AUTO, False, torch.float32),
    ],
)
def test_bfloat16_on_a_cpu_is_chosen_only_where_hardware_has_it(
    precision: Precision, amx: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu_of(monkeypatch, amx=amx)
    assert choose_dtype(precision, CPU) is expected


@pytest.mark.parametrize(
    ("amx", "variables", "expected"),
    [
        (True, {"PEFTBENCH_CPU_PRECISION": "float32"}, torch.float32),
        (False, {"PEFTBENCH_CPU_PRECISION": "bfloat16"}, torch.bfloat16),
        (True, {"PEFTBENCH_CPU_PRECISION": ""}, torch.bfloat16),
        (True, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, torch.float32),
        (True, {"ONEDNN_MAX_CPU_ISA": "sse41"}, torch.float32),
        (True, {"DNNL_MAX_CPU_ISA": "AVX2"}, torch.float32),  # its older name
        (True, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_AMX"}, torch.bfloat16),
        (True, {"ONEDNN_MAX_CPU_ISA": "DEFAULT"}, torch.bfloat16),
        (True, {"ONEDNN_MAX_CPU_ISA": "typo"}, torch.bfloat16),  # oneDNN takes it for none
        (False, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_AMX"}, torch.float32),
        (True, {"ONEDNN_MAX_CPU_ISA": "ALL", "DNNL_MAX_CPU_ISA": "AVX"}, torch.bfloat16),
        (
            True,
            {"ONEDNN_MAX_CPU_ISA": "AVX2", "PEFTBENCH_CPU_PRECISION": "bfloat16"},
            torch.bfloat16,
        ),
    ],
)
def test_the_environment_can_hide_or_claim_fast_bfloat16(
    amx: bool,
    variables: dict[str, str],
    expected: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu_of(monkeypatch, amx=amx, **variables)
    assert choose_dtype(Precision.AUTO, CPU) is expected
    # what is asked for by name is not up to the environment
    assert choose_dtype(Precision.FLOAT32, CPU) is torch.float32
    assert choose_dtype(Precision.BFLOAT16, CPU) is torch.bfloat16


@pytest.mark.parametrize(
    ("variables", "expected", "reason"),
    [
        ({}, torch.bfloat16, "AVX512_BF16"),
        ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, torch.bfloat16, "AVX512_BF16"),
        (
            {"ONEDNN_MAX_CPU_ISA": "avx512_core_vnni"},
            torch.float32,
            "AVX512_BF16 is hidden by ONEDNN_MAX_CPU_ISA=avx512_core_vnni",
        ),
        (
            {"DNNL_MAX_CPU_ISA": "AVX2"},
            torch.float32,
            "AVX512_BF16 is hidden by DNNL_MAX_CPU_ISA=AVX2",
        ),
        (
            {"PEFTBENCH_CPU_PRECISION": "float32"},
            torch.float32,
            "PEFTBENCH_CPU_PRECISION=float32",
        ),
    ],
)
def test_bfloat16_in_vectors_is_enough_without_amx(
    variables: dict[str, str], expected: torch.dtype, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu_of(monkeypatch, amx=False, avx512_bf16=True, **variables)
    assert explain_dtype(Precision.AUTO, CPU) == (expected, reason)


def test_an_arithmetic_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_of(monkeypatch, amx=False, PEFTBENCH_CPU_PRECISION="bf16")
    with pytest.raises(ConfigError) as refused:
        choose_dtype(Precision.AUTO, CPU)
    assert str(refused.value) == (
        "PEFTBENCH_CPU_PRECISION='bf16' is no arithmetic. Use float32, bfloat16."
    )


@pytest.mark.parametrize(
    ("capability", "expected"), [((8, 0), torch.bfloat16), ((7, 5), torch.float32)]
)
def test_bfloat16_on_a_gpu_is_chosen_from_ampere_on(
    capability: tuple[int, int], expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_dtype(Precision.AUTO, GPU) is expected


def test_float32_runs_without_autocast() -> None:
    assert isinstance(autocast(Compute(CPU, torch.float32)), contextlib.nullcontext)
    with autocast(Compute(CPU, torch.bfloat16)):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.bfloat16


@pytest.mark.parametrize(("available", "kind"), [(True, "cuda"), (False, "cpu")])
def test_auto_is_the_gpu_if_there_is_one(
    available: bool, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert choose_device("auto").type == kind


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError) as refused:
        choose_device("cuda:1")
    assert str(refused.value) == (
        "device='cuda:1' was asked for, but CUDA is not available. Use cpu."
    )
    with pytest.raises(ConfigError) as refused:
        choose_device("gpu")
    assert str(refused.value) == "device='gpu' is no device. Use auto, cpu, cuda or cuda:N."


def test_seeded_numbers_repeat_and_leave_those_outside_alone() -> None:
    def drawn(seed: int) -> float:
        with seeded(seed, Compute(CPU, torch.float32)):
            return float(torch.rand(()))

    torch.manual_seed(5)
    expected = torch.rand(2).tolist()
    torch.manual_seed(5)
    before = float(torch.rand(()))
    assert drawn(7) == drawn(7) != drawn(8)
    assert [before, float(torch.rand(()))] == expected

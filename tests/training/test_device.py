"""Devices, arithmetic, and images as a model sees them."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch
from support.tiny_runs import cpu_of

from peftbench.errors import ConfigError
from peftbench.spec import Precision
from peftbench.training import device
from peftbench.training.device import Compute, Pixels, autocast, choose_device, choose_dtype, seeded

pytestmark = pytest.mark.arithmetic
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_pixels_are_normalised_channel_by_channel() -> None:
    images = np.zeros((2, 1, 2, 3), dtype=np.uint8)
    images[0, 0, 0] = (255, 51, 0)
    images[1, 0, 1] = (102, 0, 204)
    pixels = Pixels(images, mean=(0.5, 0.2, 0.0), std=(0.25, 0.1, 2.0), device=CPU)
    assert len(pixels) == 2
    x = pixels.batch(torch.tensor([1, 0]))
    assert x.shape == (2, 3, 1, 2)
    assert x.dtype is torch.float32
    # (value / 255 - mean) / std; 255, 51, 102 and 204 are 1, 0.2, 0.4 and 0.8
    expected = [
        [[[-2.0, (0.4 - 0.5) / 0.25]], [[-2.0, -2.0]], [[0.0, 0.4]]],
        [[[(1 - 0.5) / 0.25, -2.0]], [[0.0, -2.0]], [[0.0, 0.0]]],
    ]
    torch.testing.assert_close(x, torch.tensor(expected), rtol=0, atol=1e-6)
    lowest, highest = pixels.limits
    torch.testing.assert_close(lowest, torch.tensor([-2.0, -2.0, 0.0]).view(1, 3, 1, 1))
    torch.testing.assert_close(highest, torch.tensor([2.0, 8.0, 0.5]).view(1, 3, 1, 1))


def test_images_that_are_too_many_for_the_device_stay_in_their_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 2, 2, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    index = torch.tensor([3, 0, 3])
    kept = Pixels(mapped, (0.5,) * 3, (0.25,) * 3, CPU)
    monkeypatch.setattr(device, "RESIDENT_BYTES", images.nbytes - 1)
    streamed = Pixels(mapped, (0.5,) * 3, (0.25,) * 3, CPU)
    assert (len(kept.images), len(streamed.images)) == (5, 0)
    assert len(streamed) == 5
    assert torch.equal(streamed.batch(index), kept.batch(index))
    assert torch.equal(streamed.batch(slice(1, 4)), kept.batch(slice(1, 4)))


def test_a_batch_is_a_copy_that_a_model_may_write_into() -> None:
    images = np.full((1, 2, 2, 3), 255, dtype=np.uint8)
    pixels = Pixels(images, (0.0,) * 3, (1.0,) * 3, CPU)
    pixels.batch(slice(None)).zero_()
    assert (pixels.batch(slice(None)) == 1).all()
    assert (images == 255).all()


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

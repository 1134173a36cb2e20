"""Devices and arithmetic."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from peftbench.errors import ConfigError
from peftbench.spec import Precision
from peftbench.training.hardware import has_avx512_bf16, is_bfloat16_fast
from peftbench.training.world import ALONE, World


@dataclass(frozen=True)
class Compute:
    """Where and how a model is computed."""

    device: torch.device
    dtype: torch.dtype  # arithmetic of the forward pass
    world: World = ALONE  # the processes that share the work
    micro_batch: int | None = None  # images in memory at a time; `None` is a whole batch
    compile: bool = False  # whether training goes through `torch.compile`

    def alone(self) -> Compute:
        """The same for what one process does by itself."""
        return dataclasses.replace(self, world=ALONE)


def choose_device(name: str) -> torch.device:
    """The device called `name`; "auto" is a CUDA device if there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as e:
        raise ConfigError(f"device={name!r} is no device. Use auto, cpu, cuda or cuda:N.") from e
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device={name!r} was asked for, but CUDA is not available. Use cpu.")
    return device


def choose_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """Arithmetic of the forward pass for a declared precision; see `explain_dtype`."""
    return explain_dtype(precision, device)[0]


def explain_dtype(precision: Precision, device: torch.device) -> tuple[torch.dtype, str]:
    """Arithmetic of the forward pass for a declared precision, and the reason in a few words.

    "auto" takes bfloat16 where hardware has it: on an x86 CPU with neither AMX nor AVX512_BF16 it
    is emulated and measured 10 times slower than float32, with AMX it is about 4 times faster, and
    with AVX512_BF16 alone 1.2 to 2 times (a step of vit_mini, ViT-S, Swin-T, ResNet-50 and
    ConvNeXt-T on an EPYC of family 25, model 17). There only networks of depthwise convolutions
    lose where they train as a whole (EfficientNet-Lite0 0.6, MobileNetV3 0.6): which network runs
    is not asked, so that one sweep has one arithmetic. On a CPU the environment variable
    `PEFTBENCH_CPU_PRECISION` decides instead, where it is set.
    """
    if precision is not Precision.AUTO:
        named = torch.bfloat16 if precision is Precision.BFLOAT16 else torch.float32
        return named, "as asked"
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
        reason = "of Ampere or newer" if fast else "older than Ampere"
    elif device.type == "cpu":
        fast, reason = is_bfloat16_fast(torch.cpu._is_amx_tile_supported, has_avx512_bf16)
    else:
        fast, reason = False, f"device {device.type}"
    return (torch.bfloat16 if fast else torch.float32), reason


def autocast(compute: Compute) -> contextlib.AbstractContextManager[object]:
    """Autocast to the arithmetic of `compute`; float32 needs none."""
    if compute.dtype is torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(compute.device.type, compute.dtype)


@contextlib.contextmanager
def seeded(seed: int, compute: Compute) -> Iterator[None]:
    """Inside, dropout and drop-path draw from `seed`, each process for its own.

    They draw from torch's global generators, which go on behind as if nothing had been drawn.
    """
    devices = [compute.device] if compute.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed((seed + (compute.world.rank << 32)) % 2**63)
        yield


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was asked, so that a clock can be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)

"""What this machine computes with, as far as that shows without torch."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

from peftbench.errors import ConfigError
from peftbench.spec import Precision

CPU_PRECISION = "PEFTBENCH_CPU_PRECISION"  # what "auto" comes to on a CPU, whatever the CPU is
MEMORY_SHARE = "PEFTBENCH_MEMORY_SHARE"  # part of a GPU's or the machine's that a job may take
# values of oneDNN's ONEDNN_MAX_CPU_ISA with which its products of bfloat16 do not use AMX; it takes
# a word that it does not know for none (src/cpu/x64/cpu_isa_traits.cpp)
WITHOUT_AMX = frozenset(
    {
        *("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2"),
        *("AVX512_CORE", "AVX512_CORE_VNNI", "AVX512_CORE_BF16", "AVX512_CORE_FP16"),
        *("AVX10_1", "AVX10_1_512", "AVX10_2", "AVX10_2_512"),
    }
)
# those with which it has no products of bfloat16 at all
WITHOUT_AVX512_BF16 = frozenset(
    {
        *("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2"),
        *("AVX512_CORE", "AVX512_CORE_VNNI"),
    }
)
MAX_ISA = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")  # oneDNN takes the first that is set
ROCM_DEVICES = ("/dev/kfd", "/dev/dxg")  # of the kernel, and of Windows below it


@cache
def gpus_are_possible() -> bool:
    """Whether torch could find a GPU here, and has to be asked.

    On Linux its CUDA needs the library of NVIDIA's driver, and its ROCm a device of the kernel.
    """
    if sys.platform == "darwin":
        return False  # what is there is no CUDA device
    if sys.platform != "linux" or any(map(os.path.exists, ROCM_DEVICES)):
        return True
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def memory_share() -> float:
    """The part of the memory of its GPU, or of the machine, that this process may take.

    All of it where nobody says, or what is said is no part.
    """
    try:
        part = float(os.environ.get(MEMORY_SHARE, ""))
    except ValueError:
        return 1.0
    return part if 0 < part <= 1 else 1.0


# Linux that names an instruction set in /proc/cpuinfo; AMX needs its permission besides
LISTED_SINCE = {"amx_tile": (5, 16), "avx512_bf16": (5, 3)}


@cache
def has_amx() -> bool:
    """Whether this CPU has AMX; torch is asked where the system does not show it."""
    return _has("amx_tile", "_is_amx_tile_supported")


@cache
def has_avx512_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 in its vectors (Zen 4, Cooper Lake and newer)."""
    return _has("avx512_bf16", "_is_avx512_bf16_supported")


def _has(flag: str, question: str) -> bool:
    """Whether the system lists `flag` for this CPU, or torch says yes to `question`."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    try:
        listed = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError):
        listed = []
    if flag in listed:
        return True
    if listed and _kernel() >= LISTED_SINCE[flag]:
        return False
    import torch  # an older kernel does not name all that a CPU has

    return bool(getattr(torch.cpu, question, lambda: False)())  # torch 2.4 knows fewer


def _kernel() -> tuple[int, ...]:
    """The version of a Linux kernel, (major, minor); (0,) of another system."""
    found = re.match(r"(\d+)\.(\d+)", platform.release()) if sys.platform == "linux" else None
    return tuple(map(int, found.groups())) if found else (0,)


def is_bfloat16_fast(
    amx: Callable[[], bool], avx512_bf16: Callable[[], bool] = lambda: False
) -> tuple[bool, str]:
    """Whether products of bfloat16 are to be used on this CPU, and why.

    The instruction set decides, not a stopwatch: all processes of a sweep, on all machines of one
    kind, come to the same arithmetic. Each function says whether the CPU has an instruction set.

    Raises:
        ConfigError: the environment asks for an arithmetic that is none.
    """
    asked = os.environ.get(CPU_PRECISION, "").strip()
    if asked:
        if asked not in (Precision.FLOAT32, Precision.BFLOAT16):
            raise ConfigError(f"{CPU_PRECISION}={asked!r} is no arithmetic. Use float32, bfloat16.")
        return asked == Precision.BFLOAT16, f"{CPU_PRECISION}={asked}"
    if amx():
        return _unless_hidden("AMX", WITHOUT_AMX)
    if avx512_bf16():
        return _unless_hidden("AVX512_BF16", WITHOUT_AVX512_BF16)
    return False, "no AMX"


def _unless_hidden(name: str, hiding: frozenset[str]) -> tuple[bool, str]:
    """Whether oneDNN may use the instruction set `name`, and in which words."""
    for variable in MAX_ISA:
        highest = os.environ.get(variable, "")
        if highest:
            hidden = highest.upper() in hiding
            return (False, f"{name} is hidden by {variable}={highest}") if hidden else (True, name)
    return True, name

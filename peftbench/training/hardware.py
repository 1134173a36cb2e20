"""What this machine computes with, as far as that shows without torch."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

from peftbench.errors import ConfigError
from peftbench.spec import Precision

CPU_PRECISION = "PEFTBENCH_CPU_PRECISION"  # what "auto" comes to on a CPU, whatever the CPU is
# values of oneDNN's ONEDNN_MAX_CPU_ISA with which its products of bfloat16 do not use AMX; it takes
# a word that it does not know for none (src/cpu/x64/cpu_isa_traits.cpp)
WITHOUT_AMX = frozenset(
    {
        *("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2"),
        *("AVX512_CORE", "AVX512_CORE_VNNI", "AVX512_CORE_BF16", "AVX512_CORE_FP16"),
        *("AVX10_1", "AVX10_1_512", "AVX10_2", "AVX10_2_512"),
    }
)
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


@cache
def has_amx() -> bool:
    """Whether this CPU has AMX; torch is asked where the system does not show it."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    try:
        listed = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError):
        listed = []
    if "amx_tile" in listed:
        return True
    import torch  # an older kernel does not name all that a CPU has

    return bool(torch.cpu._is_amx_tile_supported())


def is_bfloat16_fast(amx: Callable[[], bool]) -> tuple[bool, str]:
    """Whether products of bfloat16 are to be used on this CPU, and why; `amx` says if it has AMX.

    Raises:
        ConfigError: the environment asks for an arithmetic that is none.
    """
    asked = os.environ.get(CPU_PRECISION, "").strip()
    if asked:
        if asked not in (Precision.FLOAT32, Precision.BFLOAT16):
            raise ConfigError(f"{CPU_PRECISION}={asked!r} is no arithmetic. Use float32, bfloat16.")
        return asked == Precision.BFLOAT16, f"{CPU_PRECISION}={asked}"
    if not amx():
        return False, "no AMX"
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):  # oneDNN takes the first that is set
        highest = os.environ.get(name, "")
        if highest:
            hidden = highest.upper() in WITHOUT_AMX
            return (False, f"AMX is hidden by {name}={highest}") if hidden else (True, "AMX")
    return True, "AMX"

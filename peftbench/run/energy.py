"""Energy that a device takes, from counters of its own: NVML of NVIDIA, RAPL of Linux."""

from __future__ import annotations

import contextlib
import importlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

POWERCAP = Path("/sys/class/powercap")  # where Linux shows RAPL's counters
WHOLE_PLATFORM = "psys"  # a domain that holds the packages once more
MOST_WATTS = 1000.0  # of one package; the largest on sale take half of that


@dataclass(frozen=True)
class Counter:
    """A counter that only grows, or begins again at zero."""

    read: Callable[[], int]
    joules: float  # of one of its units
    span: int | None = None  # units after which it begins again; `None` for never


class EnergyMeter:
    """Joules that a device takes from now on.

    A counter is of a whole GPU, or of all processor packages: what other programs do there is in
    it. `sample` is to be called every few minutes, since a package at full power has counted
    through within some of them.
    """

    def __init__(self, device: torch.device) -> None:
        self._counters = _nvml(device) if device.type == "cuda" else _rapl()
        self._last = _read(self._counters)
        self._when = time.monotonic()
        self._total = 0.0

    def sample(self) -> None:
        """Take in what was counted since the last sample."""
        now, new = time.monotonic(), _read(self._counters)
        if self._last is None or new is None:
            self._last = None
            return
        for counter, old, value in zip(self._counters, self._last, new, strict=True):
            passed = value - old
            if counter.span is not None:
                if (now - self._when) * MOST_WATTS > counter.span * counter.joules:
                    self._last = None  # it may have begun again more than once
                    return
                passed %= counter.span
            self._total += passed * counter.joules
        self._last, self._when = new, now

    def joules(self) -> float | None:
        """Since the meter was made; `None` where no counter could be read all the time."""
        self.sample()
        return self._total if self._counters and self._last is not None else None


def _read(counters: list[Counter]) -> list[int] | None:
    """What they show; `None` where one of them cannot be read any more."""
    try:
        return [counter.read() for counter in counters]
    except (OSError, ValueError):
        return None


def _number(file: Path) -> int:
    return int(file.read_text(encoding="ascii"))


def _rapl() -> list[Counter]:
    """Counters of the packages; none where the system has none or keeps them for root."""
    counters = []
    with contextlib.suppress(OSError, ValueError):
        for folder in sorted(POWERCAP.glob("intel-rapl:*")):
            own = folder.name.count(":") == 1  # others are parts of a package
            if not own or (folder / "name").read_text(encoding="ascii").strip() == WHOLE_PLATFORM:
                continue
            file = folder / "energy_uj"
            if not os.access(file, os.R_OK):
                return []
            span = _number(folder / "max_energy_range_uj")
            counters.append(Counter(partial(_number, file), 1e-6, span))
    return counters


def _nvml(device: torch.device) -> list[Counter]:
    """The counter of a GPU of Volta or newer, where the package nvidia-ml-py is installed."""
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return []
    try:
        nvml.nvmlInit()
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")

        def read() -> int:
            return int(nvml.nvmlDeviceGetTotalEnergyConsumption(handle))

        read()
    except (nvml.NVMLError, AttributeError, RuntimeError):  # none of this GPU, or of this torch
        return []
    return [Counter(read, 1e-3)]

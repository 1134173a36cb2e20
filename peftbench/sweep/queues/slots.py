"""Slots of a machine: which devices and how many threads each job at a time gets."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from peftbench.config.limits import LAUNCHER, check_number
from peftbench.errors import ConfigError
from peftbench.training.hardware import MEMORY_SHARE, gpus_are_possible

IDENTIFIER = re.compile(r"\d+|[A-Za-z][\w/-]*")  # 0, GPU-5f3c..., MIG-...
MOST_GPUS = 1024  # of one machine
MEMORY_PER_JOB = 2 * 2**30  # bytes of main memory: torch, timm and a small backbone
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Slot:
    """A place for one job at a time."""

    name: str  # "gpu 0", "gpu 0+1 b", "cpu 1"
    devices: tuple[str, ...]  # what CUDA_VISIBLE_DEVICES holds; empty for a CPU slot
    threads: int
    memory_share: float = 1.0  # part of the memory of its devices, or of the machine

    def environment(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """Variables of the processes of this slot; threads that the user set stay."""
        variables = dict(inherited)
        for name in THREAD_VARIABLES:
            variables.setdefault(name, str(self.threads))
        if self.devices:
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(self.devices)
        variables["PEFTBENCH_SLOT"] = self.name
        if self.memory_share < 1:
            variables[MEMORY_SHARE] = f"{self.memory_share:.4f}"
        return variables


def make_slots(
    gpus: Sequence[str],
    *,
    gpus_per_job: int = 1,
    jobs_per_gpu: int = 1,
    jobs: int | None = None,
    cores: int | None = None,
) -> list[Slot]:
    """Slots over `gpus`, or over the cores where there are none.

    Args:
        gpus: identifiers as CUDA_VISIBLE_DEVICES takes them.
        gpus_per_job: each slot holds so many.
        jobs_per_gpu: so many slots share one group of GPUs.
        jobs: at most so many slots; on a CPU the number of slots.
        cores: shared out evenly; those of this process unless given.

    Raises:
        ConfigError: a number below 1, or more GPUs per job than there are.
    """
    check_number("hydra.launcher.gpus_per_job", gpus_per_job, 1, MOST_GPUS)
    check_number("hydra.launcher.jobs_per_gpu", jobs_per_gpu, *LAUNCHER["jobs_per_gpu"])
    check_number("hydra.launcher.jobs", jobs, *LAUNCHER["jobs"], "or null")
    cores = usable_cores() if cores is None else cores
    if not gpus:
        count = jobs or _fitting(cores)
        threads = max(1, cores // count)
        return [Slot(f"cpu {i}", (), threads, 1 / count) for i in range(count)]
    if gpus_per_job > len(gpus):
        raise ConfigError(
            f"hydra.launcher.gpus_per_job={gpus_per_job}, but {len(gpus)} GPUs can be used. "
            "Ask for fewer."
        )
    groups = [
        tuple(gpus[start : start + gpus_per_job])
        for start in range(0, len(gpus) - gpus_per_job + 1, gpus_per_job)
    ]
    # a second job of one GPU starts after every GPU has one
    places = [(group, turn) for turn in range(jobs_per_gpu) for group in groups][:jobs]
    threads = max(1, cores // len(places))
    return [
        Slot(
            f"gpu {'+'.join(group)}{'' if jobs_per_gpu == 1 else ' ' + 'abcdefgh'[turn % 8]}",
            group,
            threads,
            1 / jobs_per_gpu,
        )
        for group, turn in places
    ]


def visible_gpus(asked: str) -> list[str]:
    """GPUs to use: `auto` for all that this process sees, a count, or identifiers.

    Identifiers are joined by + or, quoted, by commas, which a multirun would read as a sweep.

    Raises:
        ConfigError: more than any machine has, or no identifier.

    A count or identifiers are taken as they are, so a slot can be tried out without the device.
    """
    listed = [g for g in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if g]
    if asked != "auto":
        asked = asked.replace("+", ",")
        if asked.isdecimal():
            check_number("hydra.launcher.gpus", int(asked), 0, MOST_GPUS)
            return (listed or [str(i) for i in range(int(asked))])[: int(asked)]
        named = [g.strip() for g in asked.split(",") if g.strip()]
        for name in named:
            if not IDENTIFIER.fullmatch(name):
                raise ConfigError(
                    f"hydra.launcher.gpus={asked}; use auto, a count, or identifiers such as 0+2."
                )
        return named
    if not gpus_are_possible():
        return []
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return listed[:count] if listed else [str(i) for i in range(count)]


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _fitting(cores: int) -> int:
    """One job for each core, as far as main memory goes."""
    import psutil

    return max(1, min(cores, int(psutil.virtual_memory().available // MEMORY_PER_JOB)))

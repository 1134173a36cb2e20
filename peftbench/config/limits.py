"""Numbers that a command may ask for; what lies beyond is a slip, told in one line."""

from __future__ import annotations

import os

from peftbench.errors import ConfigError
from peftbench.registry import unknown_name

MOST_PROCESSES = 1024  # of one run, on the largest machine
MOST_THREADS = 4096  # of one process, on the largest machine that a sweep may be sent to
MOST_GIGABYTES = 1e6  # of kept activations
LEAST_BOUND = 64  # threads that any machine takes, however few its cores
THREADS_PER_CORE = 4

# least and most of the options of launchers, where they have them
LAUNCHER: dict[str, tuple[float, float]] = {
    "jobs": (1, 10_000),
    "jobs_per_process": (1, 100_000),
    "jobs_per_gpu": (1, 64),
    "retry_out_of_memory": (0, 100),
    "retry_lost_machine": (0, 100),
    "stop_after": (1, 10**9),
    "timeout": (1e-3, 1e9),  # seconds
    "stagger": (0, 1e6),  # seconds
    "time": (1, 10 * 366 * 24 * 60),  # minutes
    "gpus_per_job": (0, 1024),
    "cpus_per_job": (0, 100_000),
    "mem_gb": (1e-3, 1e6),
}


def check_number(key: str, value: float | None, least: float, most: float, why: str = "") -> None:
    """Raise `ConfigError` unless a number, where it is given, lies between two others."""
    if value is None or least <= value <= most:
        return
    if value < least:
        raise ConfigError(f"{key}={value}; use {_plain(least)} or more{why and ', ' + why}.")
    span = f"{_plain(least)} to {_plain(most)}"
    raise ConfigError(f"{key}={value}; use {span}{why and ', ' + why}.")


def check_launcher(options: object) -> None:
    """Raise `ConfigError` for an option of a launcher that nobody can mean."""
    for name, (least, most) in LAUNCHER.items():
        value = getattr(options, name, None)
        if isinstance(value, int | float):
            check_number(f"hydra.launcher.{name}", value, least, most)


def check_threads(threads: int | None, anywhere: bool = False) -> None:
    """Raise `ConfigError` for threads that this machine, or any, would break down under."""
    if threads is None:
        return
    if threads < 1:
        raise ConfigError(f"threads={threads}; use 1 or more, or null.")
    cores = os.cpu_count() or 1
    here = max(LEAST_BOUND, THREADS_PER_CORE * cores)
    why = "or null" if anywhere else f"or null: this machine has {cores} cores"
    check_number("threads", threads, 1, MOST_THREADS if anywhere else here, why)


def check_micro_batch(images: int | None) -> None:
    """Raise `ConfigError` for a number of images that is none."""
    if images is not None and images < 1:
        raise ConfigError(f"micro_batch={images}; use 1 or more, or null.")


def is_timed(latency: str) -> bool:
    """Whether forward passes are timed after training.

    Raises:
        ConfigError: the text is neither "auto" nor "off".
    """
    if latency.lower() in ("off", "false"):  # YAML reads a bare `off` as false
        return False
    if latency != "auto":
        raise unknown_name("latency", latency, ("auto", "off"))
    return True


def activation_bytes(cache: str, gigabytes: float) -> int | None:
    """Bytes that kept activations may take; `None` where none are kept.

    Raises:
        ConfigError: the choice or the number is none.
    """
    if cache.lower() in ("off", "false"):  # YAML reads a bare `off` as false
        return None
    if cache != "auto":
        raise unknown_name("cache", cache, ("auto", "off"))
    check_number("cache_gigabytes", gigabytes, 0, MOST_GIGABYTES)
    return int(gigabytes * 1e9)


def _plain(number: float) -> str:
    return f"{number:.0f}" if number == int(number) else f"{number:g}"

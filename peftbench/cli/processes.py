"""One run in several processes of this machine, one on each GPU or on its share of the cores."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

from peftbench.config.limits import MOST_PROCESSES, check_number
from peftbench.errors import ConfigError
from peftbench.sweep.queues.processes import STOP_SECONDS, die_with
from peftbench.sweep.queues.slots import usable_cores

LEAST_BOUND = 16  # that any machine takes, however few its cores
GRACE_SECONDS = 15.0  # in which the others notice that one has failed, and record it


def check_count(processes: int, device: str) -> None:
    """Raise `ConfigError` for a number of processes that cannot be had on `device`."""
    import torch

    from peftbench.training.device import choose_device

    check_number("processes", processes, 1, MOST_PROCESSES)
    on_gpus = choose_device(device).type == "cuda"
    gpus = torch.cuda.device_count()
    if on_gpus and processes > gpus:
        raise ConfigError(
            f"processes={processes}, but {gpus} GPUs can be used, and each process needs one. "
            f"Use processes={gpus}."
        )
    cores = os.cpu_count() or 1
    if not on_gpus:
        most = max(LEAST_BOUND, 2 * cores)
        check_number("processes", processes, 1, most, f"as this machine has {cores} cores")


def run_together(arguments: Sequence[str], processes: int) -> int:
    """The exit status of `peftbench run ARGUMENTS` in `processes` processes that train together.

    Each finds its place in the environment, as torchrun sets it. When one fails, the others get
    `GRACE_SECONDS` to record that, and are then stopped; so are all when this process is.
    """
    port = _free_port()
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "peftbench", "run", *arguments],
            env=os.environ | _place(rank, processes, port),
            preexec_fn=_die_with_parent,
        )
        for rank in range(processes)
    ]
    failed_at: float | None = None
    try:
        while any(p.poll() is None for p in started):
            failed = any(p.returncode not in (None, 0) for p in started)
            failed_at = failed_at or (time.monotonic() if failed else None)
            if failed_at is not None and time.monotonic() - failed_at > GRACE_SECONDS:
                break
            time.sleep(0.05)
    finally:
        _stop(started)
    # the first speaks for the run; where it ended well, so did the others, or they are told of
    return next((p.returncode for p in started if p.returncode), 0)


def _place(rank: int, processes: int, port: int) -> dict[str, str]:
    threads = str(max(1, usable_cores() // processes))
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads),
    }


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _die_with_parent() -> None:
    with contextlib.suppress(Exception):  # Linux only; elsewhere the parent must live to stop us
        die_with(os.getppid())


def _stop(started: Sequence[subprocess.Popen[bytes]]) -> None:
    for signum, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, 5.0)):
        for process in started:
            if process.poll() is None:
                process.send_signal(signum)
        deadline = time.monotonic() + seconds
        while any(p.poll() is None for p in started) and time.monotonic() < deadline:
            time.sleep(0.05)

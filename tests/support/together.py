"""Several processes that train one model, forked from the test's own: torch is there already."""

from __future__ import annotations

import os
import socket
import time
import traceback
from collections.abc import Callable

import torch

PATIENCE = 300.0


def together(size: int, task: Callable[[int], None]) -> list[int]:
    """Exit statuses of `size` processes that run `task(rank)`, with the environment of torchrun."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    children = []
    for rank in range(size):
        pid = os.fork()
        if pid == 0:
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
            os.environ |= {"MASTER_ADDR": "127.0.0.1"} | {k: str(v) for k, v in place.items()}
            torch.set_num_threads(1)
            status = 1
            try:
                task(rank)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        children.append(pid)
    return [_status(pid) for pid in children]


def _status(pid: int) -> int:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return -9

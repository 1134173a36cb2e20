"""The servers of a pool as forks of the test's own process, which has torch and timm already.

A server of its own takes 5 s of one core to import them, which is most of what a tiny sweep costs.
All that follows is the same: requests and replies, a process forked for each request, signals,
output files. Sweeps with real servers are in `test_sweep.py` and `test_sweep_failures.py`.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace

import pytest
from hydra.core.global_hydra import GlobalHydra

from peftbench.cli import server
from peftbench.sweep.queues import pool


@contextlib.contextmanager
def forked_servers() -> Iterator[None]:
    """Pools start their servers in this way meanwhile; where there is no fork, in their own."""
    with pytest.MonkeyPatch.context() as patch:
        if hasattr(os, "fork"):
            popen = SimpleNamespace(Popen=ForkedServer, PIPE=subprocess.PIPE)
            patch.setattr(pool, "subprocess", popen)
        yield


class ForkedServer:
    """What a pool uses of `subprocess.Popen`, for a server."""

    def __init__(self, command: Sequence[str], *, env: Mapping[str, str], **_: object) -> None:
        assert command == [sys.executable, "-m", server.__name__]
        requests, write = os.pipe()
        read, replies = os.pipe()
        with warnings.catch_warnings():  # of Python 3.12, about forks beside threads
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if self.pid == 0:
            os.close(write)
            os.close(read)
            _serve(requests, replies, env)
        os.close(requests)
        os.close(replies)
        self.stdin = os.fdopen(write, "wb")
        self.stdout = os.fdopen(read, "rb")
        self.returncode: int | None = None

    def kill(self) -> None:
        if self.returncode is None:
            os.kill(self.pid, 9)

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode


def _serve(requests: int, replies: int, env: Mapping[str, str]) -> None:
    """In the fork: what is left of the test there is undone, then it is a server to its end."""
    status = 1
    try:
        os.setsid()
        os.dup2(requests, 0)
        os.dup2(replies, 1)
        sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
        os.environ.clear()
        os.environ.update(env)
        warnings.resetwarnings()  # there they are no errors
        GlobalHydra.instance().clear()  # the sweep's, which is under way
        server.main()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)

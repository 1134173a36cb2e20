"""MATLAB files read by forks of the test's own process, which has SciPy already.

A new process for each file takes 0.3 s of one core to import it; all else is the same, its limits
and its end by a signal included. That the reader starts a process of its own is tested in
`test_matlab.py`, with real ones.
"""

from __future__ import annotations

import faulthandler
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

from peftbench.data import matlab, matlab_child

FAILED = 99  # exit status of a fork in which something else went wrong


@pytest.fixture
def forked_matlab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether a signal ended it, for each process of `matlab.read` so far."""
    pytest.importorskip("scipy.io", exc_type=ImportError)
    died: list[bool] = []
    if not hasattr(os, "fork"):
        return died
    answer = tmp_path / "matlab-answer"

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        with warnings.catch_warnings():  # of Python 3.12, about forks beside threads
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            try:
                faulthandler.disable()
                with answer.open("w") as told:
                    sys.stdout = told
                    status = matlab_child.main(command)
                os._exit(status)
            finally:
                os._exit(FAILED)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status != FAILED
        died.append(status < 0)
        return subprocess.CompletedProcess(command, status, answer.read_bytes())

    monkeypatch.setattr(matlab, "_command", list)
    kept = {name: getattr(subprocess, name) for name in ("DEVNULL", "PIPE", "TimeoutExpired")}
    monkeypatch.setattr(matlab, "subprocess", SimpleNamespace(run=run, **kept))
    return died

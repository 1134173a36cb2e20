"""Submissions through submitit: to Slurm, or as processes of this machine to try one out."""

from __future__ import annotations

import functools
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from peftbench.errors import ConfigError
from peftbench.registry import unknown_name
from peftbench.sweep.queues.remote import Engine
from peftbench.sweep.queues.slots import Slot
from peftbench.sweep.queues.states import HELD, States, how_it_ended
from peftbench.sweep.queues.submission import Gone, Handle, process, runs
from peftbench.sweep.queues.worker import serve

EXECUTORS = ("auto", "slurm", "local", "debug")
END_SECONDS = 10.0
LARGEST_ARRAY = 1000  # Slurm's MaxArraySize is 1001 unless its administrators changed it


def run(path: str) -> None:
    """What submitit runs on a node of the cluster."""
    from submitit.core.utils import UncompletedJobError

    # submitit raises this in the running function shortly before time is up; on the same signal
    # earlier it puts the job back into the queue, and Slurm then ends us by SIGTERM
    _deaf_to_a_second_signal()
    if not serve(path, limits=(UncompletedJobError,)):
        _ask_to_start_again()


def _ask_to_start_again() -> None:
    """Have Slurm start this job again that it has asked to stop, and has not begun to end.

    So it asks a job that it will preempt, which would be over if it ended in the time of grace.
    """
    number = os.environ.get("SLURM_JOB_ID", "")
    if number and States()(number) == "RUNNING":
        with suppress(OSError):
            subprocess.run(["scontrol", "requeue", number], check=False)


def _deaf_to_a_second_signal() -> None:
    """Once submitit's signal has come, SIGTERM no longer cuts short what it began."""
    signum = signal.SIGUSR2
    handler = signal.getsignal(signum)
    if not callable(handler):  # submitit was told to use another one
        return

    def once(number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        handler(number, frame)

    signal.signal(signum, once)


def executor_of(asked: str) -> str:
    """The executor that `asked` stands for: "slurm", "local" or "debug".

    Raises:
        ConfigError: no such executor, or Slurm was asked for where it is not.
    """
    from submitit import AutoExecutor, SlurmExecutor

    if asked not in EXECUTORS:
        raise unknown_name("hydra.launcher.executor", asked, EXECUTORS)
    if asked == "auto":
        which: str = AutoExecutor.which()
        return which if which in EXECUTORS else "local"
    if asked == "slurm" and SlurmExecutor.affinity() <= 0:
        raise ConfigError(
            "hydra.launcher.executor=slurm finds no srun here. Run it on a login node of the "
            "cluster, or use executor=local to try it on this machine."
        )
    return asked


class SubmititEngine(Engine):
    """Submits through submitit.

    Args:
        executor: "slurm", "local" or "debug".
        folder: where submitit keeps its files and what submissions print.
        parameters: of submitit, as its `AutoExecutor` takes them; `slurm_...` is for Slurm alone.
        slots: places of this machine, for "local" and "debug".
        threads: of each job on Slurm.

    Raises:
        ConfigError: a parameter that submitit refuses.
    """

    def __init__(
        self,
        executor: str,
        folder: Path,
        parameters: Mapping[str, Any],
        *,
        slots: Sequence[Slot] = (),
        threads: int = 1,
    ) -> None:
        import submitit

        self.kind = executor
        self.name = executor if executor == "slurm" else f"{executor}@{socket.gethostname()}"
        self.folder = folder.absolute()
        self.anywhere = Slot("slurm", (), threads)
        on_slurm = executor == "slurm"
        self.pause, self.grace = (2.0, 15.0) if on_slurm else (0.1, 0.5)
        self.vanishes = self.starts_again = on_slurm
        self.states = States()
        self.held: set[str] = set()  # that the user was told of
        self.free = None if on_slurm else deque(slots[:1] if executor == "debug" else slots)
        self.jobs: dict[str, submitit.Job[None]] = {}  # of this launch, by id
        try:
            self.executor = submitit.AutoExecutor(self.folder, cluster=executor)
            self.executor.update_parameters(name="peftbench", stderr_to_stdout=True, **parameters)
        except (AssertionError, NameError, TypeError, ValueError, RuntimeError) as e:
            raise ConfigError(f"hydra.launcher: submitit says {_one_line(e)}") from e

    def submit(self, paths: Sequence[Path]) -> list[Handle]:
        jobs: list[Any] = []
        for start in range(0, len(paths), LARGEST_ARRAY):
            part = paths[start : start + LARGEST_ARRAY]
            calls = [functools.partial(run, str(path)) for path in part]
            try:
                with _deaf_children(self.kind == "local"):
                    jobs += self.executor.submit_array(calls)
            except (OSError, RuntimeError) as e:  # what sbatch answered
                if jobs:
                    self.cancel([self._handle(job.job_id) for job in jobs])
                raise ConfigError(
                    f"{self.kind} did not take the jobs: {_one_line(e)}. Check hydra.launcher: "
                    "partition, account, qos, constraint, time, gpus_per_job, mem_gb."
                ) from e
        self.jobs.update({job.job_id: job for job in jobs})
        self.states.follow(self.jobs, ask=False)
        return [self._handle(job.job_id) for job in jobs]

    def gone(self, handle: Handle) -> Gone | None:
        job = self.jobs.get(handle["id"])
        if self.kind != "slurm":
            if job is None:
                return None if runs(handle) else Gone("is gone")
            return Gone("ended") if job.done() else None
        state = self.states(handle["id"])
        if state in HELD and handle["id"] not in self.held:
            self.held.add(handle["id"])
            print(
                f"slurm {handle['id']} is held by Slurm ({state}); "
                f"`scontrol release {handle['id']}` lets it go on",
                file=sys.stderr,
                flush=True,
            )
        return how_it_ended(state)

    def expect(self, handles: Sequence[Handle]) -> None:
        if self.kind == "slurm":
            self.states.follow(handle["id"] for handle in handles)

    def forget(self, handle: Handle) -> None:
        self.states.forget(handle["id"])

    def cancel(self, handles: Sequence[Handle]) -> None:
        if self.kind == "slurm":
            with suppress(OSError):  # no such command, and so no such jobs
                subprocess.run(["scancel", *(handle["id"] for handle in handles)], check=False)
            return
        for handle in handles:
            if self.kind == "local" and runs(handle):
                os.kill(handle["pid"], signal.SIGTERM)  # passed on by submitit's controller

    def title(self, handle: Handle) -> str:
        return f"{self.kind} {handle['id']}"

    def log(self, handle: Handle) -> Path | None:
        from submitit.core.utils import JobPaths

        return Path(JobPaths(handle["folder"], job_id=handle["id"], task_id=0).stdout)

    def close(self) -> None:
        # a local submission has said that it is over a moment before its process is
        deadline = time.monotonic() + END_SECONDS
        while self.kind == "local" and time.monotonic() < deadline:
            if all(job.done() for job in self.jobs.values()):
                break
            time.sleep(0.05)
        self.jobs.clear()

    def _handle(self, number: str) -> Handle:
        handle = {"id": number, "folder": str(self.folder)}
        if self.kind == "slurm":
            return handle
        return handle | process(int(number) if self.kind == "local" else os.getpid())


@contextmanager
def _deaf_children(local: bool) -> Iterator[None]:
    """Processes that start now do not hear a Ctrl-C, which reaches them through the launcher."""
    if not local:
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__

"""Submissions through submitit: to Slurm, or as processes of this machine to try one out."""

from __future__ import annotations

import functools
import os
import signal
import socket
import subprocess
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peftbench.errors import ConfigError
from peftbench.registry import unknown_name
from peftbench.sweep.remote import Engine
from peftbench.sweep.slots import Slot
from peftbench.sweep.submission import CANCELLED, TIME_LIMIT, Handle, process, runs
from peftbench.sweep.worker import serve

EXECUTORS = ("auto", "slurm", "local", "debug")
END_SECONDS = 10.0
LARGEST_ARRAY = 1000  # Slurm's MaxArraySize is 1001 unless its administrators changed it


def run(path: str) -> None:
    """What submitit runs on a node of the cluster."""
    from submitit.core.utils import UncompletedJobError

    # submitit raises this in the running function shortly before time is up; a preempted job is
    # put back into the queue by it and comes here again
    serve(path, limits=(UncompletedJobError,))


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
        self.vanishes = on_slurm
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
        return [self._handle(job.job_id) for job in jobs]

    def gone(self, handle: Handle) -> str | None:
        import submitit

        job = self.jobs.get(handle["id"])
        if self.kind != "slurm":
            if job is None:
                return None if runs(handle) else "is gone"
            return "ended" if job.done() else None
        job = job or submitit.SlurmJob(handle["folder"], handle["id"])
        # one call of sacct for all jobs, seldom; most endings are told by the submission itself
        if not job.watcher.is_done(job.job_id):
            return None
        state = job.watcher.get_state(job.job_id, mode="cache")
        known = {"CANCELLED": CANCELLED, "TIMEOUT": TIME_LIMIT}  # "CANCELLED by 1000"
        return known.get(state.partition(" ")[0], f"ended as {state}")

    def cancel(self, handles: Sequence[Handle]) -> None:
        if self.kind == "slurm":
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

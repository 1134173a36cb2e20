"""Hydra launchers for many machines: Slurm through submitit, and Ray.

Both take the same jobs as the pool of one machine, record the same endings and end with the same
summary; only who starts the processes differs. The Hydra plugins of both send pickled functions
and know neither finished jobs nor dead ones, so these are launchers of our own on the same engines.
"""

from __future__ import annotations

import importlib.util
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftbench.config.limits import check_launcher, check_number, check_threads
from peftbench.errors import ConfigError
from peftbench.results.store import ResultsStore
from peftbench.sweep.jobs import Attempt, Job
from peftbench.sweep.launchers.base import (
    PLUGINS,
    JobPlace,
    QueueConfig,
    QueueLauncher,
    register_launcher,
)
from peftbench.sweep.plan import show
from peftbench.sweep.queues.pool import Queue
from peftbench.sweep.queues.ray import RayEngine, Share
from peftbench.sweep.queues.remote import Engine, RemoteQueue, Terms
from peftbench.sweep.queues.slots import MOST_GPUS, make_slots, visible_gpus
from peftbench.sweep.queues.slurm import SubmititEngine, executor_of
from peftbench.sweep.queues.submission import new_folder


@dataclass
class ClusterConfig(QueueConfig):
    """What both launchers take."""

    retry_lost_machine: int = 3  # times, each where the machine of a job failed or was taken away


@dataclass
class SlurmConfig(ClusterConfig):
    """Schema of `hydra/launcher=slurm`; `jobs` is a limit on each array of submissions."""

    _target_: str = f"{PLUGINS}.SlurmLauncher"
    executor: str = "auto"  # Slurm where there is one, else "local"; "slurm", "local", "debug"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time: int = 240  # minutes of one submission, which holds jobs_per_process jobs
    gpus_per_job: int = 1  # 0 for the CPU
    cpus_per_job: int = 4
    mem_gb: float | None = None  # main memory of one submission
    setup: list[str] = field(default_factory=list)  # lines of shell before the jobs
    additional_parameters: dict[str, Any] = field(default_factory=dict)  # any other of sbatch
    detach: bool = False  # submit and return; the same command finds the jobs again


@dataclass
class RayConfig(ClusterConfig):
    """Schema of `hydra/launcher=ray`; `jobs` is what fits into the cluster by default."""

    _target_: str = f"{PLUGINS}.RayLauncher"
    address: str = "auto"  # of RAY_ADDRESS or this machine, else of our own; "local", "HOST:PORT"
    gpus: int | None = None  # that a Ray of our own is told of; those of this machine by default
    gpus_per_job: float | None = None  # 0.5 for two jobs on a GPU; one where there are any
    cpus_per_job: float | None = None  # the part of a machine that goes with the GPUs, else one
    env_vars: dict[str, str] = field(default_factory=dict)  # of the processes on the cluster
    options: dict[str, Any] = field(default_factory=dict)  # more of ray.remote, such as resources
    init: dict[str, Any] = field(default_factory=dict)  # more of ray.init


class _ClusterLauncher(QueueLauncher):
    """What both have in common."""

    options: ClusterConfig

    def device(self, asked: str) -> str:
        return "auto" if asked.startswith("cuda") else asked  # the machine of the job has it

    def threads(self, asked: int | None) -> int | None:
        check_threads(asked, anywhere=True)  # the machine of the job judges for itself
        return None

    def plan(self, jobs: list[Job], store: ResultsStore) -> None:
        check_launcher(self.options)
        slots = self.options.jobs or 1  # how many more there are is known there
        show(jobs, store, slots, missing=self.missing)

    def open(self, store: ResultsStore, make: Callable[[Path], Engine], detach: bool) -> JobPlace:
        """The queue over an engine that `make` makes when there is something to run."""

        def release(output: Path, submission: str) -> None:
            method, run_id = output.parent.parent.name, output.parent.name
            store.release(run_id, method, submission)

        def queue() -> Queue[Attempt]:
            folder = new_folder(store.root.absolute() / "submitted")
            terms = Terms(self.options.timeout, self.options.retry_lost_machine, detach)
            return RemoteQueue(make(folder), folder, terms, release=release)

        return JobPlace(self.title(), (), queue)

    @abstractmethod
    def title(self) -> str:
        """Where the jobs go, as the first line of a sweep says it."""


@register_launcher("slurm", SlurmConfig)
class SlurmLauncher(_ClusterLauncher):
    """Jobs as submissions to Slurm; Ctrl-C cancels them, `detach` leaves them to Slurm."""

    options: SlurmConfig

    def __init__(self, **options: Any) -> None:
        self.options = SlurmConfig(**options)

    def title(self) -> str:
        if self.executor == "slurm":
            return "on Slurm"
        return f"on this machine through submitit's {self.executor} executor"

    def place(self, store: ResultsStore) -> Callable[[int], JobPlace]:
        _require("submitit", "slurm")
        options = self.options
        check_launcher(options)
        check_number("hydra.launcher.cpus_per_job", options.cpus_per_job, 1, 100_000)
        self.executor = executor_of(options.executor)
        if options.detach and self.executor != "slurm":
            raise ConfigError(
                f"hydra.launcher.detach=true leaves jobs to Slurm, but this is the "
                f"{self.executor} executor. Leave it out, or start it on a login node."
            )
        needed = (options.timeout or 0.0) * options.jobs_per_process / 60
        if needed > options.time:
            raise ConfigError(
                f"hydra.launcher.time={options.time} minutes are too few for jobs_per_process="
                f"{options.jobs_per_process} with timeout={options.timeout:g} seconds each. "
                f"Use time={int(needed) + 10}."
            )
        slots = []
        if self.executor != "slurm":
            gpus = visible_gpus("auto") if options.gpus_per_job else []
            slots = make_slots(gpus, gpus_per_job=options.gpus_per_job or 1, jobs=options.jobs)

        def make(folder: Path) -> Engine:
            return SubmititEngine(
                self.executor,
                folder / "submitit",
                self.parameters(),
                slots=slots,
                threads=options.cpus_per_job,
            )

        return lambda at_most: self.open(store, make, options.detach)

    def gpus_of_a_job(self) -> int:
        here = self.executor == "slurm" or visible_gpus("auto")
        return self.options.gpus_per_job if here else 0

    def parameters(self) -> dict[str, Any]:
        """What `submitit.AutoExecutor` takes; what is `None` it leaves to Slurm."""
        options = self.options
        chosen = {
            "timeout_min": options.time,
            "cpus_per_task": options.cpus_per_job,
            "gpus_per_node": options.gpus_per_job or None,
            "mem_gb": options.mem_gb,
            "slurm_partition": options.partition,
            "slurm_account": options.account,
            "slurm_qos": options.qos,
            "slurm_constraint": options.constraint,
            "slurm_setup": list(options.setup) or None,
            "slurm_additional_parameters": dict(options.additional_parameters) or None,
            "slurm_array_parallelism": options.jobs,
        }
        return {key: value for key, value in chosen.items() if value is not None}


@register_launcher("ray", RayConfig)
class RayLauncher(_ClusterLauncher):
    """Jobs as tasks of Ray, which gives them whole GPUs or parts; they end with the launcher."""

    options: RayConfig

    def __init__(self, **options: Any) -> None:
        self.options = RayConfig(**options)

    def title(self) -> str:
        return "on Ray"

    def gpus_of_a_job(self) -> int:
        return int(self.options.gpus_per_job or 0)

    def place(self, store: ResultsStore) -> Callable[[int], JobPlace]:
        _require("ray", "ray")
        options = self.options
        check_launcher(options)
        check_number("hydra.launcher.gpus", options.gpus, 0, MOST_GPUS)
        if options.gpus is not None and options.address not in ("auto", "local"):
            raise ConfigError(
                f"hydra.launcher.gpus={options.gpus} is for a Ray of its own, but address="
                f"{options.address} knows its GPUs. Leave one of them out."
            )
        init: dict[str, Any] = {"address": None if options.address == "auto" else options.address}
        if options.gpus is not None:
            init |= {"address": "local", "num_gpus": options.gpus}
        if options.env_vars:
            init["runtime_env"] = {"env_vars": dict(options.env_vars)}
        init |= options.init
        share = Share(options.gpus_per_job, options.cpus_per_job, dict(options.options))

        def make(folder: Path) -> Engine:
            return RayEngine(init, share, options.jobs)

        return lambda at_most: self.open(store, make, detach=False)


def _require(package: str, launcher: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"hydra/launcher={launcher} needs {package}, which is not installed. "
            f"Run: pip install 'peftbench[{launcher}]'"
        )

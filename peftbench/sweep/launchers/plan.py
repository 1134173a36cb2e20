"""The launcher behind `peftbench plan`, which runs nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peftbench.limits import check_launcher, check_threads
from peftbench.results.store import ResultsStore
from peftbench.sweep.jobs import Job
from peftbench.sweep.launchers.base import PLUGINS, JobLauncher, register_launcher
from peftbench.sweep.launchers.cluster import RayConfig, SlurmConfig
from peftbench.sweep.launchers.pool import PoolConfig, slots_of
from peftbench.sweep.plan import show


@dataclass
class PlanConfig(SlurmConfig, RayConfig, PoolConfig):
    """Schema of `hydra/launcher=plan`; takes what a sweep takes, so that its overrides plan it."""

    _target_: str = f"{PLUGINS}.PlanLauncher"
    cluster: bool = False  # whether the sweep is for one, whose slots are not known here
    gpus: Any = "auto"
    gpus_per_job: Any = 1
    cpus_per_job: Any = None


@register_launcher("plan", PlanConfig)
class PlanLauncher(JobLauncher):
    """Prints what a sweep would do and runs nothing."""

    def __init__(self, **options: Any) -> None:
        self.options = PlanConfig(**options)

    def device(self, asked: str) -> str:
        return "auto" if self.options.cluster and asked.startswith("cuda") else asked

    def threads(self, asked: int | None) -> int | None:
        if self.options.cluster:
            check_threads(asked, anywhere=True)
            return None
        return asked

    def work(self, jobs: list[Job], store: ResultsStore) -> None:
        options = self.options
        check_launcher(options)
        if options.cluster:
            show(jobs, store, options.jobs or 1)
        else:
            show(jobs, store, len(slots_of(options)), device=self.config.device)

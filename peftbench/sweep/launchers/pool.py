"""The launcher of this machine: jobs side by side on its GPUs or cores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from peftbench.config.limits import check_launcher
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
from peftbench.sweep.queues.pool import Pool, Queue
from peftbench.sweep.queues.slots import Slot, make_slots, visible_gpus


@dataclass
class PoolConfig(QueueConfig):
    """Schema of `hydra/launcher=pool`; `jobs` is one for each core by default on a CPU."""

    _target_: str = f"{PLUGINS}.PoolLauncher"
    gpus: str = "auto"  # "auto", a count, or identifiers such as "0+2"; "0" for the CPU
    gpus_per_job: int = 1
    jobs_per_gpu: int = 1
    stagger: float = 0.0  # seconds between the starts of two slots


@register_launcher("pool", PoolConfig)
class PoolLauncher(QueueLauncher):
    """A queue over this machine's GPUs, or its cores."""

    options: PoolConfig

    def __init__(self, **options: Any) -> None:
        self.options = PoolConfig(**options)

    def gpus_of_a_job(self) -> int:
        return self.options.gpus_per_job if visible_gpus(self.options.gpus) else 0

    def plan(self, jobs: list[Job], store: ResultsStore) -> None:
        check_launcher(self.options)
        slots = len(slots_of(self.options))
        show(jobs, store, slots, device=self.config.device, missing=self.missing)

    def place(self, store: ResultsStore) -> Callable[[int], JobPlace]:
        options, every = self.options, slots_of(self.options)

        def choose(at_most: int) -> JobPlace:
            slots = every[:at_most] or every[:1]

            def queue() -> Queue[Attempt]:
                return Pool(slots, timeout=options.timeout, stagger=options.stagger)

            names = tuple(slot.name for slot in slots)
            return JobPlace(f"{len(slots)} at a time", names, queue)

        return choose


def slots_of(options: PoolConfig) -> list[Slot]:
    """The slots that the options of a launcher ask for."""
    return make_slots(
        visible_gpus(options.gpus),
        gpus_per_job=options.gpus_per_job,
        jobs_per_gpu=options.jobs_per_gpu,
        jobs=options.jobs,
    )

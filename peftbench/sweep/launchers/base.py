"""Hydra launchers: jobs of a sweep in processes of their own, or a plan of what they would be."""

from __future__ import annotations

import dataclasses
import re
import sys
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, TypeVar

from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from peftbench.backbones.hashes import hash_checkpoint
from peftbench.canonical import digest
from peftbench.config.limits import (
    MOST_PROCESSES,
    activation_bytes,
    check_launcher,
    check_micro_batch,
    check_number,
    is_timed,
)
from peftbench.config.schema import TunerConfig
from peftbench.errors import ConfigError
from peftbench.loggers.guard import WARNING
from peftbench.registry import Registry, unknown_name
from peftbench.results.record import Status
from peftbench.results.store import ResultsStore
from peftbench.spec import DatasetSpec
from peftbench.sweep.beside import override, passes
from peftbench.sweep.compose import Composer
from peftbench.sweep.jobs import (
    Attempt,
    Ending,
    Job,
    batches,
    ending_of,
    looked_up_again,
    output_of,
    record_of,
    stopped_ending,
    without_repeats,
)
from peftbench.sweep.launchers.handover import Handover
from peftbench.sweep.plan import Estimates, show
from peftbench.sweep.queues.pool import Command, Finished, Queue
from peftbench.sweep.status import StatusView
from peftbench.sweep.work import Plain, TunedWork, Work
from peftbench.untrusted import printable, printable_lines

if TYPE_CHECKING:
    from peftbench.data import Listing

# of a message: `(see FILE)`, `(trace in FILE)`, the job of a cluster, process and time of a holder
VARYING = re.compile(
    r" \((?:see|trace in) [^)]*\)|(?<=slurm )\d+(?:_\d+)?|(?<=ray )\d+"
    r"|process \d+(?= on )|, since [-\d :]+$"
)
DISK_FULL = re.compile(r"disk full[^,:(]*")
PLUGINS = "hydra_plugins.peftbench"  # Hydra takes launchers of this top-level package only


@dataclass(frozen=True)
class Offer:
    """A launcher and the schema of its options, whose `_target_` is the launcher in `PLUGINS`."""

    config: type
    launcher: type[JobLauncher]


SEED = re.compile(r"seed=(0|[1-9]\d*)")  # as an override that Hydra takes for an integer
USES_SEED = re.compile(r"\$\{\.*seed\b")  # a value that is made of it
LAUNCHERS: Registry[Offer] = Registry("launcher")
L = TypeVar("L", bound="type[JobLauncher]")


def register_launcher(name: str, config: type) -> Callable[[L], L]:
    """Class decorator that makes a launcher known as `hydra/launcher=NAME`."""

    def register(launcher: L) -> L:
        LAUNCHERS.register(name)(Offer(config, launcher))
        return launcher

    return register


@dataclass
class QueueConfig:
    """What every launcher takes that runs jobs."""

    jobs: int | None = None  # at most so many at a time
    jobs_per_process: int = 1  # more save the start of a process and the loading of its backbone
    timeout: float | None = None  # seconds of one job
    retry_out_of_memory: int = 0  # times, each with half the images in memory at a time
    on_failure: str = "continue"  # or "stop": start no further job after a failure
    stop_after: int | None = None  # or after so many


class JobLauncher(Launcher):
    """Turns the overrides of a sweep into jobs; what happens to them is the subclass's."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.compose = Composer(hydra_context.config_loader, config)
        self.found: dict[str, None] = {}  # lines about data sets that the user brings
        self.sides: dict[str, int | None] = {}  # of their pictures, by manifest
        self.missing: dict[DatasetSpec, str] = {}  # what a plan lacks, and how to get it
        self.built: dict[tuple[str, ...], tuple[Job, bool]] = {}  # by all overrides but the seed
        self.identify = cache(self._identify)  # hashes every file of a folder
        self.hash_file = cache(hash_checkpoint)
        assert isinstance(task_function, Handover)  # of the command; nobody else sets one up
        self.task = task_function
        self.config = config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        if not job_overrides:
            raise ConfigError("the sweep has no job: a list or glob in it is empty.")
        store = ResultsStore(self.config.results_dir)
        waiting = tqdm(job_overrides, "composing", unit=" jobs", leave=False, delay=2, disable=None)
        jobs = without_repeats([self._job(tuple(overrides)) for overrides in waiting])
        if self.task.plans:
            self.plan(jobs, store)
        else:
            self.work(jobs, store)
        return [JobReturn(_return_value=0, status=JobStatus.COMPLETED) for _ in job_overrides]

    def device(self, asked: str) -> str:
        """The device that must be there when a job is composed."""
        return asked

    def threads(self, asked: int | None) -> int | None:
        """The threads that this machine must take when a job is composed."""
        return asked

    @abstractmethod
    def work(self, jobs: list[Job], store: ResultsStore) -> None:
        """Do what the launcher is for with jobs of distinct identity."""

    def plan(self, jobs: list[Job], store: ResultsStore) -> None:
        """Print what `work` would do with the jobs, and run nothing."""
        show(jobs, store, missing=self.missing)

    def _identify(self, dataset: DatasetSpec) -> DatasetSpec:
        """As `data.identify`; a plan goes on without what is absent."""
        from peftbench import data  # keys that are refused need not wait for it
        from peftbench.data.public import Absent, Incomplete

        try:
            return data.identify(dataset, self._listed)
        except (Absent, Incomplete) as error:
            if not self.task.plans:
                raise
            self.missing[dataset] = str(error)
            return dataset

    def _listed(self, listing: Listing) -> None:
        from peftbench import data

        self.found.update(dict.fromkeys(data.describe(listing)))
        self.sides[listing.manifest] = data.typical_side(listing)

    def _job(self, overrides: tuple[str, ...]) -> Job:
        """The job of these overrides; of those that differ in the seed alone one is built."""
        others = tuple(o for o in overrides if not SEED.fullmatch(o))
        seeds = [o for o in overrides if SEED.fullmatch(o)]
        if len(seeds) != 1:
            return self._built(overrides)[0]
        if others not in self.built:
            self.built[others] = self._built(overrides)
            return self.built[others][0]
        job, sharing = self.built[others]
        if not sharing:
            return self._built(overrides)[0]
        spec = dataclasses.replace(job.spec, seed=int(seeds[0].removeprefix("seed=")))
        own = tuple(seeds[0] if SEED.fullmatch(o) else o for o in job.overrides)
        return dataclasses.replace(job, overrides=own, spec=spec)

    def _built(self, overrides: tuple[str, ...]) -> tuple[Job, bool]:
        """The job of these overrides, and whether its seed is a seed and nothing else."""
        from peftbench.config.build import build, logger_settings
        from peftbench.run.experiment import check

        cfg = self.compose(overrides)
        written = OmegaConf.to_container(cfg)
        spec = build(cfg, self.identify, self.hash_file, written)
        check(spec, self.device(cfg.device), self.threads(cfg.threads))
        if (side := self.sides.get(spec.dataset.manifest)) is not None:
            from peftbench import data
            from peftbench.backbones.preprocessing import image_size

            self.found.update(dict.fromkeys(data.shown(side, image_size(spec.backbone))))
        check_micro_batch(cfg.micro_batch)
        activation_bytes(cfg.cache, cfg.cache_gigabytes)  # refused before the first job
        is_timed(cfg.latency)
        check_number("processes", cfg.processes, 1, MOST_PROCESSES)
        kept = [o for o in filter_overrides(overrides) if not o.startswith("hydra")]
        logger = logger_settings(cfg)
        if logger.name != "none" and logger.group is None:
            kept.append(f"logger.group={_sweep_name(self.config)}")
        return Job(tuple(kept), spec), not USES_SEED.search(str(written))


@dataclass(frozen=True)
class JobPlace:
    """Where the jobs of a sweep run."""

    title: str  # like "2 at a time"
    slots: tuple[str, ...]  # their names, where they are known beforehand
    queue: Callable[[], Queue[Attempt]]  # opens it


class QueueLauncher(JobLauncher):
    """Runs jobs in a queue, each in a process of its own; finished jobs are not started.

    A crash of a job, even of its interpreter, leaves the others alone and becomes a row of the
    table. Ctrl-C and SIGTERM stop the running jobs, which record that they were interrupted.
    """

    options: QueueConfig

    @abstractmethod
    def place(self, store: ResultsStore) -> Callable[[int], JobPlace]:
        """Where jobs run when so many could run at a time; checks the options of the launcher."""

    @abstractmethod
    def gpus_of_a_job(self) -> int:
        """How many whole GPUs each job has to itself or shares; 0 on a CPU."""

    def work(self, jobs: list[Job], store: ResultsStore) -> None:
        check_launcher(self.options)
        limit = _failures_allowed(self.options)
        choose = self.place(store)
        store.check_writable()
        store.tidy()
        work = self._work(jobs, store)
        todo = work.begin()
        place = choose(work.at_most)
        print(printable_lines(f"{work.title()}, {place.title}"), flush=True)
        endings: list[Ending] = []
        if todo:
            if not self.config.quiet:
                for line in self.found:
                    print(printable(line), file=sys.stderr, flush=True)
            queue = place.queue()
            endings = self._run(work, todo, queue, place.slots, store, limit)
            if queue.left:
                print(f"{queue.left} jobs go on; the same command finds them", flush=True)
                return
        if not work.left:
            endings = [looked_up_again(ending, store) for ending in endings]
        # what others hold is not done, whoever is at it
        unfinished = [e for e in endings if e.failed or e.open]
        self.task.unfinished.extend(unfinished)
        _summarise(endings, work.to_run)

    def _work(self, jobs: list[Job], store: ResultsStore) -> Work:
        tuner = OmegaConf.to_object(self.config.tuner)
        assert isinstance(tuner, TunerConfig)
        done = frozenset() if self.config.force else store.done()
        if tuner.name == "none":
            return Plain(jobs, done)
        return TunedWork(jobs, store, done, tuner, self._job)

    def _run(
        self,
        work: Work,
        todo: list[Job],
        queue: Queue[Attempt],
        slots: Sequence[str],
        store: ResultsStore,
        limit: int | None,
    ) -> list[Ending]:
        """Endings of all jobs that were started."""
        estimate = Estimates(store.scan().records)
        endings: list[Ending] = []
        warned: set[str] = set()
        running: dict[str, Attempt] = {}
        with StatusView(work.to_run, slots) as view:

            def begin(attempt: Attempt, slot: str) -> None:
                spec = attempt.job.spec
                running[spec.run_id] = attempt
                view.begin(str(spec), slot, estimate(spec), output_of(attempt.job, store))

            queue.on_begin, queue.on_stop = begin, _stopping
            for batch in self._batches(todo, len(slots)):
                queue.add(
                    [
                        self._command(
                            Attempt(job, record_of(job, store), beside=tuple(batch[place:])), store
                        )
                        for place, job in enumerate(batch, 1)
                    ]
                )
            try:
                for finished in queue.run():
                    running.pop(finished.job.job.spec.run_id, None)
                    again = self._retry(finished, store)
                    if again is not None:
                        view.say(f"{again.job.spec}: out of memory; again with {again.extra[0]}")
                        queue.add([self._command(again, store)], first=True)
                        continue
                    ending = ending_of(finished, store)
                    for warning in ending.warnings:
                        if warning not in warned:  # a server that is away is away for every job
                            view.warn(f"{WARNING}{warning}")
                            warned.add(warning)
                    endings.append(ending)
                    line = f"{ending.job.spec}: {ending.message}"
                    view.end(line, finished.slot, finished.seconds, ending.failed)
                    if limit is not None and sum(e.failed for e in endings) >= limit:
                        queue.stopping = True
                    for job in work.after(ending):
                        queue.add([self._command(Attempt(job, record_of(job, store)), store)])
                    view.total = work.to_run
            except KeyboardInterrupt:
                stopped = [stopped_ending(attempt, store) for attempt in running.values()]
                _summarise([*endings, *filter(None, stopped)], work.to_run)
                raise
        return endings

    def _batches(self, jobs: list[Job], slots: int) -> list[list[Job]]:
        """Jobs that share a process: trials of one kind, or as many as were asked for."""
        kept = activation_bytes(self.config.cache, self.config.cache_gigabytes) is not None
        timed = self.options.timeout is not None
        packed = passes(jobs, slots, are_timed=timed) if kept else [[job] for job in jobs]
        alone = [batch[0] for batch in packed if len(batch) == 1]
        together = [batch for batch in packed if len(batch) > 1]
        return [*together, *batches(alone, self.options.jobs_per_process)]

    def _command(self, attempt: Attempt, store: ResultsStore) -> Command[Attempt]:
        overrides = (
            "quiet=true",
            *attempt.job.overrides,
            *attempt.extra,
            *override(attempt.beside if not attempt.retries else ()),
            *self._processes(),
        )
        arguments = ("run", *self.task.flags, *overrides)
        return Command(attempt, arguments, output_of(attempt.job, store))

    def _processes(self) -> tuple[str, ...]:
        """One process on each GPU of a job, unless the command says how many."""
        count = self.gpus_of_a_job()
        return (f"processes={count}",) if count > 1 and self.config.processes == 1 else ()

    def _retry(self, finished: Finished[Attempt], store: ResultsStore) -> Attempt | None:
        """The same job with half the images in memory, where it ran out of it and may try again."""
        attempt = finished.job
        record = record_of(attempt.job, store)
        if record is None or record.status is not Status.OUT_OF_MEMORY:
            return None
        tried = record.micro_batch or attempt.micro_batch
        if attempt.retries >= self.options.retry_out_of_memory or tried < 2:
            return None
        return attempt.with_half_the_batch(tried)


def _sweep_name(config: DictConfig) -> str:
    """Name of a sweep: that of its experiment, else a digest of what its command asks for.

    The same command has the same name when it is typed again; where results go, on which device
    and how they are logged is not part of it.
    """
    experiment = config.hydra.runtime.choices.get("experiments")
    if experiment and experiment != "null":
        return str(experiment)
    aside = ("results_dir=", "device=", "threads=", "force=", "quiet=", "logger", "hydra")
    asked = [o for o in config.hydra.overrides.task if not o.lstrip("+~").startswith(aside)]
    return f"sweep-{digest(sorted(asked))[:8]}"


def _failures_allowed(options: QueueConfig) -> int | None:
    """After how many failures no further job starts; `None` for never."""
    if options.stop_after is not None:
        if options.stop_after < 1:
            raise ConfigError(f"hydra.launcher.stop_after={options.stop_after}; use 1 or more.")
        return options.stop_after
    if options.on_failure not in ("continue", "stop"):
        raise unknown_name("hydra.launcher.on_failure", options.on_failure, ("continue", "stop"))
    return 1 if options.on_failure == "stop" else None


def _stopping() -> None:
    print("stopping the running jobs; a rerun continues", file=sys.stderr, flush=True)


def _summarise(endings: list[Ending], wanted: int) -> None:
    counts = Counter("held elsewhere" if e.record is None else e.record.status for e in endings)
    text = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    if wanted:
        print(f"{len(endings)} of {wanted} jobs ended: {text}", flush=True)
    failed = sums(e.message for e in endings if e.failed)
    for reason, count in failed:
        print(f"  failed {count} x: {printable(reason)}", file=sys.stderr, flush=True)
    for holder, count in sums(e.message for e in endings if e.held):
        print(
            f"  held elsewhere {count} x: {printable(holder)}. These are not done: when that has "
            "ended, the same command finds or runs them",
            file=sys.stderr,
            flush=True,
        )


def sums(messages: Iterable[str]) -> list[tuple[str, int]]:
    """Messages of one cause once each, most often first, and how often; the first speaks for all.

    What differs from job to job does not count: where the rest is to be read, since when a process
    runs, and which file it was that found a disk full, and how full.
    """
    first: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for message in messages:
        kind = DISK_FULL.search(message)
        cause = kind[0] if kind else VARYING.sub("", message)
        first.setdefault(cause, message)
        counts[cause] += 1
    return [(first[cause], count) for cause, count in counts.most_common()]

"""Hydra launchers: jobs of a sweep in processes of their own, or a plan of what they would be."""

from __future__ import annotations

import contextlib
import signal
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from peftbench.errors import ConfigError, StoreError
from peftbench.loggers.guard import WARNING
from peftbench.plan import Estimates, show
from peftbench.registry import unknown_name
from peftbench.results.record import RunRecord, Status
from peftbench.results.store import ResultsStore
from peftbench.spec import Phase, RunSpec, digest
from peftbench.sweep.pool import Command, Finished, Pool
from peftbench.sweep.slots import Slot, make_slots, visible_gpus
from peftbench.sweep.status import StatusView
from peftbench.sweep.tuning import Cell, TunerConfig, advance, make_cells, score_of

PLUGINS = "hydra_plugins.peftbench"  # Hydra takes launchers of this top-level package only


@dataclass(frozen=True)
class Job:
    """One cell of a sweep."""

    overrides: tuple[str, ...]
    spec: RunSpec


@dataclass(frozen=True)
class Attempt:
    """A job on its way, and what was recorded of it before."""

    job: Job
    before: RunRecord | None
    retries: int = 0

    @property
    def micro_batch(self) -> int:
        """Images in memory at a time."""
        return max(1, self.job.spec.recipe.batch_size >> self.retries)

    @property
    def extra(self) -> tuple[str, ...]:
        """Overrides beyond those of the job; none of them is part of a run's identity."""
        return (f"micro_batch={self.micro_batch}",) if self.retries else ()

    def with_half_the_batch(self) -> Attempt:
        return replace(self, retries=self.retries + 1)


@dataclass(frozen=True)
class Ending:
    """How a job of a sweep ended."""

    job: Job
    record: RunRecord | None  # None where another launch holds the run
    message: str
    held: bool = False
    warnings: tuple[str, ...] = ()  # of its logger

    @property
    def failed(self) -> bool:
        return not self.held and (self.record is None or not self.record.status.settled)


@dataclass
class PoolConfig:
    """Schema of `hydra/launcher=pool`."""

    _target_: str = f"{PLUGINS}.PoolLauncher"
    gpus: str = "auto"  # "auto", a count, or identifiers such as "0+2"; "0" for the CPU
    gpus_per_job: int = 1
    jobs_per_gpu: int = 1
    jobs: int | None = None  # at most so many at a time; on a CPU one for each core by default
    jobs_per_process: int = 1  # more save the start of a process and the loading of its backbone
    timeout: float | None = None  # seconds of one job
    stagger: float = 0.0  # seconds between the starts of two slots
    retry_out_of_memory: int = 0  # times, each with half the images in memory at a time
    on_failure: str = "continue"  # or "stop": start no further job after a failure
    stop_after: int | None = None  # or after so many


@dataclass
class PlanConfig(PoolConfig):
    """Schema of `hydra/launcher=plan`; takes what a sweep takes, so that its overrides plan it."""

    _target_: str = f"{PLUGINS}.PlanLauncher"


class _JobLauncher(Launcher):
    """Turns the overrides of a sweep into jobs; what happens to them is the subclass's."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.context = hydra_context
        self.task = task_function
        self.config = config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        if not job_overrides:
            raise ConfigError("the sweep has no job: a list or glob in it is empty.")
        store = ResultsStore(self.config.results_dir)
        jobs = [self._job(tuple(overrides)) for overrides in job_overrides]
        self.work(_without_repeats(jobs), store)
        return [JobReturn(_return_value=0, status=JobStatus.COMPLETED) for _ in jobs]

    def work(self, jobs: list[Job], store: ResultsStore) -> None:
        raise NotImplementedError

    def _job(self, overrides: tuple[str, ...]) -> Job:
        from peftbench.config import build, logger_settings
        from peftbench.experiment import check

        cfg = self.context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(cfg):
            del cfg["hydra"]
        spec = build(cfg)
        check(spec, cfg.device, cfg.threads)
        kept = [o for o in filter_overrides(overrides) if not o.startswith("hydra")]
        logger = logger_settings(cfg)
        if logger.name != "none" and logger.group is None:
            kept.append(f"logger.group={_sweep_name(self.config)}")
        return Job(tuple(kept), spec)


class PoolLauncher(_JobLauncher):
    """A queue over this machine's GPUs, or its cores; finished jobs are not started.

    Each job is a process of its own with its devices and threads set before torch is imported. A
    crash of one, even of its interpreter, leaves the others alone and becomes a row of the table.
    Ctrl-C and SIGTERM stop the running jobs, which record that they were interrupted.
    """

    def __init__(self, **options: Any) -> None:
        self.options = PoolConfig(**options)

    def work(self, jobs: list[Job], store: ResultsStore) -> None:
        options = self.options
        limit = _failures_allowed(options)
        slots = slots_of(options)
        store.check_writable()
        work = self._work(jobs, store)
        todo = work.begin()
        slots = slots[: work.at_most] or slots[:1]
        print(f"{work.title()}, {len(slots)} at a time", flush=True)
        endings = self._run(work, todo, slots, store, limit) if todo else []
        self.task.failures.extend(e for e in endings if e.failed)  # type: ignore[attr-defined]
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
        slots: list[Slot],
        store: ResultsStore,
        limit: int | None,
    ) -> list[Ending]:
        """Endings of all jobs that were started."""
        estimate = Estimates(store)
        endings: list[Ending] = []
        with StatusView(work.to_run, [slot.name for slot in slots]) as view:

            def begin(attempt: Attempt, slot: str) -> None:
                view.begin(str(attempt.job.spec), slot, estimate(attempt.job.spec))

            pool: Pool[Attempt] = Pool(
                slots,
                timeout=self.options.timeout,
                stagger=self.options.stagger,
                on_begin=begin,
            )
            for batch in batches(todo, self.options.jobs_per_process):
                pool.add([self._command(Attempt(job, _record(job, store)), store) for job in batch])
            try:
                for finished in pool.run():
                    again = self._retry(finished, store)
                    if again is not None:
                        view.say(f"{again.job.spec}: out of memory; again with {again.extra[0]}")
                        pool.add([self._command(again, store)], first=True)
                        continue
                    ending = ending_of(finished, store)
                    known = {warning for earlier in endings for warning in earlier.warnings}
                    for warning in dict.fromkeys(ending.warnings):
                        if warning not in known:  # a server that is away is away for every job
                            view.warn(warning)
                    endings.append(ending)
                    line = f"{ending.job.spec}: {ending.message}"
                    view.end(line, finished.slot, finished.seconds, ending.failed)
                    if limit is not None and sum(e.failed for e in endings) >= limit:
                        pool.stopping = True
                    for job in work.after(ending):
                        pool.add([self._command(Attempt(job, _record(job, store)), store)])
                    view.total = work.to_run
            except KeyboardInterrupt:
                print("stopping the running jobs; a rerun continues", file=sys.stderr, flush=True)
                raise
        return endings

    def _command(self, attempt: Attempt, store: ResultsStore) -> Command[Attempt]:
        flags = self.task.flags  # type: ignore[attr-defined]
        arguments = ("run", *flags, *attempt.job.overrides, *attempt.extra)
        return Command(attempt, arguments, output_of(attempt.job, store))

    def _retry(self, finished: Finished[Attempt], store: ResultsStore) -> Attempt | None:
        """The same job with half the images in memory, where it ran out of it and may try again."""
        attempt = finished.job
        record = _record(attempt.job, store)
        if record is None or record.status is not Status.OUT_OF_MEMORY:
            return None
        if attempt.retries >= self.options.retry_out_of_memory or attempt.micro_batch < 2:
            return None
        return attempt.with_half_the_batch()


class Work(ABC):
    """Which jobs a sweep starts, and which follow when one has ended."""

    to_run: int = 0  # jobs that are not done yet, as far as is known
    at_most: int = 0  # jobs that could run at a time

    @abstractmethod
    def begin(self) -> list[Job]:
        """Jobs that can start at once."""

    @abstractmethod
    def title(self) -> str:
        """What there is to do, in one line."""

    def after(self, ending: Ending) -> list[Job]:
        """Jobs that may start now that one has ended."""
        return []


class Plain(Work):
    """Jobs that do not depend on one another."""

    def __init__(self, jobs: list[Job], done: frozenset[str]) -> None:
        self.jobs = jobs
        self.todo = [job for job in jobs if job.spec.run_id not in done]
        self.to_run = self.at_most = len(self.todo)

    def begin(self) -> list[Job]:
        return self.todo

    def title(self) -> str:
        already = len(self.jobs) - len(self.todo)
        return f"{len(self.jobs)} jobs: {already} already done, {len(self.todo)} to run"


class TunedWork(Work):
    """Cells that are tuned on val first; their final jobs run with what won."""

    def __init__(
        self,
        jobs: list[Job],
        store: ResultsStore,
        done: frozenset[str],
        tuner: TunerConfig,
        compose: Callable[[tuple[str, ...]], Job],
    ) -> None:
        from peftbench.plan import refusal

        self.store = store
        self.done = done
        self.compose = compose
        # they need no tuning to become rows with their reason
        self.refused = [
            replace(job, overrides=(*job.overrides, "tuner.name=none"))
            for job in jobs
            if refusal(job.spec)
        ]
        tuned = [(job.overrides, job.spec) for job in jobs if not refusal(job.spec)]
        journals = (store.root / "tuning").resolve()
        journals.mkdir(parents=True, exist_ok=True)
        self.cells = make_cells(tuned, tuner, str(journals))
        self.at_a_time = 1 if tuner.name == "optuna" else None
        self.budget = self.cells[0].search.trials if self.cells else 0
        self.finals = len(tuned)
        self.found = 0  # of trials and final runs that are recorded
        self.unfinished: list[str] = []  # cells in which no trial ended well

    def begin(self) -> list[Job]:
        ready = [job for job in self.refused if job.spec.run_id not in self.done]
        for cell in self.cells:
            ready += self._go_on(cell)
        total = len(self.refused) + self.finals + self.budget * len(self.cells)
        already = len(self.refused) - sum(j in self.refused for j in ready)
        self.to_run = total - self.found - already
        self.at_most = max(len(ready), len(self.cells))
        return ready

    def title(self) -> str:
        epochs = {cell.epochs for cell in self.cells}
        return (
            f"{len(self.cells)} cells of {self.budget} trials x {'/'.join(map(str, epochs))} "
            f"epochs, {self.finals} final runs: {self.found} already done, {self.to_run} to run"
        )

    def after(self, ending: Ending) -> list[Job]:
        run_id = ending.job.spec.run_id
        ready: list[Job] = []
        for cell in self.cells:
            trial = cell.waiting.pop(run_id, None)
            if trial is not None:
                cell.search.tell(trial, score_of(ending.record))
                ready += self._go_on(cell)
        return ready

    def _go_on(self, cell: Cell) -> list[Job]:
        """Trials that can start, or the final jobs of a search that is over."""
        ready: list[Job] = []

        def start(overrides: tuple[str, ...]) -> tuple[str, RunRecord | None]:
            job = self.compose(overrides)
            record = _record(job, self.store) if job.spec.run_id in self.done else None
            if record is None:
                ready.append(job)
            else:
                self.found += 1
            return job.spec.run_id, record

        advance(cell, start, self.at_a_time)
        if cell.search.over:
            ready += self._finals(cell)
        return ready

    def _finals(self, cell: Cell) -> list[Job]:
        try:
            jobs = [self.compose(overrides) for overrides in cell.final_overrides()]
        except ConfigError as e:
            self.to_run -= len(cell.finals)
            print(f"  {' '.join(cell.overrides)}: {e}", file=sys.stderr, flush=True)
            return []
        todo = [job for job in jobs if job.spec.run_id not in self.done]
        self.found += len(jobs) - len(todo)
        return todo


class PlanLauncher(_JobLauncher):
    """Prints what a sweep would do and runs nothing."""

    def __init__(self, **options: Any) -> None:
        self.options = PlanConfig(**options)

    def work(self, jobs: list[Job], store: ResultsStore) -> None:
        show(jobs, store, slots_of(self.options))


def register_launcher() -> None:
    """Make `hydra/launcher=pool` and `hydra/launcher=plan` known to Hydra."""
    store = ConfigStore.instance()
    store.store(group="hydra/launcher", name="pool", node=PoolConfig)
    store.store(group="hydra/launcher", name="plan", node=PlanConfig)
    plugins = Plugins.instance()
    for launcher in (PoolLauncher, PlanLauncher):
        plugins.register(launcher)
        plugins.class_name_to_class[f"{PLUGINS}.{launcher.__name__}"] = launcher


def _sweep_name(config: DictConfig) -> str:
    """Name of a sweep: that of its experiment, else a digest of what its command asks for.

    The same command has the same name when it is typed again; where results go, on which device
    and how they are logged is not part of it.
    """
    experiment = config.hydra.runtime.choices.get("experiments")
    if experiment and experiment != "null":
        return str(experiment)
    aside = ("results_dir=", "device=", "threads=", "force=", "logger", "hydra")
    asked = [o for o in config.hydra.overrides.task if not o.lstrip("+~").startswith(aside)]
    return f"sweep-{digest(sorted(asked))[:8]}"


def _without_repeats(jobs: list[Job]) -> list[Job]:
    """Jobs of distinct identity: an alias and its backbone in one sweep are one job."""
    return list({job.spec.run_id: job for job in reversed(jobs)}.values())[::-1]


def slots_of(options: PoolConfig) -> list[Slot]:
    """The slots that the options of a launcher ask for."""
    return make_slots(
        visible_gpus(options.gpus),
        gpus_per_job=options.gpus_per_job,
        jobs_per_gpu=options.jobs_per_gpu,
        jobs=options.jobs,
    )


def batches(jobs: Sequence[Job], size: int) -> list[list[Job]]:
    """Jobs that share a process: at most `size`, of one backbone and data set."""
    if size < 1:
        raise ConfigError(f"hydra.launcher.jobs_per_process={size}; use 1 or more.")
    groups: dict[tuple[str, str], list[Job]] = {}
    for job in jobs:
        groups.setdefault((job.spec.backbone.name, job.spec.dataset.name), []).append(job)
    if size == 1:
        return [[job] for job in jobs]
    return [
        group[start : start + size]
        for group in groups.values()
        for start in range(0, len(group), size)
    ]


def output_of(job: Job, store: ResultsStore) -> Path:
    """Where a job's process writes what it prints; kept where it wrote no record."""
    return store.artefacts((job.spec.method.name, job.spec.run_id)) / "output.txt"


def ending_of(finished: Finished[Attempt], store: ResultsStore) -> Ending:
    """How a job ended, from its record; a process that died without one gets one here."""
    job = finished.job.job
    record = _record(job, store)
    written = record is not None and (record != finished.job.before or record.status.settled)
    holder = None if written else store.holder(job.spec.run_id, job.spec.method.name)
    if finished.timed_out and not (record is not None and record.status.settled):
        record = _dead(job, Status.TIMEOUT, f"took longer than {finished.seconds:.0f} s", store)
    elif not written and holder is None:
        cause = _cause(finished.status, output_of(job, store))
        record = _dead(job, Status.ERROR, cause, store)
    warnings = _warnings(output_of(job, store))
    if written:
        _forget(output_of(job, store))
    if holder is not None:
        return Ending(job, None, f"held by {holder}", held=True)
    assert record is not None
    return Ending(job, record, outcome(record), warnings=warnings)


def _warnings(output: Path) -> tuple[str, ...]:
    """What the logger of a job had to say."""
    try:
        printed = output.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ()
    return tuple(line for line in printed if line.startswith(WARNING))


def _forget(output: Path) -> None:
    """Remove what a process printed: its record says all of it."""
    output.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        output.parent.rmdir()  # of a run without artefacts


def _cause(status: int, output: Path) -> str:
    """Why a process ended without a record, and where its output is."""
    try:
        lines = output.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        lines = []
    last = lines[-1] if lines else "no output"
    if status < 0:
        name = signal.Signals(-status).name
        hint = ", as the system does when memory runs out" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}: {last} (see {output})"
    return f"its process ended with status {status}: {last} (see {output})"


def _dead(job: Job, status: Status, error: str, store: ResultsStore) -> RunRecord:
    """A record in the name of a process that could not write one; an `OK` one stays."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    record = RunRecord(
        run_id=job.spec.run_id,
        spec=job.spec.describe(),
        status=status,
        error=error,
        started=now,
        finished=now,
    )
    store.add(record)
    return record


def _failures_allowed(options: PoolConfig) -> int | None:
    """After how many failures no further job starts; `None` for never."""
    if options.stop_after is not None:
        if options.stop_after < 1:
            raise ConfigError(f"hydra.launcher.stop_after={options.stop_after}; use 1 or more.")
        return options.stop_after
    if options.on_failure not in ("continue", "stop"):
        raise unknown_name("hydra.launcher.on_failure", options.on_failure, ("continue", "stop"))
    return 1 if options.on_failure == "stop" else None


def _record(job: Job, store: ResultsStore) -> RunRecord | None:
    try:
        return store.get(job.spec.run_id, job.spec.method.name)
    except StoreError:
        return None


def outcome(record: RunRecord) -> str:
    """One line that says how a run ended."""
    if record.status is not Status.OK:
        return f"{record.status}: {record.error}"
    split = "test" if record.spec["phase"] == Phase.FINAL else "val"
    top1 = 100 * (record.metrics[f"{split}/top1"] or 0.0)
    images = int(record.metrics[f"{split}/num_images"] or 0)
    seconds = record.cost.seconds_total if record.cost and record.cost.seconds_total else 0.0
    flattered = f" (best on test: epoch {record.selected_epoch})" if record.selected_epoch else ""
    return f"{top1:.1f} % of {images} {split} images{flattered}, {seconds:.0f} s"


def _summarise(endings: list[Ending], wanted: int) -> None:
    counts = Counter("held elsewhere" if e.record is None else e.record.status for e in endings)
    text = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    if wanted:
        print(f"{len(endings)} of {wanted} jobs ended: {text}", flush=True)
    reasons = Counter(e.message for e in endings if e.failed)
    for reason, count in reasons.most_common():
        print(f"  failed {count} x: {reason}", file=sys.stderr, flush=True)

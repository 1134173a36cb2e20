"""Hydra launchers: jobs of a sweep in processes of their own, or a plan of what they would be."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from peftbench.errors import ConfigError, StoreError
from peftbench.loggers.guard import WARNING
from peftbench.results.record import RunRecord, Status
from peftbench.results.store import ResultsStore
from peftbench.spec import Phase, RunSpec, digest

PLUGINS = "hydra_plugins.peftbench"  # Hydra takes launchers of this top-level package only
STOP_SECONDS = 30.0  # a stopped job may take this long to write its record
MEMORY_PER_JOB = 2 * 2**30  # bytes: torch, timm and a small backbone


@dataclass(frozen=True)
class Job:
    """One cell of a sweep."""

    overrides: tuple[str, ...]
    spec: RunSpec


@dataclass(frozen=True)
class Ending:
    """How a job of a sweep ended."""

    job: Job
    record: RunRecord | None  # None where the process ended without writing one
    message: str
    warnings: tuple[str, ...] = ()  # of its logger

    @property
    def failed(self) -> bool:
        return self.record is None or not self.record.status.settled


@dataclass
class ProcessConfig:
    """Schema of `hydra/launcher=process`."""

    _target_: str = f"{PLUGINS}.ProcessLauncher"
    jobs: int | None = None  # at a time; None: one for each core, as memory allows; one with a GPU
    on_failure: str = "continue"  # or "stop": start no further job after a failure


@dataclass
class PlanConfig:
    """Schema of `hydra/launcher=plan`."""

    _target_: str = f"{PLUGINS}.PlanLauncher"
    jobs: int | None = None  # taken and not needed, so that a sweep's overrides plan it
    on_failure: str = "continue"


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


class ProcessLauncher(_JobLauncher):
    """Runs each job in a fresh process, several at a time; finished ones are not started.

    A crash of one job, even of its interpreter, leaves the others alone. Ctrl-C and SIGTERM stop
    the running jobs, which record that they were interrupted.
    """

    def __init__(self, jobs: int | None = None, on_failure: str = "continue") -> None:
        self.jobs = jobs
        self.on_failure = on_failure

    def work(self, jobs: list[Job], store: ResultsStore) -> None:
        store.check_writable()
        force = bool(self.config.force)
        done = frozenset() if force else store.done()
        todo = [job for job in jobs if job.spec.run_id not in done]
        slots = min(len(todo), self.jobs or default_jobs()) or 1
        print(
            f"{len(jobs)} jobs: {len(jobs) - len(todo)} already done, {len(todo)} to run, "
            f"{slots} at a time",
            flush=True,
        )
        endings: list[Ending] = []
        with _Bar(len(todo)) as bar:
            for ending in self._endings(todo, store, slots):
                known = {warning for earlier in endings for warning in earlier.warnings}
                for warning in dict.fromkeys(ending.warnings):
                    if warning not in known:  # a server that is away is away for every job
                        bar.warn(warning)
                endings.append(ending)
                bar.say(f"[{len(endings)}/{len(todo)}] {ending.job.spec}: {ending.message}")
        self.task.failures.extend(e for e in endings if e.failed)  # type: ignore[attr-defined]
        _summarise(endings, len(todo))

    def _endings(self, todo: list[Job], store: ResultsStore, slots: int) -> Iterator[Ending]:
        """Endings in the order in which jobs end."""
        stop = threading.Event()
        running: set[Future[Ending]] = set()
        queue = iter(todo)
        flags = list(self.task.flags)  # type: ignore[attr-defined]
        context = _context()
        with _shared_cores(slots), ThreadPoolExecutor(slots) as pool:
            try:
                while True:
                    while len(running) < slots and not stop.is_set():
                        job = next(queue, None)
                        if job is None:
                            break
                        running.add(pool.submit(_run, job, store, flags, context, stop))
                    if not running:
                        return
                    finished, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in finished:
                        ending = future.result()
                        yield ending
                        if ending.failed and self.on_failure == "stop":
                            stop.set()
            except KeyboardInterrupt:
                stop.set()
                print("stopping the running jobs; a rerun continues", file=sys.stderr, flush=True)
                for future in running:
                    future.result()
                raise


class PlanLauncher(_JobLauncher):
    """Prints what a sweep would do and runs nothing."""

    def __init__(self, jobs: int | None = None, on_failure: str = "continue") -> None:
        pass

    def work(self, jobs: list[Job], store: ResultsStore) -> None:
        from peftbench.plan import show

        show(jobs, store)


def register_launcher() -> None:
    """Make `hydra/launcher=process` and `hydra/launcher=plan` known to Hydra."""
    store = ConfigStore.instance()
    store.store(group="hydra/launcher", name="process", node=ProcessConfig)
    store.store(group="hydra/launcher", name="plan", node=PlanConfig)
    plugins = Plugins.instance()
    for launcher in (ProcessLauncher, PlanLauncher):
        plugins.register(launcher)
        plugins.class_name_to_class[f"{PLUGINS}.{launcher.__name__}"] = launcher


def default_jobs() -> int:
    """One job on a machine with a GPU; else one for each core this process may use."""
    import psutil
    import torch

    if torch.cuda.is_available():
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    fitting = psutil.virtual_memory().available // MEMORY_PER_JOB
    return max(1, min(cores or 1, int(fitting)))


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


@contextlib.contextmanager
def _shared_cores(slots: int) -> Iterator[None]:
    """Variables that give each job an equal share of the cores; read when a process starts."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = str(max(1, (cores or 1) // slots))
    new = [name for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name not in os.environ]
    os.environ.update({name: threads for name in new})
    try:
        yield
    finally:
        for name in new:
            del os.environ[name]


def _run(
    job: Job, store: ResultsStore, flags: list[str], context: Any, stop: threading.Event
) -> Ending:
    """Start the job's process and wait for its end, or stop it when asked to."""
    before = _record(job, store)
    log = store.artefacts((job.spec.method.name, job.spec.run_id)) / "output.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    arguments = ["run", *flags, *job.overrides]
    process = context.Process(target=_child, args=(arguments, str(log)))
    process.start()
    try:
        while process.is_alive() and not stop.is_set():
            process.join(0.05)
    finally:
        _stop(process)
    record = _record(job, store)
    if record is None or (record == before and not record.status.settled):
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = lines[-1] if lines else "no output"
        return Ending(job, None, f"ended with status {process.exitcode}: {last} (see {log})")
    printed = log.read_text(encoding="utf-8", errors="replace").splitlines()
    warnings = tuple(line for line in printed if line.startswith(WARNING))
    log.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        log.parent.rmdir()  # of a run without artefacts
    return Ending(job, record, outcome(record), warnings)


def _child(arguments: list[str], log: str) -> None:
    """A job's process: a group of its own, so that Ctrl-C reaches it once, through the launcher."""
    os.setsid()
    with open(log, "wb") as output:
        os.dup2(output.fileno(), sys.stdout.fileno())
        os.dup2(output.fileno(), sys.stderr.fileno())
    from peftbench.cli import main

    main(arguments)


def _context() -> Any:
    """Fresh processes that start in milliseconds.

    A server process imports torch and timm once (6 s of one core) and forks each job from that
    clean state; nothing of one job reaches the next.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["peftbench.experiment", "peftbench.config"])
    return context


def _stop(process: Any) -> None:
    """End a process group: ask, wait, then insist. Does nothing to one that has ended."""
    # SIGTERM, which the job treats like Ctrl-C: SIGINT may be ignored, as under nohup
    for signum, patience in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, 5.0)):
        if not process.is_alive():
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signum)
        process.join(patience)


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
    counts = Counter(e.record.status if e.record else Status.ERROR for e in endings)
    text = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    if wanted:
        print(f"{len(endings)} of {wanted} jobs ended: {text}", flush=True)
    reasons = Counter(e.message for e in endings if e.failed)
    for reason, count in reasons.most_common():
        print(f"  failed {count} x: {reason}", file=sys.stderr, flush=True)


class _Bar:
    """Lines about jobs above a progress bar; only the lines where nobody watches a terminal."""

    def __init__(self, total: int) -> None:
        self.total = total

    def __enter__(self) -> _Bar:
        from tqdm import tqdm

        hidden = not sys.stderr.isatty() or not self.total
        self.bar: Any = tqdm(total=self.total, unit="job", disable=hidden)
        return self

    def say(self, line: str) -> None:
        self.bar.write(line, file=sys.stdout)
        sys.stdout.flush()
        self.bar.update()

    def warn(self, line: str) -> None:
        self.bar.write(line, file=sys.stderr)

    def __exit__(self, *error: object) -> None:
        self.bar.close()

"""Jobs of a sweep: what they are, and how each has ended."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from peftbench.errors import ConfigError, DiskFull, StoreError
from peftbench.results import told
from peftbench.results.record import RunRecord, Status
from peftbench.results.store import ResultsStore
from peftbench.spec import RunSpec
from peftbench.sweep.queues.pool import Finished

MOST_TOLD = 2  # metrics of a task, beside what a run declares to be judged by


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
    beside: tuple[Job, ...] = ()  # jobs behind it that train in one pass with it
    images: int | None = None  # in memory at a time; `None` for as many as fit

    @property
    def micro_batch(self) -> int:
        """Images in memory at a time, at most."""
        return self.job.spec.recipe.batch_size if self.images is None else self.images

    @property
    def extra(self) -> tuple[str, ...]:
        """Overrides beyond those of the job; none of them is part of a run's identity."""
        return (f"micro_batch={self.micro_batch}",) if self.retries else ()

    def with_half_the_batch(self, tried: int | None = None) -> Attempt:
        """Another one with half the images in memory at a time, of `tried` where it is known."""
        images = max(1, (self.micro_batch if tried is None else tried) // 2)
        return replace(self, retries=self.retries + 1, images=images)


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
        return not self.held and (self.record is None or self.record.status.failed)

    @property
    def interrupted(self) -> bool:
        return self.record is not None and self.record.status is Status.INTERRUPTED

    @property
    def open(self) -> bool:
        """Whether it is not done, and nothing went wrong here: whoever goes on with it."""
        return self.held or self.interrupted


def without_repeats(jobs: list[Job]) -> list[Job]:
    """Jobs of distinct identity: an alias and its backbone in one sweep are one job."""
    return list({job.spec.run_id: job for job in reversed(jobs)}.values())[::-1]


def batches(jobs: Sequence[Job], size: int) -> list[list[Job]]:
    """Jobs that share a process: at most `size`, of one backbone and data set."""
    if size < 1:
        raise ConfigError(f"hydra.launcher.jobs_per_process={size}; use 1 or more.")
    groups: dict[tuple[str, str], list[Job]] = {}
    for job in jobs:
        groups.setdefault((job.spec.backbone.name, job.spec.dataset.called), []).append(job)
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


def record_of(job: Job, store: ResultsStore) -> RunRecord | None:
    """What is recorded of a job; `None` where nothing is, or nothing that can be read."""
    try:
        return store.get(job.spec.run_id, job.spec.method.name)
    except StoreError:
        return None


def outcome(record: RunRecord) -> str:
    """One line that says how a run ended."""
    if record.status is not Status.OK:
        return f"{record.status}: {record.error}"
    images = int(record.reported("num_images") or 0)
    seconds = record.cost.seconds_total if record.cost and record.cost.seconds_total else 0.0
    flattered = f" (best on test: epoch {record.selected_epoch})" if record.selected_epoch else ""
    told = dict.fromkeys((record.judged_by, *record.task.scores[:MOST_TOLD]))
    measured = {metric: record.reported(metric.name) for metric in told}
    scores = ", ".join(
        f"{100 * value:.1f} % {metric.short}"
        for metric, value in measured.items()
        if value is not None
    )
    return f"{scores} of {images} {record.split} images{flattered}, {seconds:.0f} s"


def ending_of(finished: Finished[Attempt], store: ResultsStore) -> Ending:
    """How a job ended, from its record; a process that died without one gets one here."""
    job = finished.job.job
    record = record_of(job, store)
    written = record is not None and (record != finished.job.before or record.status.settled)
    holder = None if written else store.holder(job.spec.run_id, job.spec.method.name)
    if finished.timed_out and not (record is not None and record.status.settled):
        record = _dead(job, Status.TIMEOUT, f"took longer than {finished.seconds:.0f} s", store)
    elif not written and holder is None:
        cause = finished.cause or _cause(finished.status, output_of(job, store))
        record = _dead(job, Status.ERROR, cause, store)
    warnings = told.take(output_of(job, store).parent)
    if written:
        _forget(output_of(job, store))
    if holder is not None:
        return Ending(job, None, f"held by {holder}", held=True)
    assert record is not None
    return Ending(job, record, outcome(record), warnings=warnings)


def stopped_ending(attempt: Attempt, store: ResultsStore) -> Ending | None:
    """How a job ended that was stopped with its sweep; `None` where it could not record it."""
    record = record_of(attempt.job, store)
    if record is None or record == attempt.before:
        return None
    _forget(output_of(attempt.job, store))
    return Ending(attempt.job, record, outcome(record))


def looked_up_again(ending: Ending, store: ResultsStore) -> Ending:
    """The ending of a job at the end of a sweep: who held it then may have finished it since."""
    if not ending.held:
        return ending
    record = record_of(ending.job, store)
    if record is None or not record.status.settled:
        return ending
    return Ending(ending.job, record, outcome(record))


def _forget(output: Path) -> None:
    """Remove what a process printed: its record says all of it."""
    with contextlib.suppress(OSError):
        output.unlink(missing_ok=True)
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
    """A record in the name of a process that could not write one; an `OK` one stays.

    Where none can be written, the sweep tells what it would say and goes on.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    record = RunRecord(
        run_id=job.spec.run_id,
        spec=job.spec.describe(),
        status=status,
        error=error,
        started=now,
        finished=now,
    )
    try:
        store.add(record)
    except DiskFull as full:  # which is why there is no word of the process either
        return replace(record, error=str(full))
    except StoreError as refused:
        return replace(record, error=f"{error}; it cannot be recorded: {refused}")
    return record

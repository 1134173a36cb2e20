"""One run: load, attach, fit, report once, save, reload, measure; every ending is a record."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from peftbench.backbones.load import check_name
from peftbench.backbones.preprocessing import image_size
from peftbench.errors import (
    StoreError,
)
from peftbench.limits import check_threads
from peftbench.loggers.guard import Guard
from peftbench.results.record import RunRecord, Status
from peftbench.results.store import ResultsStore
from peftbench.run.ending import (
    RESUMABLE,
    PendingRecord,
    now,
    recording,
    reporting,
    worker_failures,
)
from peftbench.run.measure import measure_run
from peftbench.spec import RunSpec
from peftbench.training.checkpoint import NO_SAVING, CheckpointPolicy
from peftbench.training.device import Compute, choose_device, choose_dtype
from peftbench.training.optim import check_recipe
from peftbench.training.world import World, from_environment, join, leave


def run(
    spec: RunSpec,
    store: ResultsStore,
    *,
    device: str = "auto",
    threads: int | None = None,
    force: bool = False,
    progress: bool = False,
    logger: Guard | None = None,
    tuning: dict[str, Any] | None = None,
    micro_batch: int | None = None,
    saving: CheckpointPolicy = NO_SAVING,
) -> RunRecord:
    """The record of `spec`: the stored one if it is settled, else that of a new run.

    An exception inside the run becomes the status of the record, never a gap in the table. What
    `logger` does changes neither; it hears of new runs only. Where the environment names several
    processes, this is the one that leads; the others call `run_worker`.
    """
    logger = Guard(None) if logger is None else logger
    stored = finished_record(spec, store)
    world = from_environment()
    if stored is not None and not force and world.is_single:
        return stored
    where = check(spec, device, threads)
    store.check_writable()
    if threads is not None:
        torch.set_num_threads(threads)
    key = (spec.method.name, spec.run_id)
    where = join(world, where)
    state = store.root / "checkpoints" / f"{spec.run_id}.safetensors"
    with contextlib.closing(logger), leading(world) as begin:
        if stored is not None and not force:
            return stored
        with store.claim(spec.run_id, spec.method.name):
            stored = finished_record(spec, store)  # another process may have finished it meanwhile
            if stored is not None and not force:
                return stored
            if force:
                _remove(state)
            pending = PendingRecord(spec, started=now(), tuning=tuning)
            logger.start(spec.run_id, spec.describe())
            # a rerun that fails must not leave its files beside the record of an earlier success
            scratch = ResultsStore(store.root / ".scratch" / spec.run_id)
            try:
                begin()
                with recording(pending, store):
                    checkpoints = saving.to(state, world)
                    compute = _compute(spec, where, world, micro_batch)
                    measure_run(pending, scratch, compute, checkpoints, progress, logger.epoch)
                    _move(scratch.artefacts(key), store.artefacts(key))
                if pending.status in (Status.ERROR, Status.INTERRUPTED):
                    for rank, (status, error) in worker_failures(scratch.root, world).items():
                        pending.status = status  # a broken connection is not the cause
                        pending.error = f"in process {rank} of {world.size}: {error}"
                if pending.status is not Status.OK:  # its files may be what filled the disk
                    shutil.rmtree(scratch.root, ignore_errors=True)
                record = pending.record()
                store.add(record)
                if pending.status not in RESUMABLE:
                    _remove(state)
            finally:
                shutil.rmtree(scratch.root, ignore_errors=True)
                with contextlib.suppress(OSError):
                    scratch.root.parent.rmdir()  # unless another run is using it
        logger.finish(record)  # may wait, but nobody has to wait for the run any more
    return record


def run_worker(
    spec: RunSpec,
    store: ResultsStore,
    *,
    device: str = "auto",
    threads: int | None = None,
    micro_batch: int | None = None,
    saving: CheckpointPolicy = NO_SAVING,
) -> None:
    """Take part in a run that another process leads, and records.

    What goes wrong here is left for that process, and raised.
    """
    world = from_environment()
    where = join(world, check(spec, device, threads))
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        if not world.broadcast():  # there is nothing to run
            return
        scratch = ResultsStore(store.root / ".scratch" / spec.run_id)
        checkpoints = saving.to(store.root / "checkpoints" / f"{spec.run_id}.safetensors", world)
        with reporting(scratch.root, world, spec):
            pending = PendingRecord(spec, started=now())
            compute = _compute(spec, where, world, micro_batch)
            measure_run(pending, scratch, compute, checkpoints, False, lambda row: None)
    finally:
        leave(world)


def _compute(spec: RunSpec, device: torch.device, world: World, micro_batch: int | None) -> Compute:
    return Compute(device, choose_dtype(spec.precision, device), world, micro_batch)


@contextlib.contextmanager
def leading(world: World) -> Iterator[Callable[[], None]]:
    """Gives what tells the other processes to begin; where it was not called, they go home."""
    begun = False

    def begin() -> None:
        nonlocal begun
        begun = True
        world.broadcast(True)

    try:
        yield begin
    finally:
        if not begun:
            world.broadcast(False)
        leave(world)


def check(spec: RunSpec, device: str, threads: int | None) -> torch.device:
    """The device of a run that can be started; raises `ConfigError` for one that cannot."""
    check_recipe(spec.recipe)
    check_name(spec.backbone)
    spec.train_size(image_size(spec.backbone))
    check_threads(threads)
    return choose_device(device)


def _remove(state: Path) -> None:
    """Remove a checkpoint; what cannot be removed, such as a folder of its name, is no failure."""
    with contextlib.suppress(OSError):
        state.unlink(missing_ok=True)


def _move(made: Path, place: Path) -> None:
    """Put the files of a finished run where they belong, in place of any older ones."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "log.txt").unlink(missing_ok=True)
    for file in made.iterdir():
        file.replace(place / file.name)


def finished_record(spec: RunSpec, store: ResultsStore) -> RunRecord | None:
    """The stored record if a rerun would end the same way; a broken file is run again."""
    try:
        stored = store.get(spec.run_id, spec.method.name)
    except StoreError:
        return None
    return stored if stored is not None and stored.status.settled else None

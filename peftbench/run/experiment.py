"""One run: load, attach, fit, report once, save, reload, measure; every ending is a record."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftbench.backbones.names import check_name
from peftbench.backbones.preprocessing import image_size
from peftbench.config.limits import check_threads
from peftbench.errors import StoreError
from peftbench.loggers.guard import Guard
from peftbench.results import told
from peftbench.results.latencies import Latencies
from peftbench.results.record import RunRecord, Status
from peftbench.results.store import ResultsStore
from peftbench.run import shown
from peftbench.run.ending import (
    RESUMABLE,
    PendingRecord,
    now,
    recording,
    reporting,
    worker_failures,
)
from peftbench.run.pairs import check_pair
from peftbench.run.shown import Showing
from peftbench.spec import RunSpec
from peftbench.training.recipe import check_recipe
from peftbench.training.saving import WHEN_STOPPED, CheckpointPolicy
from peftbench.training.world import World, from_environment, join, leave

if TYPE_CHECKING:
    import torch

    from peftbench.run.activation_store import ActivationStore
    from peftbench.training.device import Compute


@dataclass(frozen=True)
class RunOptions:
    """How a run is computed; no identity of it."""

    device: str = "auto"
    threads: int | None = None
    micro_batch: int | None = None  # images in memory at a time
    saving: CheckpointPolicy = WHEN_STOPPED
    compile: bool = False  # the training, by `torch.compile`
    show: Callable[[RunSpec], Showing] = shown.nowhere  # what a person sees of the training
    beside: tuple[RunSpec, ...] = ()  # trials that may train in one pass with this run
    activations: int | None = None  # bytes that activations of frozen parts may take; None: off
    timed: bool = True  # whether latencies are measured


DEFAULTS = RunOptions()
EVERYWHERE = ("auto", "cpu")  # devices that any machine has; torch is asked for others


def run(
    spec: RunSpec,
    store: ResultsStore,
    options: RunOptions = DEFAULTS,
    *,
    force: bool = False,
    logger: Guard | None = None,
    tuning: dict[str, Any] | None = None,
) -> RunRecord:
    """The record of `spec`: the stored one if it is settled, else that of a new run.

    An exception inside the run becomes the status of the record, never a gap in the table. What
    `logger` does changes neither; it hears of new runs only. With `force` neither a stored record
    nor a latency that another run measured counts. Where the environment names several
    processes, this is the one that leads; the others call `run_worker`.
    """
    logger = Guard(None) if logger is None else logger
    stored = None if force else finished_record(spec, store)
    world = from_environment()
    if stored is not None and world.is_single:
        return stored
    check(spec, options.device, options.threads)
    from peftbench.run.measure import Shared, Watching, measure_run

    store.check_writable()
    device = _device(world, options)
    key, state = (spec.method.name, spec.run_id), _state(spec, store)
    with contextlib.closing(logger), leading(world) as begin:
        if stored is not None:
            return stored
        with store.claim(spec.run_id, spec.method.name):
            # another process may have finished it meanwhile
            stored = None if force else finished_record(spec, store)
            if stored is not None:
                return stored
            if force:
                _remove(state)
            pending = PendingRecord(spec, started=now(), tuning=tuning)
            artefacts = store.artefacts(key)
            told.take(artefacts)  # of an earlier try
            logger.start(spec.run_id, spec.describe(), lambda line: told.leave(artefacts, (line,)))
            with _scratch(spec, store) as scratch:
                begin()
                checkpoints = options.saving.to(state, world)
                with recording(pending, store), checkpoints.saving_when_stopped():
                    compute = _compute(spec, device, world, options)
                    watching = Watching(options.show, logger.epoch)
                    known = Latencies(store.root, renew=force)
                    shared = Shared(known, _activations(options), options.beside, options.timed)
                    measure_run(pending, scratch, compute, checkpoints, watching, shared)
                    _move(scratch.artefacts(key), artefacts)
                pending.notes += checkpoints.notes
                _explain(pending, scratch, world)
                record = pending.record()
                store.add(record)
                if pending.status not in RESUMABLE:
                    _remove(state)
        logger.finish(record)  # may wait, but nobody has to wait for the run any more
    return record


def run_worker(spec: RunSpec, store: ResultsStore, options: RunOptions = DEFAULTS) -> None:
    """Take part in a run that another process leads, shows and records.

    What goes wrong here is left for that process, and raised.
    """
    world = from_environment()
    check(spec, options.device, options.threads)
    from peftbench.run.measure import Shared, Watching, measure_run

    device = _device(world, options)
    try:
        if not world.broadcast():  # there is nothing to run
            return
        scratch = _scratch_of(spec, store)
        checkpoints = options.saving.to(_state(spec, store), world)
        with reporting(scratch.root, world, spec):
            pending = PendingRecord(spec, started=now())
            compute = _compute(spec, device, world, options)
            shared = Shared(Latencies(store.root), _activations(options))
            measure_run(pending, scratch, compute, checkpoints, Watching(), shared)
    finally:
        leave(world)


def _device(world: World, options: RunOptions) -> torch.device:
    """The device of this process, which has met the others and has its threads."""
    import torch

    from peftbench.training.device import choose_device

    device = join(world, choose_device(options.device))
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    return device


def _compute(spec: RunSpec, device: torch.device, world: World, options: RunOptions) -> Compute:
    from peftbench.training.device import Compute, choose_dtype

    dtype = choose_dtype(spec.precision, device)
    return Compute(device, dtype, world, options.micro_batch, options.compile)


def _activations(options: RunOptions) -> ActivationStore | None:
    from peftbench.run.activation_store import ActivationStore

    if options.activations is None:
        return None
    return ActivationStore.of_user(options.activations)


def _state(spec: RunSpec, store: ResultsStore) -> Path:
    """The file of an unfinished training."""
    return store.root / "checkpoints" / f"{spec.run_id}.safetensors"


def _scratch_of(spec: RunSpec, store: ResultsStore) -> ResultsStore:
    """Where a run writes until it has ended well."""
    return ResultsStore(store.root / ".scratch" / spec.run_id)


@contextlib.contextmanager
def _scratch(spec: RunSpec, store: ResultsStore) -> Iterator[ResultsStore]:
    """A store that is gone behind: a failed rerun leaves nothing beside an earlier success."""
    scratch = _scratch_of(spec, store)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch.root, ignore_errors=True)
        with contextlib.suppress(OSError):
            scratch.root.parent.rmdir()  # unless another run is using it


def _explain(pending: PendingRecord, scratch: ResultsStore, world: World) -> None:
    """Look for the cause of a failure in other processes, and free the disk after one."""
    if pending.status in (Status.ERROR, Status.INTERRUPTED):
        for rank, (status, error) in worker_failures(scratch.root, world).items():
            pending.status = status  # a broken connection is not the cause
            pending.error = f"in process {rank} of {world.size}: {error}"
    if pending.status is not Status.OK:  # its files may be what filled the disk
        shutil.rmtree(scratch.root, ignore_errors=True)


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


def check(spec: RunSpec, device: str, threads: int | None) -> None:
    """Raise `ConfigError` for a run that cannot be started."""
    check_recipe(spec.recipe)
    check_pair(spec)
    check_name(spec.backbone)
    spec.train_size(image_size(spec.backbone))
    check_threads(threads)
    if device not in EVERYWHERE:
        from peftbench.training.device import choose_device

        choose_device(device)


def _remove(state: Path) -> None:
    """Remove a checkpoint; what cannot be removed, such as a folder of its name, is no failure."""
    with contextlib.suppress(OSError):
        state.unlink(missing_ok=True)


def _move(source: Path, place: Path) -> None:
    """Put the files of a finished run where they belong, in place of any older ones."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "log.txt").unlink(missing_ok=True)
    for file in source.iterdir():
        file.replace(place / file.name)


def finished_record(spec: RunSpec, store: ResultsStore) -> RunRecord | None:
    """The stored record if a rerun would end the same way; a broken file is run again."""
    try:
        stored = store.get(spec.run_id, spec.method.name)
    except StoreError:
        return None
    return stored if stored is not None and stored.status.settled else None

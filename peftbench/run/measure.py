"""One run from the backbone to its numbers: prepare, train, predict, score, keep, time, merge."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

import peftbench
from peftbench.allocation import freed_is_kept
from peftbench.methods.base import as_method
from peftbench.results.latencies import Latencies, StepCost
from peftbench.results.record import Cost, EpochRow
from peftbench.results.store import ResultsStore
from peftbench.run import cost, robustness, room, shown, trials
from peftbench.run.activation_store import ActivationStore
from peftbench.run.bench import Bench
from peftbench.run.benches import bench_of, with_its_frozen_part
from peftbench.run.effects import check_executed
from peftbench.run.ending import PendingRecord
from peftbench.run.energy import EnergyMeter
from peftbench.run.keep import (
    counted_on_images,
    keep,
    merge,
    save_predictions,
    time_merged,
    time_tuned,
)
from peftbench.run.layers import rate_scales
from peftbench.run.selection import BestOnTest, ValChecks, report_split
from peftbench.run.shown import Follower, Showing
from peftbench.run.solving import counted, solved
from peftbench.run.timing import disturbance
from peftbench.spec import SPLIT_OF_PHASE, Phase, RunSpec
from peftbench.tasks import ImageRows
from peftbench.training.checkpoint import Checkpoints, Stateful
from peftbench.training.device import Compute, seeded
from peftbench.training.fittable import Fittable
from peftbench.training.loop import Callbacks, Fit, fit


@dataclass(frozen=True)
class Trained:
    """What training leaves besides the trained tensors."""

    fit: Fit
    best: BestOnTest
    checks: ValChecks
    resumed: int  # times that the training was taken up from a checkpoint
    peak_bytes: int
    seconds: float  # with those of earlier processes
    disturbed: bool  # whether other programs made the steps longer
    energy_joules: float | None  # of the device, where this process did all of the training


@dataclass(frozen=True)
class Predicted:
    """What the model says of the split that is reported."""

    rows: ImageRows
    seconds: float


@dataclass(frozen=True)
class Scored:
    """The numbers of the reported split and of the shifts."""

    metrics: dict[str, float]  # keyed "test/top1", "imagenet_a/top1"
    seconds: float


@dataclass(frozen=True)
class Shared:
    """What runs have from one another."""

    latencies: Latencies
    activations: ActivationStore | None = None  # of frozen parts; without it none are kept
    beside: tuple[RunSpec, ...] = ()  # trials that may train in one pass with this run
    timed: bool = True  # whether latencies are measured


@dataclass(frozen=True)
class Watching:
    """Who follows the epochs of a run."""

    show: Callable[[RunSpec], Showing] = shown.nowhere
    log: Callable[[EpochRow], object] = lambda row: None  # is told of each


def measure_run(
    pending: PendingRecord,
    store: ResultsStore,
    compute: Compute,
    checkpoints: Checkpoints,
    watching: Watching,
    shared: Shared,
) -> None:
    """Fill `pending` with all that a run measures, and `store` with its files.

    Each step notes down what it knows at once, so that a run which fails keeps it.

    Args:
        checkpoints: where the state of the training is found, and left when it is stopped.
        shared: what other runs measured and computed, to take over and to add to.
    """
    began = time.perf_counter()
    cost.reset_peak(compute.device)
    known = shared.latencies
    prepared = bench_of(pending, compute, is_followed=bool(shared.beside))
    bench, step = room.fitted(pending, prepared, known)
    if shared.activations is not None:
        bench = with_its_frozen_part(bench, shared.activations)
    is_ample = room.is_ample(compute.device, step, 1 + len(shared.beside))
    with freed_is_kept() if is_ample else contextlib.nullcontext():
        trained = train(pending, bench, checkpoints, watching, shared.beside, step)
    bench = counted(pending, bench)
    known.busy = trained.disturbed
    predicted = predict_report(pending, bench, trained)
    if not compute.world.is_main:  # what is left is done once
        return
    scored = score(pending, bench, predicted)
    save_predictions(store, bench, predicted.rows)
    pending.looks = {str(epoch): value for epoch, value in trained.checks.values.items()}
    pending.stopped_epoch = trained.checks.stopped_epoch
    spent = _spent(bench, trained, step, predicted.seconds + scored.seconds)
    if bench.spec.phase is Phase.FINAL:  # of hundreds of trials, all but one are never used
        kept = keep(pending, bench, store)
        if shared.timed:
            spent = pending.cost = time_tuned(pending, bench, known, spent)
        spent = pending.cost = counted_on_images(bench, kept, spent)
        merged = merge(pending, bench, kept)
        if merged is not None and shared.timed:
            spent = time_merged(pending, bench, known, merged, spent)
    pending.cost = dataclasses.replace(spent, seconds_total=time.perf_counter() - began)


def train(
    pending: PendingRecord,
    bench: Bench,
    checkpoints: Checkpoints,
    watching: Watching,
    beside: tuple[RunSpec, ...] = (),
    step: StepCost | None = None,
) -> Trained:
    """Fit the tuned model; `pending` has each epoch as soon as it is over.

    With the runs `beside` it in one pass, where they can be, by what a `step` of one takes.

    Raises:
        NoEffect: no tensor of the method got a gradient.
    """
    began = time.perf_counter()
    spec, tuned, compute = bench.spec, bench.tuned, bench.compute
    best = BestOnTest(spec, tuned, bench.splits, bench.rows_of_report)
    checks = ValChecks(spec, bench.splits, bench.rows_of_report)
    _claim(checkpoints, bench)
    before, meter = cost.clock(compute.device), EnergyMeter(compute.device)
    with watching.show(spec) as showing, seeded(spec.seed, compute), _heard(bench, showing):

        def tell(row: EpochRow) -> None:
            watching.log(row)
            showing.epoch(row)

        def on_epoch(row: EpochRow) -> bool:
            meter.sample()
            best(row.epoch)
            over = checks(row.epoch)
            tell(row)  # after all that can be stopped, and is done again then
            return over

        together = None
        if as_method(spec.method).card.solved:
            fitted = solved(bench)
        else:
            fittable = _fittable(bench)
            shared = trials.Pass(beside, fittable, checkpoints, step)
            together = trials.trained(bench, shared)
        if together is not None:
            fitted = trials.take_over(pending, bench, together)
            for row in fitted.history:
                tell(row)
        elif not as_method(spec.method).card.solved:
            observers: dict[str, Stateful] = {"best": best, "looks": checks}
            callbacks = Callbacks(on_epoch, showing.step, checkpoints, observers, pending.history)
            fitted = _fitted(bench, fittable, callbacks)
    joules = meter.joules()
    disturbed = disturbance(
        fitted.whole_steps, before, cost.clock(compute.device), torch.get_num_threads()
    )
    if disturbed is not None and fitted.step_seconds:
        pending.notes.append(f"step_ms: disturbed, {disturbed}")
    if bench.frozen is not None:
        bench.frozen.check()
    if fitted.steps:  # none is left where a run was killed after its last one
        check_executed(tuned)
    seconds = time.perf_counter() - began + fitted.seconds_before
    if together is not None:
        seconds = together.seconds
    resumed = checkpoints.resumed
    peak = cost.peak_bytes(compute.device)
    alone = compute.world.is_single and resumed == 0 and together is None
    return Trained(
        fitted,
        best,
        checks,
        resumed,
        peak,
        seconds,
        disturbed is not None,
        joules if alone else None,
    )


@contextlib.contextmanager
def _heard(bench: Bench, showing: Follower) -> Iterator[None]:
    """Inside, `showing` is told how many images frozen layers were computed of."""
    frozen = bench.frozen
    if frozen is None:
        yield
        return
    before, frozen.told = frozen.told, showing.kept
    try:
        yield
    finally:
        frozen.told = before


def _fitted(bench: Bench, fittable: Fittable, callbacks: Callbacks) -> Fit:
    """Train by steps, from the start or from a checkpoint."""
    return fit(
        fittable,
        bench.splits.train,
        bench.spec.recipe,
        seed=bench.spec.seed,
        compute=bench.compute,
        callbacks=callbacks,
    )


def _claim(checkpoints: Checkpoints, bench: Bench) -> None:
    """Take up no state but that of this very training."""
    checkpoints.belongs_to(
        run_id=bench.spec.run_id,
        backbone=bench.backbone.sha256,
        data=bench.splits.manifest,
        peftbench=peftbench.__version__,
        torch=torch.__version__,
    )


def _fittable(bench: Bench) -> Fittable:
    """The tuned model, or what follows its frozen part where that is kept."""
    tuned, frozen, model, inputs = bench.tuned, bench.frozen, bench.tuned.model, None
    if frozen is not None:
        inputs = frozen.inputs(bench.splits.train.images)
        model = model if inputs is None else frozen.suffix
    return Fittable(
        model,
        list(tuned.trainable.values()),
        lambda: tuned.train(bench.spec.recipe.frozen_mode),
        bench.backbone.preprocessing,
        tuned.regulariser,
        bench.splits.num_classes,
        bench.spec.task,
        inputs,
        tuned.after_step,
        rate_scales(tuned, bench.spec.recipe),
        bench.objective,
    )


def predict_report(pending: PendingRecord, bench: Bench, trained: Trained) -> Predicted:
    """Predictions of the reported split, by the epoch that counts; the model is left at it."""
    began = time.perf_counter()
    selected = trained.best.best
    if selected is not None:
        rows = selected.rows
        bench.tuned.load_state(selected.state)
        pending.selected_epoch = selected.epoch
        pending.metrics = {f"last_epoch/{k}": v for k, v in trained.best.last.items()}
    else:
        rows = bench.rows_of_report(*report_split(bench.splits), often=False)
    return Predicted(rows, time.perf_counter() - began)


def score(pending: PendingRecord, bench: Bench, predicted: Predicted) -> Scored:
    """Metrics of the reported split and of each shift, which is predicted here."""
    began = time.perf_counter()
    name = SPLIT_OF_PHASE[bench.spec.phase]
    task = bench.spec.task
    measured = task.metrics(predicted.rows, bench.splits.num_classes)
    scores = {f"{name}/{key}": value for key, value in measured.items()}
    alone = bench.compute.alone()
    val = bench.splits.val
    if val is not None:  # which has not trained the model
        beside = task.metrics(bench.rows(val.images, val.labels, alone), bench.splits.num_classes)
        scores |= {f"val/{key}": value for key, value in beside.items()}
    pending.metrics.update(scores)
    for shift, parts in bench.shifts.items():
        shifted = robustness.measure(
            shift,
            parts,
            lambda images: bench.predict(images, alone),
            task,
            bench.spec.judged_by.name,
        )
        pending.metrics.update(shifted)
        scores |= shifted
    return Scored(scores, time.perf_counter() - began)


def _spent(bench: Bench, trained: Trained, step: StepCost | None, seconds_evaluate: float) -> Cost:
    """What training and evaluation took."""
    steps, passes = trained.fit.step_seconds, trained.fit.pass_seconds
    frozen = bench.frozen
    return Cost(
        device=cost.device_name(bench.compute.device),
        dtype=str(bench.compute.dtype).removeprefix("torch."),
        train_images_per_second=trained.fit.images_per_second,
        step_ms=1e3 * statistics.median(steps) if steps else None,
        peak_bytes=trained.peak_bytes,
        seconds_load=bench.seconds,
        seconds_train=trained.seconds,
        seconds_evaluate=seconds_evaluate,
        processes=bench.compute.world.size,
        resumed=trained.resumed,
        training_gflops=None if step is None else step.training_gflops,
        kept_bytes=None if step is None else step.kept_bytes,
        step_ms_without_data=1e3 * statistics.median(passes) if passes else None,
        energy_joules=trained.energy_joules,
        **({} if frozen is None else frozen.spared()),
    )

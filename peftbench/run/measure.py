"""One run from the backbone to its numbers."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

import peftbench
from peftbench import data
from peftbench.artefacts import task_file as tuned
from peftbench.backbones.anatomy import Anatomy
from peftbench.backbones.describe import describe, weightless_copy
from peftbench.backbones.load import Backbone, load
from peftbench.canonical import plain
from peftbench.errors import (
    Diverged,
    NoEffect,
    NotMergeable,
    WeightsError,
)
from peftbench.methods.base import Tuned, apply, as_method
from peftbench.results.record import Cost, EpochRow, Parameters, Provenance
from peftbench.results.store import ResultsStore
from peftbench.run import cost, provenance, robustness
from peftbench.run.ending import Draft
from peftbench.run.selection import BestOnTest, LooksOnVal, report_split, top1_of
from peftbench.spec import Phase, RunSpec
from peftbench.training.checkpoint import Checkpoints
from peftbench.training.device import choose_dtype
from peftbench.training.evaluate import Predictions, metrics, predict
from peftbench.training.loop import fit
from peftbench.training.world import ALONE, World
from peftbench.untrusted import printable

CHECK_IMAGES = 256  # about as many of the train split, for the reload and merge checks


def measure_run(
    draft: Draft,
    store: ResultsStore,
    device: torch.device,
    world: World,
    checkpoints: Checkpoints | None,
    progress: bool,
    log: Callable[[EpochRow], None],
    micro_batch: int | None,
) -> None:
    spec = draft.spec
    clock = time.perf_counter()
    dtype = choose_dtype(spec.precision, device)
    cost.reset_peak(device)

    backbone, anatomy, splits = _load(spec, device)
    num_classes = len(splits.class_names)
    tested = spec.shifts if spec.phase is Phase.FINAL else ()
    shifts = robustness.find(tested, splits.class_names, backbone.preprocessing)
    draft.fields["provenance"] = _provenance(backbone, splits)
    tuned_model = _attach(spec, backbone, anatomy, num_classes)
    draft.fields["notes"] = [*splits.notes, *backbone.notes, *tuned_model.notes]
    if micro_batch is not None and micro_batch < spec.recipe.batch_size:
        draft.fields["notes"].append(f"trained with {micro_batch} images in memory at a time")
    draft.fields["parameters"] = _count(tuned_model, anatomy)
    seconds_load = time.perf_counter() - clock

    clock_train = time.perf_counter()
    history: list[EpochRow] = []
    draft.fields["history"] = history

    def predicted(images: np.ndarray) -> Predictions:
        return _predict(tuned_model, images, backbone, device, dtype, world)

    look = BestOnTest(spec, tuned_model, splits, predicted)
    stops = LooksOnVal(spec, splits, predicted)
    if checkpoints is not None:
        checkpoints.belongs_to(
            run_id=spec.run_id,
            backbone=backbone.sha256,
            data=splits.manifest,
            peftbench=peftbench.__version__,
            torch=torch.__version__,
        )
    with _following(spec, progress, log) as show:

        def on_epoch(row: EpochRow) -> bool:
            show(row)
            look(row.epoch)
            return stops(row.epoch)

        fitted = fit(
            tuned_model.model,
            list(tuned_model.trainable.values()),
            splits.train,
            spec.recipe,
            backbone.preprocessing,
            seed=spec.seed,
            device=device,
            dtype=dtype,
            set_mode=lambda: tuned_model.train(spec.recipe.frozen_mode),
            num_classes=num_classes,
            micro_batch=micro_batch,
            regulariser=tuned_model.regulariser,
            on_epoch=on_epoch,
            world=world,
            checkpoints=checkpoints,
            observers={"best": look, "looks": stops},
            history=history,
        )
    if fitted.steps:  # none is left where a run was killed after its last one
        _check_executed(tuned_model)
    seconds_train = time.perf_counter() - clock_train + fitted.seconds_before
    if checkpoints is not None:
        draft.fields["notes"] += checkpoints.notes
    peak = cost.peak_bytes(device)

    clock_report = time.perf_counter()
    if look.best is not None:
        predictions, labels = look.best.predictions, look.labels
        tuned_model.load_state(look.best.state)
        draft.fields["selected_epoch"] = look.best.epoch
        draft.fields["metrics"] = {f"last_epoch/{k}": v for k, v in look.last.items()}
    else:
        images, labels = report_split(splits)
        predictions = predicted(images)
        draft.fields["metrics"] = {}
    if not world.is_main:  # what is left is done once
        return
    name = "test" if spec.phase is Phase.FINAL else "val"
    measured = metrics(predictions, labels, num_classes)
    draft.fields["metrics"] |= {f"{name}/{key}": value for key, value in measured.items()}
    for shift, parts in shifts.items():
        draft.fields["metrics"] |= robustness.measure(
            shift,
            parts,
            lambda images: _predict(tuned_model, images, backbone, device, dtype),
        )
    seconds_evaluate = time.perf_counter() - clock_report
    store.save_predictions(
        spec.method.name,
        spec.run_id,
        classes=predictions.classes,
        confidence=predictions.confidence.astype(np.float32),
        margin=predictions.margin.astype(np.float32),
        labels=labels,
    )
    measured_cost = Cost(
        device=cost.device_name(device),
        dtype=str(dtype).removeprefix("torch."),
        train_images_per_second=fitted.images_per_second,
        step_ms=1e3 * statistics.median(fitted.step_seconds) if fitted.step_seconds else None,
        peak_bytes=peak,
        seconds_load=seconds_load,
        seconds_train=seconds_train,
        seconds_evaluate=seconds_evaluate,
        processes=world.size,
        resumed=0 if checkpoints is None else checkpoints.resumed,
    )
    draft.fields["looks"] = {str(epoch): top1 for epoch, top1 in stops.values.items()}
    draft.fields["stopped_epoch"] = stops.stopped_epoch
    if spec.phase is Phase.TUNE:  # a trial: of hundreds, all but one are never looked at again
        draft.fields["cost"] = dataclasses.replace(
            measured_cost, seconds_total=time.perf_counter() - clock
        )
        return

    stride = max(1, len(splits.train) // CHECK_IMAGES)  # classes follow one another in the split
    sample = (
        data.squashed(splits.train.images[::stride], backbone.preprocessing),
        splits.train.labels[::stride],
    )
    reference = _predict(tuned_model, sample[0], backbone, device, dtype)
    folder = store.artefacts((spec.method.name, spec.run_id))
    stored_bytes = tuned.save(tuned_model, folder, _card(draft, splits.class_names))
    draft.fields["parameters"] = dataclasses.replace(
        draft.fields["parameters"], stored_bytes=stored_bytes
    )
    draft.fields["reload"] = _check_reload(
        spec, store, backbone, num_classes, sample, reference, device, dtype
    )
    size = backbone.image_size
    draft.fields["cost"] = measured_cost = dataclasses.replace(
        measured_cost,
        latency_ms_batch1=cost.latency_ms(tuned_model.model, 1, size, device, dtype),
        latency_ms_batch=cost.latency_ms(
            tuned_model.model, cost.LATENCY_BATCH, size, device, dtype
        ),
        latency_batch_size=cost.LATENCY_BATCH,
        forward_gmacs=cost.forward_gmacs(tuned_model.model, size, weightless_copy),
    )
    merged = _merged(tuned_model, draft.fields["notes"])
    if merged is not None:
        after = predict(merged, sample[0], backbone.preprocessing, device=device, dtype=dtype)
        draft.fields["merge"] = {
            "max_logit_difference": float(np.abs(after.logits - reference.logits).max()),
            "top1_difference": top1_of(after, sample[1]) - top1_of(reference, sample[1]),
        }
        measured_cost = dataclasses.replace(
            measured_cost,
            merged_latency_ms_batch1=cost.latency_ms(merged, 1, size, device, dtype),
            merged_latency_ms_batch=cost.latency_ms(
                merged, cost.LATENCY_BATCH, size, device, dtype
            ),
        )
    draft.fields["cost"] = dataclasses.replace(
        measured_cost, seconds_total=time.perf_counter() - clock
    )


def _load(spec: RunSpec, device: torch.device) -> tuple[Backbone, Anatomy, data.Splits]:
    """Backbone and data; a pair that makes no sense is refused before any image is read."""
    backbone = load(spec.backbone, 2, spec.preprocessing, device)
    anatomy = describe(backbone.model, backbone.image_size)
    as_method(spec.method).check(anatomy)
    kept = dataclasses.replace(
        backbone.preprocessing, train_size=spec.train_size(backbone.image_size)
    )
    backbone = dataclasses.replace(backbone, preprocessing=kept)
    splits = data.load(spec.dataset, spec.phase, backbone.preprocessing)
    return backbone, anatomy, splits


def _attach(spec: RunSpec, backbone: Backbone, anatomy: Anatomy, num_classes: int) -> Tuned:
    generator = torch.Generator().manual_seed(spec.seed)
    return apply(as_method(spec.method), backbone.model, anatomy, num_classes, generator)


def _merged(tuned_model: Tuned, notes: list[str]) -> torch.nn.Module | None:
    """A merged copy, or `None` with a note where these hyper-parameters have no place in it."""
    if not tuned_model.method.card.mergeable:
        return None
    try:
        return tuned_model.method.merge(copy.deepcopy(tuned_model.model))
    except NotMergeable as e:
        notes.append(str(e))
        return None


def _check_executed(tuned_model: Tuned) -> None:
    """Refuse a method whose tensors are counted but took no part in any forward pass."""
    added = tuned_model.method_params
    dead = [name for name, parameter in added.items() if parameter.grad is None]
    if added and len(dead) == len(added):
        raise NoEffect(
            f"{tuned_model.method.name} added {len(added)} tensors and none of them got a "
            "gradient: the backbone never executes them."
        )


def _predict(
    tuned_model: Tuned,
    images: np.ndarray | data.DecodedImages,
    backbone: Backbone,
    device: torch.device,
    dtype: torch.dtype,
    world: World = ALONE,
) -> Predictions:
    predictions = predict(
        tuned_model.model, images, backbone.preprocessing, device=device, dtype=dtype, world=world
    )
    if not np.isfinite(predictions.logits).all():
        raise Diverged("the trained model predicts values that are not finite. Lower recipe.lr.")
    return predictions


def _check_reload(
    spec: RunSpec,
    store: ResultsStore,
    backbone: Backbone,
    num_classes: int,
    sample: tuple[np.ndarray, np.ndarray],
    reference: Predictions,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, float]:
    """Predict with a fresh backbone and the saved tensors; raises unless the metric is the same.

    Judged on training images: the test split is read once and not for checks.
    """
    fresh = load(spec.backbone, 2, spec.preprocessing, device)
    if fresh.sha256 != backbone.sha256:
        raise WeightsError(
            f"backbone {spec.backbone.name!r} gave other weights when it was loaded again "
            f"({backbone.sha256[:12]}, then {fresh.sha256[:12]})."
        )
    anatomy = describe(fresh.model, fresh.image_size)
    again = _attach(spec, fresh, anatomy, num_classes)
    tuned.load(again, store.artefacts((spec.method.name, spec.run_id)))
    reloaded = predict(again.model, sample[0], fresh.preprocessing, device=device, dtype=dtype)
    before, after = top1_of(reference, sample[1]), top1_of(reloaded, sample[1])
    if before != after:
        raise WeightsError(
            f"the reloaded task reaches {after} where the trained one reached {before} on the same "
            "images: a tensor that training changed is not saved. Report this as a bug."
        )
    return {
        "train_top1": after,
        "max_logit_difference": float(np.abs(reloaded.logits - reference.logits).max()),
    }


def _count(tuned_model: Tuned, anatomy: Anatomy) -> Parameters:
    def total(parameters: dict[str, torch.nn.Parameter]) -> int:
        return sum(p.numel() for p in parameters.values())

    return Parameters(
        method=total(tuned_model.method_params),
        head=total(tuned_model.head_params),
        unfrozen=total(tuned_model.unfrozen_params),
        backbone=anatomy.num_params,
        stored_bytes=0,
    )


def _provenance(backbone: Backbone, splits: data.Splits) -> Provenance:
    commit, dirty = provenance.git_state()
    return Provenance(
        peftbench=peftbench.__version__,
        python=platform.python_version(),
        versions=dict(provenance.versions()),
        git_commit=commit,
        git_dirty=dirty,
        host=provenance.host(),
        platform=platform.platform(),
        cpu_threads=torch.get_num_threads(),
        driver=provenance.driver(),
        backbone_sha256=backbone.sha256,
        backbone_source=backbone.source,
        preprocessing=plain(dataclasses.asdict(backbone.preprocessing)),
        data={
            "manifest": splits.manifest,
            "train_images": len(splits.train.labels),
            "report_images": len(splits.report),
            "classes": len(splits.class_names),
        },
    )


def _card(draft: Draft, class_names: tuple[str, ...]) -> dict[str, Any]:
    card = dataclasses.asdict(as_method(draft.spec.method).card)
    return {
        "run_id": draft.spec.run_id,
        "spec": draft.spec.describe(),
        "method_card": card,
        "classes": list(class_names),
        "metrics": draft.fields["metrics"],
        "provenance": dataclasses.asdict(draft.fields["provenance"]),
    }


@contextlib.contextmanager
def _following(
    spec: RunSpec, show: bool, log: Callable[[EpochRow], None]
) -> Iterator[Callable[[EpochRow], None]]:
    """What is told of each epoch: the logger keeps it, and a terminal shows it."""
    from tqdm import tqdm

    total = spec.recipe.total_epochs
    with tqdm(total=total, desc=printable(str(spec)), unit="epoch", disable=not show) as bar:

        def on_epoch(row: EpochRow) -> None:
            log(row)
            bar.set_postfix(loss=f"{row.loss:.3f}", train=f"{100 * row.accuracy:.1f}")
            bar.update(row.epoch - bar.n)  # more than one after a run was taken up again

        yield on_epoch

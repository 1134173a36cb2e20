"""One run: load, attach, fit, report once, save, reload, measure; every ending is a record."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import platform
import shutil
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

import peftbench
from peftbench import data
from peftbench.artefacts import task_file as tuned
from peftbench.backbones.anatomy import Anatomy, describe, weightless_copy
from peftbench.backbones.load import Backbone, check_name, image_size, load
from peftbench.errors import (
    Diverged,
    NoEffect,
    NotMergeable,
    PeftbenchError,
    StoreError,
    Unsupported,
    WeightsError,
)
from peftbench.limits import check_threads
from peftbench.loggers.guard import Guard
from peftbench.methods.base import Tuned, apply
from peftbench.results.disk import explained, full_number
from peftbench.results.record import Cost, EpochRow, Parameters, Provenance, RunRecord, Status
from peftbench.results.store import ResultsStore
from peftbench.run import cost, provenance, robustness
from peftbench.spec import BEST_ON_TEST, LAST, Phase, RunSpec, plain
from peftbench.training.checkpoint import NO_SAVING, Checkpoints, Saving
from peftbench.training.device import choose_device, choose_dtype
from peftbench.training.evaluate import Predictions, metrics, predict
from peftbench.training.loop import fit
from peftbench.training.optim import check_recipe
from peftbench.training.world import ALONE, World, from_environment, join, leave
from peftbench.untrusted import printable

ENDINGS: dict[type[PeftbenchError], Status] = {  # the last one is the base of the others
    Unsupported: Status.UNSUPPORTED,
    NoEffect: Status.NO_EFFECT,
    Diverged: Status.DIVERGED,
    PeftbenchError: Status.ERROR,
}
TAKEN_UP = (Status.INTERRUPTED, Status.ERROR, Status.OUT_OF_MEMORY)  # where the state was left
CHECK_IMAGES = 256  # about as many of the train split, for the reload and merge checks


@dataclass
class Draft:
    """What is known of a run so far; becomes its record whichever way it ends."""

    spec: RunSpec
    started: str
    status: Status = Status.OK
    error: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)

    def record(self) -> RunRecord:
        return RunRecord(
            run_id=self.spec.run_id,
            spec=self.spec.describe(),
            status=self.status,
            error=self.error,
            selection=BEST_ON_TEST if self.spec.selects_on_test else LAST,
            started=self.started,
            finished=_now(),
            **self.fields,
        )


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
    saving: Saving = NO_SAVING,
) -> RunRecord:
    """The record of `spec`: the stored one if it is settled, else that of a new run.

    An exception inside the run becomes the status of the record, never a gap in the table. What
    `logger` does changes neither; it hears of new runs only. Where the environment names several
    processes, this is the one that leads; the others call `assist`.
    """
    logger = Guard(None) if logger is None else logger
    stored = settled(spec, store)
    world = from_environment()
    if stored is not None and not force and world.alone:
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
            stored = settled(spec, store)  # another process may have finished it meanwhile
            if stored is not None and not force:
                return stored
            if force:
                _remove(state)
            draft = Draft(spec, started=_now(), fields={"tuning": tuning})
            logger.start(spec.run_id, spec.describe())
            # a rerun that fails must not leave its files beside the record of an earlier success
            scratch = ResultsStore(store.root / ".scratch" / spec.run_id)
            try:
                begin()
                with recording(draft, store):
                    keeper = saving.to(state, world)
                    _measure(
                        draft, scratch, where, world, keeper, progress, logger.epoch, micro_batch
                    )
                    _move(scratch.artefacts(key), store.artefacts(key))
                if draft.status in (Status.ERROR, Status.INTERRUPTED):
                    for rank, (status, error) in causes(scratch.root, world).items():
                        draft.status = status  # a broken connection is not the cause
                        draft.error = f"in process {rank} of {world.size}: {error}"
                if draft.status is not Status.OK:  # its files may be what filled the disk
                    shutil.rmtree(scratch.root, ignore_errors=True)
                record = draft.record()
                store.add(record)
                if draft.status not in TAKEN_UP:
                    _remove(state)
            finally:
                shutil.rmtree(scratch.root, ignore_errors=True)
                with contextlib.suppress(OSError):
                    scratch.root.parent.rmdir()  # unless another run is using it
        logger.finish(record)  # may wait, but nobody has to wait for the run any more
    return record


def assist(
    spec: RunSpec,
    store: ResultsStore,
    *,
    device: str = "auto",
    threads: int | None = None,
    micro_batch: int | None = None,
    saving: Saving = NO_SAVING,
) -> None:
    """Take part in a run that another process leads, and records.

    What goes wrong here is left for that process, and raised.
    """
    world = from_environment()
    where = join(world, check(spec, device, threads))
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        if not world.told():  # there is nothing to run
            return
        scratch = ResultsStore(store.root / ".scratch" / spec.run_id)
        keeper = saving.to(store.root / "checkpoints" / f"{spec.run_id}.safetensors", world)
        with reporting(scratch.root, world, spec):
            draft = Draft(spec, started=_now())
            _measure(draft, scratch, where, world, keeper, False, lambda row: None, micro_batch)
    finally:
        leave(world)


@contextlib.contextmanager
def leading(world: World) -> Iterator[Callable[[], None]]:
    """Gives what tells the other processes to begin; where it was not called, they go home."""
    begun = False

    def begin() -> None:
        nonlocal begun
        begun = True
        world.told(True)

    try:
        yield begin
    finally:
        if not begun:
            world.told(False)
        leave(world)


@contextlib.contextmanager
def reporting(folder: Path, world: World, spec: RunSpec) -> Iterator[None]:
    """What ends a process that does not lead is left in `folder` for the one that does."""
    try:
        yield
    except BaseException as e:
        status, error = ending(e, spec)
        text = json.dumps({"status": status, "error": error})
        with contextlib.suppress(OSError):  # what is raised is the cause
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"process{world.rank}.json").write_text(text, encoding="utf-8")
        raise


def causes(folder: Path, world: World, patience: float = 3.0) -> dict[int, tuple[Status, str]]:
    """The first report of another process, by its rank; a broken connection is seen before it."""
    deadline = time.monotonic() + patience
    while not world.alone and time.monotonic() < deadline:
        for path in sorted(folder.glob("process*.json")):
            with contextlib.suppress(ValueError):  # it is being written
                report = json.loads(path.read_text(encoding="utf-8"))
                rank = int(path.stem.removeprefix("process"))
                return {rank: (Status(report["status"]), report["error"])}
        time.sleep(0.05)
    return {}


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


def settled(spec: RunSpec, store: ResultsStore) -> RunRecord | None:
    """The stored record if a rerun would end the same way; a broken file is run again."""
    try:
        stored = store.get(spec.run_id, spec.method.name)
    except StoreError:
        return None
    return stored if stored is not None and stored.status.settled else None


@contextlib.contextmanager
def recording(draft: Draft, store: ResultsStore) -> Iterator[None]:
    """Turn an exception into the status of `draft`; unexpected ones leave their trace in a log."""
    log = store.artefacts((draft.spec.method.name, draft.spec.run_id)) / "log.txt"
    try:
        yield
    except (PeftbenchError, KeyboardInterrupt) as e:
        draft.status, draft.error = ending(e, draft.spec)
    except Exception as e:
        draft.status, draft.error = ending(e, draft.spec)
        if full_number(e) is not None:  # no fault of the program, and no room for its trace
            return
        with contextlib.suppress(OSError):
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text(traceback.format_exc(), encoding="utf-8")
            if draft.status is Status.ERROR:
                draft.error += f" (trace in {log})"


def ending(error: BaseException, spec: RunSpec) -> tuple[Status, str]:
    """The status of a run that an exception ended, and what its record says of it."""
    for kind, status in ENDINGS.items():
        if isinstance(error, kind):
            return status, str(error)
    if isinstance(error, Exception) and full_number(error) is not None:
        return Status.ERROR, str(explained(error))
    if isinstance(error, KeyboardInterrupt):
        return Status.INTERRUPTED, "stopped before its end; run it again"
    if _out_of_memory(error):
        return Status.OUT_OF_MEMORY, (
            f"{_first_line(error)} Lower recipe.batch_size (now {spec.recipe.batch_size}) "
            "or backbone.image_size."
        )
    return Status.ERROR, f"{type(error).__name__}: {_first_line(error)}"


def _measure(
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
        images, labels = _report_split(splits)
        predictions = predicted(images)
        draft.fields["metrics"] = {}
    if not world.leads:  # what is left is done once
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
            "top1_difference": _top1(after, sample[1]) - _top1(reference, sample[1]),
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


@dataclass(frozen=True)
class _Best:
    """The best epoch so far."""

    epoch: int
    predictions: Predictions
    state: dict[str, torch.Tensor]


class BestOnTest:
    """Evaluates test after the epochs that a protocol declares, and keeps the best; else nothing.

    The split is opened once, before training: this is what the default protocol forbids.
    """

    def __init__(
        self,
        spec: RunSpec,
        tuned_model: Tuned,
        splits: data.Splits,
        predicted: Callable[[np.ndarray], Predictions],
    ) -> None:
        self.best: _Best | None = None
        self.last: dict[str, float] = {}  # metrics of the latest evaluation
        self.num_classes = len(splits.class_names)
        self.epochs: frozenset[int] = frozenset()
        if spec.selects_on_test:
            self.epochs = spec.selection.epochs(spec.recipe.total_epochs)
            self.images, self.labels = _report_split(splits)
        self.tuned = tuned_model
        self.predicted = predicted

    def __call__(self, epoch: int) -> None:
        """Look at test after `epoch`; of equally good epochs the first is kept."""
        if epoch not in self.epochs:
            return
        predictions = self.predicted(self.images)
        self.last = metrics(predictions, self.labels, self.num_classes)
        if self.best is None or self.last["top1"] > _top1(self.best.predictions, self.labels):
            state = {name: tensor.clone() for name, tensor in self.tuned.state().items()}
            self.best = _Best(epoch, predictions, state)

    def state_dict(self) -> dict[str, Any]:
        """The best epoch so far, for a checkpoint."""
        best = self.best and {
            "epoch": self.best.epoch,
            "logits": self.best.predictions.logits,
            "state": self.best.state,
        }
        return {"best": best, "last": self.last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there.

        Raises:
            ValueError: it is not the best epoch of such a run.
        """
        best = state["best"]
        if best is not None:
            own = {name: tensor.shape for name, tensor in self.tuned.state().items()}
            shapes = {name: tensor.shape for name, tensor in best["state"].items()}
            if best["epoch"] not in self.epochs or shapes != own:
                raise ValueError("its best epoch is none of this run")
            if best["logits"].shape != (len(self.labels), self.num_classes):
                raise ValueError("the logits of its best epoch are of another shape")
        self.best = best and _Best(best["epoch"], Predictions(best["logits"]), best["state"])
        self.last = state["last"]


class LooksOnVal:
    """Evaluates val after the epochs that a trial declares, and says whether it is hopeless."""

    def __init__(
        self,
        spec: RunSpec,
        splits: data.Splits,
        predicted: Callable[[np.ndarray], Predictions],
    ) -> None:
        self.bounds = dict(spec.looks)
        self.values: dict[int, float] = {}  # epoch -> val accuracy
        self.stopped_epoch: int | None = None
        if self.bounds:
            images, labels = _report_split(splits)
            self.top1 = lambda: _top1(predicted(images), labels)

    def __call__(self, epoch: int) -> bool:
        """Whether the best value so far is below what a trial must have reached by `epoch`."""
        if epoch not in self.bounds:
            return False
        self.values[epoch] = self.top1()
        bound = self.bounds[epoch]
        if bound is None or max(self.values.values()) >= bound:
            return False
        self.stopped_epoch = epoch
        return True

    def state_dict(self) -> dict[str, Any]:
        """The looks so far, for a checkpoint."""
        return {"values": self.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there.

        Raises:
            ValueError: these are not looks of such a run.
        """
        values = state["values"]
        if not values.keys() <= self.bounds.keys():
            raise ValueError("its looks are at other epochs")
        if not all(isinstance(value, float) for value in values.values()):
            raise ValueError("its looks are no accuracies")
        self.values = values


def _report_split(splits: data.Splits) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of the split that is reported; test opens once."""
    if isinstance(splits.report, data.TestSplit):
        opened = splits.report.open_once()
        return opened.images, opened.labels
    return splits.report.images, splits.report.labels


def _load(spec: RunSpec, device: torch.device) -> tuple[Backbone, Anatomy, data.Splits]:
    """Backbone and data; a pair that makes no sense is refused before any image is read."""
    backbone = load(spec.backbone, 2, spec.preprocessing, device)
    anatomy = describe(backbone.model, backbone.image_size)
    spec.method.check(anatomy)
    kept = dataclasses.replace(
        backbone.preprocessing, train_size=spec.train_size(backbone.image_size)
    )
    backbone = dataclasses.replace(backbone, preprocessing=kept)
    splits = data.load(spec.dataset, spec.phase, backbone.preprocessing)
    return backbone, anatomy, splits


def _attach(spec: RunSpec, backbone: Backbone, anatomy: Anatomy, num_classes: int) -> Tuned:
    generator = torch.Generator().manual_seed(spec.seed)
    return apply(spec.method, backbone.model, anatomy, num_classes, generator)


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
    before, after = _top1(reference, sample[1]), _top1(reloaded, sample[1])
    if before != after:
        raise WeightsError(
            f"the reloaded task reaches {after} where the trained one reached {before} on the same "
            "images: a tensor that training changed is not saved. Report this as a bug."
        )
    return {
        "train_top1": after,
        "max_logit_difference": float(np.abs(reloaded.logits - reference.logits).max()),
    }


def _top1(predictions: Predictions, labels: np.ndarray) -> float:
    return float((predictions.classes == labels).mean())


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
    card = dataclasses.asdict(draft.spec.method.card)
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


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in text or "can't allocate memory" in text or "not enough memory" in text
    )


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    line = text.splitlines()[0][:300]
    return line if line.endswith(".") else f"{line}."


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

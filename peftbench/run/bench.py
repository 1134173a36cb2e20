"""What a run is made of, before its first step: backbone, data, method, and where they compute."""

from __future__ import annotations

import dataclasses
import platform
import time
from dataclasses import dataclass

import numpy as np
import torch

import peftbench
from peftbench import data
from peftbench.backbones.anatomies import of_model
from peftbench.backbones.anatomy import Anatomy
from peftbench.backbones.kernels import choose_layout
from peftbench.backbones.load import Backbone, load
from peftbench.canonical import plain
from peftbench.errors import DataError, Diverged
from peftbench.methods.applied import Tuned, apply
from peftbench.methods.base import Preparation, as_method
from peftbench.results.record import Parameters, Provenance
from peftbench.run import preparing, provenance, robustness
from peftbench.run.caching import FrozenPart
from peftbench.run.ending import PendingRecord
from peftbench.run.objectives import objective_of
from peftbench.spec import SPLIT_OF_PHASE, DatasetSpec, Phase, RunSpec
from peftbench.tasks import ImageRows
from peftbench.training.device import Compute
from peftbench.training.evaluate import predict, predict_inputs
from peftbench.training.objective import BatchObjective

CHECK_IMAGES = 256  # about as many of the train split, for the reload and merge checks
CHECK_PIXELS = CHECK_IMAGES * 112**2  # fewer of larger ones: at 224 px a third of a short run


@dataclass(frozen=True)
class Bench:
    """What a run is made of, before its first step."""

    spec: RunSpec
    compute: Compute
    backbone: Backbone
    splits: data.Splits
    shifts: dict[DatasetSpec, list[data.ShiftSet]]  # test sets to be measured besides, listed
    provenance: Provenance
    tuned: Tuned
    parameters: Parameters
    seconds: float
    objective: BatchObjective | None = None  # in place of the task's loss
    frozen: FrozenPart | None = None  # what is in front of everything that trains, if it is kept

    def predict(
        self, images: np.ndarray | data.DecodedImages, compute: Compute | None = None
    ) -> np.ndarray:
        """Outputs (N, ...) of `images` (N, S, S, 3) uint8 by the model as it is now.

        All processes share the images out, unless `compute` is another one. Of images whose
        activations are kept, only what trains is computed.

        Raises:
            Diverged: an output is not finite.
        """
        compute, task = compute or self.compute, self.spec.task
        kept = None
        if self.frozen is not None and isinstance(images, np.ndarray):
            kept = self.frozen.inputs(images)
        if self.frozen is not None and kept is not None:
            outputs = predict_inputs(self.frozen.suffix, kept, compute, task)
        else:
            outputs = predict(self.tuned.model, images, self.backbone.preprocessing, compute, task)
        if not np.isfinite(outputs).all():
            raise Diverged(
                "the trained model predicts values that are not finite. Lower recipe.lr."
            )
        return outputs

    def rows(
        self, images: np.ndarray, labels: np.ndarray, compute: Compute | None = None
    ) -> ImageRows:
        """What is kept of each of `images` (N, S, S, 3), by the model as it is; labels: (N,)."""
        return self.spec.task.rows(self.predict(images, compute), labels)

    def rows_of_report(
        self, images: np.ndarray, labels: np.ndarray, often: bool = True
    ) -> ImageRows:
        """The same of the images (N, S, S, 3) that are reported, looked at `often` or once."""
        if self.frozen is not None:
            self.frozen.offer(images, often)
        return self.rows(images, labels)

    def sample(self) -> tuple[np.ndarray, np.ndarray]:
        """Images (N, S, S, 3) of the train split as the model takes them, and their labels (N,)."""
        train = self.splits.train
        wanted = min(CHECK_IMAGES, CHECK_PIXELS // self.backbone.image_size**2 or 1)
        stride = max(1, len(train) // wanted)  # classes follow one another in the split
        images = data.squashed(train.images[::stride], self.backbone.preprocessing)
        return images, train.labels[::stride]


def prepare(pending: PendingRecord, compute: Compute) -> Bench:
    """Backbone, data, method; a pair that makes no sense is refused before any image is read."""
    began = time.perf_counter()
    spec = pending.spec
    backbone = load(spec.backbone, 2, spec.preprocessing, compute.device, compute.dtype)
    anatomy = of_model(spec.backbone, backbone.model, backbone.image_size)
    method = as_method(spec.method)
    method.check(anatomy)
    method.rehearse(backbone.model, anatomy)
    kept = dataclasses.replace(
        backbone.preprocessing, train_size=spec.train_size(backbone.image_size)
    )
    backbone = dataclasses.replace(backbone, preprocessing=kept)
    splits = data.load(spec.dataset, spec.phase, backbone.preprocessing)
    _check_metric(spec, splits)
    tested = spec.shifts if spec.phase is Phase.FINAL else ()
    shifts = robustness.find(tested, splits.class_names, backbone.preprocessing)
    sites = "corrected" if spec.backbone.anatomy else anatomy.known_by
    pending.provenance = _provenance(backbone, splits, sites)
    known = preparing.learnt(method, backbone, anatomy, splits.train, spec.seed, compute)
    if known is not None:
        data_seen = {**pending.provenance.data, **preparing.facts_of(known)}
        pending.provenance = dataclasses.replace(pending.provenance, data=data_seen)
    tuned = attach(spec, backbone, anatomy, splits.num_classes, known)
    pending.notes = [*splits.notes, *backbone.notes, *tuned.notes]
    if compute.micro_batch is not None and compute.micro_batch < spec.recipe.batch_size:
        pending.notes.append(f"trained with {compute.micro_batch} images in memory at a time")
    if compute.compile:
        pending.notes.append("trained compiled; seconds_train has the seconds that compiling took")
    if spec.recipe.checkpointing:
        pending.notes.append("trained with activation checkpointing")
    pending.parameters = _count(tuned, anatomy)
    objective = objective_of(tuned, spec.recipe, (len(splits.train.labels), splits.num_classes))
    return Bench(
        spec=spec,
        compute=compute,
        backbone=backbone,
        splits=splits,
        shifts=shifts,
        provenance=pending.provenance,
        tuned=tuned,
        parameters=pending.parameters,
        seconds=time.perf_counter() - began,
        objective=objective,
    )


def _check_metric(spec: RunSpec, splits: data.Splits) -> None:
    """Refuse a metric that the images that are reported cannot have."""
    metric, found = spec.judged_by, splits.report.num_classes
    if metric.classes is not None and not metric.classes == splits.num_classes == found:
        raise DataError(
            f"selection.metric={metric.name} needs images of {metric.classes} classes, and the "
            f"{SPLIT_OF_PHASE[spec.phase]} split of {spec.dataset.name} has images of {found} of "
            f"{splits.num_classes}. Use another metric, or other splits."
        )


def attach(
    spec: RunSpec,
    backbone: Backbone,
    anatomy: Anatomy,
    num_classes: int,
    prepared: Preparation | None = None,
) -> Tuned:
    """The backbone with the method of `spec`, whose new tensors are drawn from its seed."""
    choose_layout(backbone.model)
    generator = torch.Generator().manual_seed(spec.seed)
    method = as_method(spec.method)
    return apply(method, backbone.model, anatomy, num_classes, generator, prepared)


def _count(tuned: Tuned, anatomy: Anatomy) -> Parameters:
    """How many numbers train, by where they are, beside those of the backbone."""

    def total(parameters: dict[str, torch.nn.Parameter]) -> int:
        return sum(p.numel() for p in parameters.values())

    return Parameters(
        method=total(tuned.method_params),
        head=total(tuned.head_params),
        unfrozen=total(tuned.unfrozen_params),
        backbone=anatomy.num_params,
        stored_bytes=0,
    )


def _levels(splits: data.Splits) -> dict[str, list[int]]:
    """What was black and white in pictures of more than 8 bits; empty where there are none."""
    levels = splits.levels
    return {} if levels is None else {"levels": [levels.black, levels.white]}


def _provenance(backbone: Backbone, splits: data.Splits, sites: str) -> Provenance:
    """The code, the machine, and what was really loaded."""
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
            **_levels(splits),
        },
        sites=sites,
    )

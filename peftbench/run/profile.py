"""The costs of a method on a backbone without training: counted, estimated, and measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from peftbench.artefacts import task_file
from peftbench.backbones.anatomies import of_model
from peftbench.backbones.copies import full_copy, weightless_copy
from peftbench.backbones.load import load
from peftbench.errors import NotMergeable, Unsupported
from peftbench.methods import METHODS
from peftbench.methods.applied import apply
from peftbench.methods.base import as_method
from peftbench.results.settings import settings_text
from peftbench.run import cost, peak
from peftbench.run.latency import measure
from peftbench.run.simulation import step_cost
from peftbench.run.step import Step, StepPlan
from peftbench.spec import RunSpec
from peftbench.training.device import Compute

REFERENCE = "full"  # steps are compared with those of tuning everything


@dataclass(frozen=True)
class Profile:
    """What a method costs on a backbone; `None` where it was not measured, or there is no such."""

    method: str
    hyperparameters: str  # as rank=8,alpha=8.0
    backbone: str
    image_size: int
    classes: int
    batch_size: int
    device: str
    dtype: str  # arithmetic of the forward pass
    params_method: int
    params_head: int
    params_unfrozen: int
    params_backbone: int
    stored_bytes: int  # of the file of one task
    forward_gmacs: float  # multiply-adds of one image, in 1e9
    training_gflops: float  # forward and backward of one image, in 1e9 operations
    kept_bytes: int  # activations that a batch keeps for its backward pass
    estimated_peak_bytes: int  # of the device while training
    measured_peak_bytes: int | None = None
    step_ms: float | None = None  # forward, backward and optimiser, median
    step_ms_iqr: float | None = None
    step_over_full: float | None = None  # of a step that tunes everything
    latency_ms_batch1: float | None = None
    latency_ms_batch1_iqr: float | None = None
    latency_ms_batch: float | None = None
    latency_ms_batch_iqr: float | None = None
    latency_batch_size: int | None = None
    merged_latency_ms_batch1: float | None = None
    merged_latency_ms_batch1_iqr: float | None = None
    merged_latency_ms_batch: float | None = None
    merged_latency_ms_batch_iqr: float | None = None


@dataclass(frozen=True)
class UnsupportedPair:
    """A method that is not defined on a backbone."""

    method: str
    backbone: str
    reason: str


@dataclass
class Profiler:
    """Profiles of runs, whose data and weights are not read: the weights are random.

    Args:
        compute: where and how, also where nothing is computed but estimated.
        measuring: whether steps and latencies are measured, and the peak of memory.
    """

    compute: Compute
    measuring: bool = True
    _full: dict[object, float] = field(default_factory=dict)  # ms of a step, by what it is of

    def __call__(self, spec: RunSpec, num_classes: int) -> Profile | UnsupportedPair:
        """The profile of the method, backbone and recipe of `spec`, for so many classes."""
        name = spec.backbone.title or spec.backbone.name
        try:
            counted = self._counted(spec, num_classes)
            return self._measured(spec, num_classes, counted) if self.measuring else counted
        except Unsupported as e:
            return UnsupportedPair(spec.method.name, name, str(e))

    def _counted(self, spec: RunSpec, num_classes: int) -> Profile:
        if as_method(spec.method).card.solved:
            raise Unsupported(f"{spec.method.name} takes no training steps that could be measured.")
        plan = planned_step(spec, num_classes)
        tuned, size = plan.tuned, plan.preprocessing.size
        images = spec.recipe.batch_size
        try:
            step = step_cost(plan, images, self.compute)
        except (NotImplementedError, RuntimeError) as e:
            reason = (str(e).strip() or type(e).__name__).splitlines()[0][:120]
            raise Unsupported(
                f"{spec.method.name} cannot be counted without storage: {reason}. Run it instead."
            ) from e
        stored = tuned.stored()
        shapes = {name: tuple(tensor.shape) for name, tensor in stored.items()}
        packed = {name for name, tensor in stored.items() if tensor.dtype is torch.uint8}
        return Profile(
            method=spec.method.name,
            hyperparameters=settings_text(spec.method.identity()["hyperparameters"]),
            backbone=spec.backbone.title or spec.backbone.name,
            image_size=size,
            classes=num_classes,
            batch_size=images,
            device=cost.device_name(self.compute.device),
            dtype=str(self.compute.dtype).removeprefix("torch."),
            params_method=_count(tuned.method_params),
            params_head=_count(tuned.head_params),
            params_unfrozen=_count(tuned.unfrozen_params),
            params_backbone=tuned.anatomy.num_params,
            stored_bytes=task_file.size_of(shapes, spec.run_id, packed),
            forward_gmacs=cost.forward_gmacs(tuned.model, size, weightless_copy),
            training_gflops=step.training_gflops,
            kept_bytes=step.kept_bytes,
            estimated_peak_bytes=step.peak_bytes,
        )

    def _measured(self, spec: RunSpec, num_classes: int, counted: Profile) -> Profile:
        device = self.compute.device
        cost.reset_peak(device)
        before = _allocated(device)
        plan = planned_step(spec, num_classes, device)
        timed = _timed_steps(plan, self.compute)
        peak_bytes = self._peak(spec, num_classes, before)
        latency = measure(plan.tuned.model, counted.image_size, self.compute)
        profile = dataclasses.replace(
            counted,
            measured_peak_bytes=peak_bytes,
            step_ms=timed.median_ms,
            step_ms_iqr=timed.iqr_ms,
            step_over_full=timed.median_ms / self._full_ms(spec, num_classes, timed.median_ms),
            latency_ms_batch1=latency.one_ms,
            latency_ms_batch1_iqr=latency.one_iqr_ms,
            latency_ms_batch=latency.batch_ms,
            latency_ms_batch_iqr=latency.batch_iqr_ms,
            latency_batch_size=cost.LATENCY_BATCH,
        )
        merged = _merged(plan)
        if merged is None:
            return profile
        latency = measure(merged, counted.image_size, self.compute)
        return dataclasses.replace(
            profile,
            merged_latency_ms_batch1=latency.one_ms,
            merged_latency_ms_batch1_iqr=latency.one_iqr_ms,
            merged_latency_ms_batch=latency.batch_ms,
            merged_latency_ms_batch_iqr=latency.batch_iqr_ms,
        )

    def _peak(self, spec: RunSpec, num_classes: int, before: int) -> int | None:
        """Bytes at most; on a CPU those of a process of its own."""
        device, dtype = self.compute.device, str(self.compute.dtype).removeprefix("torch.")
        if device.type == "cuda":
            return cost.peak_bytes(device) - before
        if device.type != "cpu" or not peak.can_measure():
            return None
        return peak.measured_peak(spec, spec.recipe.batch_size, num_classes, dtype=dtype)

    def _full_ms(self, spec: RunSpec, num_classes: int, own: float) -> float:
        """Milliseconds of a step that tunes everything in the same way; measured once."""
        full = METHODS[REFERENCE]()
        key = (spec.backbone, spec.recipe, num_classes)
        if spec.method == full:
            self._full.setdefault(key, own)
        if key not in self._full:
            plan = planned_step(
                dataclasses.replace(spec, method=full, recipe=spec.recipe.alone()),
                num_classes,
                self.compute.device,
            )
            self._full[key] = _timed_steps(plan, self.compute).median_ms
        return self._full[key]


def planned_step(spec: RunSpec, num_classes: int, device: torch.device | str = "meta") -> StepPlan:
    """The step of `spec` on `device`, with random weights; on the meta device with none.

    Raises:
        Unsupported: the method is not defined on the backbone.
    """
    method = as_method(spec.method).offline()
    random = peak.with_random_weights(spec.backbone)
    backbone = load(random, 2, spec.preprocessing, device)
    anatomy = of_model(random, backbone.model, backbone.image_size)
    generator = torch.Generator().manual_seed(spec.seed)
    tuned = apply(method, backbone.model, anatomy, num_classes, generator)
    return StepPlan(tuned, spec.recipe, backbone.preprocessing, num_classes, spec.task)


def _timed_steps(plan: StepPlan, compute: Compute) -> cost.Timed:
    step = Step(plan, compute)
    x, target = step.batch(plan.recipe.batch_size)

    def begin() -> Callable[[], object]:
        return lambda: step(x, target)

    return cost.repeated(begin, compute)


def _merged(plan: StepPlan) -> nn.Module | None:
    """A merged copy, or `None` where the method does not merge."""
    method = plan.tuned.method
    if not method.card.mergeable:
        return None
    try:
        return method.merge(full_copy(plan.tuned.model))
    except NotMergeable:
        return None


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def _count(parameters: dict[str, nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters.values())

"""Trials of one search that train in one pass, and are then runs like any other.

The first of them trains all; what the others reached waits in this process until they run, each as
if it had trained by itself. Where the process dies before, the rest train anew. Heads on kept
features are one stack of tensors (`training/together.py`); of other methods the trials share what
is frozen (`run/stacking.py`). What can do neither trains one by one.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from peftbench.canonical import digest
from peftbench.errors import Diverged
from peftbench.methods.applied import Tuned
from peftbench.results.latencies import StepCost
from peftbench.results.record import EpochRow
from peftbench.run import room, stacking
from peftbench.run.bench import Bench
from peftbench.run.effects import check_executed
from peftbench.run.ending import PendingRecord
from peftbench.spec import RunSpec
from peftbench.training.checkpoint import Checkpoints
from peftbench.training.device import Compute
from peftbench.training.fittable import Fittable
from peftbench.training.loop import Fit
from peftbench.training.stacked import fit_stacked
from peftbench.training.together import HeadTask, fit_together, is_worthwhile, shared_recipe

# bytes that a step keeps for its backward pass, up to which trials share their steps: what is
# frozen then costs much in calls and casts, which are made once. On an EPYC with AVX512_BF16 eight
# trials of vit_mini, 32 images of 48 pixels (11 to 18 MB), took 0.76 to 1.00 of separate ones in
# bfloat16, and 0.91 to 0.99 in float32, whose products take twice as long; four of ViT-S, 4 images
# of 224 pixels (142 MB), 1.00 to 1.05 (benchmarks/history.md). A GPU was not measured, and shares
# small steps
MOST_KEPT = 64 * 2**20
LEAST_TRIALS = 2


@dataclass(frozen=True)
class TrainedTrial:
    """One trial at its end."""

    tensors: dict[str, Tensor]  # all that a task stores, by its names in the model
    history: list[EpochRow]
    seconds: float  # its share of the pass
    step_seconds: float
    others: int  # that trained in the same pass
    diverged: str | None = None  # what there is to say of a loss that was not finite


@dataclass(frozen=True)
class Pass:
    """What a run that may train others needs besides its bench."""

    beside: Sequence[RunSpec]
    fittable: Fittable
    checkpoints: Checkpoints
    step: StepCost | None  # of one trial


_waiting: dict[str, TrainedTrial] = {}  # by the identity of the run and of what it was trained on
_apart: set[str] = set()  # the same of kinds of trials that could not share what is frozen


def trained(bench: Bench, shared: Pass) -> TrainedTrial | None:
    """What the run of `bench` reached in one pass with those beside it, now or before.

    `None` where it has to train by itself.
    """
    found = _waiting.pop(_key(bench, bench.spec), None)
    if found is None and shared.beside and _may_share(bench):
        specs = [bench.spec, *shared.beside]
        if _is_head(bench):
            _train_heads(bench, specs)
        elif is_faster(bench, shared.step):
            _train_stacked(bench, specs, shared)
        found = _waiting.pop(_key(bench, bench.spec), None)
    return found


def take_over(pending: PendingRecord, bench: Bench, trial: TrainedTrial) -> Fit:
    """Give the model a trial's tensors, and `pending` its epochs, as if it had trained here.

    Raises:
        Diverged: its loss was not finite.
    """
    pending.history += trial.history
    if trial.diverged is not None:
        raise Diverged(trial.diverged)
    bench.tuned.load_state(trial.tensors)
    if bench.frozen is not None:
        bench.frozen.inputs(bench.splits.train.images)  # for what the record says of them
        bench.frozen.passes = len(trial.history)
    if trial.others:
        others = "1 other trial" if trial.others == 1 else f"{trial.others} other trials"
        pending.notes.append(f"trained in one pass with {others}")
    images = len(bench.splits.train) * len(trial.history)
    return Fit(pending.history, [trial.step_seconds], images / trial.seconds)


def _may_share(bench: Bench) -> bool:
    spec, compute, tuned = bench.spec, bench.compute, bench.tuned
    if any(x is not None for x in (tuned.regulariser, tuned.after_step, bench.objective)):
        return False
    if not compute.world.is_single or compute.micro_batch or compute.compile:
        return False
    return not (spec.looks or spec.selects_on_test or spec.recipe.checkpointing)


def _is_head(bench: Bench) -> bool:
    """Whether its trials are heads that train in one stack of tensors."""
    frozen, tuned = bench.frozen, bench.tuned
    if frozen is None or frozen.prefix.head is None:
        return False
    head = tuned.model.get_submodule(frozen.prefix.head)
    inside = sum(p.numel() for p in head.parameters())
    outside = sum(p.numel() for p in tuned.trainable.values())
    return inside == outside and is_worthwhile(bench.spec.recipe, head, bench.compute.device)


def is_faster(bench: Bench, step: StepCost | None) -> bool:
    """Whether trials that share what is frozen train faster than one by one."""
    if step is None or (bench.frozen is not None and bench.frozen.prefix.head is not None):
        return False  # behind the last frozen module nothing is shared
    return is_small(step, bench.compute)


def is_small(step: StepCost, compute: Compute) -> bool:
    """Whether a step of one trial is small enough that its frozen part gains from company."""
    slow = compute.device.type == "cpu" and compute.dtype is not torch.bfloat16
    return step.kept_bytes <= MOST_KEPT and not slow


def _train_heads(bench: Bench, specs: Sequence[RunSpec]) -> None:
    frozen, train = bench.frozen, bench.splits.train
    inputs = None if frozen is None else frozen.inputs(train.images)
    if frozen is None or inputs is None or frozen.prefix.head is None:
        return
    bench.tuned.train(bench.spec.recipe.frozen_mode)
    path = frozen.prefix.head
    head = copy.deepcopy(bench.tuned.model.get_submodule(path))
    labels = torch.tensor(train.labels)
    common = HeadTask(
        head,
        inputs,
        labels,
        bench.spec.task,
        bench.spec.seed,
        bench.compute,
        bench.splits.num_classes,
    )
    heads = fit_together(common, [spec.recipe for spec in specs])
    untouched = bench.tuned.state()
    for spec, result in zip(specs, heads, strict=True):
        if result is not None:
            own = {f"{path}.{name}" if path else name: t for name, t in result.tensors.items()}
            rest = {name: t.clone() for name, t in untouched.items() if name not in own}
            _waiting[_key(bench, spec)] = TrainedTrial(
                {**rest, **own},
                result.history,
                result.seconds,
                result.step_seconds,
                result.others,
            )


def _train_stacked(bench: Bench, specs: Sequence[RunSpec], shared: Pass) -> None:
    """The first of the trials, as many as the memory has room for; their results wait."""
    kind = _key(bench, dataclasses.replace(bench.spec, recipe=shared_recipe(bench.spec.recipe)))
    assert shared.step is not None
    group = specs[: room.trials_that_fit(bench, shared.step)]
    images = _probes(bench, shared.fittable)
    if kind in _apart or images is None or len(group) < LEAST_TRIALS:
        return
    tuned, compute = bench.tuned, bench.compute
    before = {name: tensor.clone() for name, tensor in tuned.state().items()}
    tuned.train(bench.spec.recipe.frozen_mode)
    changing = list(tuned.trainable.values()), list(tuned.changing_buffers.values())
    behind = None if bench.frozen is None or shared.fittable.inputs is None else bench.frozen.prefix
    given = (behind, compute, len(group))
    try:
        with stacking.stacked(tuned.model, *changing, images, given) as stack:
            shared.checkpoints.belongs_to(one_pass=digest([spec.run_id for spec in group]))
            ends = fit_stacked(
                stack,
                dataclasses.replace(shared.fittable, model=stack.model),
                [spec.recipe for spec in group],
                bench.splits.train,
                (bench.spec.seed, compute),
                shared.checkpoints,
            )
            own = [_copied(before, tuned, stack, trial) for trial in range(len(group))]
    except stacking.Unstackable:
        _apart.add(kind)
        return
    except (torch.OutOfMemoryError, MemoryError):  # of one trial the estimate says that it fits
        _apart.add(kind)
        tuned.load_state(before)
        return
    check_executed(tuned)
    for spec, tensors, end in zip(group, own, ends, strict=True):
        _waiting[_key(bench, spec)] = TrainedTrial(
            tensors,
            end.history,
            end.seconds,
            end.step_seconds,
            len(group) - 1,
            end.diverged,
        )


def _probes(bench: Bench, fittable: Fittable) -> Any:
    """A few images, random ones, or what the model sees of some that train; `None` of too few."""
    count, norm = stacking.PROBED, bench.backbone.preprocessing
    if fittable.inputs is None:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(count, 3, norm.size, norm.size, generator=generator)
        return images.to(bench.compute.device)
    if len(fittable.inputs) < count:
        return None
    with contextlib.closing(fittable.inputs.in_epoch(0).batches([torch.arange(count)])) as found:
        return next(found)


def _copied(
    names: Iterable[str], tuned: Tuned, stack: stacking.StackedModel, trial: int
) -> dict[str, Tensor]:
    """What a trial has of the tensors that a task stores, by their `names` in the model."""
    held = {**tuned.trainable, **tuned.changing_buffers, **tuned.fixed}
    return {name: stack.of(trial, held[name]).detach().clone() for name in names}


def _key(bench: Bench, spec: RunSpec) -> str:
    facts = {} if bench.frozen is None else bench.frozen.facts
    return digest({"run": spec.run_id, "facts": facts})

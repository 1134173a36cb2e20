"""Trials of one search that train in one pass, and are then runs like any other.

The first of them trains all; what the others reached waits in this process until they run, each as
if it had trained by itself. Where the process dies before, the rest train anew.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch

from peftbench.canonical import digest
from peftbench.run.bench import Bench
from peftbench.run.ending import PendingRecord
from peftbench.spec import RunSpec
from peftbench.training.loop import Fit
from peftbench.training.together import HeadTask, TrainedHead, fit_together, is_worthwhile

_waiting: dict[str, TrainedHead] = {}  # by the identity of the run and of what it was trained on


def trained(bench: Bench, beside: Sequence[RunSpec]) -> TrainedHead | None:
    """What the run of `bench` reached in one pass with those `beside` it, now or before.

    `None` where it has to train by itself: it changes more than its head, or its loss was not
    finite.
    """
    found = _waiting.pop(_key(bench, bench.spec), None)
    if found is None and beside and _can_train(bench):
        _train(bench, [bench.spec, *beside])
        found = _waiting.pop(_key(bench, bench.spec), None)
    return found


def take_over(pending: PendingRecord, bench: Bench, head: TrainedHead) -> Fit:
    """Give the model a trial's tensors, and `pending` its epochs, as if it had trained here."""
    assert bench.frozen is not None and bench.frozen.prefix.head is not None
    module = bench.tuned.model.get_submodule(bench.frozen.prefix.head)
    with torch.no_grad():
        for name, tensor in head.tensors.items():
            module.get_parameter(name).copy_(tensor)
    bench.frozen.inputs(bench.splits.train.images)  # for what the record says of them
    bench.frozen.passes = len(head.history)
    pending.history += head.history
    if head.others:
        pending.notes.append(f"trained in one pass with {head.others} other trials")
    images = len(bench.splits.train) * len(head.history)
    return Fit(pending.history, [head.step_seconds], images / head.seconds)


def _can_train(bench: Bench) -> bool:
    frozen, spec, compute = bench.frozen, bench.spec, bench.compute
    if frozen is None or frozen.prefix.head is None:
        return False
    if bench.tuned.regulariser is not None or bench.tuned.objective is not None:
        return False
    if not compute.world.is_single or compute.micro_batch or spec.looks or spec.selects_on_test:
        return False
    head = bench.tuned.model.get_submodule(frozen.prefix.head)
    inside = sum(p.numel() for p in head.parameters())
    outside = sum(p.numel() for p in bench.tuned.trainable.values())
    return inside == outside and is_worthwhile(spec.recipe, head, compute.device)


def _train(bench: Bench, specs: Sequence[RunSpec]) -> None:
    frozen, train = bench.frozen, bench.splits.train
    inputs = None if frozen is None else frozen.inputs(train.images)
    if frozen is None or inputs is None or frozen.prefix.head is None:
        return
    bench.tuned.train(bench.spec.recipe.frozen_mode)
    head = copy.deepcopy(bench.tuned.model.get_submodule(frozen.prefix.head))
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
    for spec, result in zip(specs, heads, strict=True):
        if result is not None:
            _waiting[_key(bench, spec)] = result


def _key(bench: Bench, spec: RunSpec) -> str:
    facts = {} if bench.frozen is None else bench.frozen.facts
    return digest({"run": spec.run_id, "facts": facts})

"""The bench of one trial, used again by the trials that follow it in its process.

They differ in rate and weight decay alone, so that backbone, images and method are the same. All
that training changed of them is put back bit by bit.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from peftbench.run.activation_store import ActivationStore
from peftbench.run.bench import Bench, prepare
from peftbench.run.caching import FrozenPart
from peftbench.run.ending import PendingRecord
from peftbench.run.freezing import with_frozen_part
from peftbench.spec import RunSpec
from peftbench.training.device import Compute
from peftbench.training.together import shared_recipe

# bytes of tensors that train, of which a copy is kept; of more, loading is little beside training
MOST_KEPT = 2**28


@dataclass
class _Kept:
    """A bench as it was before its first step."""

    bench: Bench
    tensors: dict[str, Tensor]  # all that training may change
    notes: list[str]  # of the record, as far as loading wrote them
    frozen: FrozenPart | None = None
    looked: bool = False  # for its frozen part

    def restored(self, spec: RunSpec) -> Bench:
        """The bench of another trial, as if it had been loaded anew."""
        began = perf_counter()
        model = self.bench.tuned.model
        with torch.no_grad():
            for name, tensor in _changing(self.bench).items():
                tensor.copy_(self.tensors[name])
        for parameter in model.parameters():
            parameter.grad = None
        model.eval()
        return dataclasses.replace(self.bench, spec=spec, seconds=perf_counter() - began)


_now: _Kept | None = None  # that of the run under way, if trials of its kind share the process
_next: _Kept | None = None  # the same, where one of them is to come


def bench_of(pending: PendingRecord, compute: Compute, *, is_followed: bool) -> Bench:
    """The bench of a run: that of the trial before it where it is the same, else a new one.

    Args:
        is_followed: whether trials like it come behind it in this process.
    """
    global _now, _next
    _now, _next = _next, None
    if _now is not None and _is_same(_now.bench, pending.spec, compute):
        bench = _now.restored(pending.spec)
        pending.provenance, pending.parameters = bench.provenance, bench.parameters
        pending.notes = list(_now.notes)
    else:
        _now = None
        bench = prepare(pending, compute)
        if is_followed and _can_be_kept(bench):
            _now = _Kept(bench, _copies(bench), list(pending.notes))
    _next = _now if is_followed else None
    return bench


def with_its_frozen_part(bench: Bench, store: ActivationStore) -> Bench:
    """`bench` with its frozen part, which trials of one kind look for once.

    What is kept on disk is looked up by each, so that its record counts what it found there.
    """
    if _now is None or _now.bench.tuned is not bench.tuned:
        return with_frozen_part(bench, store)
    if not _now.looked:
        bench = with_frozen_part(bench, store)
        _now.frozen, _now.looked = bench.frozen, True
        return bench
    return bench if _now.frozen is None else dataclasses.replace(bench, frozen=_now.frozen.anew())


def _is_same(bench: Bench, spec: RunSpec, compute: Compute) -> bool:
    return bench.compute == compute and _shared(bench.spec) == _shared(spec)


def _shared(spec: RunSpec) -> RunSpec:
    return dataclasses.replace(spec, recipe=shared_recipe(spec.recipe))


def _can_be_kept(bench: Bench) -> bool:
    """Whether tensors are all that training changes; a method's steps have a state of their own."""
    if bench.tuned.after_step is not None or not bench.compute.world.is_single:
        return False
    if bench.compute.compile or bench.tuned.method.card.solved:
        return False
    return sum(tensor.nbytes for tensor in _changing(bench).values()) <= MOST_KEPT


def _changing(bench: Bench) -> dict[str, Tensor]:
    """What training may change of the model as it is, by name: what trains, and all buffers."""
    buffers = dict(bench.tuned.model.named_buffers())
    return {**{name: p.detach() for name, p in bench.tuned.trainable.items()}, **buffers}


def _copies(bench: Bench) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in _changing(bench).items()}

"""The latencies of a finished model: those that a run before it measured, or its own."""

from __future__ import annotations

import dataclasses
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

import peftbench
from peftbench.backbones.copies import weightless_copy
from peftbench.canonical import digest, plain
from peftbench.results.latencies import Latencies, Latency
from peftbench.run import cost
from peftbench.run.bench import Bench
from peftbench.run.ending import now
from peftbench.training.device import Compute
from peftbench.waiting import WAITING

ATTEMPTS = 3  # to measure a latency that is not disturbed


@dataclasses.dataclass(frozen=True)
class Found:
    """The latency of a model, and whether this run measured it."""

    latency: Latency
    taken_over: bool

    @property
    def since(self) -> str | None:
        """When it was measured, where another run did; ISO 8601, UTC."""
        return self.latency.measured if self.taken_over else None


def latency_of(model: nn.Module, bench: Bench, known: Latencies, *, merged: bool) -> Found:
    """The latency of `model`: a known one of the same network on this machine, or a new one.

    A new one that other programs disturbed is measured again at once. One that stays disturbed is
    taken over for as long as the machine is no calmer: the run has seen so, or one image tells.
    """
    of, size = network_of(model, bench, merged), bench.backbone.image_size
    found = known.find(of)
    if found is not None and found.disturbed is not None and not known.busy:
        known.busy = cost.time_forward(model, 1, size, bench.compute).disturbed is not None
    if found is not None and (found.disturbed is None or known.busy):
        return Found(found, taken_over=True)
    gmacs = None if merged else cost.forward_gmacs(model, size, weightless_copy)
    measured = dataclasses.replace(measure(model, size, bench.compute), forward_gmacs=gmacs)
    known.keep(of, measured)
    return Found(measured, taken_over=False)


def measure(model: nn.Module, image_size: int, compute: Compute) -> Latency:
    """Latencies of one image and of `LATENCY_BATCH`: the least disturbed of some attempts."""
    one, batch = (
        _measure_batch(model, size, image_size, compute) for size in (1, cost.LATENCY_BATCH)
    )
    return Latency(
        one_ms=one.median_ms,
        batch_ms=batch.median_ms,
        measured=now(),
        disturbed=one.disturbed or batch.disturbed,
        one_iqr_ms=one.iqr_ms,
        batch_iqr_ms=batch.iqr_ms,
    )


def _measure_batch(
    model: nn.Module, batch_size: int, image_size: int, compute: Compute
) -> cost.Timed:
    """Passes that nothing disturbed, or those of the fastest attempt."""
    tried: list[cost.Timed] = []
    for _ in range(ATTEMPTS):
        tried.append(cost.time_forward(model, batch_size, image_size, compute))
        if tried[-1].disturbed is None:
            return tried[-1]
    return min(tried, key=lambda timed: timed.median_ms)


def network_of(model: nn.Module, bench: Bench, merged: bool) -> dict[str, Any]:
    """All that decides what a forward pass takes, as plain values; what is learned does not."""
    method, compute, origin = bench.tuned.method, bench.compute, bench.provenance
    structure = [repr(model), *(f"{k} {tuple(v.shape)}" for k, v in model.state_dict().items())]
    described: dict[str, Any] = plain(
        {
            "method": bench.spec.method.identity(),
            "backbone": bench.spec.backbone.name,
            "image_size": bench.backbone.image_size,
            "outputs": bench.splits.num_classes,
            "merged": merged,
            "structure": digest({"lines": structure}),
            "batch_sizes": [1, cost.LATENCY_BATCH],
            "host": origin.host,
            "device": cost.device_name(compute.device),
            "driver": origin.driver,
            "capability": torch.backends.cpu.get_cpu_capability(),
            "dtype": str(compute.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "waiting": [os.environ.get(name) for name in WAITING],
            "torch": origin.versions.get("torch"),
            "timm": origin.versions.get("timm"),
            "peftbench": origin.peftbench,
            "code": code_digest(type(method).__module__),
            # what such a network computes was learned, and is no other run's
            **({"run": bench.spec.run_id} if method.card.dynamic else {}),
        }
    )
    return described


@cache
def code_digest(module: str) -> str:
    """A digest of the state of our files and of the method's: what is edited is timed anew."""
    root = Path(peftbench.__file__).parent
    files = sorted(root.rglob("*.py"))
    own = getattr(sys.modules.get(module), "__file__", None)
    files += [] if own is None or Path(own).is_relative_to(root) else [Path(own)]
    states = [(str(file), *file.stat()[6:9:2]) for file in files if file.is_file()]
    return digest({"files": plain(states)})

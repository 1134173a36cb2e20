"""Timings side by side: two ways take turns in one process, and their ratios are what counts.

The speed of a machine may change within minutes. What alternates with what it is compared with
changes along with it.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from peftbench.backbones.describe import describe
from peftbench.backbones.kernels import choose_layout
from peftbench.backbones.load import load
from peftbench.errors import Unsupported
from peftbench.methods import METHODS, Tuned, apply
from peftbench.methods.base import Method
from peftbench.run.simulation import LiveBytes
from peftbench.spec import BackboneSpec, Recipe
from peftbench.training.device import Compute, autocast, synchronise
from peftbench.training.fittable import Fittable, Objective
from peftbench.training.optim import make_optimizer

CLASSES = 100
RECIPE = Recipe(lr=1e-4)


def own_methods() -> list[str]:
    """The methods whose code is ours; tuners of peft take the steps that peft gives them."""
    return [name for name in METHODS if not name.startswith("hf_")]


def built(
    name: str, method: Method, compute: Compute, image_size: int | None = None
) -> tuple[Tuned, Fittable, int]:
    """`method` on a backbone with random weights (speed does not depend on them), and its side.

    Raises:
        Unsupported: the method takes no training steps, or is not defined on this backbone.
    """
    if method.card.solved:
        raise Unsupported(f"{method.name} takes no training steps.")
    spec = BackboneSpec(name, pretrained=False, image_size=image_size)
    backbone = load(spec, CLASSES, device=compute.device, dtype=compute.dtype)
    choose_layout(backbone.model)
    anatomy = describe(backbone.model, backbone.image_size)
    generator = torch.Generator().manual_seed(0)
    tuned = apply(method, backbone.model, anatomy, CLASSES, generator)
    fittable = Fittable(
        tuned.model,
        list(tuned.trainable.values()),
        tuned.train,
        backbone.preprocessing,
        tuned.regulariser,
    )
    return tuned, fittable, backbone.image_size


def batch(count: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images (B, 3, S, S) and classes (B,), random."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 3, size, size, generator=generator)
    y = torch.randint(0, CLASSES, (count,), generator=generator)
    return x.to(device), y.to(device)


def step_of(fittable: Fittable, count: int, size: int, compute: Compute) -> Callable[[], None]:
    """One step of training on `count` images, always the same."""
    objective = Objective(fittable, 0.0)
    optimizer = make_optimizer(RECIPE, fittable.trainable)
    x, y = batch(count, size, compute.device)

    def step() -> None:
        fittable.set_mode()
        optimizer.zero_grad(set_to_none=True)
        with autocast(compute):
            total, _, _ = objective(x, y)
        total.backward()
        optimizer.step()

    return step


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call: of the processor, which other programs lengthen less, or of a GPU."""
    if device.type == "cpu":
        tick = time.process_time()
        call()
        return time.process_time() - tick
    synchronise(device)
    tick = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - tick


@dataclass(frozen=True)
class Pair:
    """How long one way took over another, which took turns with it."""

    name: str
    ratio: float  # median over the repeats
    low: float  # the least and the greatest of them
    high: float
    seconds: float  # of the second way, median
    repeats: int


def paired(
    name: str,
    first: Callable[[], object],
    second: Callable[[], object],
    device: torch.device,
    repeats: int,
) -> Pair:
    """Seconds of `first` over those of `second`, in turns, after a turn that warms up."""
    first(), second()
    gc.collect()
    turns = []
    for turn in range(repeats):
        if turn % 2:  # neither always has the caches that the other leaves
            below, above = seconds(second, device), seconds(first, device)
        else:
            above, below = seconds(first, device), seconds(second, device)
        turns.append((above, below))
    ratios = [above / below for above, below in turns]
    base = statistics.median(below for _, below in turns)
    return Pair(name, statistics.median(ratios), min(ratios), max(ratios), base, repeats)


def kept_bytes(fittable: Fittable, count: int, size: int, compute: Compute) -> int:
    """Bytes that a forward pass of `count` images leaves for the backward pass."""
    fittable.set_mode()
    x, y = batch(count, size, compute.device)
    objective, live = Objective(fittable, 0.0), LiveBytes()
    for tensor in (x, *fittable.model.parameters()):
        live.add(tensor)
    before = live.now
    with live, autocast(compute):
        total = objective(x, y)[0]
    kept = live.now - before
    del total
    return kept


def images_of(count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, S, S, 3) uint8 and classes (N,), random."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return images, random.integers(0, CLASSES, count)


def switches(model: nn.Module) -> Mapping[str, Any]:
    """Which kernels a model takes, for the file of results."""
    fused = {m.fused_attn for m in model.modules() if hasattr(m, "fused_attn")}
    last = any(p.ndim == 4 and not p.is_contiguous() for p in model.parameters())
    return {"fused_attention": sorted(fused), "channels_last": last}

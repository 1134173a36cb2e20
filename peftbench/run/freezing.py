"""Looks for the frozen part of a tuned model, and says what decides its activations."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import torch

from peftbench.data.rows import rows_of
from peftbench.run import cost
from peftbench.run.activation_store import ActivationStore
from peftbench.run.bench import Bench
from peftbench.run.caching import FrozenPart
from peftbench.run.latency import code_digest
from peftbench.run.prefix import Prefix, digest_of, find_prefix
from peftbench.spec import Recipe
from peftbench.training.activations import AT_ONCE, RowLayout
from peftbench.training.pixels import Pixels
from peftbench.training.views import FixedViews, ViewedPixels

PROBED = 2  # images that a prefix is looked for with
ARITHMETIC = ("ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR")  # change roundings
DRAWN = ("mixup", "cutmix", "random_erasing")  # fields of a recipe that change images


def with_frozen_part(bench: Bench, store: ActivationStore) -> Bench:
    """`bench` with the frozen part of its tuned model, where there is one that is worth keeping.

    There is none where the recipe draws other images in every epoch, and none of a model
    that is compiled: in it nothing can stand in for what is frozen.
    """
    recipe, images = bench.spec.recipe, bench.splits.train.images
    if is_augmented(recipe) or len(images) < PROBED or bench.compute.compile:
        return bench
    norm, compute, tuned = bench.backbone.preprocessing, bench.compute, bench.tuned
    pixels = Pixels(images[:PROBED], norm.mean, norm.std, compute.device, keep=False)
    views, sizes = None, bench.splits.train.sizes
    shown: Pixels | ViewedPixels = pixels
    if recipe.fixed_views:
        views = FixedViews(recipe, norm.size, pixels.limits)
        shown = ViewedPixels(pixels, views, 0, None if sizes is None else rows_of(sizes))
    (probes,) = shown.batches([torch.arange(PROBED)])
    prefix = find_prefix(tuned.model, lambda: tuned.train(recipe.frozen_mode), probes, compute)
    if prefix is None:
        return bench
    facts = _facts(bench, prefix)
    frozen = FrozenPart(tuned.model, prefix, compute, norm, facts, store, views=views, sizes=sizes)
    frozen.offer(images, often=recipe.total_epochs > 1, trains=True)
    return dataclasses.replace(bench, frozen=frozen)


def is_augmented(recipe: Recipe) -> bool:
    """Whether images are drawn anew in every epoch."""
    if recipe.fixed_views:
        return False
    return recipe.augmentation != "none" or any(getattr(recipe, key) for key in DRAWN)


def _facts(bench: Bench, prefix: Prefix) -> dict[str, Any]:
    """All that decides the activations of an image, as plain values."""
    norm, origin, layout = bench.backbone.preprocessing, bench.provenance, RowLayout.of(prefix.row)
    return {
        "prefix": digest_of(bench.tuned.model, prefix),
        "row": [str(layout.dtype), list(layout.shape), list(layout.order)],
        "mean": list(norm.mean),
        "std": list(norm.std),
        "batch": AT_ONCE,
        "dtype": str(bench.compute.dtype),
        "device": cost.device_name(bench.compute.device),
        "driver": origin.driver,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "arithmetic": [os.environ.get(name) for name in ARITHMETIC],
        "threads": torch.get_num_threads(),
        "torch": origin.versions.get("torch"),
        "timm": origin.versions.get("timm"),
        "peftbench": origin.peftbench,
        "code": code_digest(type(bench.tuned.method).__module__),
    }

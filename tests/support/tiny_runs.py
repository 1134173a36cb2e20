"""Runs that take a fraction of a second, and their records without what time and luck decide."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
import torch
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig
from PIL import Image

from peftbench import data
from peftbench.config.choices import config_dir
from peftbench.methods import METHODS, Method, discover
from peftbench.results.latencies import StepCost
from peftbench.results.record import RunRecord
from peftbench.results.store import ResultsStore
from peftbench.run import cost, room, timing
from peftbench.run.simulation import step_cost
from peftbench.run.step import StepPlan
from peftbench.spec import BackboneSpec, DatasetSpec, Recipe, RunSpec
from peftbench.sweep.launchers.register import register
from peftbench.sweep.read_once import ReadOnce
from peftbench.training.device import Compute

discover()

# two tokens instead of seventeen, a handful of images, one epoch
QUICK = (
    "backbone.image_size=12",
    "dataset.limit=4",
    "recipe.epochs=1",
    "recipe.warmup_epochs=0",
    "recipe.batch_size=4",
)

# what may differ between two runs of one spec on one machine: clocks, and the process's memory
UNREPEATABLE = frozenset(
    {
        "started",
        "finished",
        "history.seconds",
        "cost.train_images_per_second",
        "cost.step_ms",
        "cost.latency_ms_batch1",
        "cost.latency_ms_batch",
        "cost.latency_measured",
        "cost.merged_latency_ms_batch1",
        "cost.merged_latency_ms_batch",
        "cost.latency_ms_batch1_iqr",
        "cost.latency_ms_batch_iqr",
        "cost.merged_latency_ms_batch1_iqr",
        "cost.merged_latency_ms_batch_iqr",
        "cost.step_ms_without_data",
        "cost.energy_joules",
        "cost.peak_bytes",
        "cost.seconds_saved",
        "cost.activations_found",
        "cost.activations_computed",
        "cost.seconds_load",
        "cost.seconds_train",
        "cost.seconds_evaluate",
        "cost.seconds_total",
        "provenance.data.prepared.seconds_supernet",
        "provenance.data.prepared.seconds_search",
    }
)


@cache
def digits(limit: int = 4) -> DatasetSpec:
    """At most `limit` images of each split of the shipped digits."""
    return data.identify(DatasetSpec("mini/digits", reader="mini", suite="mini", limit=limit))


def tiny_spec(method: str | Method = "linear", **changes: Any) -> RunSpec:
    """`method` on two tokens of `vit_mini` and four digits of each split, for two epochs.

    `changes` replace fields of the run; a dictionary under `recipe` replaces fields of the recipe.
    """
    recipe = dict(epochs=2, warmup_epochs=0, batch_size=3) | changes.pop("recipe", {})
    spec = RunSpec(
        method=METHODS[method]() if isinstance(method, str) else method,
        backbone=BackboneSpec("vit_mini", image_size=12, title="vit_mini"),
        dataset=digits(),
        recipe=Recipe(**recipe),
    )
    return dataclasses.replace(spec, **changes)


def compose(*overrides: str) -> DictConfig:
    """What `peftbench run OVERRIDES` composes, always a new one.

    Hydra takes 0.1 s for it, so that it composes the same only once and reads each file once,
    unless the working directory has choices of its own: they may change.
    """
    here = Path.cwd()
    own = any((here / name).is_dir() for name in ("conf", "experiments"))
    if own and here != config_dir().parent:
        return _by_hydra(overrides)
    return copy.deepcopy(_composed(overrides))


@cache
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    return _by_hydra(overrides, _files(tuple(METHODS)))


@cache
def _files(methods: tuple[str, ...]) -> ReadOnce:
    """The files of the configuration, read once while these are the methods that have a schema."""
    register()  # where they lie
    return ReadOnce(create_config_search_path(str(config_dir())))


def _by_hydra(overrides: tuple[str, ...], files: ReadOnce | None = None) -> DictConfig:
    register()
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        assert isinstance(loader, ConfigLoaderImpl)
        loader.repository = files or loader.repository
        return hydra.compose("config", overrides=list(overrides))


BIAS_HOT = (
    "# @package _global_\ndefaults: [/schema/method/bias@method]\nrecipe: {lr: 1e30}\n"  # diverges
)


def statuses(root: Path) -> Counter[str]:
    """How many records of a results folder have which status."""
    return Counter(str(record.status) for record in ResultsStore(root).records())


_COUNTED: dict[tuple[object, ...], StepCost] = {}


def counted_once(plan: StepPlan, images: int, compute: Compute) -> StepCost:
    """What a training step takes, counted once for all tests: it follows from what is named here.

    Counting takes a third of a second, most of a tiny run.
    """
    model = plan.tuned.model
    tensors = tuple((n, p.shape, p.dtype, p.requires_grad) for n, p in model.named_parameters())
    setting = (plan.recipe, plan.preprocessing, plan.num_classes, plan.task, images)
    key = (repr(model), tensors, setting, str(compute.device), compute.dtype)
    if key not in _COUNTED:
        _COUNTED[key] = step_cost(plan, images, compute)
    return _COUNTED[key]


@contextmanager
def short_timings() -> Iterator[pytest.MonkeyPatch]:
    """Latencies are measured over three forward passes of two images, on one CPU thread.

    Whether the machine was calm meanwhile is not asked.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setattr(cost, "BUDGET_SECONDS", 0.0)
        patch.setattr(cost, "WARMUP_RUNS", 0)
        patch.setattr(cost, "LATENCY_BATCH", 2)
        patch.setattr(room, "step_cost", counted_once)
        patch.setattr(timing, "LEAST_SECONDS", math.inf)
        patch.setattr(timing, "LEAST_TIMINGS", math.inf)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # two would spend their time waiting for each other
        yield patch
        torch.set_num_threads(threads)


def cpu_of(
    patch: pytest.MonkeyPatch, *, amx: bool, avx512_bf16: bool = False, **variables: str
) -> None:
    """A machine without a GPU, with these instructions and only these variables about it."""
    patch.setattr(torch.cuda, "is_available", lambda: False)
    patch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    patch.setattr("peftbench.sweep.plan.has_amx", lambda: amx)
    for module in ("sweep.plan", "training.device"):
        patch.setattr(f"peftbench.{module}.has_avx512_bf16", lambda: avx512_bf16)
    for name in ("PEFTBENCH_CPU_PRECISION", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        patch.delenv(name, raising=False)
    for name, value in variables.items():
        patch.setenv(name, value)


def repeatable(record: RunRecord) -> dict[str, Any]:
    """The record as a dictionary without its `UNREPEATABLE` fields."""
    raw = dataclasses.asdict(record)
    for path in UNREPEATABLE:
        first, _, rest = path.partition(".")
        parts = raw[first] if isinstance(raw[first], list) else [raw[first]]
        parts = [part for part in parts if part is not None]  # of a run that failed
        if rest:
            *inside, last = rest.split(".")
            for part in parts:
                for step in inside:
                    part = part.get(step, {})
                if inside:  # of methods that search alone
                    part.pop(last, None)
                else:
                    del part[last]
        else:
            del raw[first]
    return raw


def write_images(root: Path, per_class: int = 5, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    """PNG files `root/<class>/<number>.png`, all different; returns `root`."""
    generator = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True)
        for index in range(per_class):
            pixels = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return root


def files_below(folder: Path) -> list[str]:
    """Everything that was written there, folders included."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))

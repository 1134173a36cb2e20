"""Training on kept activations over training that computes the frozen layers in every epoch.

    python benchmarks/caching.py [--backbone vit_small_patch16_224] [--images 1000] [--epochs 100]

Random weights and random images: speed does not depend on them. Steps that compute everything are
timed one by one and multiplied, and so are epochs of a block and of grids; a head runs for all its
epochs.
Beside each, the same by a bare loop of PyTorch on a tensor of activations: what can be reached. All
in one process, repeated in turns. Writes `results/benchmarks/caching_<device>.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from peftbench.backbones.describe import describe
from peftbench.backbones.load import Backbone, load
from peftbench.data import TrainSplit
from peftbench.methods import METHODS, Tuned, apply, discover
from peftbench.run import cost, provenance
from peftbench.run.prefix import Prefix, Suffix, activations_of, find_prefix
from peftbench.spec import BackboneSpec, Precision, Recipe
from peftbench.tasks import CLASSIFICATION
from peftbench.training.activations import ActivationRows, Activations, RowLayout
from peftbench.training.device import Compute, autocast, choose_device, choose_dtype, synchronise
from peftbench.training.fittable import Fittable
from peftbench.training.loop import fit
from peftbench.training.together import HeadTask, fit_together

OUTPUT = Path(__file__).resolve().parents[1] / "results" / "benchmarks"
CLASSES, BATCH, GRIDS = 100, 64, (16, 52)
STEPS, IMAGES = 3, 16  # that compute everything, in each turn; images of one
EPOCHS = 2  # of what is more than a head, in each turn
GRID_EPOCHS = 10  # of many heads


@dataclasses.dataclass(frozen=True)
class Case:
    """A method on a backbone, and what its prefix gives."""

    tuned: Tuned
    backbone: Backbone
    prefix: Prefix
    compute: Compute
    values: Tensor  # (N, ...) activations
    labels: Tensor  # (N,)

    def inputs(self) -> ActivationRows:
        """The activations as a run reads them."""
        layout = RowLayout.of(self.prefix.row)
        rows = np.ascontiguousarray(layout.to_bytes(self.values).cpu().numpy())
        return ActivationRows(rows, layout, None, self.compute.device)

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(list(self.tuned.trainable.values()), lr=1e-4)


def seconds(device: torch.device, work: Callable[[], object]) -> float:
    synchronise(device)
    began = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - began


def bare(case: Case, model: nn.Module, batches: list[Any], targets: list[Tensor]) -> None:
    """Steps of a loop without anything around them."""
    optimizer = case.optimizer()
    case.tuned.train()
    for x, y in zip(batches, targets, strict=True):
        optimizer.zero_grad(set_to_none=True)
        with autocast(case.compute):
            loss = nn.functional.cross_entropy(model(x).float(), y)
        loss.backward()
        optimizer.step()


def make(name: str, arguments: argparse.Namespace, compute: Compute) -> Case:
    """The case of a method; activations of a few images stand for all."""
    spec = BackboneSpec(name=arguments.backbone, pretrained=False)
    backbone = load(spec, CLASSES, device=compute.device)
    anatomy = describe(backbone.model, backbone.image_size)
    generator = torch.Generator().manual_seed(0)
    tuned = apply(METHODS[name](), backbone.model, anatomy, CLASSES, generator)
    size = backbone.image_size
    images = torch.randn(BATCH, 3, size, size, generator=generator).to(compute.device)
    prefix = find_prefix(tuned.model, tuned.train, images[:2], compute)
    assert prefix is not None
    with torch.no_grad(), autocast(compute):
        some = activations_of(tuned.model, prefix, images)
    index = torch.randint(BATCH, (arguments.images,), generator=generator)
    labels = torch.randint(CLASSES, (arguments.images,), generator=generator)
    return Case(tuned, backbone, prefix, compute, some[index.to(compute.device)], labels)


def grid(case: Case, inputs: ActivationRows, recipe: Recipe, count: int) -> Callable[[], object]:
    """Trains so many heads, which have no statistics, in one pass."""
    head = case.tuned.model.get_submodule(case.prefix.head or "")
    common = HeadTask(head, inputs, case.labels, CLASSIFICATION, 0, case.compute)
    rates = [
        dataclasses.replace(recipe, lr=1e-4 * (1 + k), epochs=GRID_EPOCHS) for k in range(count)
    ]
    return lambda: fit_together(common, rates)


def ratios(took: dict[str, float], images: int, ran: int, epochs: int) -> dict[str, float]:
    """What computing everything in every epoch takes over keeping what is frozen.

    Args:
        took: seconds of each work, in which `ran` epochs on kept activations ran.
        images: of an epoch.
        epochs: of a training.
    """
    again, once = (took[key] / (STEPS * IMAGES) * images for key in ("whole", "extract"))
    kept, possible = (took[key] * epochs / ran for key in ("kept", "possible"))
    again *= epochs
    row = {
        "epoch_recomputed_over_kept": again / kept,
        "training_recomputed_over_kept": again / (once + kept),
        "training_recomputed_over_possible": again / (once + possible),
    }
    for count in GRIDS:
        if f"grid of {count}" in took:
            together = took[f"grid of {count}"] * epochs / GRID_EPOCHS
            row[f"grid_of_{count}_recomputed_over_kept"] = count * again / (once + together)
            row[f"grid_of_{count}_over_one"] = together / kept
    return row


def measure(name: str, arguments: argparse.Namespace, compute: Compute) -> dict[str, Any]:
    """The seconds of one method, and what they come to."""
    case, device = make(name, arguments, compute), compute.device
    size = case.backbone.image_size
    images = torch.randn(IMAGES, 3, size, size, device=device)
    y = case.labels[:IMAGES].to(device)
    epochs = EPOCHS if case.prefix.head is None else arguments.epochs
    suffix, inputs = Suffix(case.tuned.model, case.prefix), case.inputs()
    split = TrainSplit(
        np.zeros((arguments.images, 1, 1, 3), np.uint8),
        case.labels.numpy(),
        tuple(map(str, range(arguments.images))),
    )
    recipe = Recipe(epochs=epochs, warmup_epochs=0, batch_size=BATCH, lr=1e-4)

    def whole() -> None:
        bare(case, case.tuned.model, [images] * STEPS, [y] * STEPS)

    def extract() -> None:
        case.tuned.model.eval()
        with torch.inference_mode(), autocast(compute):
            for _ in range(STEPS):
                activations_of(case.tuned.model, case.prefix, images)

    def kept() -> None:
        fittable = Fittable(
            suffix,
            list(case.tuned.trainable.values()),
            case.tuned.train,
            case.backbone.preprocessing,
            inputs=inputs,
        )
        fit(fittable, split, recipe, seed=0, compute=compute)

    def possible() -> None:
        values, targets = case.values, case.labels.to(device)
        for _ in range(epochs):
            order = torch.randperm(arguments.images).split(BATCH)
            bare(
                case,
                suffix,
                [Activations(values[index]) for index in order],
                [targets[index] for index in order],
            )

    works: dict[str, Callable[[], object]] = {
        "whole": whole,
        "extract": extract,
        "kept": kept,
        "possible": possible,
    }
    path = case.prefix.head
    if path is not None and not list(case.tuned.model.get_submodule(path).buffers()):
        works |= {f"grid of {count}": grid(case, inputs, recipe, count) for count in GRIDS}
    found: dict[str, list[float]] = {key: [] for key in works}
    for _ in range(arguments.repeats):
        for key, work in works.items():
            found[key].append(seconds(device, work))
    took = {key: statistics.median(values) for key, values in found.items()}
    return {
        "seconds": took,
        "saved_share_of_forward": case.prefix.saved,
        **ratios(took, arguments.images, epochs, arguments.epochs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="vit_small_patch16_224")
    parser.add_argument("--methods", default="linear,mlp,partial")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    discover()
    torch.set_num_threads(arguments.threads)
    device = choose_device("auto")
    compute = Compute(device, choose_dtype(Precision(arguments.precision), device))
    rows = {}
    for name in arguments.methods.split(","):
        rows[name] = measure(name, arguments, compute)
        print(name, json.dumps(rows[name], indent=1), flush=True)
    result = {
        "device": cost.device_name(device),
        "dtype": str(compute.dtype).removeprefix("torch."),
        "threads": arguments.threads,
        "backbone": arguments.backbone,
        "images": arguments.images,
        "epochs": arguments.epochs,
        "versions": dict(provenance.versions()),
        "rows": rows,
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    slug = re.sub(r"[^A-Za-z0-9]+", "_", result["device"]).strip("_").lower()
    path = arguments.output / f"caching_{slug}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()

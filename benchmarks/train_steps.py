"""Training steps of every method on one backbone: images per second and peak memory.

    python benchmarks/train_steps.py [--backbone vit_base_patch16_224] [--steps 50] [--batch 64]

Random weights and random images: speed does not depend on them. Ratios are to full fine-tuning,
measured in the same process. Writes `results/benchmarks/train_steps_<device>.json`.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pairs import own_methods

from peftbench.backbones.describe import describe
from peftbench.backbones.load import load
from peftbench.data import TrainSplit
from peftbench.errors import Unsupported
from peftbench.methods import METHODS, apply, discover
from peftbench.run import cost, provenance
from peftbench.spec import BackboneSpec, Precision, Recipe
from peftbench.training.device import Compute, choose_device, choose_dtype, seeded
from peftbench.training.fittable import Fittable
from peftbench.training.loop import fit

OUTPUT = Path(__file__).resolve().parents[1] / "results" / "benchmarks"
CLASSES = 100


def measure(name: str, arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """One row of the table."""
    spec = BackboneSpec(name=arguments.backbone, pretrained=False, image_size=arguments.image_size)
    dtype = choose_dtype(Precision(arguments.precision), device)
    backbone = load(spec, CLASSES, device=device, dtype=dtype)
    anatomy = describe(backbone.model, backbone.image_size)
    generator = torch.Generator().manual_seed(0)
    tuned = apply(METHODS[name](), backbone.model, anatomy, CLASSES, generator)
    size, count = backbone.image_size, arguments.batch * arguments.steps
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    labels = random.integers(0, CLASSES, count)
    split = TrainSplit(images, labels, tuple(map(str, range(count))))
    cost.reset_peak(device)
    # on a GPU whole epochs are timed, after a first one that warms up
    recipe = Recipe(epochs=2, warmup_epochs=0, batch_size=arguments.batch, lr=1e-4)
    compute = Compute(device, dtype)
    fittable = Fittable(
        tuned.model,
        list(tuned.trainable.values()),
        tuned.train,
        backbone.preprocessing,
        tuned.regulariser,
    )
    with seeded(0, compute):
        fitted = fit(fittable, split, recipe, seed=0, compute=compute)
    return {
        "method": name,
        "dtype": str(dtype).removeprefix("torch."),
        "images_per_second": fitted.images_per_second,
        "step_ms": 1e3 * statistics.median(fitted.step_seconds),
        "peak_bytes": cost.peak_bytes(device),
        "tuned_parameters": sum(p.numel() for p in tuned.trainable.values()),
        "last_loss": fitted.history[-1].loss,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="vit_base_patch16_224")
    parser.add_argument("--image-size", type=int, default=None)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    discover()
    rows = []
    for name in own_methods():
        try:
            rows.append(measure(name, arguments, device))
        except Unsupported as e:
            rows.append({"method": name, "unsupported": str(e)})
        gc.collect()  # the next method's peak must not hold this one's model
        print(json.dumps(rows[-1]), flush=True)
    full = next(row for row in rows if row["method"] == "full")
    for row in rows:
        for key in ("images_per_second", "peak_bytes"):
            if key in row:
                row[f"{key}_over_full"] = row[key] / full[key]
    result = {
        "backbone": arguments.backbone,
        "batch": arguments.batch,
        "steps": arguments.steps,
        "device": cost.device_name(device),
        "driver": provenance.driver(),
        "versions": provenance.versions(),
        "rows": rows,
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    slug = re.sub(r"[^A-Za-z0-9]+", "_", result["device"]).strip("_").lower()
    path = arguments.output / f"train_steps_{slug}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()

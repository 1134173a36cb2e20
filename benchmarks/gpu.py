"""One command for a GPU: is it right, and how much of the device does training use?

    python benchmarks/gpu.py [--device cuda] [--quick]

First it checks: a run on the images of the package has the same losses on CPU and GPU, and
`tests/gpu` pass, two jobs on one card among them. Then it measures the peak of products in
bfloat16, and for every method on ViT-B/16 at 224 pixels images per second, the fraction of the
peak, the peak of memory, and the waits for the device within an epoch, of which there must be
none. Writes `results/benchmarks/gpu_<device>.json`; ends with 1 where a check fails. In eight
minutes on a GPU of the Hopper class. `--device cpu --quick` tries every part out on vit_mini.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent))

import pairs
from methods import OUTPUT, slug
from pairs import built, own_methods, seconds, step_of

from peftbench import data
from peftbench.data import TrainSplit
from peftbench.errors import Unsupported
from peftbench.methods import METHODS, discover
from peftbench.results.store import ResultsStore
from peftbench.run import cost, experiment, provenance
from peftbench.spec import BackboneSpec, DatasetSpec, Precision, Recipe, RunSpec
from peftbench.training.device import Compute, choose_device, choose_dtype, seeded
from peftbench.training.fittable import Fittable
from peftbench.training.loop import fit

ROOT = Path(__file__).resolve().parents[1]
VIT, MINI = "vit_base_patch16_224", "vit_mini"
# of losses on two devices: convolutions of a GPU round to 10 bits of mantissa (TF32)
TOLERANCE = 0.02
WAITED = "synchronizing CUDA operation"  # in what torch warns of


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is measured."""

    backbone: str
    batch: int
    steps: int  # timed, after as many as warm up
    warmup: int
    side: int  # of the matrices whose product is timed


WHOLE, QUICK = Size(VIT, 64, 20, 5, 8192), Size(MINI, 4, 2, 1, 256)


def agreement(device: torch.device) -> dict[str, Any]:
    """Losses of one run on the CPU and on the device, and whether they are alike."""
    spec = RunSpec(
        method=METHODS["lora"](),
        backbone=BackboneSpec(name=MINI),
        dataset=data.identify(DatasetSpec("mini/digits", reader="mini", limit=64)),
        recipe=Recipe(epochs=3, warmup_epochs=0, batch_size=32, lr=3e-3),
        precision=Precision.FLOAT32,
    )
    losses = []
    for name in ("cpu", str(device)):
        with tempfile.TemporaryDirectory() as folder:
            options = experiment.RunOptions(device=name)
            record = experiment.run(spec, ResultsStore(Path(folder)), options)
        if record.error:
            return {"passed": False, "error": record.error}
        losses.append([row.loss for row in record.history])
    worst = max(abs(a - b) / abs(a) for a, b in zip(*losses, strict=True))
    return {"passed": worst <= TOLERANCE, "losses": losses, "worst_relative_difference": worst}


def tests(device: torch.device) -> dict[str, Any]:
    """Whether `tests/gpu` pass; they need a GPU."""
    if device.type != "cuda":
        return {"passed": None, "absent": f"tests/gpu need a GPU, not {device.type}"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/gpu"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    return {"passed": done.returncode == 0, "output": done.stdout[-2000:]}


def peak(device: torch.device, side: int) -> float:
    """Operations per second of a product of two square matrices of bfloat16, the fastest of ten."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    times = [seconds(lambda: a @ b, device) for _ in range(13)][3:]
    return 2 * side**3 / max(min(times), 1e-9)


def waits(fittable: Fittable, size: int, amount: Size, compute: Compute) -> int | None:
    """How often an epoch waits for the device between its steps; `None` without a GPU.

    An epoch of six steps and one of three differ by those alone, not by the waits around them.
    """
    counts = [_warnings(lambda n=n: _fit(fittable, size, amount, compute, n)) for n in (3, 3, 6)]
    if compute.device.type != "cuda":
        return None
    return counts[2] - counts[1]  # the first fills caches of the libraries


def _fit(fittable: Fittable, size: int, amount: Size, compute: Compute, steps: int) -> None:
    """An epoch of so many steps."""
    count = amount.batch * steps
    images, labels = pairs.images_of(count, size)
    split = TrainSplit(images, labels, tuple(map(str, range(count))))
    recipe = Recipe(epochs=1, warmup_epochs=0, batch_size=amount.batch, lr=1e-4)
    with seeded(0, compute):
        fit(fittable, split, recipe, seed=0, compute=compute)


def _warnings(call: Callable[[], None]) -> int:
    """How often torch warns of a wait for the device within a call."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            if torch.cuda.is_available():
                torch.cuda.set_sync_debug_mode("default")
    return sum(WAITED in str(warning.message) for warning in caught)


def methods(amount: Size, compute: Compute, most: float) -> Iterator[dict[str, Any]]:
    """A row for each method; `most` operations per second are the peak."""
    device = compute.device
    for name in own_methods():
        try:
            tuned, fittable, size = built(amount.backbone, METHODS[name](), compute)
        except Unsupported as e:
            yield {"method": name, "absent": str(e)}
            continue
        step = step_of(fittable, amount.batch, size, compute)
        for _ in range(amount.warmup):
            step()
        cost.reset_peak(device)
        with FlopCounterMode(display=False) as counter:
            step()
        taken = seconds(lambda step=step: [step() for _ in range(amount.steps)], device)
        each = taken / amount.steps
        yield {
            "method": name,
            "images_per_second": amount.batch / each,
            "step_ms": 1e3 * each,
            "fraction_of_peak": counter.get_total_flops() / each / most,
            "peak_bytes": cost.peak_bytes(device),
            "waits_in_an_epoch": waits(fittable, size, amount, compute),
            "trained_parameters": sum(p.numel() for p in tuned.trainable.values()),
        }
        del tuned, fittable, step
        gc.collect()


def failures(result: dict[str, Any]) -> list[str]:
    """What is not as it must be, in words."""
    found = [name for name in ("agreement", "tests") if result[name]["passed"] is False]
    waiting = [row["method"] for row in result["rows"] if row.get("waits_in_an_epoch")]
    return found + [f"{name} waits for the device within an epoch" for name in waiting]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="vit_mini, and a few steps")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    discover()
    began = time.perf_counter()
    device = choose_device(arguments.device)
    amount = QUICK if arguments.quick else WHOLE
    compute = Compute(device, choose_dtype(Precision.AUTO, device))
    result: dict[str, Any] = {
        "device": cost.device_name(device),
        "backbone": amount.backbone,
        "batch": amount.batch,
        "dtype": str(compute.dtype).removeprefix("torch."),
        "driver": provenance.driver(),
        "versions": provenance.versions(),
        "agreement": agreement(device),
        "tests": tests(device),
    }
    for name in ("agreement", "tests"):
        print(name, result[name].get("absent") or result[name]["passed"], flush=True)
    most = result["matmul_flops_per_second"] = peak(device, amount.side)
    print(f"{most / 1e12:.1f} TFLOP/s of products in bfloat16", flush=True)
    rows = result["rows"] = []
    for row in methods(amount, compute, most):
        rows.append(row)
        print(json.dumps(row), flush=True)
    shares = [row["fraction_of_peak"] for row in rows if "fraction_of_peak" in row]
    result["median_fraction_of_peak"] = statistics.median(shares)
    result["failures"] = failures(result)
    result["seconds"] = time.perf_counter() - began
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / f"gpu_{slug(result['device'])}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(path)
    for failure in result["failures"]:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if result["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())

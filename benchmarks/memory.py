"""Peak memory of training: what is estimated without computing, beside what a process takes.

python benchmarks/memory.py [--only BACKBONE ...] [--images 16] [--again] [--resident]

Each pair of a method and a backbone is a row. `estimated_bytes` come from a step without storage
(`peftbench profile --meta`), `measured_bytes` from two steps in a process of its own on the CPU
(see `peftbench/run/peak.py`): the increase of its resident memory, model included. With
`--resident`, `resident_bytes` are the same where malloc keeps what is freed, as it does in a run:
they have holes in them, and differ by a few percent from time to time. Weights are random, in
float32; the head has 100 classes. Rows that are in the file already are kept unless `--again` is
given; their estimates are made anew.

Prints a line for each row and writes `results/benchmarks/memory_cpu.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

from peftbench.errors import Unsupported
from peftbench.methods import METHODS, discover
from peftbench.run.cost import device_name
from peftbench.run.peak import measured_peak
from peftbench.run.profile import planned_step
from peftbench.run.simulation import step_cost
from peftbench.spec import BackboneSpec, DatasetSpec, RunSpec
from peftbench.training.device import Compute

OUTPUT = Path(__file__).resolve().parents[1] / "results" / "benchmarks" / "memory_cpu.json"
BACKBONES = (
    "vit_mini",
    "vit_small_patch16_224",
    "resnet50",
    "convnext_tiny",
    "swin_tiny_patch4_window7_224",
)
NAMES = ("full", "linear", "lora", "ssf", "bias", "vpt_deep")
CLASSES = 100
ALLOWED = 0.10  # of what was measured
CPU = Compute(torch.device("cpu"), torch.float32)


def row(spec: RunSpec, images: int, known: dict[str, Any], resident: bool) -> dict[str, Any]:
    """One pair: estimated, and measured unless `known` has it."""
    estimated = step_cost(planned_step(spec, CLASSES), images, CPU)
    measured = known.get("measured_bytes") or measured_peak(spec, images, CLASSES)
    holes = known.get("resident_bytes")
    if resident and not holes:
        holes = measured_peak(spec, images, CLASSES, return_freed=False)
    return {
        "backbone": spec.backbone.name,
        "method": spec.method.name,
        "images": images,
        "kept_bytes": estimated.kept_bytes,
        "estimated_bytes": estimated.peak_bytes,
        "measured_bytes": measured,
        "resident_bytes": holes,
        "estimated_over_measured": round(estimated.peak_bytes / measured, 4),
        "resident_over_measured": round(holes / measured, 4) if holes else None,
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", default=BACKBONES, choices=BACKBONES)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--resident", action="store_true")
    options = parser.parse_args()
    discover()
    rows: dict[tuple[str, str, int], dict[str, Any]] = {}
    if OUTPUT.is_file() and not options.again:
        for found in json.loads(OUTPUT.read_text(encoding="utf-8"))["rows"]:
            rows[found["backbone"], found["method"], found["images"]] = found
    for name in options.only:
        for method in NAMES:
            spec = RunSpec(
                METHODS[method](), BackboneSpec(name, pretrained=False), DatasetSpec("none", "mini")
            )
            key = (name, method, options.images)
            try:
                rows[key] = row(spec, options.images, rows.get(key, {}), options.resident)
            except Unsupported:
                continue
            print(json.dumps(rows[key]), flush=True)
            write(list(rows.values()))


def write(rows: list[dict[str, Any]]) -> None:
    """The file, with what is off by more than is allowed."""
    off = [
        f"{each['method']} on {each['backbone']}, {each['images']} images: "
        f"{100 * (each['estimated_over_measured'] - 1):+.1f} %"
        for each in rows
        if abs(each["estimated_over_measured"] - 1) > ALLOWED
    ]
    result = {
        "machine": {
            "processor": device_name(CPU.device),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "libc": " ".join(platform.libc_ver()),
        },
        "allowed": ALLOWED,
        "off_by_more": off,
        "rows": rows,
    }
    OUTPUT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

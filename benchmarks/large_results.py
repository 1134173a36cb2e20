"""Reading a large results folder: seconds and peak memory of its frame and its tables.

    python benchmarks/large_results.py [--runs 15000] [--epochs 100] [--folder DIR]

Writes records of runs that never ran (24 data sets x 25 methods x 5 backbones x 5 seeds make
15,000, each with its configuration, costs, provenance and history), then reads them in a process of
its own. `--folder` keeps the records for a second call.
Writes `results/benchmarks/large_results_cpu.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import platform
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from peftbench.results.identity import run_id_of
from peftbench.results.record import Cost, EpochRow, Parameters, Provenance, RunRecord, Status
from peftbench.spec import BackboneSpec, DatasetSpec, PreprocessingSpec, Protocol, Recipe, Selection

OUTPUT = Path(__file__).resolve().parents[1] / "results" / "benchmarks" / "large_results_cpu.json"
GROUPS = {"natural": 7, "specialized": 4, "structured": 8, "fine-grained": 5}
METHODS, BACKBONES, SEEDS = 25, 5, 5

# what the second process runs: the steps, each with its time, its processor time (which other
# programs of the machine do not lengthen much) and the peak of memory so far
READ = """
import json, resource, sys, time

def step(name, call):
    start, cpu = time.perf_counter(), time.process_time()
    result = call()
    steps[name] = {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    return result

steps = {}
def load():
    from peftbench.report import tables
    from peftbench.results.frame import frame
    from peftbench.results.store import ResultsStore
    return tables, frame, ResultsStore
tables, frame, ResultsStore = step("imports", load)
table = step("frame", lambda: frame(ResultsStore(sys.argv[1])))
cells = step("cells", lambda: tables.summary(table))
text = step("text", lambda: tables.to_text(cells) + tables.to_markdown(cells))
assert not {"torch", "timm"} & sys.modules.keys()
print(json.dumps({"runs": len(table), "cells": len(cells), "steps": steps}))
"""


def write(folder: Path, runs: int, epochs: int) -> None:
    """The first `runs` records of the product, each file as the store would write it."""
    groups = [group for group, size in GROUPS.items() for _ in range(size)]
    product = itertools.product(range(BACKBONES), range(SEEDS), range(len(groups)), range(METHODS))
    for backbone, seed, dataset, method in itertools.islice(product, runs):
        record = simulated(backbone, seed, dataset, groups[dataset], method, epochs)
        path = folder / "runs" / f"method{method:02}" / f"{record.run_id}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(record.to_json(), encoding="utf-8")


def simulated(
    backbone: int, seed: int, dataset: int, group: str, method: int, epochs: int
) -> RunRecord:
    """One finished run with scores from a generator of its own."""
    draw = random.Random(f"{backbone} {seed} {dataset} {method}")
    tuned = random.Random(f"{backbone} {dataset} {method}")  # once for all seeds
    spec = {
        "method": {
            "name": f"method{method:02}",
            "version": 1,
            "hyperparameters": {"rank": 8, "alpha": 8.0, "targets": ["q", "v"], "dropout": 0.0},
        },
        "backbone": dataclasses.asdict(BackboneSpec(f"vit{backbone}.tag", title=f"vit{backbone}")),
        "dataset": dataclasses.asdict(
            DatasetSpec(
                f"suite/task{dataset:02}", "folder", "suite", 1, group, manifest=f"{dataset:064}"
            )
        ),
        "preprocessing": dataclasses.asdict(PreprocessingSpec()),
        "recipe": Recipe(lr=10 ** -tuned.choice((2.0, 3.0))).canonical(),
        "seed": seed,
        "phase": "final",
        "precision": "auto",
        "selection": dataclasses.asdict(Selection()),
        "protocol": {**dataclasses.asdict(Protocol()), "seeds": [0, 1, 2]},
    }
    top1 = min(0.4 + 0.02 * dataset + 0.005 * method + draw.gauss(0.0, 0.01), 1.0)
    return RunRecord(
        run_id=run_id_of(spec),
        spec=spec,
        status=Status.OK,
        metrics={
            "test/top1": top1,
            "test/mean_per_class": top1 - 0.01,
            "test/loss": 2.0 - top1,
            "test/ece": 0.1,
            "test/num_images": 1000.0,
        },
        parameters=Parameters(1000 * method, 10_000, 0, 86_000_000, 4000 * method + 40_000),
        cost=Cost("NVIDIA GPU", "bfloat16", 900.0, 70.0, 4.0, 60.0, 64, 4.0, 60.0, 17.5, 2**33),
        merge={"max_logit_difference": 1e-6},
        reload={"train_top1": 1.0, "max_logit_difference": 0.0},
        history=[
            EpochRow(e + 1, draw.random(), draw.random(), draw.random(), draw.random())
            for e in range(epochs)
        ],
        provenance=Provenance(
            "0.1.0", "3.11", {"torch": "2.9.0", "timm": "1.0.20"}, "c0ffee" * 6, False, "host",
            "Linux", 8, backbone_sha256=f"{backbone:064}",
            data={"manifest": f"{dataset:064}", "train_images": 1000, "classes": 10},
        ),
        started="2025-01-01T00:00:00+00:00",
        finished="2025-01-01T00:10:00+00:00",
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=15_000)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        if not (folder / "runs").exists():
            write(folder, options.runs, options.epochs)
        size = sum(path.stat().st_size for path in folder.rglob("*.json"))
        done = subprocess.run(
            [sys.executable, "-c", READ, folder], check=True, capture_output=True, text=True
        )
    measured = json.loads(done.stdout)
    steps = measured["steps"]
    measured |= {
        **{key: sum(step[key] for step in steps.values()) for key in ("seconds", "cpu_seconds")},
        "peak_mib": max(step["peak_mib"] for step in steps.values()),
        "mib_on_disk": size / 2**20,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    text = json.dumps(measured, indent=1)
    print(text)
    if options.runs == 15_000:
        OUTPUT.parent.mkdir(parents=True, exist_ok=True)
        OUTPUT.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

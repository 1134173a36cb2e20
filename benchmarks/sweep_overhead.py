"""What a sweep adds to each job: seconds, and as a ratio to a bare training script.

python benchmarks/sweep_overhead.py [--jobs 8]

The same small training is done by a bare script in a process of its own (torch, timm, ten lines of
training), by one cold `peftbench run` after another, and by sweeps whose jobs are forked from a
warm server, each alone or all in one process. One job at a time throughout.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SMALL = (
    "method=linear",
    "dataset=mini/digits",
    "dataset.limit=64",
    "recipe.epochs=2",
    "recipe.warmup_epochs=0",
)
BARE = """
import torch, timm
from peftbench.backbones.load import load
from peftbench.spec import BackboneSpec
from peftbench import data

model = load(BackboneSpec("vit_mini"), 10).model
for p in model.parameters():
    p.requires_grad_(False)
model.head = torch.nn.Linear(128, 10)
optimizer = torch.optim.AdamW(model.head.parameters(), lr=5e-3)
x, y = torch.randn(64, 3, 48, 48), torch.randint(0, 10, (64,))
for _ in range(2):
    loss = torch.nn.functional.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
with torch.no_grad():
    model.eval()(x)
"""


def seconds(commands: list[list[str]]) -> float:
    """Wall time of commands one after another."""
    began = time.perf_counter()
    for command in commands:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=FOLDER)
    return time.perf_counter() - began


def main() -> None:
    """Print seconds per job of each way, and its ratio to the bare script."""
    parser = argparse.ArgumentParser(description="seconds that a sweep adds to each job")
    parser.add_argument("--jobs", type=int, default=8)
    jobs = parser.parse_args().jobs
    run = [sys.executable, "-m", "peftbench", "run"]
    seeds = f"seed={','.join(str(i) for i in range(jobs))}"

    def sweep(name: str, per_process: int) -> list[list[str]]:
        options = ["hydra.launcher.jobs=1", f"hydra.launcher.jobs_per_process={per_process}"]
        return [[*run, "-m", *SMALL, seeds, f"results_dir={name}", *options]]

    ways = {
        "bare script": [[sys.executable, "-c", BARE]] * jobs,
        "peftbench run, one by one": [
            [*run, *SMALL, f"seed={i}", "results_dir=single"] for i in range(jobs)
        ],
        "sweep, a process each": sweep("each", 1),
        "sweep, one process": sweep("one", jobs),
    }
    bare = None
    print(f"{jobs} jobs, {os.cpu_count()} cores")
    for name, commands in ways.items():
        each = seconds(commands) / jobs
        bare = each if bare is None else bare
        print(f"{name:<26} {each:6.2f} s each, {each / bare:5.2f} x the bare script", flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        FOLDER = Path(folder)
        main()

"""Trials that share what is frozen over the same trials one by one, side by side in one process.

    python benchmarks/stacked.py [--backbone vit_mini] [--batch 32] [--trials 8] [--dtype bfloat16]

A step of all trials over as many steps of one, in turns (see `pairs.py`); on a CPU of processor
seconds on one core. `all frozen` is a step of one trial on as many images as all trials have, over
the same steps: what is left where nothing is computed trial by trial, and so the least that any way
of sharing can take. Random weights and images. Writes `results/benchmarks/stacked_<device>.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

from pairs import RECIPE, batch, built, own_methods, paired, step_of

from peftbench.errors import Unsupported
from peftbench.methods import METHODS, Tuned, discover
from peftbench.run import cost, provenance
from peftbench.run.simulation import step_cost
from peftbench.run.stacking import PROBED, StackedModel, Unstackable, stacked
from peftbench.run.step import StepPlan
from peftbench.run.trials import is_small
from peftbench.tasks import CLASSIFICATION
from peftbench.training.device import Compute, autocast, choose_device
from peftbench.training.fittable import Fittable
from peftbench.training.optim import make_optimizer

OUTPUT = Path(__file__).resolve().parents[1] / "results" / "benchmarks"


def stacked_step(
    stack: StackedModel, tuned: Tuned, size: int, arguments: argparse.Namespace, compute: Compute
) -> Callable[[], None]:
    """One step of every trial, on the same images."""
    x, y = batch(arguments.batch, size, compute.device)
    optimizers = [make_optimizer(RECIPE, stack.parameters(k)) for k in range(arguments.trials)]
    stack.activate(range(arguments.trials))

    def step() -> None:
        tuned.train()
        stack.match_modes()
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        with autocast(compute):
            outputs = stack.model(torch.cat([x] * arguments.trials)).split(len(x))
            losses = [CLASSIFICATION.loss(own, y, 0.0) for own in outputs]
        torch.autograd.backward(losses)
        for optimizer in optimizers:
            optimizer.step()

    return step


def times(step: Callable[[], None], count: int) -> Callable[[], None]:
    def all_of_them() -> None:
        for _ in range(count):
            step()

    return all_of_them


def measure(name: str, arguments: argparse.Namespace, compute: Compute) -> dict[str, Any]:
    """Ratios of one method; why there are none, where its trials have to train one by one."""
    tuned, fittable, size = built(arguments.backbone, METHODS[name](), compute)
    one = step_of(fittable, arguments.batch, size, compute)
    many = step_of(fittable, arguments.batch * arguments.trials, size, compute)
    separate = times(one, arguments.trials)
    frozen = paired("all frozen", many, separate, compute.device, arguments.repeats)
    plan = StepPlan(tuned, RECIPE, fittable.preprocessing, 100, CLASSIFICATION)
    kept = step_cost(plan, arguments.batch, compute)
    images, _ = batch(PROBED, size, compute.device)
    tuned.train()
    changing = list(tuned.trainable.values()), list(tuned.changing_buffers.values())
    row: dict[str, Any] = {
        "step_ms": 1e3 * frozen.seconds / arguments.trials,
        "kept_megabytes": kept.kept_bytes / 1e6,
        "all_frozen": frozen.ratio,
        "chosen": is_small(kept, compute),
    }
    try:
        with stacked(tuned.model, *changing, images, (None, compute, arguments.trials)) as stack:
            together = stacked_step(stack, tuned, size, arguments, compute)
            # the first trial's modules are the model's own, which a stack of one computes
            alone = alone_of(stack, fittable, separate)
            pair = paired("stacked", together, alone, compute.device, arguments.repeats)
    except Unstackable as e:
        return {**row, "absent": str(e)}
    return {**row, **dataclasses.asdict(pair), "apart": sorted(stack.places)[:3]}


def alone_of(
    stack: StackedModel, fittable: Fittable, separate: Callable[[], None]
) -> Callable[[], None]:
    """Steps of the first trial by itself, in the network as it was before it was stacked."""

    def steps() -> None:
        with stack.taken_apart():
            separate()

    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="vit_mini")
    parser.add_argument("--methods", default="")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    discover()
    torch.set_num_threads(arguments.threads)
    device = choose_device(arguments.device)
    compute = Compute(device, getattr(torch, arguments.dtype))
    rows = {}
    for name in arguments.methods.split(",") if arguments.methods else own_methods():
        try:
            rows[name] = measure(name, arguments, compute)
        except Unsupported as e:
            rows[name] = {"absent": str(e)}
        shown = {k: round(v, 2) if isinstance(v, float) else v for k, v in rows[name].items()}
        print(name, json.dumps(shown), flush=True)
        gc.collect()
    setting = {key: getattr(arguments, key) for key in ("backbone", "batch", "trials", "dtype")}
    slug = re.sub(r"[^A-Za-z0-9]+", "_", cost.device_name(device)).strip("_").lower()
    path = arguments.output / f"stacked_{slug}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    known["versions"] = dict(provenance.versions())
    known["_".join(map(str, setting.values()))] = {**setting, "rows": rows}
    path.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()

"""The peak of main memory that training steps take, measured in a process of its own.

torch keeps no such peak of a CPU. The process builds the model, makes steps on two images and
throws all away, so that code and buffers of libraries are there; then it does the same with the
whole batch, and Linux tells by how much its resident memory was larger at most. The process's
malloc gives memory back at once (`MALLOC_MMAP_THRESHOLD_`), because holes that it would keep
otherwise are more or less of the sum by chance: measured 11 to 45 %.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from peftbench.allocation import give_back
from peftbench.canonical import declared, plain
from peftbench.errors import PeftbenchError
from peftbench.methods.base import as_method
from peftbench.spec import BackboneSpec, Recipe, RunSpec

PROCESS = Path("/proc/self")
RETURN_FREED = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # bytes from which a block is its own mapping
STEPS = 2  # from the second on the optimiser has its state
WARM_UP_IMAGES = 2


def can_measure() -> bool:
    """Whether this system tells the peak of a process, and lets it be set back."""
    return os.access(PROCESS / "clear_refs", os.W_OK) and (PROCESS / "status").is_file()


def measured_peak(
    spec: RunSpec,
    images: int,
    num_classes: int,
    *,
    dtype: str = "float32",
    return_freed: bool = True,
) -> int:
    """Bytes by which steps of `images` images, with the model, enlarge a process on the CPU.

    The weights are random, `dtype` is the arithmetic of the forward pass. Without `return_freed`,
    malloc is as it is and keeps holes.

    Raises:
        PeftbenchError: the process failed; it says how.
    """
    method = as_method(spec.method)
    asked = {
        "method": method.name,
        "hyperparameters": plain(declared(method)),
        "backbone": plain(dataclasses.asdict(with_random_weights(spec.backbone))),
        "recipe": plain(dataclasses.asdict(spec.recipe)),
        "images": images,
        "dtype": dtype,
        "num_classes": num_classes,
    }
    done = subprocess.run(
        [sys.executable, "-m", "peftbench.run.peak"],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        env={**os.environ, **(RETURN_FREED if return_freed else {}), "CUDA_VISIBLE_DEVICES": ""},
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise PeftbenchError(
            f"the process that measures memory ended with status {done.returncode}: {last[:200]}. "
            "Try fewer images: recipe.batch_size."
        )
    return int(json.loads(done.stdout)["peak_bytes"])


def with_random_weights(backbone: BackboneSpec) -> BackboneSpec:
    """The same architecture with random weights, which take as much memory and no network."""
    return dataclasses.replace(backbone, pretrained=False, checkpoint=None, checkpoint_sha256="")


def _steps(asked: dict[str, Any], images: int) -> None:
    """Build the model and make steps; all of it is garbage behind."""
    import torch

    from peftbench.backbones.anatomies import of_model
    from peftbench.backbones.load import load
    from peftbench.methods import METHODS, apply
    from peftbench.run.step import Step, StepPlan
    from peftbench.training.device import Compute

    declared = BackboneSpec(**asked["backbone"])
    backbone = load(declared, 2)
    method = METHODS[asked["method"]](**asked["hyperparameters"]).offline()
    anatomy = of_model(declared, backbone.model, backbone.image_size)
    tuned = apply(method, backbone.model, anatomy, asked["num_classes"], torch.Generator())
    plan = StepPlan(tuned, Recipe(**asked["recipe"]), backbone.preprocessing, asked["num_classes"])
    dtype = torch.bfloat16 if asked["dtype"] == "bfloat16" else torch.float32
    step = Step(plan, Compute(torch.device("cpu"), dtype))
    for _ in range(STEPS):
        step(*step.batch(images))


def _kibibytes(name: str) -> int:
    """A number of `/proc/self/status`, such as VmRSS."""
    for line in (PROCESS / "status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise OSError(f"{PROCESS / 'status'} has no {name}")


def _settled() -> int:
    """Resident kibibytes without garbage."""
    gc.collect()
    give_back()
    return _kibibytes("VmRSS")


def main() -> None:
    """Measure what standard input asks for, and print the bytes as JSON."""
    from peftbench.methods import discover

    asked = json.load(sys.stdin)
    discover()
    _steps(asked, WARM_UP_IMAGES)
    before = _settled()
    (PROCESS / "clear_refs").write_text("5", encoding="ascii")  # sets VmHWM back to VmRSS
    _steps(asked, asked["images"])
    print(json.dumps({"peak_bytes": (_kibibytes("VmHWM") - before) * 1024}))


if __name__ == "__main__":
    main()

"""What a training step takes where freed memory is kept, over one where it is given back.

    python benchmarks/allocation.py [--backbones resnet50 ...] [--images 32] [--turns 3]

Steps of full fine-tuning at 224 pixels in float32 on one core, in turns in one process; medians of
processor seconds. `faults` are pages that the system clears in a step. Behind a turn that kept its
memory the heap has room for some blocks, so that the first turn of a process of its own gives back
more: 0.93 for the ViT. Prints JSON and writes
`results/benchmarks/allocation_cpu.json` where all backbones are measured.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import timm
import torch
from torch.nn.functional import cross_entropy

from peftbench.allocation import freed_is_kept
from peftbench.run.cost import device_name

OUTPUT = Path(__file__).resolve().parents[1] / "results" / "benchmarks" / "allocation_cpu.json"
BACKBONES = ("tf_efficientnet_lite0", "resnet50", "vit_small_patch16_224")


def step_of(name: str, images: int) -> Callable[[], None]:
    """A training step of a model with random weights."""
    model = timm.create_model(name, num_classes=10).train()
    optimiser = torch.optim.AdamW(model.parameters())
    x, y = torch.randn(images, 3, 224, 224), torch.arange(images) % 10

    def step() -> None:
        optimiser.zero_grad()
        cross_entropy(model(x), y).backward()
        optimiser.step()

    return step


def spent(step: Callable[[], None]) -> tuple[float, int]:
    """Processor seconds and page faults of a step."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    step()
    after = resource.getrusage(resource.RUSAGE_SELF)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, after.ru_minflt - before.ru_minflt


def measured(name: str, images: int, turns: int) -> dict[str, float | str]:
    """Medians of steps with and without, and the median of the ratios of turns."""
    step = step_of(name, images)
    found: dict[bool, list[tuple[float, int]]] = {False: [], True: []}
    for _ in range(turns):
        for kept in (False, True):
            with freed_is_kept() if kept else nullcontext():
                step()  # finds the memory
                found[kept].append(spent(step))
    ratios = [b[0] / a[0] for a, b in zip(found[False], found[True], strict=True)]
    row: dict[str, float | str] = {"backbone": name, "ratio": round(statistics.median(ratios), 3)}
    for kept, word in ((False, "given_back"), (True, "kept")):
        row[f"seconds_{word}"] = round(statistics.median(s for s, _ in found[kept]), 3)
        row[f"faults_{word}"] = statistics.median(n for _, n in found[kept])
    return row


def main() -> None:
    """Measure each backbone and print all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backbones", nargs="+", default=BACKBONES)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measured(name, options.images, options.turns) for name in options.backbones]
    about = {"images": options.images, "torch": torch.__version__, "libc": platform.libc_ver()}
    text = json.dumps({"cpu": device_name(torch.device("cpu")), **about, "rows": rows}, indent=1)
    print(text)
    if tuple(options.backbones) == BACKBONES:
        OUTPUT.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

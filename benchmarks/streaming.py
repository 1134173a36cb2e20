"""Epochs of many images from the pixel store, and from JPEG files by torchvision's `DataLoader`.

    python benchmarks/streaming.py [--images 100000] [--size 128] [--batch 64] [--step-ms 10]

Writes small JPEG files (a few hundred pictures, each file with a comment of its own) into a
temporary folder, then measures each way in a process of its own:

* build: index, hash and decode all files into the store;
* ahead: shuffled batches as training reads them, by a thread that is two batches ahead;
* map: the same rows indexed in the memory map, by the thread that trains;
* loader: `ImageFolder` and a `DataLoader` with the same transform.

Batches are normalised float32 on the CPU. A step is a wait of `--step-ms`, as for a GPU that
computes. Where not all images are gone through, `--part` of them are: for a loader a whole epoch
takes minutes. "cold" asks the system to forget the file of the store first.

Memory is that of all processes of a way together: before it begins, with its libraries, and at its
highest, every 0.1 s. Pages of a map are resident and of a file, not anonymous. "shared_out" counts
pages that processes share once, every 2 s. Writes `results/benchmarks/streaming_cpu.json` where
100,000 images are measured.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import multiprocessing
import os
import platform
import resource
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from peftbench import data
from peftbench.spec import DatasetSpec, Phase, Preprocessing
from peftbench.training.pixels import Pixels

OUTPUT = Path(__file__).resolve().parents[1] / "results" / "benchmarks" / "streaming_cpu.json"
CLASSES, DISTINCT = 100, 300
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MEMORY = {"VmRSS": "resident", "RssAnon": "anonymous", "RssFile": "file"}  # what Linux calls it
SHARED = {"Pss": "shared_out"}  # pages of several processes in equal parts; slow to ask for


@dataclass(frozen=True)
class Setting:
    """What all ways have in common."""

    root: Path  # the class folders; the store lies beside them
    size: int
    batch: int
    workers: int
    step_ms: float = 0.0
    cold: bool = False
    images: int | None = None  # of an epoch; `None` is all of them


def write_pictures(root: Path, count: int) -> None:
    """JPEG files of 160 x 120 pixels in class folders; no two are the same bytes."""
    generator = np.random.default_rng(0)
    encoded = []
    for _ in range(DISTINCT):
        blurred = Image.fromarray(generator.integers(0, 256, (9, 12, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        blurred.resize((160, 120), Image.Resampling.BICUBIC).save(buffer, "jpeg", quality=90)
        encoded.append(buffer.getvalue())
    for label in range(CLASSES):
        (root / f"class{label:03}").mkdir(parents=True)
    for number in range(count):
        start, rest = encoded[number % DISTINCT][:2], encoded[number % DISTINCT][2:]
        comment = b"\xff\xfe\x00\x0a" + b"%08d" % number  # marker, length, text
        path = root / f"class{number % CLASSES:03}" / f"{number:06}.jpg"
        path.write_bytes(start + comment + rest)


class Meter:
    """Seconds, and the highest memory of this process and those that it has started."""

    def __init__(self) -> None:
        self.peak = dict.fromkeys({**MEMORY, **SHARED}, 0)
        self.over = threading.Event()
        self.look("status", MEMORY)
        self.look("smaps_rollup", SHARED)
        self.before = dict(self.peak)

    def look(self, file: str, names: Iterable[str]) -> None:
        """Take in the memory of now that stands under these names in a file of /proc."""
        now = dict.fromkeys(names, 0)
        for pid in (os.getpid(), *(p.pid for p in multiprocessing.active_children())):
            with contextlib.suppress(OSError):  # it has ended
                text = Path(f"/proc/{pid}/{file}").read_text(encoding="utf-8")
                for name, _, value in (line.partition(":") for line in text.splitlines()):
                    if name in now:
                        now[name] += int(value.split()[0])
        self.peak |= {name: max(value, self.peak[name]) for name, value in now.items()}

    def watch(self) -> None:
        """Look until it is over."""
        looks = 0
        while not self.over.wait(0.1):
            self.look("status", MEMORY)
            looks += 1
            if looks % 20 == 0:
                self.look("smaps_rollup", SHARED)

    def measure(self, act: Callable[[], int]) -> dict[str, Any]:
        """A row about what gives a number of images."""
        watcher = threading.Thread(target=self.watch)
        watcher.start()
        began, spent = time.perf_counter(), cpu_seconds()
        images = act()
        seconds = time.perf_counter() - began
        self.look("status", MEMORY)
        self.over.set()
        watcher.join()
        return {
            "images": images,
            "seconds": round(seconds, 2),
            "images_per_second": round(images / seconds),
            "cpu_ms_per_image": round(1e3 * (cpu_seconds() - spent) / images, 4),
            "mib_before": mebibytes(self.before),
            "mib_peak": mebibytes(self.peak),
        }


def mebibytes(memory: dict[str, int]) -> dict[str, int]:
    """Of KiB, under words of ours."""
    return {word: round(memory[name] / 1024) for name, word in {**MEMORY, **SHARED}.items()}


def cpu_seconds() -> float:
    """Of this process and those that it has waited for."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in used)


def opened(setting: Setting) -> data.Splits:
    """The data set, from its store where there is one."""
    os.environ["PEFTBENCH_CACHE"] = str(setting.root.parent / "cache")
    spec = DatasetSpec(
        "folder", reader="folder", root=str(setting.root), val_fraction=0.01, test_fraction=0.01
    )
    return data.load(spec, Phase.FINAL, Preprocessing(setting.size, MEAN, STD))


def go_through(batches: Iterable[Tensor], setting: Setting) -> int:
    """Take all batches, with a step after each; the number of images."""
    count = 0
    for batch in batches:
        count += len(batch)
        time.sleep(setting.step_ms / 1e3)
    return count


def build(setting: Setting) -> dict[str, Any]:
    def act() -> int:
        splits = opened(setting)
        return len(splits.train) + len(splits.report)

    return Meter().measure(act)


def ahead(setting: Setting) -> dict[str, Any]:
    images = store_of(setting)
    pixels = Pixels(images, MEAN, STD, torch.device("cpu"))
    return Meter().measure(lambda: go_through(pixels.batches(order(images, setting)), setting))


def mapped(setting: Setting) -> dict[str, Any]:
    images = store_of(setting)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) * 255 for v in (MEAN, STD))

    def batches() -> Iterator[Tensor]:
        for index in order(images, setting):
            rows = torch.from_numpy(np.array(images[index.numpy()]))
            yield rows.permute(0, 3, 1, 2).contiguous().float().sub_(mean).div_(std)

    return Meter().measure(lambda: go_through(batches(), setting))


def loader(setting: Setting) -> dict[str, Any]:
    from torch.utils.data import DataLoader, Subset
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import Compose, InterpolationMode, Normalize, Resize, ToTensor

    side = (setting.size, setting.size)
    resize = Resize(side, InterpolationMode.BICUBIC)
    files = ImageFolder(str(setting.root), Compose([resize, ToTensor(), Normalize(MEAN, STD)]))
    chosen = torch.randperm(len(files), generator=torch.Generator().manual_seed(0))
    part = Subset(files, chosen[: setting.images].tolist())

    def epoch() -> int:
        batches = DataLoader(
            part,
            setting.batch,
            shuffle=True,
            num_workers=setting.workers,
            multiprocessing_context="fork" if setting.workers else None,  # else they import torch
        )
        return go_through((images for images, _ in batches), setting)

    return Meter().measure(epoch)


def store_of(setting: Setting) -> np.ndarray:
    """The mapped images (N, S, S, 3) that train."""
    images = opened(setting).train.images
    if setting.cold:
        with open(images.filename, "rb") as file:  # type: ignore[attr-defined]
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return images


def order(images: np.ndarray, setting: Setting) -> tuple[Tensor, ...]:
    """The numbers of the images of each batch of an epoch."""
    drawn = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return drawn[: setting.images].split(setting.batch)


def alone(way: Callable[[Setting], dict[str, Any]], setting: Setting) -> dict[str, Any]:
    """The row of one way, from a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(way, setting).result()


def main() -> None:
    """Print a row for each way, and keep them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--part", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--step-ms", type=float, default=10.0)
    options = parser.parse_args()
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "pictures"
        write_pictures(root, options.images)
        common = (root, options.size, options.batch, options.workers)
        everything, part = Setting(*common), Setting(*common, images=options.part)
        stepping = dataclasses.replace(part, step_ms=options.step_ms)
        cold = dataclasses.replace(part, cold=True)
        for name, way, setting in (
            ("build", build, everything),
            ("ahead", ahead, everything),
            ("map", mapped, everything),
            ("loader", loader, part),
            ("ahead, with steps", ahead, stepping),
            ("map, with steps", mapped, stepping),
            ("loader, with steps", loader, stepping),
            ("ahead, cold", ahead, cold),
            ("map, cold", mapped, cold),
        ):
            rows[name] = alone(way, setting)
            print(f"{name:18}", json.dumps(rows[name]), flush=True)
    measured = {
        **vars(options),
        "rows": rows,
        "ahead_over_loader": ratio(rows, "ahead", "loader"),
        "ahead_over_loader_with_steps": ratio(rows, "ahead, with steps", "loader, with steps"),
        "ahead_over_map": ratio(rows, "ahead", "map"),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }
    if options.images == 100_000:
        OUTPUT.parent.mkdir(parents=True, exist_ok=True)
        OUTPUT.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")


def ratio(rows: dict[str, dict[str, Any]], one: str, other: str) -> float:
    """Images a second of one way by those of another, in one run."""
    return round(rows[one]["images_per_second"] / rows[other]["images_per_second"], 2)


if __name__ == "__main__":
    main()

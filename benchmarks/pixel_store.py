"""An epoch from the pixel store, as a ratio to decoding the JPEG files in every epoch.

python benchmarks/pixel_store.py [--images 1000] [--size 224] [--workers 2] [--epochs 3]

Writes `results/benchmarks/pixel_store_cpu.json`.

Both give the same batches of normalised float32 images: the store through `peftbench.data.load`
and slices of its memory map, the files through a `DataLoader` whose workers decode, resize and
stack. The photographs are 500 x 375 pixels, made from the shipped clip art, in a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from peftbench import data
from peftbench.data import images
from peftbench.spec import DatasetSpec, Phase, Preprocessing

BATCH = 64
OUTPUT = Path(__file__).resolve().parents[1] / "results" / "benchmarks" / "pixel_store_cpu.json"


def write_photographs(root: Path, count: int) -> None:
    """JPEG files in two class folders, with grain so that they are as large as photographs."""
    spec = DatasetSpec("mini/clipart12", reader="mini")
    small = Preprocessing(64, (0.5,) * 3, (0.5,) * 3)
    pictures = data.load(spec, Phase.FINAL, small).train.images
    generator = np.random.default_rng(0)
    for number in range(count):
        folder = root / f"class{number % 2}"
        folder.mkdir(exist_ok=True)
        large = Image.fromarray(pictures[number % len(pictures)]).resize((500, 375))
        grain = generator.normal(0, 12, (375, 500, 3))
        noisy = (np.asarray(large) + grain).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{number:05d}.jpg", quality=90)


class Files(Dataset[torch.Tensor]):
    """Decodes and resizes a file whenever it is asked for."""

    def __init__(self, paths: list[Path], preprocessing: Preprocessing) -> None:
        self.paths = paths
        self.preprocessing = preprocessing

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> torch.Tensor:
        path = self.paths[row]
        pixels = images.to_square(images.decode(path, str(path)), self.preprocessing)
        return torch.from_numpy(np.array(pixels))


def from_store(pixels: np.ndarray, order: np.ndarray) -> Iterator[torch.Tensor]:
    """Batches of uint8 images in a shuffled order."""
    for start in range(0, len(order), BATCH):
        yield torch.from_numpy(pixels[order[start : start + BATCH]])


def epoch(batches: Iterator[torch.Tensor] | DataLoader[torch.Tensor], normalise: bool) -> float:
    """Seconds to go through all batches."""
    began = time.perf_counter()
    for batch in batches:
        if normalise:
            batch.permute(0, 3, 1, 2).contiguous().float().sub_(127.5).div_(127.5)
    return time.perf_counter() - began


def main() -> None:
    """Print seconds of an epoch for both ways, and the ratio."""
    parser = argparse.ArgumentParser(description="epochs from the pixel store and from JPEG files")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PEFTBENCH_CACHE"] = str(Path(folder) / "cache")
        root = Path(folder) / "photographs"
        root.mkdir()
        write_photographs(root, options.images)
        paths = sorted(root.rglob("*.jpg"))
        kilobytes = sum(path.stat().st_size for path in paths) / len(paths) / 1e3
        print(f"{len(paths)} JPEG files of {kilobytes:.0f} kB, {options.size} pixels")

        preprocessing = Preprocessing(options.size, (0.5,) * 3, (0.5,) * 3)
        spec = DatasetSpec("folder", reader="folder", root=str(root), test_fraction=0.001)
        began = time.perf_counter()
        pixels = data.load(spec, Phase.FINAL, preprocessing).train.images
        built = time.perf_counter() - began
        print(f"building the store, once: {built:.2f} s")
        began = time.perf_counter()
        data.load(spec, Phase.FINAL, preprocessing)
        opened = time.perf_counter() - began
        print(f"opening it again: {opened:.2f} s")

        generator = np.random.default_rng(0)
        loader = DataLoader(
            Files(paths, preprocessing),
            BATCH,
            shuffle=True,
            num_workers=options.workers,
            persistent_workers=options.workers > 0,
        )
        epoch(loader, normalise=False)  # starts the workers
        print("seconds an epoch: files, store, ratio")
        measured: dict[str, object] = {
            **vars(options),
            "kilobytes_a_file": round(kilobytes),
            "seconds_to_build": round(built, 3),
            "seconds_to_open": round(opened, 3),
        }
        for normalise in (False, True):
            files, store = [], []
            for _ in range(options.epochs):  # side by side
                files.append(epoch(loader, normalise))
                order = generator.permutation(len(pixels))
                store.append(epoch(from_store(pixels, order), normalise) * len(paths) / len(pixels))
            what = "normalised" if normalise else "uint8"
            ratio = min(files) / min(store)
            print(f"{what} batches: {min(files):.3f}, {min(store):.3f}, {ratio:.0f} x")
            measured[what] = {
                "seconds_from_files": round(min(files), 4),
                "seconds_from_store": round(min(store), 4),
                "ratio": round(ratio, 1),
            }
        measured |= {"machine": platform.machine(), "threads": torch.get_num_threads()}
        OUTPUT.parent.mkdir(parents=True, exist_ok=True)
        OUTPUT.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

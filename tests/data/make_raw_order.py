"""Writes tests/golden/tfds_order.json with the code of TensorFlow Datasets itself.

    python tests/data/make_raw_order.py FOLDER

FOLDER is `tensorflow_datasets/` of the unpacked wheel of version 4.9.9. TensorFlow is not needed:
core/hashing.py is imported by its path, and of builders only single functions and lists are run.
"""

from __future__ import annotations

import ast
import collections
import hashlib
import importlib.util
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parents[1] / "golden" / "tfds_order.json"

# name -> the split, and the keys of its records at the true size
KEYS: dict[str, tuple[str, Callable[[], Sequence[Any]]]] = {
    "dsprites": ("train", lambda: range(737_280)),
    "smallnorb": ("train", lambda: range(24_300)),
    "smallnorb_test": ("test", lambda: range(24_300)),
    "cifar100": ("train", lambda: range(50_000)),
    "cifar100_test": ("test", lambda: range(10_000)),
    "svhn": ("train", lambda: range(73_257)),
    "svhn_test": ("test", lambda: range(26_032)),
    "clevr": ("train", lambda: [f"CLEVR_train_{i:06d}.png" for i in range(70_000)]),
    "clevr_val": ("validation", lambda: [f"CLEVR_val_{i:06d}.png" for i in range(15_000)]),
    "kitti": ("train", lambda: [f"{i:06d}.png" for i in range(7_481)]),
    "flowers102": ("test", lambda: [f"image_{i:05d}.jpg" for i in range(1, 8_190)]),
    "patch_camelyon": ("train", lambda: [f"train_{i}" for i in range(262_144)]),
    "patch_camelyon_val": ("validation", lambda: [f"valid_{i}" for i in range(32_768)]),
    "bytes": ("validation", lambda: [b"frame \xff %d" % i for i in range(2_000)]),
}


def devkit() -> tuple[str, str]:
    """A devkit of KITTI of the true size: train_rand.txt and train_mapping.txt."""
    count = 7_481
    order = ",".join(str(37 * image % count + 1) for image in range(count))
    lines = [
        f"2011_09_26 2011_09_26_drive_{line * line % 151:04d}_sync {line:010d}"
        for line in range(count)
    ]
    return order, "\n".join(lines) + "\n"


def digest(order: Sequence[int]) -> str:
    return hashlib.sha256(",".join(map(str, order)).encode()).hexdigest()


def pieces(path: Path, names: Sequence[str]) -> dict[str, Any]:
    """Top-level functions and constants of a module, run without its imports."""
    body = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        targets = getattr(node, "targets", [])
        defined = {getattr(node, "name", None), *(getattr(t, "id", None) for t in targets)}
        if defined & set(names):
            body.append(node)
    space: dict[str, Any] = {"np": np, "os": os, "collections": collections}
    exec(compile(ast.Module(body, []), str(path), "exec"), space)
    return space


def main(folder: Path) -> None:
    spec = importlib.util.spec_from_file_location("hashing", folder / "core" / "hashing.py")
    assert spec is not None and spec.loader is not None
    hashing = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hashing)
    orders = {}
    for name, (split, make) in KEYS.items():
        hasher = hashing.Hasher(split)
        hashes = [hasher.hash_key(key) for key in make()]
        order = sorted(range(len(hashes)), key=hashes.__getitem__)
        orders[name] = {"count": len(order), "first": order[:20], "sha256": digest(order)}

    kitti = pieces(
        folder / "datasets" / "kitti" / "kitti_dataset_builder.py",
        ("_build_splits", "_VALIDATION_SPLIT_PERCENT_VIDEOS", "_TEST_SPLIT_PERCENT_VIDEOS"),
    )
    rand, mapping = (io.BytesIO(text.encode()) for text in devkit())
    archive = [("mapping/train_rand.txt", rand), ("mapping/train_mapping.txt", mapping)]
    parts = zip(("train", "validation", "test"), kitti["_build_splits"](archive), strict=True)
    videos = {
        split: {"count": len(ids), "first": ids[:20], "sha256": digest(ids)} for split, ids in parts
    }
    resisc45 = folder / "datasets" / "resisc45" / "resisc45_dataset_builder.py"
    classes = {
        "dtd": (folder / "image_classification" / "dtd_key_attributes.txt").read_text().split(),
        "eurosat": pieces(folder / "image_classification" / "eurosat.py", ["_LABELS"])["_LABELS"],
        "resisc45": pieces(resisc45, ["_LABELS"])["_LABELS"],
    }
    golden = {"version": "4.9.9", "orders": orders, "kitti_videos": videos, "classes": classes}
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

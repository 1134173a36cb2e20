"""KITTI: distance of the closest vehicle, with the split by videos that TFDS makes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from peftbench.data.layouts.lists import read_text
from peftbench.data.raw.base import (
    ORDER_NOTE,
    VTAB,
    Raw,
    Records,
    SplitCounts,
    Splits,
    add,
    below,
    cut_own,
    located,
)
from peftbench.errors import DataError

FOLDERS = ["data_object_image_2", "data_object_label_2"]
NEEDS = (
    *below(FOLDERS[:1], "training/image_2/"),
    *below(FOLDERS[1:], "training/label_2/"),
    *below(
        ["devkit_object", "devkit"],
        "mapping/train_rand.txt",
        "mapping/train_mapping.txt",
    ),
)
VEHICLES = ("Car", "Van", "Truck")  # the first classes of TFDS too, in this order
BORDERS = (-100.0, 8.0, 20.0, 999.0)
NO_VEHICLE = 1000.0
PERCENT = 10  # of the videos for val, and as many for test
SEED = 123


def vehicle_distance(text: str) -> int:
    """The class of an image by its label file: distance of the closest car, van or truck.

    Lines that do not have 15 fields raise `ValueError`.
    """
    depths = []
    for line in text.splitlines():
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 15:
            raise ValueError(f"{len(fields)} fields in {line[:60]!r}, not 15")
        if fields[0] in VEHICLES:
            depths.append(float(fields[13]))
    return distance(depths)


def distance(depths: Iterable[float]) -> int:
    """The class of an image by the z of its cars, vans and trucks.

    The smallest in float32, 1000 without a vehicle; the last border below it, so a value on a
    border belongs to the lower class; -1 where there is none. Source: VTAB,
    task_adaptation/data/kitti.py.
    """
    closest = np.float32(min([*depths, NO_VEHICLE]))
    return sum(bool(np.float32(border) < closest) for border in BORDERS) - 1


def by_video(order: Sequence[int], lines: Sequence[str]) -> Mapping[str, list[int]]:
    """Ids of the images of each split, no video in two of them.

    `order` is train_rand.txt: for each image its line in `lines`, counted from 1; those are
    train_mapping.txt, with the video second. Source: TFDS 4.9.9, datasets/kitti, which draws test
    before val from the sorted videos with NumPy's old generator and the seed 123.
    """
    videos: dict[str, list[int]] = {}
    for image, line in enumerate(order):
        videos.setdefault(lines[line - 1].split()[1], []).append(image)
    count = max(1, PERCENT * len(videos) // 100)
    generator = np.random.RandomState(SEED)
    test = {str(v) for v in generator.choice(sorted(videos), count, replace=False)}
    rest = sorted(set(videos) - test)
    val = {str(v) for v in generator.choice(rest, count, replace=False)}
    parts: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for video, images in videos.items():
        part = "test" if video in test else "validation" if video in val else "train"
        parts[part] += images
    return parts


def splits(folder: Path, counts: SplitCounts = VTAB) -> Splits:
    """VTAB-1k of KITTI.

    Raises `DataError` where the mapping or a label file cannot be read. Key of a record: the name
    of its image, such as 000016.png (TFDS 4.9.9, datasets/kitti).
    """
    images, labels, rand, mapping = (located(folder, need) for need in NEEDS)
    try:
        order = [int(number) for number in read_text(rand).split(",")]
        lines = read_text(mapping).splitlines()
        if not order or not 1 <= min(order) <= max(order) <= len(lines):
            raise ValueError(f"it names lines that are not among {len(lines)}")
        parts = by_video(order, lines)
    except (ValueError, IndexError) as error:
        raise DataError(
            f"{rand} and {mapping.name} do not map images to videos: {error}. Fetch "
            "devkit_object.zip again."
        ) from error

    def records(split: str) -> Records:
        keys = tuple(f"{number:06d}.png" for number in parts[split])
        return Records(
            str(labels),
            split,
            keys,
            4,
            lambda row: _label(labels / f"{keys[row][:-4]}.txt"),
            lambda row: images / keys[row],
        )

    return cut_own(map(records, ("train", "validation", "test")), counts)


def _label(path: Path) -> int:
    try:
        return vehicle_distance(read_text(path))
    except ValueError as error:
        raise DataError(f"{path} is no label file of KITTI: {error}. Fetch it again.") from error


VERSION_NOTE = (
    "the official code reads KITTI 3.1.0 of TensorFlow Datasets; its maintainers say that 3.2.0, "
    "which changed the devkit only, is the same data"
)

add(
    Raw(
        "kitti",
        "KITTI's object set, three archives unpacked into one folder: data_object_image_2.zip "
        "(training/image_2/), data_object_label_2.zip (training/label_2/) and devkit_object.zip "
        "(mapping/, which says what video an image is of)",
        NEEDS,
        splits,
        (
            ORDER_NOTE,
            "PNG files are copied byte for byte",
            VERSION_NOTE,
        ),
    )
)

"""CLEVR: the number of objects, and the distance of the closest one."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from peftbench.data.raw.base import (
    ORDER_NOTE,
    VTAB,
    Raw,
    Records,
    SplitCounts,
    Splits,
    add,
    below,
    cut_tail,
    located,
)
from peftbench.data.tree import hidden
from peftbench.errors import DataError

NEEDS = below(
    ["CLEVR_v1.0"],
    "images/train/",
    "images/val/",
    "scenes/CLEVR_train_scenes.json",
    "scenes/CLEVR_val_scenes.json",
)
TRAIN_PERCENT = 90
FEWEST = 3  # objects in a scene
BORDERS = (0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0)
_KEPT = ("scenes", "image_filename", "objects", "pixel_coords")

Scene = tuple[str, tuple[float, ...]]  # name of the image, third pixel coordinate of each object


def count(depths: Sequence[float]) -> int:
    """The class of a scene by its number of objects, 3..10.

    Source: VTAB, task_adaptation/data/clevr.py.
    """
    return len(depths) - FEWEST


def distance(depths: Sequence[float]) -> int:
    """The class of a scene by the smallest third pixel coordinate of its objects, as float32.

    The last border below it, so a value on a border belongs to the lower class; -1 where there is
    none. Source: VTAB, task_adaptation/data/clevr.py.
    """
    if not depths:
        return -1
    closest = np.float32(min(depths))
    return sum(bool(np.float32(border) < closest) for border in BORDERS) - 1


def splits(
    folder: Path, rule: Callable[[Sequence[float]], int], classes: int, counts: SplitCounts = VTAB
) -> Splits:
    """VTAB-1k of CLEVR; its val images are tested, because its test images have no labels.

    Raises `DataError` where scenes and images do not match. Key of a record: the name of its image
    (TFDS 4.9.9, datasets/clevr).
    """
    train = _records(folder, NEEDS[0], NEEDS[2], "train", rule, classes)
    test = _records(folder, NEEDS[1], NEEDS[3], "validation", rule, classes)
    return cut_tail(train, test, TRAIN_PERCENT, counts)


def _records(
    folder: Path,
    images: str,
    scenes: str,
    split: str,
    rule: Callable[[Sequence[float]], int],
    classes: int,
) -> Records:
    root, described = located(folder, images), located(folder, scenes)
    described_scenes = read_scenes(described)
    names = sorted(path.name for path in root.iterdir() if not hidden(path))
    listed = sorted(name for name, _ in described_scenes)
    if names != listed:
        odd = sorted(set(names) ^ set(listed))
        raise DataError(
            f"{root} has {len(names):,} images and {described} describes {len(listed):,}"
            f"{f', first difference {odd[0]}' if odd else ''}. Unpack the archive again."
        )
    return Records(
        str(described),
        split,
        tuple(name for name, _ in described_scenes),
        classes,
        lambda row: rule(described_scenes[row][1]),
        lambda row: root / described_scenes[row][0],
    )


def read_scenes(path: Path) -> list[Scene]:
    """The scenes of a file in its order; `DataError` where it is no such file."""

    def kept(entry: dict[str, Any]) -> dict[str, Any]:
        # dropped while parsing: relations of objects are most of the file
        return {key: entry[key] for key in _KEPT if key in entry}

    try:
        with path.open(encoding="utf-8") as file:
            scenes = json.load(file, object_hook=kept)["scenes"]
        return [
            (
                str(scene["image_filename"]),
                tuple(float(thing["pixel_coords"][2]) for thing in scene["objects"]),
            )
            for scene in scenes
        ]
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise DataError(f"{path} holds no scenes of CLEVR: {error!r}. Fetch it again.") from error


ALPHA_NOTE = (
    "PNG files are copied byte for byte; where one has an alpha channel, TensorFlow drops it and "
    "the reader here lays the image on white, which is the same for opaque images"
)
NOTES = (ORDER_NOTE, ALPHA_NOTE)
ABOUT = "CLEVR_v1.0 as it unpacks: images/train/, images/val/ and scenes/CLEVR_*_scenes.json"

add(Raw("clevr_count", ABOUT, NEEDS, functools.partial(splits, rule=count, classes=8), NOTES))
add(Raw("clevr_distance", ABOUT, NEEDS, functools.partial(splits, rule=distance, classes=6), NOTES))

"""The `mini` suite that ships inside the package: four small tasks in the three VTAB groups."""

from __future__ import annotations

import functools
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from peftbench.data import images
from peftbench.data.listing import Listing, SplitList, read_dataset, rollup
from peftbench.errors import DataError
from peftbench.registry import unknown_name
from peftbench.spec import WHOLE, DatasetSpec, Preprocessing

SPLITS = ("train", "val", "test")
ROOT = Path(__file__).parent / "suites" / "mini"


def tasks() -> tuple[str, ...]:
    """Names of the tasks of the suite, natural before specialized before structured."""
    return ("mini/clipart12", "mini/digits", "mini/sprites_location", "mini/sprites_orientation")


@read_dataset("mini")
def read_mini(spec: DatasetSpec) -> Listing:
    """The shipped task `spec.name`; its splits are stored, never drawn again."""
    if spec.name not in tasks():
        raise unknown_name("mini data set", spec.name, tasks())
    folder = ROOT / spec.name.split("/")[1]
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        notice = (folder / "NOTICE.txt").read_text(encoding="utf-8")
        parts = {split: SplitList.of(manifest["splits"][split]) for split in SPLITS}
    except (OSError, ValueError, KeyError) as error:
        raise _damaged(spec.name, str(error)) from error
    lines = [line for split, part in parts.items() for line in part.rollup_lines(split)]
    if rollup(lines) != manifest["rollup"]:
        raise _damaged(spec.name, "the list of images does not match its roll-up hash")

    def decode(part: SplitList, preprocessing: Preprocessing, split: str) -> np.ndarray:
        return _decode(folder, spec.name, manifest, part, preprocessing)

    return Listing(
        title=manifest["title"],
        suite=manifest["suite"],
        suite_version=manifest["suite_version"],
        group=manifest["group"],
        licence=manifest["licence"],
        source=manifest["source"],
        notice=notice,
        class_names=tuple(manifest["classes"]),
        train=parts["train"],
        val=parts["val"],
        test=parts["test"],
        manifest=manifest["rollup"],
        decode=decode,
        open=_opener(folder, spec.name, manifest),
    )


def _decode(
    folder: Path, task: str, manifest: Any, part: SplitList, preprocessing: Preprocessing
) -> np.ndarray:
    rows = [row for split in SPLITS for row in manifest["splits"][split]]
    position = {name: row for row, (name, _, _) in enumerate(rows)}
    try:
        with np.load(folder / "images.npz", allow_pickle=False) as archive:
            stored = _stored_bytes(archive, len(rows))
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise _damaged(task, str(error)) from error
    kind = images.row_type(preprocessing.size, preprocessing.resize == WHOLE)
    squares = np.empty(len(part), dtype=kind)
    for row, (name, digest) in enumerate(zip(part.names, part.digests, strict=True)):
        raw = stored(position[name])
        if hashlib.sha256(raw).hexdigest() != digest:
            raise _damaged(task, f"image {name} does not match its hash")
        image = _picture(raw, manifest["encoding"], manifest["side"], name)
        squares[row] = images.row(image, preprocessing)
    return squares


def _opener(folder: Path, task: str, manifest: Any) -> Callable[[str], Image.Image]:
    """What opens one picture by its name; the file of all is read with the first."""
    rows = [row for split in SPLITS for row in manifest["splits"][split]]
    position = {name: row for row, (name, _, _) in enumerate(rows)}

    @functools.cache
    def stored() -> Callable[[int], bytes]:
        try:
            with np.load(folder / "images.npz", allow_pickle=False) as archive:
                return _stored_bytes(archive, len(rows))
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise _damaged(task, str(error)) from error

    def open_one(name: str) -> Image.Image:
        raw = stored()(position[name])
        return _picture(raw, manifest["encoding"], manifest["side"], name)

    return open_one


def _stored_bytes(archive: Any, count: int) -> Callable[[int], bytes]:
    if "images" in archive:
        flat = archive["images"]
        if len(flat) != count:
            raise ValueError(f"{len(flat)} images stored, {count} listed")
        return lambda row: flat[row].tobytes()
    joined, ends = archive["bytes"].tobytes(), [0, *archive["ends"].tolist()]
    if len(ends) != count + 1:
        raise ValueError(f"{len(ends) - 1} images stored, {count} listed")
    return lambda row: joined[ends[row] : ends[row + 1]]


def _picture(raw: bytes, encoding: str, side: int, name: str) -> Image.Image:
    if encoding == "webp":
        return images.decode(io.BytesIO(raw), name)
    grey = np.frombuffer(raw, dtype=np.uint8)
    if encoding == "bits":
        grey = np.unpackbits(grey) * np.uint8(255)
    return Image.fromarray(grey.reshape(side, side)).convert("RGB")


def _damaged(task: str, reason: str) -> DataError:
    return DataError(f"The shipped data set {task} is damaged: {reason}. Install peftbench again.")

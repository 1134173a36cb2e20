"""Splits of a raw archive, written as the vtab-1k folder that `vtab1k` reads."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image as Pillow
from tqdm import tqdm

from peftbench.data.files import put
from peftbench.data.images import replaced
from peftbench.data.layouts.base import held
from peftbench.data.layouts.lists import VTAB_LISTS, VTAB_SOURCE, VTAB_UNION
from peftbench.data.raw import tfds
from peftbench.data.raw.base import RAW, Image, Raw, RawSplit
from peftbench.errors import DataError

UNION = Path(VTAB_UNION).stem
PARTS = (Path(VTAB_LISTS["train"]).stem, Path(VTAB_LISTS["val"]).stem)
TEST = Path(VTAB_LISTS["test"]).stem
# by their first bytes; a few files of Pets are no JPEG, though they are called so
SUFFIXES = ((b"\xff\xd8\xff", ".jpg"), (b"\x89PNG\r\n\x1a\n", ".png"), (b"BM", ".bmp"))
NAMED = 4  # paths that an error names; it counts the others

# tasks of VTAB that cannot be built from their archives, and why
LEFT_OUT: Mapping[str, str] = {
    "retinopathy": "its images are cropped, blurred and encoded again with OpenCV while "
    "TensorFlow Datasets builds its configuration btgraham-300, and no other program gives the "
    "same pixels",
    "caltech101": "TensorFlow Datasets draws 30 images a class from folder listings whose order "
    "depends on the file system, so that the archive does not say which are train and which test",
}


def build(task: str, folder: Path, target: Path) -> tuple[str, ...]:
    """Write VTAB-1k of a task from what is in `folder` into the new folder `target`.

    `folder` holds the raw archives, unpacked, or what TensorFlow Datasets has prepared: it is its
    folder for all data, or that of the data set or of one version.

    Returns notes on where the result may differ from the official data. What is done lies beside
    `target` in `.<name>.part` until all is; after an interruption the same call goes on with it.

    Raises:
        UnknownName: no such task.
        DataError: something is missing or damaged, records are too few, or `target` exists.
    """
    source = tfds.folder_of(task, folder.expanduser().absolute())
    if source is not None:
        return write(tfds.raw_form(task, source), source.folder, target)
    if task in LEFT_OUT:
        raise DataError(
            f"{task} cannot be built from its archive: {LEFT_OUT[task]}. What would do: "
            f"{tfds.FORMS[task].title}/<version>/ of TensorFlow Datasets, which is not in {folder}."
        )
    return write(RAW[task], folder, target)


def write(raw: Raw, folder: Path, target: Path) -> tuple[str, ...]:
    """`build` with a raw form that need not be registered."""
    folder, target = folder.expanduser().absolute(), target.expanduser().absolute()
    _refuse_existing(raw, target)
    _check_needs(raw, folder)
    part = target.with_name(f".{target.name}.part")
    splits = raw.splits(folder)
    try:
        _begin(raw, part, splits)
        names = {name: _images(raw.name, name, splits[name], part) for name in (*PARTS, TEST)}
        names[UNION] = _union([*names[PARTS[0]], *names[PARTS[1]]], part)
        labels = {name: split.labels for name, split in splits.items()}
        labels[UNION] = labels[PARTS[0]] + labels[PARTS[1]]
        for name, paths in names.items():
            _list(part / f"{name}.txt", paths, labels[name])
        _refuse_existing(raw, target)
        part.rename(target)
    except OSError as error:
        raise DataError(
            f"Building {raw.name} stopped at {error.filename or part}: {error.strerror or error}. "
            f"What is done is kept in {part}; when that is repaired, the same command goes on."
        ) from error
    return raw.notes


def _refuse_existing(raw: Raw, target: Path) -> None:
    if os.path.lexists(target):
        raise DataError(
            f"{target} is there already, and {raw.name} would be written to it. Name another "
            "folder, or remove that one."
        )


def _check_needs(raw: Raw, folder: Path) -> None:
    if not folder.is_dir():
        raise DataError(f"{raw.name}: {folder} is no folder. What would do: {raw.about}.")
    found, missing = held(folder, raw.needs)
    if not missing:
        return
    lacks = _some([need.replace("|", " or ") for need in missing])
    there = f"{_some(found)} {'is' if len(found) == 1 else 'are'} there and " if found else ""
    raise DataError(
        f"{raw.name} is incomplete: in {folder}, {there}{lacks} "
        f"{'is' if len(missing) == 1 else 'are'} missing. What would do: {raw.about}."
    )


def _some(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _begin(raw: Raw, part: Path, splits: Mapping[str, RawSplit]) -> None:
    """Make the unfinished folder, or see that the one that is there is of the same build."""
    labels = {name: list(split.labels) for name, split in splits.items()}
    digest = hashlib.sha256(json.dumps(labels).encode()).hexdigest()
    text = json.dumps(
        {
            "task": raw.name,
            "images": {name: len(split.labels) for name, split in splits.items()},
            "labels_sha256": digest,
            "notes": raw.notes,
        },
        indent=2,
    )
    source = part / VTAB_SOURCE
    begun = source.read_text(encoding="utf-8") if source.is_file() else None
    if begun != text and (begun is not None or (part / "images").exists()):
        raise DataError(
            f"{part} is what a build of another task or of other archives left unfinished. Remove "
            f"it to build {raw.name} there."
        )
    if begun is None:
        part.mkdir(parents=True, exist_ok=True)
        with replaced(source) as temporary:
            temporary.write_text(text, encoding="utf-8")
    for leftover in part.glob("images/*/.*.tmp"):
        leftover.unlink()


def _images(task: str, name: str, split: RawSplit, part: Path) -> list[str]:
    """Write the images of a split that are not there yet; their paths below `part`, in order."""
    folder = part / "images" / name
    folder.mkdir(parents=True, exist_ok=True)
    done = {path.stem: path.name for path in folder.iterdir()}
    names = []
    for position in tqdm(range(len(split.labels)), desc=f"{task} {name}", disable=None):
        stem = f"{position:06d}"
        if stem not in done:
            done[stem] = _store(split.image(position), folder, stem)
        names.append(f"images/{name}/{done[stem]}")
    return names


def _store(image: Image, folder: Path, stem: str) -> str:
    """Write an image without changing its pixels or, where it is encoded, its bytes."""
    if isinstance(image, Path):
        path = folder / f"{stem}{image.suffix.lower()}"
        with replaced(path) as temporary:
            shutil.copyfile(image, temporary)
        return path.name
    if isinstance(image, bytes):
        data, suffix = image, _suffix(image)
    else:
        data, suffix = _png(image), ".png"
    path = folder / f"{stem}{suffix}"
    with replaced(path) as temporary:
        temporary.write_bytes(data)
    return path.name


def _png(pixels: np.ndarray) -> bytes:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"An image is {pixels.dtype} {pixels.shape}, not uint8 (H, W, 3).")
    buffer = io.BytesIO()
    Pillow.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def _suffix(data: bytes) -> str:
    for start, suffix in SUFFIXES:
        if data.startswith(start):
            return suffix
    raise DataError(
        f"A stored image begins with {data[:8]!r}, which is neither JPEG nor PNG. The archive is "
        "damaged; fetch it again."
    )


def _union(names: list[str], part: Path) -> list[str]:
    """The 1,000 images once more under their own numbers, as hard links where those work."""
    folder = part / "images" / UNION
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for number, name in enumerate(names):
        path = folder / f"{number:06d}{Path(name).suffix}"
        if not path.exists():
            put(part / name, path)
        records.append(f"images/{UNION}/{path.name}")
    return records


def _list(path: Path, names: list[str], labels: tuple[int, ...]) -> None:
    lines = (f"{name} {label}\n" for name, label in zip(names, labels, strict=True))
    with replaced(path) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8", newline="\n")

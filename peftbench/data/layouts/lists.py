"""Layouts whose splits are lists of file names: VTAB-1k, VPT's FGVC splits, few-shot lists."""

from __future__ import annotations

import json
from pathlib import Path

from peftbench.data.files import FilePictures
from peftbench.data.layouts.base import (
    Contents,
    Layout,
    Rows,
    check_name,
    image_root,
    register_layout,
    reindexed,
)
from peftbench.errors import DataError
from peftbench.spec import DatasetSpec
from peftbench.untrusted import read_bounded

SHOT_SEEDS = (0, 1, 2)  # each number of shots was drawn three times
IMAGE_FOLDERS = ("images", ".", "jpg", "data/images")  # few-shot: NOAH's, Cars, CoOp's, Aircraft


def read_list(path: Path) -> list[tuple[str, int]]:
    """Pairs of a list with lines `<relative path> <label>`.

    Split from the right: the names of ImageNet-A hold spaces.
    """
    pairs = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        name, _, label = line.strip().rpartition(" ")
        if not name or not is_number(label):
            raise DataError(f"{path}, line {number}: {line[:80]!r} is not '<path> <label>'.")
        pairs.append((check_name(name.strip(), f"{path}, line {number}"), int(label)))
    return pairs


def is_number(text: str) -> bool:
    """Whether it is a whole number from 0 on that a class could have."""
    return text.isascii() and text.isdecimal() and len(text) < 10


def read_text(path: Path) -> str:
    """A list as text; `DataError` where it cannot be read."""
    try:
        return read_bounded(path).decode("utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"Cannot read {path}: {reason}. Fetch it again.") from error


def numbered(spec: DatasetSpec) -> tuple[str, ...]:
    """Classes of lists that have no names for them."""
    return tuple(str(number) for number in range(spec.facts.classes or 0))


VTAB_LISTS = {"train": "train800.txt", "val": "val200.txt", "test": "test.txt"}
VTAB_UNION = "train800val200.txt"
VTAB_SOURCE = "source.json"  # beside the lists of a folder that was built from raw archives


def _read_vtab1k(folder: Path, spec: DatasetSpec) -> Contents:
    parts = {split: Rows.of(read_list(folder / name)) for split, name in VTAB_LISTS.items()}
    union = read_list(folder / VTAB_UNION)
    if sorted(label for _, label in union) != sorted(parts["train"].labels + parts["val"].labels):
        raise DataError(
            f"{folder / VTAB_UNION} does not hold the classes of {VTAB_LISTS['train']} and "
            f"{VTAB_LISTS['val']} together ({len(union)} lines, {len(parts['train'])} and "
            f"{len(parts['val'])}). Its lists are of different versions; export them again."
        )
    notes = _build_notes(folder / VTAB_SOURCE)
    if not notes and any(n.lower().endswith((".jpg", ".jpeg")) for n in parts["train"].names):
        notes = ("images are JPEG copies, which lose detail that the original arrays have",)
    return Contents(numbered(spec), parts, FilePictures(folder), notes)


def _build_notes(path: Path) -> tuple[str, ...]:
    """What was said of a folder when it was built from raw archives."""
    if not path.is_file():
        return ()
    try:
        return tuple(map(str, json.loads(read_text(path))["notes"]))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path} does not say what the folder was built from: {error}.") from error


register_layout(
    Layout(
        name="vtab1k",
        about="the vtab-1k folder: <task>/images/ with train800.txt, val200.txt, "
        "train800val200.txt and test.txt",
        needs=lambda spec: (*VTAB_LISTS.values(), VTAB_UNION),
        read=_read_vtab1k,
    )
)

JSON_LISTS = {split: f"{split}.json" for split in ("train", "val", "test")}


def _read_vpt_json(folder: Path, spec: DatasetSpec) -> Contents:
    pairs = {split: _read_json(folder / name) for split, name in JSON_LISTS.items()}
    ids, parts = reindexed(pairs)
    first = parts["train"].names[0] if parts["train"].names else ""
    root = image_root(folder, ("images", "Images", "."), first, JSON_LISTS["train"])
    return Contents(tuple(map(str, ids)), parts, FilePictures(root))


def _read_json(path: Path) -> list[tuple[str, int]]:
    """Pairs of an object that maps relative paths to ids of classes."""
    try:
        raw = json.loads(read_text(path))
        if not isinstance(raw, dict) or not raw:
            raise ValueError("it is no object with entries")
        return [(check_name(name, str(path)), _id(label)) for name, label in raw.items()]
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise DataError(
            f"{path} does not map image paths to class ids: {error}. Fetch it again."
        ) from error


def _id(label: object) -> int:
    if isinstance(label, bool) or not is_number(str(label)):
        raise ValueError(f"{str(label)[:80]!r} is no id of a class")
    return int(str(label))


register_layout(
    Layout(
        name="vpt_json",
        about="VPT's splits (V-PETL Bench has them too): train.json, val.json and test.json beside "
        "images/, Images/ or the class folders",
        needs=lambda spec: tuple(JSON_LISTS.values()),
        read=_read_vpt_json,
    )
)


def _train_list(shots: int | None, seed: int | None) -> str:
    return f"annotations/train_meta.list.num_shot_{shots}.seed_{seed}"


def _read_fewshot(folder: Path, spec: DatasetSpec) -> Contents:
    if spec.shot_seed not in SHOT_SEEDS:
        raise DataError(
            f"dataset.shot_seed={spec.shot_seed}: {spec.name} has lists of the seeds "
            f"{', '.join(map(str, SHOT_SEEDS))}. Use one of them; unless it is given it is the "
            "seed of the run."
        )
    train = {seed: read_list(folder / _train_list(spec.shots, seed)) for seed in SHOT_SEEDS}
    rest = {
        split: Rows.of(read_list(folder / "annotations" / f"{split}_meta.list"))
        for split in ("val", "test")
    }
    chosen = train[spec.shot_seed]
    repeats = len(chosen) - len(set(chosen))
    notes = []
    if repeats:
        notes = [f"{repeats} of {len(chosen)} lines of the training list repeat an image"]
        notes[0] += "; kept" if spec.keep_repeats else "; each image trains once"
    if not spec.keep_repeats:
        train = {seed: list(dict.fromkeys(pairs)) for seed, pairs in train.items()}
    lists = {f"train {seed}": Rows.of(pairs) for seed, pairs in train.items()}
    parts = {"train": lists[f"train {spec.shot_seed}"], **rest}
    first = parts["train"].names[0] if parts["train"].names else ""
    root = image_root(folder, IMAGE_FOLDERS, first, _train_list(spec.shots, spec.shot_seed))
    return Contents(
        numbered(spec), parts, FilePictures(root), tuple(notes), covered={**lists, **rest}
    )


register_layout(
    Layout(
        name="fewshot",
        about="NOAH's lists: annotations/train_meta.list.num_shot_K.seed_S, val_meta.list and "
        "test_meta.list, beside images/ (or jpg/, or the folders that the lists name)",
        needs=lambda spec: (
            *(_train_list(spec.shots, seed) for seed in SHOT_SEEDS),
            "annotations/val_meta.list",
            "annotations/test_meta.list",
        ),
        read=_read_fewshot,
    )
)

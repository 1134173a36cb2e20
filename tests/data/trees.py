"""Small trees in every layout of public data sets, with the names and formats of the real ones.

All hold the same pictures: nine to train and tune on and six to test on, of three classes, stored
without loss under whatever suffix the layout has.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from peftbench import data
from peftbench.config.build import dataset_specs
from peftbench.spec import DatasetSpec, Phase, Preprocessing

SIDE = 32
SIZE = Preprocessing(size=SIDE, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="nearest")
COUNTS = {"train": 6, "val": 3, "test": 6}
CLASSES = ("001.Arum", "002.Bear", "010.Cat")

Items = dict[str, list[tuple[np.ndarray, int]]]  # split -> (32, 32, 3) uint8 and class


@cache
def items() -> Items:
    """Real images of three classes of the shipped suite."""
    spec = DatasetSpec("mini/clipart12", reader="mini")
    tune, final = (data.load(spec, phase, SIZE) for phase in (Phase.TUNE, Phase.FINAL))
    tested = final.report.open_once()
    sources = {
        "train": (tune.train.images, tune.train.labels),
        "val": (tune.report.images, tune.report.labels),
        "test": (tested.images, tested.labels),
    }
    return {
        split: [
            (images[row], label)
            for label in range(3)
            for row in np.flatnonzero(labels == label)[: COUNTS[split] // 3]
        ]
        for split, (images, labels) in sources.items()
    }


def small(name: str, root: Path, **changes: object) -> DatasetSpec:
    """The configured data set with three classes and a handful of images."""
    spec = dataset_specs(str(root))[name]
    few = {} if spec.shots else {"train": COUNTS["train"]}
    facts = replace(spec.facts, classes=3, val=COUNTS["val"], test=COUNTS["test"], **few)
    return replace(spec, facts=facts, **changes)


def save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    path.write_bytes(buffer.getvalue())


def vtab1k(folder: Path) -> None:
    """As NOAH's exporter writes it; the 1,000 images are stored a second time."""
    lists = {"train800": ["train"], "val200": ["val"], "test": ["test"]}
    lists["train800val200"] = ["train", "val"]
    for name, splits in lists.items():
        rows = [row for split in splits for row in items()[split]]
        lines = []
        for number, (pixels, label) in enumerate(rows):
            relative = f"images/{name}/{number:06d}.jpg"
            save(pixels, folder / relative)
            lines.append(f"{relative} {label}\n")
        (folder / f"{name}.txt").write_text("".join(lines))


def vpt_json(folder: Path, inside: str, ids: Sequence[int], as_text: bool = False) -> None:
    """VPT's lists of paths below `inside`, with class ids that need not follow one another."""
    for split, rows in items().items():
        listed = {}
        for number, (pixels, label) in enumerate(rows):
            relative = f"{CLASSES[label]}/{split}_{number}.jpg"
            save(pixels, folder / inside / relative)
            listed[relative] = str(ids[label]) if as_text else ids[label]
        # the order of a list means nothing
        (folder / f"{split}.json").write_text(json.dumps(dict(reversed(listed.items()))))


def together(splits: Sequence[str]) -> list[tuple[np.ndarray, int]]:
    return [row for split in splits for row in items()[split]]


def cub(folder: Path, ids: Sequence[int], keys: Callable[[int], str]) -> None:
    """The archive of CUB-200-2011, or of NABirds where keys are no numbers and ids have gaps."""
    rows = [(*row, 1) for row in together(["train", "val"])] + [(*r, 0) for r in items()["test"]]
    tables: dict[str, list[str]] = {"images": [], "image_class_labels": [], "train_test_split": []}
    for number, (pixels, label, trains) in enumerate(rows):
        relative = f"{CLASSES[label]}/bird_{number:04d}.jpg"
        save(pixels, folder / "images" / relative)
        for name, value in zip(tables, (relative, ids[label], trains), strict=True):
            tables[name].append(f"{keys(number)} {value}\n")
    for name, lines in tables.items():
        (folder / f"{name}.txt").write_text("".join(lines))
    names = (f"{i} {title} (adult male)\n" for i, title in zip(ids, CLASSES, strict=True))
    (folder / "classes.txt").write_text("".join(names) + "9999 a class above others\n")


def flowers(folder: Path) -> None:
    """Numbered pictures with their labels and split in MATLAB files, all counted from 1."""
    rows = together(["train", "val", "test"])
    for number, (pixels, _) in enumerate(rows, start=1):
        save(pixels, folder / "jpg" / f"image_{number:05d}.jpg")
    savemat(folder / "imagelabels.mat", {"labels": [label + 1 for _, label in rows]})
    ids = {"trnid": range(1, 7), "valid": range(7, 10), "tstid": range(10, 16)}
    savemat(folder / "setid.mat", {key: list(numbers) for key, numbers in ids.items()})


def dogs(folder: Path, lists: str) -> None:
    for split, splits in (("train", ["train", "val"]), ("test", ["test"])):
        names, labels = [], []
        for number, (pixels, label) in enumerate(together(splits)):
            names.append(f"n0208562{label}-{CLASSES[label]}/{split}_{number}.jpg")
            labels.append(label + 1)
            save(pixels, folder / "Images" / names[-1])
        (folder / lists).mkdir(exist_ok=True)
        cells = np.array(names, dtype=object).reshape(-1, 1)
        variables = {"file_list": cells, "labels": np.array(labels).reshape(-1, 1)}
        savemat(folder / lists / f"{split}_list.mat", variables)


def cars(folder: Path) -> None:
    """As torchvision unpacks them; the test list with labels lies beside the folders."""
    (folder / "devkit").mkdir(parents=True)
    places = {"train": "devkit/cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}
    for split, splits in (("train", ["train", "val"]), ("test", ["test"])):
        kinds = [("bbox_x1", "O"), ("class", "O"), ("fname", "O")]
        rows = together(splits)
        annotations = np.empty((1, len(rows)), dtype=kinds)
        for number, (pixels, label) in enumerate(rows):
            name = f"{number + 1:05d}.jpg"
            annotations[0, number] = (1, label + 1, name)
            save(pixels, folder / f"cars_{split}" / name)
        savemat(folder / places[split], {"annotations": annotations})
    titles = np.array(CLASSES, dtype=object)
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": titles})


def imagefolder(folder: Path, parts: dict[str, Sequence[str]], names: Sequence[str]) -> None:
    for part, splits in parts.items():
        for number, (pixels, label) in enumerate(together(splits)):
            save(pixels, folder / part / names[label] / f"{number}.JPEG")


def cifar_binary(folder: Path) -> None:
    """Rows of a coarse label, a fine label and the planes of a picture."""
    folder.mkdir(parents=True)
    for name, splits in (("train", ["train", "val"]), ("test", ["test"])):
        rows = [
            bytes([9, label]) + pixels.transpose(2, 0, 1).tobytes()
            for pixels, label in together(splits)
        ]
        (folder / f"{name}.bin").write_bytes(b"".join(rows))
    (folder / "fine_label_names.txt").write_text("apple\nbear\ncat\n\n")


def fewshot(
    folder: Path,
    inside: str,
    prefix: str = "",
    repeats: int = 1,
    shots: int = 2,
) -> None:
    """NOAH's lists; those of the seeds take turns with the images of each class."""
    annotations = folder / "annotations"
    annotations.mkdir(parents=True)
    lists: dict[str, list[str]] = {}
    for split, rows in items().items():
        lists[split] = []
        for number, (pixels, label) in enumerate(rows):
            relative = f"{prefix}{split}_{number}.jpg"
            save(pixels, folder / inside / relative)
            lists[split].append(f"{relative} {label}\n")
    for seed in (0, 1, 2):
        chosen = [
            lists["train"][2 * label + (seed + shot) % 2]
            for label in range(3)
            for shot in range(shots)
        ]
        path = annotations / f"train_meta.list.num_shot_{shots}.seed_{seed}"
        path.write_text("".join(chosen * repeats))
    (annotations / "val_meta.list").write_text("".join(lists["val"]))
    (annotations / "test_meta.list").write_text("".join(lists["test"]))

"""The official archives of the FGVC sets, as they unpack.

Only Flowers has a val split of its own; of the others it is cut from train by the reader.
"""

from __future__ import annotations

from pathlib import Path

from peftbench.data import matlab
from peftbench.data.files import FilePictures
from peftbench.data.layouts.base import (
    Contents,
    Layout,
    check_name,
    existing,
    image_root,
    register_layout,
    reindexed,
)
from peftbench.data.layouts.lists import is_number, read_text
from peftbench.errors import DataError
from peftbench.spec import DatasetSpec


def _table(path: Path) -> dict[str, str]:
    """Lines `<id> <value>`, split at the first space: names of classes hold more."""
    table = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        key, _, value = line.strip().partition(" ")
        if line.strip() and not value:
            raise DataError(f"{path}, line {number}: {line[:80]!r} is not '<id> <value>'.")
        if line.strip():
            table[key] = value.strip()
    return table


def _read_cub(folder: Path, spec: DatasetSpec) -> Contents:
    paths = _table(folder / "images.txt")
    labels = _table(folder / "image_class_labels.txt")
    trains = _table(folder / "train_test_split.txt")
    titles = _table(folder / "classes.txt")
    for name, table in (("image_class_labels.txt", labels), ("train_test_split.txt", trains)):
        if table.keys() != paths.keys():
            raise DataError(
                f"{folder / name} has {len(table)} images, images.txt has {len(paths)}, and not "
                "all are the same. Unpack the archive again."
            )
    pairs: dict[str, list[tuple[str, int]]] = {"train": [], "test": []}
    for key, path in paths.items():
        split = "train" if trains[key] == "1" else "test"
        where = folder / "image_class_labels.txt"
        number = labels[key]
        if not is_number(number):
            raise DataError(f"{where}: {number[:80]!r} is no number of a class.")
        pairs[split].append((check_name(path, str(folder / "images.txt")), int(number)))
    ids, parts = reindexed(pairs)
    names = tuple(titles.get(str(number), str(number)) for number in ids)
    return Contents(names, parts, FilePictures(folder / "images"))


register_layout(
    Layout(
        name="cub",
        about="the archive of CUB-200-2011 or NABirds: images.txt, image_class_labels.txt, "
        "train_test_split.txt, classes.txt and images/",
        needs=lambda spec: (
            "images.txt",
            "image_class_labels.txt",
            "train_test_split.txt",
            "classes.txt",
            "images/",
        ),
        read=_read_cub,
    )
)


FLOWER_SPLITS = {"train": "trnid", "val": "valid", "test": "tstid"}


def _read_flowers(folder: Path, spec: DatasetSpec) -> Contents:
    where = folder / "imagelabels.mat"
    labels = matlab.whole_numbers(where, matlab.read(where, ["labels"]), "labels")
    setid = folder / "setid.mat"
    chosen = matlab.read(setid, list(FLOWER_SPLITS.values()))
    pairs: dict[str, list[tuple[str, int]]] = {}
    for split, key in FLOWER_SPLITS.items():
        numbers = matlab.whole_numbers(setid, chosen, key)
        beyond = [number for number in numbers if not 1 <= number <= len(labels)]
        if beyond:
            raise DataError(f"{setid}: {key} names image {beyond[0]} of {len(labels)}.")
        pairs[split] = [(f"image_{number:05d}.jpg", labels[number - 1]) for number in numbers]
    ids, parts = reindexed(pairs)
    return Contents(tuple(map(str, ids)), parts, FilePictures(folder / "jpg"))


register_layout(
    Layout(
        name="flowers",
        about="the archive of Oxford Flowers: jpg/, imagelabels.mat and setid.mat",
        needs=lambda spec: ("setid.mat", "imagelabels.mat", "jpg/"),
        read=_read_flowers,
    )
)


def _read_dogs(folder: Path, spec: DatasetSpec) -> Contents:
    pairs: dict[str, list[tuple[str, int]]] = {}
    for split in ("train", "test"):
        path = existing(folder, f"{split}_list.mat", f"lists/{split}_list.mat")
        variables = matlab.read(path, ["file_list", "labels"])
        names = [check_name(n, str(path)) for n in matlab.texts(path, variables, "file_list")]
        labels = matlab.whole_numbers(path, variables, "labels")
        if len(names) != len(labels):
            raise DataError(f"{path} has {len(names)} files and {len(labels)} labels.")
        pairs[split] = list(zip(names, labels, strict=True))
    ids, parts = reindexed(pairs)
    titles = {label: name.split("/")[0] for part in pairs.values() for name, label in part}
    root = image_root(folder, ("Images", "images"), parts["train"].names[0], "train_list.mat")
    return Contents(tuple(titles[i] for i in ids), parts, FilePictures(root))


register_layout(
    Layout(
        name="dogs",
        about="the archives of Stanford Dogs: Images/, train_list.mat and test_list.mat",
        needs=lambda spec: (
            "train_list.mat|lists/train_list.mat",
            "test_list.mat|lists/test_list.mat",
            "Images/|images/",
        ),
        read=_read_dogs,
    )
)


def _read_cars(folder: Path, spec: DatasetSpec) -> Contents:
    lists = {
        "train": folder / "devkit" / "cars_train_annos.mat",
        "test": existing(
            folder,
            "cars_test_annos_withlabels.mat",
            "devkit/cars_test_annos_withlabels.mat",
        ),
    }
    pairs = {}
    for split, path in lists.items():
        rows = matlab.column(path, matlab.read(path, ["annotations"]), "annotations")
        try:
            pairs[split] = [
                (check_name(f"cars_{split}/{row['fname']}", str(path)), int(row["class"]))
                for row in rows
            ]
        except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
            raise DataError(
                f"{path} has no fname and class for each image. The labels of the test images are "
                "in cars_test_annos_withlabels.mat."
            ) from error
    ids, parts = reindexed(pairs)
    meta = folder / "devkit" / "cars_meta.mat"
    titles = matlab.texts(meta, matlab.read(meta, ["class_names"]), "class_names")
    names = tuple(titles[i - 1] if 1 <= i <= len(titles) else str(i) for i in ids)
    return Contents(names, parts, FilePictures(folder))


register_layout(
    Layout(
        name="cars",
        about="the archives of Stanford Cars as torchvision unpacks them: cars_train/, cars_test/, "
        "devkit/cars_train_annos.mat, devkit/cars_meta.mat and cars_test_annos_withlabels.mat",
        needs=lambda spec: (
            "devkit/cars_train_annos.mat",
            "devkit/cars_meta.mat",
            "cars_test_annos_withlabels.mat|devkit/cars_test_annos_withlabels.mat",
            "cars_train/",
            "cars_test/",
        ),
        read=_read_cars,
    )
)

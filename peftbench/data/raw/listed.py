"""Archives of JPEG files with lists of their splits: DTD, Flowers102 and Pets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from peftbench.data import matlab
from peftbench.data.layouts.base import check_name
from peftbench.data.layouts.lists import is_number, read_text
from peftbench.data.raw.base import (
    COPIED_NOTE,
    ORDER_NOTE,
    VTAB,
    Raw,
    Records,
    SplitCounts,
    Splits,
    add,
    below,
    cut_own,
    cut_tail,
    located,
)
from peftbench.errors import DataError


def _listed(
    where: Path, split: str, pairs: Sequence[tuple[str, int]], classes: int, images: Path
) -> Records:
    """Records whose key is the name of their file below `images`."""
    return Records(
        str(where),
        split,
        tuple(check_name(name, str(where)) for name, _ in pairs),
        classes,
        lambda row: pairs[row][1],
        lambda row: images / pairs[row][0],
    )


DTD_LISTS = {"train": "train1.txt", "validation": "val1.txt", "test": "test1.txt"}
DTD_NEEDS = below(["dtd"], "images/", *(f"labels/{name}" for name in DTD_LISTS.values()))
DTD_CLASSES = 47


def dtd(folder: Path, counts: SplitCounts = VTAB) -> Splits:
    """VTAB-1k of DTD, from the first of its ten partitions.

    Classes are the sorted names of the textures. Raises `DataError` where the lists do not name 47.
    Key of a record: such as banded/banded_0002.jpg (TFDS 4.9.9, image_classification/dtd.py).
    """
    images, *paths = (located(folder, need) for need in DTD_NEEDS)
    names = {
        split: [line.strip() for line in read_text(path).splitlines() if line.strip()]
        for split, path in zip(DTD_LISTS, paths, strict=True)
    }
    classes = sorted({name.split("/")[0] for part in names.values() for name in part})
    if len(classes) != DTD_CLASSES:
        raise DataError(
            f"{paths[0].parent}: the lists name {len(classes)} textures, and {DTD_CLASSES} are "
            "published. Unpack the archive again."
        )
    number = {title: i for i, title in enumerate(classes)}
    parts = [
        _listed(
            path,
            split,
            [(name, number[name.split("/")[0]]) for name in names[split]],
            DTD_CLASSES,
            images,
        )
        for split, path in zip(DTD_LISTS, paths, strict=True)
    ]
    return cut_own(parts, counts)


FLOWERS_NEEDS = ("jpg/|102flowers/jpg/", "imagelabels.mat", "setid.mat")
FLOWERS_SPLITS = {"train": "trnid", "validation": "valid", "test": "tstid"}


def flowers(folder: Path, counts: SplitCounts = VTAB) -> Splits:
    """VTAB-1k of Oxford Flowers102.

    Raises `DataError` where setid.mat names an image that has no label. Key of a record: such as
    image_00001.jpg (TFDS 4.9.9, datasets/oxford_flowers102).
    """
    images, where, setid = (located(folder, need) for need in FLOWERS_NEEDS)
    labels = matlab.whole_numbers(where, matlab.read(where, ["labels"]), "labels")
    chosen = matlab.read(setid, list(FLOWERS_SPLITS.values()))
    parts = []
    for split, key in FLOWERS_SPLITS.items():
        numbers = matlab.whole_numbers(setid, chosen, key)
        beyond = [number for number in numbers if not 1 <= number <= len(labels)]
        if beyond:
            raise DataError(f"{setid}: {key} names image {beyond[0]} of {len(labels)}.")
        pairs = [(f"image_{number:05d}.jpg", labels[number - 1] - 1) for number in numbers]
        parts.append(_listed(setid, split, pairs, 102, images))
    return cut_own(parts, counts)


PETS_NEEDS = ("images/", "annotations/trainval.txt", "annotations/test.txt")
PETS_TRAIN_PERCENT = 80


def pets(folder: Path, counts: SplitCounts = VTAB) -> Splits:
    """VTAB-1k of Oxford-IIIT Pets.

    Lines of its lists are a name, a breed from 1 on, a species and a number; others raise
    `DataError`. Key of a record: such as Abyssinian_100.jpg (TFDS 4.9.9, datasets/oxford_iiit_pet).
    """
    images, trainval, test = (located(folder, need) for need in PETS_NEEDS)
    parts = []
    for path, split in ((trainval, "train"), (test, "test")):
        pairs = []
        for number, line in enumerate(read_text(path).splitlines(), start=1):
            fields = line.split()
            if len(fields) != 4 or not is_number(fields[1]):
                raise DataError(
                    f"{path}, line {number}: {line[:80]!r} is not '<name> <breed> <species> "
                    "<number>'. Unpack the archive again."
                )
            pairs.append((f"{fields[0]}.jpg", int(fields[1]) - 1))
        parts.append(_listed(path, split, pairs, 37, images))
    train, tested = parts
    return cut_tail(train, tested, PETS_TRAIN_PERCENT, counts)


NOTES = (ORDER_NOTE, COPIED_NOTE)

add(
    Raw(
        "dtd",
        "dtd-r1.0.1.tar.gz unpacked: images/ and labels/{train1,val1,test1}.txt",
        DTD_NEEDS,
        dtd,
        NOTES,
    )
)
add(
    Raw(
        "flowers102",
        "the archive of Oxford Flowers: jpg/, imagelabels.mat and setid.mat",
        FLOWERS_NEEDS,
        flowers,
        NOTES,
    )
)
add(
    Raw(
        "pets",
        "images.tar.gz and annotations.tar.gz of Oxford-IIIT Pets, unpacked beside each other",
        PETS_NEEDS,
        pets,
        (
            *NOTES,
            "VTAB read version 3 of TensorFlow Datasets; version 4.0.0 encodes twelve broken files "
            "again, which are copied as they are here",
        ),
    )
)

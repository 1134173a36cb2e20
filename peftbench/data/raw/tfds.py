"""VTAB-1k from the folders that TensorFlow Datasets (TFDS) prepares, for all 19 tasks."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from peftbench.data import images
from peftbench.data.raw import cifar, clevr, dsprites, folders, kitti, listed, smallnorb, svhn
from peftbench.data.raw.base import (
    COPIED_NOTE,
    VTAB,
    Image,
    Raw,
    Records,
    SplitCounts,
    Splits,
    cut_one,
    cut_own,
    cut_tail,
)
from peftbench.data.raw.shards import INFO, Prepared, find, prepared, record_finder, titled
from peftbench.data.raw.tfrecord import Features, Span, example
from peftbench.errors import DataError

Label = Callable[[Features], int]
Cut = Callable[[Sequence[Records], SplitCounts], Splits]
Value = TypeVar("Value", bytes, float, int)
Result = TypeVar("Result")

OWN = ("train", "validation", "test")
HALVES = ("train", "test")
CALTECH_TRAIN_PERCENT = 90  # VTAB, task_adaptation/data/caltech.py
PLACE_NOTE = (
    "images are chosen by their place in the shards of TensorFlow Datasets, as VTAB's slices are; "
    "a folder exported through it can number the same images otherwise, because it reads several "
    "files in turn"
)
STORED_NOTE = "images are the encoded bytes that the records hold"


def values(features: Features, name: str, kind: type[Value]) -> list[Value]:
    """All values of a feature; `ValueError` where it is missing or of another kind."""
    if name not in features:
        raise ValueError(f"it has no feature {name}")
    of_kind = [value for value in features[name] if isinstance(value, kind)]
    if len(of_kind) != len(features[name]):
        raise ValueError(f"the feature {name} does not hold {kind.__name__}")
    return of_kind


def single(features: Features, name: str, kind: type[Value]) -> Value:
    """The one value of a feature; `ValueError` where it has none, or more."""
    items = values(features, name, kind)
    if len(items) != 1:
        raise ValueError(f"the feature {name} holds {len(items)} values, not one")
    return items[0]


def thirds(features: Features, name: str) -> list[float]:
    """The third of each three numbers: depths, of a list of points that is stored flat.

    Source: TFDS 4.9.9, core/example_serializer.py.
    """
    flat = values(features, name, float)
    if len(flat) % 3:
        raise ValueError(f"the feature {name} holds {len(flat)} numbers, not three an object")
    return flat[2::3]


def stored(name: str = "label", rule: Callable[[int], int] = int) -> Label:
    """A class that is stored as a number, to which a rule may apply."""
    return lambda features: rule(single(features, name, int))


STORED_LABEL = stored()


def of_scene(rule: Callable[[Sequence[float]], int]) -> Label:
    """A class by the third pixel coordinate of each object of CLEVR."""
    return lambda features: rule(thirds(features, "objects/pixel_coords"))


def of_vehicles(features: Features) -> int:
    """The class of an image of KITTI, by the z of those objects that are vehicles."""
    kinds, depths = values(features, "objects/type", int), thirds(features, "objects/location")
    if len(kinds) != len(depths):
        raise ValueError(f"it has {len(kinds)} types of objects and {len(depths)} locations")
    vehicles = range(len(kitti.VEHICLES))
    return kitti.distance(z for kind, z in zip(kinds, depths, strict=True) if kind in vehicles)


def mask(data: bytes) -> np.ndarray:
    """An image of dSprites, which is stored as 0 and 1, as VTAB shows it: (64, 64, 3) uint8.

    `ValueError` where it is of another size or has other values.
    """
    pixels = np.asarray(images.decode(io.BytesIO(data), "of dSprites"))
    if pixels.shape != (dsprites.SIDE, dsprites.SIDE, 3) or pixels.max() > 1:
        raise ValueError(f"its image is {pixels.shape} with values up to {pixels.max()}")
    return pixels * np.uint8(255)


def tail(percent: int) -> Cut:
    """`cut_tail` behind so many percent of train."""

    def cut_parts(parts: Sequence[Records], counts: SplitCounts) -> Splits:
        train, test = parts
        return cut_tail(train, test, percent, counts)

    return cut_parts


def one(train: int, val: int) -> Cut:
    """`cut_one` at these percentages."""

    def cut_parts(parts: Sequence[Records], counts: SplitCounts) -> Splits:
        [records] = parts
        return cut_one(records, train, val, counts)

    return cut_parts


@dataclass(frozen=True)
class Form:
    """How TFDS has a task, and how VTAB takes it.

    `version` is the one that the recipe of VPT names (VTAB_SETUP.md). `label` makes the class from
    the features of a record, and `image` what is written from the bytes of its image. `parts` are
    the splits that `cut` wants, in its order.
    """

    name: str
    version: str
    parts: tuple[str, ...]
    cut: Cut
    classes: int
    label: Label = STORED_LABEL
    config: str = ""
    image: Callable[[bytes], Image] = bytes
    notes: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return titled(self.name, self.config)


_jpeg = functools.partial(Form, notes=(COPIED_NOTE,))
_norb = functools.partial(
    Form, "smallnorb", "2.0.0", HALVES, smallnorb.cut_halves, notes=(smallnorb.CAMERA_NOTE,)
)
_clevr = functools.partial(
    Form,
    "clevr",
    "3.1.0",
    ("train", "validation"),
    tail(clevr.TRAIN_PERCENT),
    notes=(clevr.ALPHA_NOTE,),
)
_sprites = functools.partial(
    Form,
    "dsprites",
    "2.0.0",
    ("train",),
    one(dsprites.TRAIN_PERCENT, dsprites.VAL_PERCENT),
    classes=dsprites.CLASSES,
    image=mask,
    notes=(dsprites.MASK_NOTE,),
)
_sixty = one(folders.TRAIN_PERCENT, folders.VAL_PERCENT)

# Names and features: TFDS 4.9.9, its builders. Classes and slices: VTAB, task_adaptation/data/.
FORMS: Mapping[str, Form] = {
    "caltech101": Form(
        "caltech101",
        "3.0.1",
        HALVES,
        tail(CALTECH_TRAIN_PERCENT),
        102,
        notes=(
            COPIED_NOTE,
            "TensorFlow Datasets draws the training images from folder listings whose order "
            "depends on the file system, so that a folder prepared elsewhere can have others",
        ),
    ),
    "cifar100": Form("cifar100", "3.0.2", HALVES, tail(cifar.TRAIN_PERCENT), 100),
    "clevr_count": _clevr(classes=8, label=of_scene(clevr.count)),
    "clevr_distance": _clevr(classes=6, label=of_scene(clevr.distance)),
    "dmlab": _jpeg("dmlab", "2.0.1", OWN, cut_own, 6),
    "dsprites_location": _sprites(label=stored("label_x_position", dsprites.location)),
    "dsprites_orientation": _sprites(label=stored("label_orientation", dsprites.orientation)),
    "dtd": _jpeg("dtd", "3.0.1", OWN, cut_own, 47),
    "eurosat": _jpeg("eurosat", "2.0.0", ("train",), _sixty, 10, config="rgb"),
    "flowers102": _jpeg("oxford_flowers102", "2.1.1", OWN, cut_own, 102),
    "kitti": Form("kitti", "3.2.0", OWN, cut_own, 4, of_vehicles, notes=(kitti.VERSION_NOTE,)),
    "patch_camelyon": Form("patch_camelyon", "2.0.0", OWN, cut_own, 2),
    "pets": Form(
        "oxford_iiit_pet",
        "3.2.0",
        HALVES,
        tail(listed.PETS_TRAIN_PERCENT),
        37,
        notes=(
            COPIED_NOTE,
            "version 4.0.0 has twelve broken files encoded again, which version 3 has as they are",
        ),
    ),
    "resisc45": _jpeg("resisc45", "3.0.0", ("train",), _sixty, 45),
    "retinopathy": Form(
        "diabetic_retinopathy_detection",
        "3.0.0",
        OWN,
        cut_own,
        5,
        config="btgraham-300",
        notes=(
            COPIED_NOTE,
            "OpenCV cropped, blurred and encoded the images when the folder was prepared; another "
            "version of it can give other pixels",
        ),
    ),
    "smallnorb_azimuth": _norb(classes=18, label=stored("label_azimuth")),  # halved by TFDS
    "smallnorb_elevation": _norb(classes=9, label=stored("label_elevation", smallnorb.elevation)),
    "sun397": Form(
        "sun397",
        "4.0.0",
        OWN,
        cut_own,
        397,
        config="tfds",
        notes=(
            COPIED_NOTE,
            "builds that are called 4.0.0 can differ by two images, which later ones leave out",
        ),
    ),
    "svhn": Form("svhn_cropped", "3.0.0", HALVES, tail(svhn.TRAIN_PERCENT), 10),
}


def folder_of(task: str, folder: Path) -> Prepared | None:
    """What TFDS has prepared of a task in `folder`, as in `shards.find`; None for no such task."""
    if task not in FORMS:
        return None
    form = FORMS[task]
    return find(folder, form.name, form.config, form.parts)


def raw_form(task: str, source: Prepared) -> Raw:
    """A task as the folder of one version has it."""
    form = FORMS[task]
    notes = [f"read from {source.title} of TensorFlow Datasets", PLACE_NOTE]
    if source.version != form.version:
        notes[0] += f", which is not version {form.version} that the recipe of VPT names"
    if form.image is bytes:
        notes.append(STORED_NOTE)
    return Raw(
        task,
        f"{form.title}/<version>/ of TensorFlow Datasets, with {INFO} and all shards",
        (INFO, *(name for split in form.parts for name in source.shards(split))),
        functools.partial(splits, form=form),
        (*notes, *form.notes),
    )


def splits(folder: Path, form: Form, counts: SplitCounts = VTAB) -> Splits:
    """VTAB-1k of a task from the folder of one version.

    Of the shards, only those are opened that hold records which VTAB takes; the checksums of these
    records are verified. Raises `DataError` where a record or a shard is not what it should be.
    """
    source = prepared(folder)
    return form.cut([_records(source, form, split) for split in form.parts], counts)


def _records(source: Prepared, form: Form, split: str) -> Records:
    find_record = record_finder(source, split)

    def label(position: int) -> int:
        span = find_record(position)
        return _read(form, span, span.checked(), form.label)

    def image(position: int) -> Image:
        span = find_record(position)
        return _read(
            form, span, span.read(), lambda features: form.image(single(features, "image", bytes))
        )

    return Records(
        str(source.folder),
        split,
        range(sum(source.lengths[split])),
        form.classes,
        label,
        image,
        ordered=True,
    )


def _read(form: Form, span: Span, data: bytes, take: Callable[[Features], Result]) -> Result:
    try:
        return take(example(data))
    except (ValueError, DataError) as error:
        raise DataError(
            f"{span.path}, record {span.number}: not as {form.title} of TensorFlow Datasets has "
            f"it: {error}. Prepare it again, or copy the file again."
        ) from error

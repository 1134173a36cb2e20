"""Data sets as typed splits of uint8 images; importing this needs neither torch nor timm."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from peftbench.data import folder as _folder  # noqa: F401  # registers its reader
from peftbench.data import hub as _hub  # noqa: F401  # registers its reader
from peftbench.data import manifest
from peftbench.data import mini as _mini
from peftbench.data import public as _public  # noqa: F401  # registers its reader
from peftbench.data.cards import card
from peftbench.data.found import describe, overlaps
from peftbench.data.images import check_geometry, squashed
from peftbench.data.listing import READERS, Listing, SplitList, read_dataset
from peftbench.data.shifts import DecodedImages, ShiftSet, load_shift
from peftbench.data.sizes import shown, typical_side
from peftbench.data.splits import (
    Splits,
    TestArrays,
    TestSplit,
    TrainSplit,
    ValSplit,
    stratified_cut,
)
from peftbench.errors import DataError
from peftbench.spec import OWN_READERS, TRAIN_ONLY, DatasetSpec, Phase, Preprocessing
from peftbench.spec.naming import title_of

__all__ = [
    "READERS",
    "DecodedImages",
    "Listing",
    "ShiftSet",
    "SplitList",
    "Splits",
    "TestArrays",
    "TestSplit",
    "TrainSplit",
    "ValSplit",
    "card",
    "describe",
    "identify",
    "load",
    "load_shift",
    "mini_tasks",
    "read_dataset",
    "shown",
    "squashed",
    "typical_side",
]

mini_tasks = _mini.tasks

_log = logging.getLogger(__name__)


def identify(
    spec: DatasetSpec, seen: Callable[[Listing], object] = lambda listing: None
) -> DatasetSpec:
    """`spec` with suite, group, hashes and number of classes; files are hashed, not decoded.

    A data set that a user brings without a name is titled after its folder, list or repository.

    `seen` is called with what was listed for it.
    """
    place = spec.hub if spec.reader == "hf" else spec.root
    title = spec.title or title_of(spec.name, spec.reader, place)
    listing = _listed(dataclasses.replace(spec, title=title))
    seen(listing)
    return dataclasses.replace(
        spec,
        title=title,
        content=listing.content,
        suite=listing.suite,
        suite_version=listing.suite_version,
        group=listing.group,
        manifest=listing.manifest,
        facts=dataclasses.replace(spec.facts, classes=len(listing.class_names)),
    )


def load(spec: DatasetSpec, phase: Phase, preprocessing: Preprocessing) -> Splits:
    """The two splits that a run of `phase` may see.

    `TUNE` trains on train and reports val. `FINAL` trains on train and val together and reports
    test, or on train alone, beside which val of one's own images is measured. With
    `preprocessing.train_size`, what trains is kept whole for crops to be cut from it. Files that no
    longer match `spec.manifest` raise `DataError`.
    """
    training = preprocessing.of_training
    check_geometry(preprocessing)
    check_geometry(training)
    listing = _listed(spec)
    if spec.manifest and spec.manifest != listing.manifest:
        raise DataError(
            f"Data set {spec.called!r} has manifest {listing.manifest[:12]}, but the run was built "
            f"for {spec.manifest[:12]}: files or splits changed. Restore them or build a new run."
        )
    odd = [*overlaps(listing), *listing.remarks()]
    if listing.origin is None:  # of what a user brings, `describe` has told it
        for line in odd:
            _log.warning("%s: %s", spec.called, line)
    parts = {split: _limited(part, spec, split) for split, part in listing.splits()}

    def read(title: str, part: SplitList, how: Preprocessing = preprocessing) -> _Images:
        decoded = listing.decode(part, how, title)
        whole = decoded.dtype.names is not None
        return _Images(
            decoded["pixels"] if whole else decoded,
            np.asarray(part.labels, dtype=np.int64),
            part.names,
            decoded["size"] if whole else None,
        )

    if spec.final_trains_on == TRAIN_ONLY:
        train = read("train", parts["train"], training)
    else:  # one array for both phases, so that no image is decoded twice
        train = read("train and val", _joined(parts["train"], parts["val"]), training)
    report: ValSplit | TestSplit
    beside = None
    if phase is Phase.FINAL:
        report = TestSplit(*read("test", parts["test"])[:3])
        if spec.final_trains_on == TRAIN_ONLY and listing.content:
            beside = ValSplit(*read("val", parts["val"])[:3])
    else:
        cut = len(parts["train"])
        apart = spec.final_trains_on == TRAIN_ONLY or training is not preprocessing
        val = read("val", parts["val"]) if apart else _rows(train, slice(cut, None))
        train, report = _rows(train, slice(cut)), ValSplit(*val[:3])
    notes = (*listing.notes, *odd)
    return Splits(
        TrainSplit(*train),
        report,
        listing.class_names,
        listing.manifest,
        notes,
        of_files=_of_files(listing, report.names),
        levels=listing.levels(),
        numbers=_numbers(listing, report.names),
        val=beside,
    )


def _numbers(listing: Listing, names: tuple[str, ...]) -> tuple[int, ...] | None:
    """The place of each image among the sorted names of a user's data set, whatever the splits."""
    if not listing.content:
        return None
    every = sorted(name for _, part in listing.splits() for name in part.names)
    place = {name: number for number, name in enumerate(every)}
    return tuple(place[name] for name in names)


def _of_files(listing: Listing, names: tuple[str, ...]) -> bool:
    """Whether each image is a file of its own, which its name is the path of."""
    home = listing.home
    return home is not None and bool(names) and home.pictures.path(names[0]) is not None


def _listed(spec: DatasetSpec) -> Listing:
    """As its reader lists it; `DataError` where it was prepared and is no longer what it was."""
    asked = "folds" if spec.folds else "group_column" if spec.group_column else ""
    if asked and spec.reader not in OWN_READERS:
        raise DataError(
            f"dataset.{asked}={getattr(spec, asked)}: {spec.name} has splits of its own. Only "
            "those of one's own images, dataset=folder or dataset=hf, are drawn here."
        )
    listing = READERS[spec.reader](spec)
    manifest.check(spec, listing)
    return listing


class _Images(NamedTuple):
    """What a split is made of; see `TrainSplit`."""

    pixels: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    sizes: np.ndarray | None


def _rows(images: _Images, rows: slice) -> _Images:
    sizes = None if images.sizes is None else images.sizes[rows]
    return _Images(images.pixels[rows], images.labels[rows], images.names[rows], sizes)


def _limited(part: SplitList, spec: DatasetSpec, split: str) -> SplitList:
    if spec.limit is None:
        return part
    order = ("train", "val", "test").index(split)
    generator = np.random.default_rng([spec.split_seed, order])
    return part.rows(stratified_cut(np.asarray(part.labels), spec.limit, generator))


def _joined(first: SplitList, second: SplitList) -> SplitList:
    """Both one after another; their images are decoded and kept as one array."""
    return SplitList(
        first.names + second.names, first.labels + second.labels, first.digests + second.digests
    )

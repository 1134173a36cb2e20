"""What readers of a user's own images share: drawing splits, the manifest, the listing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from peftbench.data import copies, drawing, files, levels
from peftbench.data.listing import (
    Home,
    Listing,
    Origin,
    Pictures,
    SplitList,
    content_of,
    rollup_of,
)
from peftbench.errors import DataError
from peftbench.spec import DatasetSpec, Preprocessing

VAL_NAMES = ("val", "valid", "validation")
ALL = ("train", "val", "test")


@dataclass(frozen=True)
class FoundLists:
    """What a reader found, before anything is drawn."""

    # "train", "test" and, where there is one, "val", which is cut from train otherwise and never
    # from test; or "all", of which all three are drawn
    lists: Mapping[str, SplitList]
    class_names: tuple[str, ...]
    pictures: Pictures
    place: str  # where the data set lies, for errors
    val: str  # what it could have there, for errors: "val folder"
    # by list, the value of `dataset.group_column` for each image; none without such a column
    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Settled:
    """train, val and test, and how they came about."""

    parts: Mapping[str, SplitList]
    drawn: tuple[str, ...] = ()  # names of those that were drawn here
    remarks: tuple[str, ...] = ()  # sentences on what stays together


def fold_of(spec: DatasetSpec) -> str:
    """Which fold is test, as a reader is told; empty without folds."""
    return "" if spec.folds is None else f"fold {spec.fold} of {spec.folds}"


def settle(found: FoundLists, spec: DatasetSpec) -> Settled:
    """The three splits of what was found; those that are not there are drawn, class by class.

    Copies of an image, and images with one value of `dataset.group_column`, are drawn together.

    Raises:
        DataError: a fraction of `spec` draws nothing, folds are asked of a data set with splits of
            its own, or a class has too few images.
    """
    lists, place = found.lists, found.place
    if "all" in lists:
        if min(spec.val_fraction, spec.test_fraction) <= 0:
            raise DataError(
                f"val_fraction={spec.val_fraction:g} and test_fraction={spec.test_fraction:g}: "
                f"{place} has no parts of its own, so both must be positive."
            )
        groups, remarks = _groups(found, "all", spec)
        draw = _draw if spec.folds is None else _draw_fold
        parts = draw(lists["all"], groups, found.class_names, spec)
        _check_drawn(parts, found.class_names, spec)
        return Settled(parts, ALL, remarks)
    if spec.folds is not None:
        raise DataError(
            f"dataset.folds={spec.folds}: {place} has a test part of its own, which is what is "
            "reported. Leave dataset.folds out, or put all images into one part."
        )
    torn = _torn(found, spec)
    if "val" in lists:
        return Settled(dict(lists), (), torn)
    if spec.val_fraction <= 0:
        raise DataError(
            f"val_fraction={spec.val_fraction:g}: {place} has no {found.val}, so it must be "
            "positive; val is cut from train."
        )
    groups, remarks = _groups(found, "train", spec)
    cut = _draw(lists["train"], groups, found.class_names, spec, test_fraction=0.0)
    parts = {**lists, "train": cut["train"], "val": cut["val"]}
    return Settled(parts, ("val",), (*torn, *remarks))


def check_trained(parts: Mapping[str, SplitList], class_names: tuple[str, ...], place: str) -> None:
    """Raise `DataError` for a class of val or test that train lacks: nothing could learn it."""
    trained = set(parts["train"].labels)
    for split in ("val", "test"):
        absent = sorted(set(parts[split].labels if split in parts else ()) - trained)
        if absent:
            more = f" (and {len(absent) - 1} more)" if len(absent) > 1 else ""
            raise DataError(
                f"Class {class_names[absent[0]]!r}{more} is in {split} but not in train of "
                f"{place}. Give train images of it, or leave it out of {split}."
            )


@dataclass(frozen=True)
class Content:
    """What a reader found in a user's own data set."""

    title: str
    source: str
    class_names: tuple[str, ...]
    parts: Mapping[str, SplitList]  # train, val and test
    pictures: Pictures
    origin: Origin
    licence: str = "as its owner states"


def make_listing(
    spec: DatasetSpec, content: Content, folder: Path | None = None, lists: tuple[str, ...] = ()
) -> Listing:
    """The listing of the three parts; its manifest says nothing of where they lie.

    `folder` is that of the files, if there are any, and `lists` those in it that say what is in
    which split.
    """
    parts, pictures, origin = content.parts, content.pictures, content.origin
    wide = levels.Finder(pictures, tuple(parts.values()), content.source)
    drawn = f"{spec.val_fraction!r}\t{spec.test_fraction!r}\t{spec.split_seed}"
    extra = f"parameters\t{drawn}{''.join(_more_parameters(spec))}\n"

    def decode(part: SplitList, preprocessing: Preprocessing, split: str) -> np.ndarray:
        title = f"{spec.called} {split}"
        return files.decode(pictures, part, preprocessing, title, folder, wide().levels)

    return Listing(
        title=content.title,
        suite=spec.suite,
        suite_version=spec.suite_version,
        group=spec.group,
        licence=content.licence,
        source=content.source,
        notice="",
        class_names=content.class_names,
        train=parts["train"],
        val=parts["val"],
        test=parts["test"],
        manifest=rollup_of(parts, extra),
        decode=decode,
        home=Home(folder, origin.kind, pictures, lists) if folder is not None else None,
        extra=extra,
        content=content_of(parts, content.class_names),
        origin=origin,
        remarks=wide.remarks,
        levels=wide.found,
        open=lambda name: pictures.open(name, wide().levels),
    )


def _check_drawn(
    parts: Mapping[str, SplitList], class_names: tuple[str, ...], spec: DatasetSpec
) -> None:
    """Raise `DataError` for a class that stays together and is in test as a whole."""
    empty = [name for name in ("val", "test") if not len(parts[name])]
    if empty:
        apart = (
            ", or draw copies of a picture like any image with dataset.group_copies=false"
            if spec.group_copies and not spec.group_column
            else ""
        )
        raise DataError(
            f"No image is left for {empty[0]}: what stays together is too large for it. Add "
            f"images, or raise dataset.val_fraction and dataset.test_fraction{apart}."
        )
    lost = sorted({*parts["test"].labels, *parts["val"].labels} - set(parts["train"].labels))
    if lost:
        together = f"one value of column {spec.group_column!r}" if spec.group_column else ""
        copied = "copies of one picture" if spec.group_copies else ""
        raise DataError(
            f"All images of class {class_names[lost[0]]!r} stay together "
            f"({' and '.join(filter(None, (together, copied)))}), so that fold {spec.fold} would "
            "test what nothing has trained on. Add images, or leave the class or the groups out."
        )


def _more_parameters(spec: DatasetSpec) -> Iterator[str]:
    """What else decides the splits, where it is not the default."""
    if spec.folds is not None:
        yield f"\t{fold_of(spec)}"
    if spec.group_column is not None:
        yield f"\tgroups {spec.group_column}"


def _draw(
    part: SplitList,
    groups: np.ndarray,
    class_names: tuple[str, ...],
    spec: DatasetSpec,
    test_fraction: float | None = None,
) -> dict[str, SplitList]:
    """Train, val and test of one part whose images have these groups (N,)."""
    test_fraction = spec.test_fraction if test_fraction is None else test_fraction
    _check_sizes(
        part, class_names, "train and val" if test_fraction == 0 else "train, val and test"
    )
    generator = np.random.default_rng(spec.split_seed)
    labels = np.asarray(part.labels)
    drawn = drawing.split(labels, groups, spec.val_fraction, test_fraction, generator)
    return {
        "train": part.rows(drawn.train),
        "val": part.rows(drawn.val),
        "test": part.rows(drawn.test),
    }


def _draw_fold(
    part: SplitList, groups: np.ndarray, class_names: tuple[str, ...], spec: DatasetSpec
) -> dict[str, SplitList]:
    """One fold as test, and train and val of the others; all folds test each image once."""
    assert spec.folds is not None and spec.fold is not None
    _check_sizes(part, class_names, "train, val and test")
    labels = np.asarray(part.labels)
    generator = np.random.default_rng(spec.split_seed)
    tested = drawing.folds(labels, groups, spec.folds, generator) == spec.fold
    rest = np.flatnonzero(~tested)
    generator = np.random.default_rng([spec.split_seed, spec.fold])
    _, near = np.unique(groups[rest], return_inverse=True)
    cut = drawing.split(labels[rest], near, spec.val_fraction, 0.0, generator)
    return {
        "train": part.rows(rest[cut.train]),
        "val": part.rows(rest[cut.val]),
        "test": part.rows(np.flatnonzero(tested)),
    }


def _check_sizes(part: SplitList, class_names: tuple[str, ...], parts: str) -> None:
    need = 3 if "test" in parts else 2
    for label, count in enumerate(np.bincount(part.labels, minlength=len(class_names))):
        if 0 < count < need:  # a class that is declared and has no image is left to the reader
            raise DataError(
                f"Class {class_names[label]!r} has {count} image{'s' if count > 1 else ''}; "
                f"drawing {parts} needs at least {need}. Add images or remove the class."
            )


def _groups(found: FoundLists, name: str, spec: DatasetSpec) -> tuple[np.ndarray, tuple[str, ...]]:
    """The number of the group of each image of a list, (N,), and sentences on the groups."""
    part, values = found.lists[name], found.values.get(name, ())
    alone = np.arange(len(part))
    remarks = []
    if values:
        count = len(set(values))
        remarks.append(
            f"Images with the same value in column {spec.group_column!r} stay in one split: "
            f"{count:,} value{'s' * (count != 1)}."
        )
    if not spec.group_copies:
        return (copies.numbers(values) if values else alone), tuple(remarks)
    links = copies.near_copies(found.pictures, part, found.place)
    of_copies = copies.groups(part, links)
    repeats = len(part) - len(np.unique(of_copies))
    if repeats:
        remarks.append(
            f"{repeats:,} of {len(part):,} images "
            f"{'is a copy of another' if repeats == 1 else 'are copies of others'}, or nearly: "
            "copies stay in one split (dataset.group_copies=false draws them like any image)."
        )
    return (copies.groups(part, links, values) if values else of_copies), tuple(remarks)


def _torn(found: FoundLists, spec: DatasetSpec) -> tuple[str, ...]:
    """A sentence on values of the column of groups that stand in train or val, and in test."""
    trained = {v for name in ("train", "val") for v in found.values.get(name, ())}
    torn = sorted(trained & set(found.values.get("test", ())))
    if not torn:
        return ()
    more = f" and {len(torn) - 1:,} more" if len(torn) > 1 else ""
    return (
        f"The splits are as given, and {torn[0]!r}{more} of column {spec.group_column!r} "
        f"{'are' if more else 'is'} in test and in train or val as well: results flatter.",
    )

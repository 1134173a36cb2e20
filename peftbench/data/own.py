"""What readers of a user's own images share: drawing splits, the manifest, the listing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from peftbench.data import files, levels
from peftbench.data.listing import (
    Home,
    Listing,
    Origin,
    Pictures,
    SplitList,
    content_of,
    rollup_of,
)
from peftbench.data.splits import stratified_split
from peftbench.errors import DataError
from peftbench.spec import DatasetSpec, Preprocessing

VAL_NAMES = ("val", "valid", "validation")
ALL = ("train", "val", "test")


def settle(
    lists: Mapping[str, SplitList],
    class_names: tuple[str, ...],
    spec: DatasetSpec,
    place: str,
    val: str,
) -> tuple[dict[str, SplitList], tuple[str, ...]]:
    """train, val and test, and the names of those that were drawn here, stratified by class.

    Args:
        lists: "train", "test" and, where there is one, "val", which is cut from train otherwise and
            never from test; or "all", of which all three are drawn.
        place: where the data set lies, for errors.
        val: what it could have there, for errors: "val folder".

    Raises:
        DataError: a fraction of `spec` draws nothing, or a class has too few images.
    """
    if "all" in lists:
        if min(spec.val_fraction, spec.test_fraction) <= 0:
            raise DataError(
                f"val_fraction={spec.val_fraction:g} and test_fraction={spec.test_fraction:g}: "
                f"{place} has no parts of its own, so both must be positive."
            )
        return _draw(lists["all"], class_names, spec, spec.test_fraction), ALL
    if "val" in lists:
        return dict(lists), ()
    if spec.val_fraction <= 0:
        raise DataError(
            f"val_fraction={spec.val_fraction:g}: {place} has no {val}, so it must be positive; "
            "val is cut from train."
        )
    cut = _draw(lists["train"], class_names, spec, 0.0)
    return {**lists, "train": cut["train"], "val": cut["val"]}, ("val",)


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
    extra = f"parameters\t{spec.val_fraction!r}\t{spec.test_fraction!r}\t{spec.split_seed}\n"

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
    )


def _draw(
    part: SplitList, class_names: tuple[str, ...], spec: DatasetSpec, test_fraction: float
) -> dict[str, SplitList]:
    need = 2 if test_fraction == 0 else 3
    labels = np.asarray(part.labels)
    for label, count in enumerate(np.bincount(labels, minlength=len(class_names))):
        if 0 < count < need:  # a class that is declared and has no image is left to the reader
            raise DataError(
                f"Class {class_names[label]!r} has {count} image{'s' if count > 1 else ''}; "
                f"drawing {'train, val and test' if need == 3 else 'train and val'} needs at "
                f"least {need}. Add images or remove the class."
            )
    generator = np.random.default_rng(spec.split_seed)
    drawn = stratified_split(labels, spec.val_fraction, test_fraction, generator)
    return {
        "train": part.rows(drawn.train),
        "val": part.rows(drawn.val),
        "test": part.rows(drawn.test),
    }

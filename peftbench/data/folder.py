"""Folders of images, one folder for each class, with or without their own train and test parts.

Two layouts are read. Files and folders whose name starts with a dot are skipped, folders inside a
class belong to it, and classes and files are ordered by the bytes of their names.

* `root/<class>/**/*.png`: train, val and test are drawn, stratified, from `split_seed`.
* `root/train/<class>/...` and `root/test/<class>/...`, with or without a `val`, `valid` or
  `validation` beside them. A missing val is a stratified cut from train. A missing test is refused:
  whether a lone `val` is to be tuned on or reported is the user's choice, made by renaming it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from peftbench.data import files
from peftbench.data.listing import Home, Listing, SplitList, read_dataset, rollup_of
from peftbench.data.splits import stratified_split
from peftbench.errors import DataError
from peftbench.spec import DatasetSpec, Preprocessing

VAL_NAMES = ("val", "valid", "validation")


@read_dataset("folder")
def read_folder(spec: DatasetSpec) -> Listing:
    """The images under `spec.root`; every file is hashed, none is decoded."""
    if not spec.root:
        raise DataError(
            f"Data set {spec.name!r} needs a folder. Set dataset.root to the folder whose "
            "sub-folders are the classes."
        )
    root = Path(spec.root).expanduser().absolute()
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing"
        raise DataError(f"The data set root {root} is {found}, not a folder. Check dataset.root.")
    if _has_own_parts(root):
        class_names, parts = _own_parts(root, spec)
    else:
        class_names, parts = _drawn_parts(root, spec)
    extra = f"parameters\t{spec.val_fraction!r}\t{spec.test_fraction!r}\t{spec.split_seed}\n"
    pictures = files.FilePictures(root)

    def decode(part: SplitList, preprocessing: Preprocessing, split: str) -> np.ndarray:
        return files.decode(pictures, part, preprocessing, f"{spec.name} {split}", root)

    return Listing(
        title=root.name,
        suite=spec.suite,
        suite_version=spec.suite_version,
        group=spec.group,
        licence="as its owner states",
        source=str(root),
        notice="",
        class_names=class_names,
        train=parts["train"],
        val=parts["val"],
        test=parts["test"],
        manifest=rollup_of(parts, extra),
        decode=decode,
        home=Home(root, "class folders", pictures),
        extra=extra,
    )


def _has_own_parts(root: Path) -> bool:
    """Whether `root` has a train or test folder that holds folders and no images of its own.

    A class may well be called "train": then its folder holds images.
    """
    parts = [root / name for name in ("train", "test") if (root / name).is_dir()]
    return any(files.folders(part) and not files.pictures_in(part, deep=False) for part in parts)


def _drawn_parts(root: Path, spec: DatasetSpec) -> tuple[tuple[str, ...], dict[str, SplitList]]:
    if min(spec.val_fraction, spec.test_fraction) <= 0:
        raise DataError(
            f"val_fraction={spec.val_fraction:g} and test_fraction={spec.test_fraction:g}: {root} "
            "has no parts of its own, so both must be positive."
        )
    class_names = _class_names(root)
    everything = _list_classes(root, root, class_names)
    drawn = _split_named(everything, class_names, spec.val_fraction, spec.test_fraction, spec)
    return class_names, drawn


def _own_parts(root: Path, spec: DatasetSpec) -> tuple[tuple[str, ...], dict[str, SplitList]]:
    vals = [root / name for name in VAL_NAMES if (root / name).is_dir()]
    if len(vals) > 1:
        raise DataError(
            f"{root} has {' and '.join(path.name for path in vals)}. Keep one of them as val."
        )
    for needed in ("train", "test"):
        if not (root / needed).is_dir():
            found = ", ".join(path.name for path in files.folders(root))
            advice = "Add one, or rename the part that is to be reported to test."
            if needed == "train":
                advice = "Add one, or put the class folders directly under the root."
            raise DataError(f"{root} has {found} but no {needed} folder. {advice}")
    folders = {"train": root / "train", "test": root / "test"}
    if vals:
        folders["val"] = vals[0]
    class_names = _class_names(folders["train"])
    for split, folder in folders.items():
        others = set(_class_names(folder))
        for missing in sorted(set(class_names) - others):
            raise DataError(f"Class {missing!r} is in train but not in {split} of {root}.")
        for extra in sorted(others - set(class_names)):
            raise DataError(f"Class {extra!r} is in {split} but not in train of {root}.")
    parts = {split: _list_classes(root, folder, class_names) for split, folder in folders.items()}
    if not vals:
        if spec.val_fraction <= 0:
            raise DataError(
                f"val_fraction={spec.val_fraction:g}: {root} has no val folder, so it must be "
                "positive; val is cut from train."
            )
        cut = _split_named(parts["train"], class_names, spec.val_fraction, 0.0, spec)
        parts |= {"train": cut["train"], "val": cut["val"]}
    return class_names, parts


def _split_named(
    part: SplitList,
    class_names: tuple[str, ...],
    val_fraction: float,
    test_fraction: float,
    spec: DatasetSpec,
) -> dict[str, SplitList]:
    need = 2 if test_fraction == 0 else 3
    labels = np.asarray(part.labels)
    for label, count in enumerate(np.bincount(labels, minlength=len(class_names))):
        if count < need:
            raise DataError(
                f"Class {class_names[label]!r} has {count} images; drawing "
                f"{'train, val and test' if need == 3 else 'train and val'} needs at least {need}. "
                "Add images or remove the class."
            )
    generator = np.random.default_rng(spec.split_seed)
    drawn = stratified_split(labels, val_fraction, test_fraction, generator)
    return {
        "train": part.rows(drawn.train),
        "val": part.rows(drawn.val),
        "test": part.rows(drawn.test),
    }


def _class_names(folder: Path) -> tuple[str, ...]:
    names = tuple(path.name for path in files.folders(folder))
    if not names:
        count = len(files.pictures_in(folder, deep=False))
        raise DataError(
            f"{folder} has no class folders ({count} images directly inside). "
            "Put the images of each class into a folder of their own."
        )
    return names


def _list_classes(root: Path, folder: Path, class_names: tuple[str, ...]) -> SplitList:
    paths: list[Path] = []
    labels: list[int] = []
    for label, class_name in enumerate(class_names):
        members = files.pictures_in(folder / class_name, deep=True)
        if not members:
            raise DataError(
                f"Class folder {folder / class_name} is empty: no file ends in "
                f"{', '.join(files.SUFFIXES)}. Add images or remove the folder."
            )
        paths += members
        labels += [label] * len(members)
    names = tuple(path.relative_to(root).as_posix() for path in paths)
    return SplitList(names, tuple(labels), files.digests(root, names))

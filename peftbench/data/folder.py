"""Folders of images, one folder for each class, with or without their own train and test parts.

Three layouts are read. Files and folders whose name starts with a dot are skipped, folders inside a
class belong to it, and classes and files are ordered by the bytes of their names.

* `root/<class>/**/*.png`: train, val and test are drawn, stratified, from `split_seed`.
* `root/train/<class>/...` and `root/test/<class>/...`, with or without a `val`, `valid` or
  `validation` beside them. A missing val is a stratified cut from train. A missing test is refused:
  whether a lone `val` is to be tuned on or reported is the user's choice, made by renaming it.
* one `.csv` or `.tsv` of paths and labels, named as the root or lying in it: see `tables`.
"""

from __future__ import annotations

from pathlib import Path

from peftbench.data import files, own, tables
from peftbench.data.listing import Listing, Origin, SplitList, read_dataset
from peftbench.errors import DataError
from peftbench.spec import DatasetSpec


@read_dataset("folder")
def read_folder(spec: DatasetSpec) -> Listing:
    """The images under `spec.root`; every file is hashed, none is decoded."""
    if not spec.root:
        raise DataError(
            f"Data set {spec.name!r} needs a folder. Set dataset.root to the folder whose "
            "sub-folders are the classes."
        )
    root = Path(spec.root).expanduser().absolute()
    table = _table(root)
    if table is not None:
        return tables.read_table(table, spec)
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing"
        raise DataError(
            f"The data set root {root} is {found}, not a folder. Check dataset.root: a folder, or "
            "a .csv or .tsv file of paths and labels."
        )
    if _has_own_parts(root):
        class_names, found_parts = _own_parts(root, spec)
        kind = f"{', '.join(sorted(found_parts, key=own.ALL.index))} folders"
    elif _only_splits(root):
        names = ", ".join(path.name for path in files.folders(root))
        raise DataError(
            f"{root} has {names} without class folders in them. Put the images of each class into "
            "a folder of their own there, or add a .csv of paths, labels and splits."
        )
    else:
        class_names = _class_names(root)
        found_parts, kind = {"all": _list_classes(root, root, class_names)}, "class folders"
    parts, drawn = own.settle(found_parts, class_names, spec, str(root), "val folder")
    return own.make_listing(
        spec,
        title=root.name,
        source=str(root),
        class_names=class_names,
        parts=parts,
        pictures=files.FilePictures(root),
        origin=Origin(spec.name, str(root), kind, drawn, spec.split_seed),
        folder=root,
    )


def _table(root: Path) -> Path | None:
    """The list of paths and labels that `root` is, or that lies in it beside its images."""
    if not root.is_dir():
        return root if tables.is_table(root) else None
    # one folder, or folders named like splits, hold the images of a list and are no classes
    if _has_own_parts(root) or (len(files.folders(root)) > 1 and not _only_splits(root)):
        return None
    found = files.by_name(path for path in root.iterdir() if tables.is_table(path))
    if len(found) > 1:
        raise DataError(
            f"{root} has {len(found)} lists: {', '.join(path.name for path in found)}. Set "
            "dataset.root to the one that is meant. Splits of one data set stand in one list, in a "
            "column named split."
        )
    return found[0] if found else None


def _only_splits(root: Path) -> bool:
    """Whether all folders are named like splits, and there are several."""
    names = {path.name for path in files.folders(root)}
    return len(names) > 1 and names <= {"train", "test", *own.VAL_NAMES}


def _has_own_parts(root: Path) -> bool:
    """Whether `root` has a train or test folder that holds folders and no images of its own.

    A class may well be called "train": then its folder holds images.
    """
    parts = [root / name for name in ("train", "test") if (root / name).is_dir()]
    return any(files.folders(part) and not files.pictures_in(part, deep=False) for part in parts)


def _own_parts(root: Path, spec: DatasetSpec) -> tuple[tuple[str, ...], dict[str, SplitList]]:
    vals = [root / name for name in own.VAL_NAMES if (root / name).is_dir()]
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
    return class_names, parts


def _class_names(folder: Path) -> tuple[str, ...]:
    names = tuple(path.name for path in files.folders(folder))
    if not names:
        count = len(files.pictures_in(folder, deep=False))
        raise DataError(
            f"{folder} has no class folders ({count} images directly inside). "
            "Put the images of each class into a folder of their own, or list them in a .csv with "
            "a path and a label column."
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

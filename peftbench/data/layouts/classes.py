"""Folders with one folder for each class: train/ and test/, or train/ and a val/ that is tested."""

from __future__ import annotations

from pathlib import Path

from peftbench.data.files import FilePictures
from peftbench.data.layouts.base import Contents, Layout, Rows, register_layout
from peftbench.data.tree import folders, pictures_in
from peftbench.errors import DataError
from peftbench.spec import DatasetSpec


def class_folders(folder: Path) -> tuple[str, ...]:
    """Names of the classes: numbers in their order, other names in that of their bytes."""
    names = [path.name for path in folders(folder)]
    if not names:
        raise DataError(f"{folder} has no class folders. Unpack the images into it.")
    if all(name.isdecimal() for name in names):
        names.sort(key=lambda name: (int(name), name))
    return tuple(names)


def images_of(root: Path, folder: Path, class_names: tuple[str, ...]) -> list[tuple[str, int]]:
    """Names below `root` of the images in each class folder, and the number of the class."""
    return [
        (path.relative_to(root).as_posix(), label)
        for label, name in enumerate(class_names)
        for path in pictures_in(folder / name, deep=True)
    ]


def _read(folder: Path, spec: DatasetSpec) -> Contents:
    class_names = class_folders(folder / "train")
    parts: dict[str, Rows] = {}
    for split in ("train", "val", "test"):
        if not (folder / split).is_dir():
            continue
        classes = class_folders(folder / split)
        for one, other, where in ((class_names, classes, split), (classes, class_names, "train")):
            lacking = sorted(set(one) - set(other))
            if lacking:
                raise DataError(
                    f"{folder / where} lacks {len(lacking)} classes of the other part, first "
                    f"{lacking[0]!r}. Unpack the archive again."
                )
        parts[split] = Rows.of(images_of(folder, folder / split, class_names))
    if "test" not in parts:
        # ImageNet and SSF's copies of FGVC: what is called val is what is reported
        if len(parts["val"]) != spec.facts.test:
            raise DataError(
                f"{folder} has no test folder, and val has {len(parts['val'])} images where the "
                f"test split of {spec.name} has {spec.facts.test}. Add test/."
            )
        parts["test"] = parts.pop("val")
    return Contents(class_names, parts, FilePictures(folder))


register_layout(
    Layout(
        name="imagefolder",
        about="class folders: train/<class>/ and test/<class>/, or val/<class>/ where that is the "
        "test split",
        needs=lambda spec: ("train/", "test/|val/"),
        read=_read,
    )
)

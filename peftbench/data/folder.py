"""Folders of images, one folder for each class, with or without their own train and test parts.

Files and folders whose name starts with a dot, and what file servers and desktops leave behind, are
skipped; folders inside a class belong to it; classes and files are ordered by the bytes of their
names. These layouts are read.

* `root/<class>/**/*.png`: train, val and test are drawn, stratified, from `split_seed`.
* `root/train/<class>/...` and `root/test/<class>/...`, with or without a val beside them, under any
  of the names in `roles` ("Training", "seg_test", "dev"). A missing val is a stratified cut from
  train. A missing test is refused: whether a lone `val` is to be tuned on or reported is the user's
  choice, made by renaming it. One more folder around them is gone through.
* `root/<class>/train/...` and `root/<class>/test/...`: the same, the other way round.
* one `.csv` or `.tsv` of paths and labels, named as the root or lying in it: see `tables`.
"""

from __future__ import annotations

import errno
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from peftbench.data import alike, files, own, roles, tables, tree
from peftbench.data.listing import Listing, Origin, SplitList, read_dataset
from peftbench.data.tree import Tree, folders, pictures_in
from peftbench.errors import DataError
from peftbench.spec import DatasetSpec
from peftbench.untrusted import check_plain_file

NESTED = 3  # folders with nothing but one folder in them that are gone through
FOLD = re.compile(r"(?:cv|k|cross|x)?[\W_]*folds?[\W_]*\d+", re.IGNORECASE)


@read_dataset("folder")
def read_folder(spec: DatasetSpec) -> Listing:
    """The images under `spec.root`; every file is hashed, none is decoded."""
    if not spec.root:
        raise DataError(
            f"Data set {spec.name!r} needs a folder. Set dataset.root to the folder whose "
            "sub-folders are the classes."
        )
    root = Path(spec.root).expanduser().absolute()
    _check_root(root)
    table = _table(root)
    if table is not None:
        return tables.read_table(table, spec)
    if not root.is_dir():
        raise DataError(
            f"The data set root {root} is a file, not a folder. Check dataset.root: a folder, or "
            "a .csv or .tsv file of paths and labels."
        )
    layout = _class_folders(root)
    class_names, found_parts = _listed(root, layout)
    if spec.group_column is not None:
        raise DataError(
            f"dataset.group_column={spec.group_column}: {root} has class folders and no columns. "
            "List its images in a .csv with columns path, label and that one."
        )
    pictures = files.FilePictures(root)
    found = own.FoundLists(found_parts, class_names, pictures, str(root), "val folder")
    settled = own.settle(found, spec)
    content = own.Content(
        title=files.readable(root.name),
        source=files.readable(str(root)),
        class_names=class_names,
        parts=settled.parts,
        pictures=pictures,
        origin=Origin(
            spec.called,
            files.readable(str(root)),
            layout.kind,
            settled.drawn,
            spec.split_seed,
            (
                *layout.remarks,
                *filter(None, (layout.tree.remark(), alike.remark(class_names))),
                *settled.remarks,
            ),
            own.fold_of(spec),
        ),
    )
    return own.make_listing(spec, content, folder=root)


@dataclass(frozen=True)
class _ClassFolders:
    """Which folders hold which class of which split."""

    parts: Mapping[str, Mapping[str, Path]]  # by split, or "all", and by the name of the class
    kind: str
    remarks: tuple[str, ...]
    tree: Tree


def _check_root(root: Path) -> None:
    """Raise `DataError` for a root that is not there, may not be looked at, or is no plain file."""
    try:
        check_plain_file(root)
    except FileNotFoundError as error:
        raise DataError(
            f"The data set root {root} is nothing, not a folder. Check dataset.root: a folder, or "
            "a .csv or .tsv file of paths and labels."
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ENAMETOOLONG, errno.EINVAL):
            raise DataError(
                f"The data set root {root} is no path here: {error.strerror}. Check dataset.root."
            ) from error
        raise tree.unreadable(root, error) from error
    except ValueError as error:
        if "a folder" not in str(error):
            raise DataError(
                f"The data set root {root}: {error}. Check dataset.root: a folder, or a .csv or "
                ".tsv file of paths and labels."
            ) from error


def _table(root: Path) -> Path | None:
    """The list of paths and labels that `root` is, or that lies in it beside its images."""
    if not root.is_dir():
        return root if tables.is_table(root) else None
    # one folder, or folders named like splits, hold the images of a list and are no classes
    inside = folders(root)
    if len(inside) > 1 and not _only_splits(root):
        return None
    lists = [path for path in tree.listed(root) if tables.is_table(path)]
    if not lists or _split_folders(_unwrapped(root)):
        return None
    if len(lists) > 1:
        raise DataError(
            f"{root} has {len(lists)} lists: {', '.join(path.name for path in lists)}. Set "
            "dataset.root to the one that is meant. Splits of one data set stand in one list, in a "
            "column named split."
        )
    return lists[0]


def _only_splits(root: Path) -> bool:
    """Whether all folders are named like splits, and there are several."""
    names = [path.name for path in folders(root)]
    known = roles.roles(names)
    return len(names) > 1 and all(name in known or roles.is_unclear(name) for name in names)


def _unwrapped(root: Path) -> Path:
    """`root`, or the only folder in it, where that has the splits: archives unpack like this."""
    base = root
    for _ in range(NESTED):
        if _split_folders(base):
            return base
        inside = folders(base)
        if len(inside) != 1 or pictures_in(base, deep=False):
            return root
        base = inside[0]
    return base if _split_folders(base) else root


def _split_folders(base: Path) -> dict[str, list[Path]]:
    """The folders of each split in `base`; empty where its folders are classes.

    A class may well be called "train": then its folder holds images.
    """
    inside = folders(base)
    known = roles.roles(path.name for path in inside)
    named = [path for path in inside if path.name in known]
    holding = {path: {p.name for p in folders(path)} for path in named}
    holding = {path: names for path, names in holding.items() if names}
    plain = [
        path for path in holding if known[path.name] != "val" and not pictures_in(path, deep=False)
    ]
    if not plain:  # splits with a picture beside their class folders share the names of these
        shared = set.intersection(*holding.values()) if len(holding) > 1 else set()
        if not shared or len({known[path.name] for path in holding}) < 2:
            return {}
    by_role: dict[str, list[Path]] = {}
    for path in named:
        exact = path.name in ("train", "test", *own.VAL_NAMES)
        if exact or path in holding or pictures_in(path, deep=False):
            by_role.setdefault(known[path.name], []).append(path)
    return by_role


def _class_folders(root: Path) -> _ClassFolders:
    base = _unwrapped(root)
    seen = Tree(root)
    splits = _split_folders(base)
    if splits:
        return _own_parts(root, base, splits, seen)
    if _only_splits(root):
        names = ", ".join(path.name for path in folders(root))
        raise DataError(
            f"{root} has {names} without class folders in them. Put the images of each class into "
            "a folder of their own there, or add a .csv of paths, labels and splits."
        )
    classes = _classes(root)
    seen.leave_files(root, "beside the class folders")
    turned = _turned(root, classes)
    if turned:
        parts = {split: turned[split] for split in own.ALL if split in turned}
        kind = f"{', '.join(parts)} folders in each class folder"
        return _ClassFolders(parts, kind, (), seen)
    return _ClassFolders({"all": classes}, "class folders", _domains(root, classes), seen)


def _own_parts(
    root: Path, base: Path, splits: Mapping[str, list[Path]], seen: Tree
) -> _ClassFolders:
    for split, paths in splits.items():
        if len(paths) > 1:
            raise DataError(
                f"{base} has {' and '.join(path.name for path in paths)}. Keep one of them as "
                f"{split}."
            )
    chosen = {split: splits[split][0] for split in ("train", "test", "val") if split in splits}
    there = folders(base)
    for needed in ("train", "test"):
        if needed not in chosen:
            advice = "Add one, or rename the part that is to be reported to test."
            if needed == "train":
                advice = "Add one, or put the class folders directly under the root."
            only = next(iter(chosen.values())).name
            if only not in own.ALL:
                advice += f" If {only} is a class, put its images directly into it."
            raise DataError(
                f"{base} has {', '.join(path.name for path in there)} but no {needed} folder. "
                f"{advice}"
            )
    classes = {split: _classes(folder) for split, folder in chosen.items()}
    parts = {split: _as_in_train(classes, split, base) for split in classes}
    seen.leave_files(root, "beside the folders of the splits")
    for folder in ([base] if base != root else []) + list(chosen.values()):
        seen.leave_files(folder, "beside the class folders")
    others = [path for path in there if path not in chosen.values()]
    seen.leave("{} folder{s} beside those of the splits", others)
    remarks = []
    renamed = [(split, path.name) for split, path in chosen.items() if path.name != split]
    if base != root or any(name not in own.VAL_NAMES for _, name in renamed):
        roles_of_folders = ", ".join(
            f"{split} is {path.relative_to(root).as_posix()}" for split, path in chosen.items()
        )
        remarks.append(f"Splits by the names of their folders: {roles_of_folders}.")
    kind = f"{', '.join(sorted(chosen, key=own.ALL.index))} folders"
    return _ClassFolders(parts, kind, tuple(remarks), seen)


def _as_in_train(
    classes: Mapping[str, Mapping[str, Path]], split: str, base: Path
) -> dict[str, Path]:
    """The class folders of a split under the names that train gives them.

    Accents have two forms in Unicode, which are one name.
    """
    train, renamed = classes["train"], dict(classes[split])
    for name in sorted(set(renamed) - set(train)):
        same = [n for n in train if n not in renamed and _form(n) == _form(name)]
        if same:
            renamed[same[0]] = renamed.pop(name)
    for one, other, where in ((train, renamed, "train"), (renamed, train, split)):
        lacking = sorted(set(one) - set(other))
        if lacking:
            without = split if where == "train" else "train"
            near = [n for n in other if n not in one and alike.key(n) == alike.key(lacking[0])]
            hint = f" There it is {near[0]!r}: write both alike." if near else ""
            raise DataError(
                f"Class {lacking[0]!r} is in {where} but not in {without} of {base}.{hint}"
            )
    return {name: renamed[name] for name in train}


def _form(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _turned(root: Path, classes: Mapping[str, Path]) -> dict[str, dict[str, Path]]:
    """Splits inside the classes: class folders by split; empty where there are none.

    Raises:
        DataError: some classes have them and others do not.
    """
    inside = {
        name: roles.roles(path.name for path in folders(folder)) for name, folder in classes.items()
    }
    split = [name for name, known in inside.items() if {"train", "test"} <= set(known.values())]
    if not split:
        return {}
    wanted = inside[split[0]]
    for name, folder in classes.items():
        known, there = inside[name], {path.name for path in folders(folder)}
        loose = pictures_in(folder, deep=False)
        if sorted(known.values()) != sorted(wanted.values()) or there != set(known) or loose:
            has = ", ".join(sorted(there)) or f"{len(loose)} images"
            raise DataError(
                f"{root}: class {split[0]!r} has {', '.join(sorted(wanted))} in it, and class "
                f"{name!r} has {has}. Give each class the same splits, or put the class folders "
                "into folders train and test."
            )
        if len(set(known.values())) < len(known):
            raise DataError(
                f"{folder} has {' and '.join(sorted(known))}, of which two are the same split. "
                "Keep one of them."
            )
    return {
        part: {
            name: next(folder / n for n, known in inside[name].items() if known == part)
            for name, folder in classes.items()
        }
        for part in dict.fromkeys(wanted.values())
    }


def _domains(root: Path, classes: Mapping[str, Path]) -> tuple[str, ...]:
    """A line where the folders look as if the classes were one level below.

    Raises:
        DataError: they are the folds of a cross-validation.
    """
    below = [{path.name for path in folders(folder)} for folder in classes.values()]
    shared = sorted(set.intersection(*below)) if len(below) > 1 else []
    if len(shared) < 2:
        return ()
    named = f"{', '.join(shared[:3])}{', ...' if len(shared) > 3 else ''}"
    if all(FOLD.fullmatch(name) for name in classes):
        raise DataError(
            f"{root} has {', '.join(classes)}, each with {named}: folds of a cross-validation are "
            "no classes. Put their class folders into train and test."
        )
    return (
        f"All {len(classes)} class folders hold folders of the same names ({named}). If those are "
        "the classes, give one of the class folders as the root, or put them together.",
    )


def _classes(folder: Path) -> dict[str, Path]:
    """The class folders in `folder` by the names of the classes."""
    inside = folders(folder)
    if not inside:
        count = len(pictures_in(folder, deep=False))
        raise DataError(
            f"{folder} has no class folders ({count} images directly inside). "
            "Put the images of each class into a folder of their own, or list them in a .csv with "
            "a path and a label column."
        )
    classes: dict[str, Path] = {}
    forms: dict[str, str] = {}
    for path in inside:
        name = files.readable(path.name)
        other = forms.setdefault(_form(name), name)
        if other != name or name in classes:
            raise DataError(
                f"{folder} has two folders named {name!r}, which differ only in the Unicode form "
                "of their names. Put their images together."
            )
        classes[name] = path
    return classes


def _listed(root: Path, layout: _ClassFolders) -> tuple[tuple[str, ...], dict[str, SplitList]]:
    """Names of the classes, and each split's images, ordered by class and name."""
    asked = [
        (split, label, folder)
        for split, classes in layout.parts.items()
        for label, folder in enumerate(classes.values())
    ]
    members = layout.tree.pictures([folder for _, _, folder in asked])
    for (_, _, folder), paths in zip(asked, members, strict=True):
        if not paths:
            raise DataError(
                f"Class folder {files.readable(str(folder))} is empty: no file ends in "
                f"{', '.join(files.SUFFIXES)}. {_instead(layout.tree, folder)}Add images or remove "
                "the folder."
            )
    rows: dict[str, list[tuple[str, int]]] = {split: [] for split in layout.parts}
    for (split, label, _), paths in zip(asked, members, strict=True):
        rows[split] += [(path.relative_to(root).as_posix(), label) for path in paths]
    # of all splits together: the file that remembers them is read and written once
    known = iter(files.digests(root, [name for part in rows.values() for name, _ in part]))
    lists = {
        split: SplitList.of([(*row, next(known)) for row in part]) for split, part in rows.items()
    }
    return tuple(next(iter(layout.parts.values()))), lists


def _instead(seen: Tree, folder: Path) -> str:
    """What an empty class has instead of images."""
    below: Sequence[tuple[str, list[Path]]] = [
        (what, [p for p in paths if p == folder or folder in p.parents])
        for what, paths in seen.aside.items()
    ]
    only = Tree(folder)
    for what, paths in below:
        only.leave(what, paths)
    return f"{only.remark()} " if only.aside else ""

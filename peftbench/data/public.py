"""Public data sets in whatever layout they lie on the disk, held against what is published of them.

The folder is looked for by the names that people give it, the layout is told by its files, and
classes and sizes must be those of `DatasetSpec.facts`: a tree that is incomplete, ambiguous or of
another version is an error that says what was found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from peftbench import plugins
from peftbench.data import files
from peftbench.data.layouts import LAYOUTS, Contents, Layout, Match, Rows, match
from peftbench.data.levels import Finder
from peftbench.data.listing import Home, Listing, SplitList, read_dataset, rollup_of
from peftbench.data.splits import stratified_cut
from peftbench.errors import DataError
from peftbench.registry import unknown_name
from peftbench.spec import DatasetSpec, Preprocessing

# folders in which a whole suite is kept, below the one for all data
SUITE_FOLDERS = {
    "vtab": ("vtab-1k", "vtab1k", "vtab", "vtab-1k/vtab-1k"),
    "fgvc": ("fgvc", "FGVC"),
    "fewshot": ("few-shot", "fewshot", "few_shot"),
}
WHERE = "data_dir=DIR or PEFTBENCH_DATA names the folder for all data, dataset.root that of one set"


class Absent(DataError):
    """Nothing of the data set is where it was looked for."""


class Incomplete(DataError):
    """Some of what a layout needs is there, and some is missing."""


class Ambiguous(DataError):
    """It is there more than once."""


@dataclass(frozen=True)
class DataPlace:
    """Where a data set is, and how it is to be read."""

    folder: Path
    layout: Layout


@read_dataset("public")
def read_public(spec: DatasetSpec) -> Listing:
    """The data set that `spec.facts` describes; every file is hashed, none is decoded."""
    place = find(spec)
    contents = place.layout.read(place.folder, spec)
    _check_shots(spec, place)
    _check_classes(spec, place, contents)
    rows, cut = _with_val(spec, place, contents.parts)
    _check_sizes(spec, place, rows)
    notes = [f"read as {place.layout.name}", *contents.notes, *cut]
    notes += _absent_classes(spec, place, contents, rows)
    parts = {split: _split_list(contents, part) for split, part in rows.items()}
    covered = {name: _split_list(contents, part) for name, part in contents.covered.items()}
    wide = Finder(contents.pictures, tuple((covered or parts).values()), str(place.folder))
    extra = f"classes\t{len(contents.class_names)}\n"
    paths = match(place.folder, place.layout, spec).found
    lists = tuple(path for path in paths if not path.endswith("/"))

    def decode(part: SplitList, preprocessing: Preprocessing, split: str) -> np.ndarray:
        title = f"{spec.name} {split}"
        levels = wide().levels
        return files.decode(contents.pictures, part, preprocessing, title, place.folder, levels)

    return Listing(
        title=spec.facts.title or spec.name,
        suite=_suite(spec),
        suite_version=spec.suite_version,
        group=spec.group,
        licence=spec.facts.licence or "as its owner states",
        source=f"{spec.facts.source or 'unknown'}; read from {place.folder}",
        notice="",
        class_names=contents.class_names,
        train=parts["train"],
        val=parts["val"],
        test=parts["test"],
        manifest=rollup_of(covered or parts, extra),
        decode=decode,
        notes=tuple(notes),
        home=Home(place.folder, place.layout.name, contents.pictures, lists, covered),
        extra=extra,
        remarks=wide.remarks,
        levels=wide.found,
    )


def _suite(spec: DatasetSpec) -> str:
    """A suite for each number of shots, so that no table averages over them."""
    if spec.shots is None:
        return spec.suite
    shots = f"_{spec.shots}shot"
    return spec.suite.removesuffix(shots) + shots


def find(spec: DatasetSpec) -> DataPlace:
    """The folder and layout of a data set; nothing but names is looked at.

    Raises:
        Absent, Incomplete, Ambiguous: kinds of `DataError`.
    """
    root = Path(spec.root).expanduser().absolute() if spec.root else None
    layouts = _layouts(spec)
    if root is None or not root.is_dir():
        there = "no folder is named" if root is None else f"{root} is no folder"
        raise Absent(f"{spec.name}: {there}. {_advice(spec, layouts)}")
    named = [folder for folder in _candidates(root, spec) if folder.is_dir()]
    for folders in (named, [root]):
        matches = [match(folder, layout, spec) for folder in folders for layout in layouts]
        complete = [m for m in matches if not m.missing]
        homes = list(dict.fromkeys(m.folder.resolve() for m in complete))
        if len(homes) > 1:
            places = ", ".join(f"{m.folder} ({m.layout.name})" for m in complete)
            raise Ambiguous(
                f"{spec.name} is there {len(homes)} times: {places}. Set dataset.root to the one "
                "that is meant."
            )
        if complete:
            return DataPlace(complete[0].folder, complete[0].layout)
    raise _not_found(spec, root, named, layouts)


def whereabouts(spec: DatasetSpec) -> str:
    """Whether a data set is on this machine, judged by names: "yes (vtab1k)", "no", "in part"."""
    try:
        return f"yes ({find(spec).layout.name})"
    except Incomplete:
        return "in part"
    except Ambiguous:
        return "twice"
    except Absent:
        return "no"


def _layouts(spec: DatasetSpec) -> list[Layout]:
    """Those that the data set comes in, or the one that was asked for."""
    plugins.load("layouts")
    names = spec.facts.layouts or tuple(LAYOUTS)
    if spec.layout is not None:
        if spec.layout not in names:
            raise unknown_name(f"dataset.layout of {spec.name}:", spec.layout, names)
        names = (spec.layout,)
    return [LAYOUTS[name] for name in names]


def _candidates(root: Path, spec: DatasetSpec) -> list[Path]:
    """Folders below `root` that may hold the data set, without repeats."""
    parents = ("", *SUITE_FOLDERS.get(spec.name.partition("/")[0], ()))
    return list(dict.fromkeys(root / p / f for p in parents for f in spec.facts.folders))


def _not_found(
    spec: DatasetSpec, root: Path, named: list[Path], layouts: list[Layout]
) -> DataError:
    advice = _advice(spec, layouts)
    parts = [
        m
        for folder in [*named, root]
        for m in (match(folder, layout, spec) for layout in layouts)
        if m.found
    ]
    if parts:
        closest = "; ".join(map(_told, sorted(parts, key=lambda m: len(m.missing))[:3]))
        return Incomplete(f"{spec.name} is incomplete: {closest}. {advice}")
    for folder in named:
        for info in (*folder.glob("*/dataset_info.json"), *folder.glob("*/*/dataset_info.json")):
            do = "export its splits"
            if spec.name.startswith("vtab/"):
                do = f"convert it: peftbench data prepare {spec.name} --raw {folder}"
            return Incomplete(
                f"{spec.name}: {folder} is a folder of TensorFlow Datasets "
                f"({info.relative_to(folder)}), which is not read as it is; {do}. {advice}"
            )
    if named:
        held = ", ".join(f"{folder} ({_some(folder)})" for folder in named)
        return Absent(f"{spec.name}: nothing known is in {held}. {advice}")
    looked = ", ".join(str(path.relative_to(root)) for path in _candidates(root, spec))
    return Absent(f"{spec.name} is not in {root}: looked for {looked or 'it there'}. {advice}")


def _told(part: Match) -> str:
    return (
        f"in {part.folder}, {', '.join(part.found)} "
        f"{'is' if len(part.found) == 1 else 'are'} there and "
        f"{', '.join(part.missing)} {'is' if len(part.missing) == 1 else 'are'} missing "
        f"for layout {part.layout.name}"
    )


def _some(folder: Path, most: int = 3) -> str:
    names = sorted(path.name for path in folder.iterdir())
    if not names:
        return "empty"
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _advice(spec: DatasetSpec, layouts: list[Layout]) -> str:
    do = "; or ".join(layout.about for layout in layouts)
    source = f" Get it: {spec.facts.source}." if spec.facts.source else ""
    if spec.facts.built_from or spec.facts.prepared_from:
        source += f" peftbench data prepare {spec.name} fetches it or says how."
    return f"What would do: {do}.{source} {WHERE}."


def _check_shots(spec: DatasetSpec, place: DataPlace) -> None:
    if spec.shots is not None and place.layout.name != "fewshot":
        raise DataError(
            f"dataset.shots={spec.shots}: {spec.name} has no lists of so many images a class. "
            "Leave it out, or use one of the data sets in fewshot/."
        )


def _check_classes(spec: DatasetSpec, place: DataPlace, contents: Contents) -> None:
    expected = spec.facts.classes
    if expected is not None and len(contents.class_names) != expected:
        raise DataError(
            f"{spec.name} has {len(contents.class_names)} classes in {place.folder} "
            f"(layout {place.layout.name}), and {expected} are published. It is incomplete or "
            "another version."
        )
    for split, part in contents.parts.items():
        beyond = [label for label in part.labels if not 0 <= label < len(contents.class_names)]
        if beyond:
            raise DataError(
                f"{spec.name}: {split} in {place.folder} has the label {beyond[0]}, and there are "
                f"{len(contents.class_names)} classes from 0 on. Fetch its lists again."
            )


def _with_val(
    spec: DatasetSpec, place: DataPlace, parts: Mapping[str, Rows]
) -> tuple[dict[str, Rows], list[str]]:
    """The three parts; a val that the layout does not have is cut from train, class by class."""
    if "val" in parts:
        return dict(parts), []
    train = parts["train"]
    count = spec.facts.val
    if count is None:
        count = round(len(train) * spec.val_fraction)
    if not 0 < count < len(train):
        raise DataError(
            f"{spec.name}: {place.folder} has no val split, and {count} images cannot be cut from "
            f"the {len(train)} of train. It is incomplete."
        )
    generator = np.random.default_rng(spec.split_seed)
    chosen = stratified_cut(np.asarray(train.labels), count, generator)
    kept = np.setdiff1d(np.arange(len(train)), chosen)

    def rows(indices: np.ndarray) -> Rows:
        return Rows(tuple(train.names[i] for i in indices), tuple(train.labels[i] for i in indices))

    cut = {**parts, "train": rows(kept), "val": rows(chosen)}
    return cut, [f"val is our own cut of {count} from train (dataset.split_seed)"]


def _check_sizes(spec: DatasetSpec, place: DataPlace, parts: Mapping[str, Rows]) -> None:
    expected = {split: getattr(spec.facts, split) for split in ("train", "val", "test")}
    if spec.shots is not None and spec.facts.classes is not None:
        expected["train"] = spec.shots * spec.facts.classes
    for split, count in expected.items():
        size = len(set(parts[split].names)) if spec.shots else len(parts[split])
        if count is not None and size != count:
            raise DataError(
                f"{spec.name}: {split} has {size:,} images in {place.folder} (layout "
                f"{place.layout.name}), and {count:,} are published. It is incomplete or another "
                "version; dataset.layout chooses between layouts."
            )


def _absent_classes(
    spec: DatasetSpec, place: DataPlace, contents: Contents, parts: Mapping[str, Rows]
) -> list[str]:
    seen = {*parts["train"].labels, *parts["val"].labels}
    absent = [name for i, name in enumerate(contents.class_names) if i not in seen]
    if not absent:
        return []
    if place.layout.name == "vtab1k":  # its 1,000 images are the first ones, of whatever class
        return [f"{len(absent)} of {len(contents.class_names)} classes have no training image"]
    raise DataError(
        f"{spec.name}: {len(absent)} classes in {place.folder} have no image in train or val, "
        f"first {absent[0]!r}. It is incomplete."
    )


def _split_list(contents: Contents, part: Rows) -> SplitList:
    return SplitList(part.names, part.labels, contents.pictures.digests(part.names))

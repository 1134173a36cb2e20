"""Image sets of the Hugging Face hub, or folders of parquet or arrow files, through `datasets`.

Only stored bytes are taken from the library: they are hashed and decoded here like those of any
other data set. Code that comes with a repository is never run.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from peftbench.caches import cache_dir
from peftbench.data import alike, images, own
from peftbench.data.hub_load import check_names, load
from peftbench.data.images import FULL, Extent, Levels
from peftbench.data.listing import Listing, Origin, SplitList, read_dataset
from peftbench.data.tables import LABEL_COLUMNS
from peftbench.errors import DataError
from peftbench.registry import unknown_name
from peftbench.spec import DatasetSpec
from peftbench.untrusted import check_plain_file

VAL_NAMES = (*own.VAL_NAMES, "dev")
HIDDEN = -1  # label of images whose class is kept secret, by convention of the hub
BATCH = 256  # rows that are hashed at a time


@read_dataset("hf")
def read_hub(spec: DatasetSpec) -> Listing:
    """The images of `spec.hub`; every one is hashed, none is decoded.

    Raises:
        DataError: `datasets` is not installed, the set cannot be reached or read, its columns or
            splits are ambiguous, labels are hidden, a class is missing from train or too small.
    """
    place, tables = load(spec)
    roles = choose_splits({name: len(table) for name, table in tables.items()}, spec, place)
    used = {name: tables[name] for name in roles.values()}
    image, label = _columns(used, spec, place)
    check_names(used, label, place)
    class_names, labels = _labels(used, label, place)
    encoded = {name: _undecoded(table, image) for name, table in used.items()}
    pictures = TablePictures(place, encoded, image)
    lists = {}
    for role, name in roles.items():
        names = tuple(f"{name}/{row:06d}" for row in range(len(used[name])))
        lists[role] = SplitList(names, labels[name], pictures.digests(names))
    if "all" not in lists:
        own.check_trained(lists, class_names, place)
    values = _group_values({role: used[name] for role, name in roles.items()}, spec, place)
    found = own.FoundLists(lists, class_names, pictures, place, "validation split", values)
    settled = own.settle(found, spec)
    licence = str(next(iter(used.values())).info.license or "")
    kind = f"image column {image!r}, label column {label!r}, splits {', '.join(used)}"
    content = own.Content(
        title=spec.hub or "",
        source=_source(spec, place),
        class_names=class_names,
        parts=settled.parts,
        pictures=pictures,
        origin=Origin(
            spec.called,
            place,
            kind,
            settled.drawn,
            spec.split_seed,
            (*filter(None, (alike.remark(class_names),)), *settled.remarks),
            own.fold_of(spec),
        ),
        licence=licence or "as its owner states",
    )
    return own.make_listing(spec, content)


def _group_values(
    tables: Mapping[str, Any], spec: DatasetSpec, place: str
) -> dict[str, tuple[str, ...]]:
    """By part, the value of `spec.group_column` in each row; empty where none is asked for."""
    column = spec.group_column
    if column is None:
        return {}
    values = {}
    for role, table in tables.items():
        if column not in table.features:
            raise unknown_name(
                f"column in dataset.group_column of {place}:", column, table.features
            )
        cells = list(table.select_columns([column]).with_format(None)[column][:])
        empty = next((row for row, cell in enumerate(cells) if cell is None), None)
        if empty is not None:
            raise DataError(
                f"{place}: row {empty} of {role} has no value in column {column!r}, which says "
                "what stays in one split. Fill it, or leave dataset.group_column out."
            )
        values[role] = tuple(map(str, cells))
    return values


def choose_splits(sizes: Mapping[str, int], spec: DatasetSpec, place: str) -> dict[str, str]:
    """Which split is train, test and, where there is one, val; or "all" of a single one.

    A split that is named for both train and test is cut into all three.

    Raises:
        DataError: train or test is missing, or val could be one of two.
        UnknownName: `spec` names a split that is not there.
    """
    asked = {"train": spec.train_split, "val": spec.val_split, "test": spec.test_split}
    for role, name in asked.items():
        if name is not None and name not in sizes:
            raise unknown_name(f"split in dataset.{role}_split of {place}:", name, sizes)
    chosen = {role: name for role, name in asked.items() if name is not None}
    if len(sizes) == 1 and not chosen:
        return {"all": next(iter(sizes))}
    for role, usual in (("train", ("train",)), ("test", ("test",)), ("val", VAL_NAMES)):
        taken = [chosen.get("train"), chosen.get("test")]
        named = [name for name in sizes if name in usual and name not in taken]
        if role not in chosen and len(named) > 1:
            raise DataError(
                f"{place} has splits {' and '.join(named)}. Say with dataset.{role}_split which "
                "one is meant."
            )
        if role not in chosen and named:
            chosen[role] = named[0]
    there = ", ".join(f"{name} ({size:,})" for name, size in sizes.items())
    if "train" not in chosen:
        raise DataError(
            f"{place} has {there}, but no train split. Name one with dataset.train_split=NAME."
        )
    if "test" not in chosen:
        others = [name for name in sizes if name != chosen["train"]]
        other = chosen.get("val") or next(iter(others), chosen["train"])
        raise DataError(
            f"{place} has {there}, but no test split. Report another one with "
            f"dataset.test_split={other}, or cut all three from one with "
            f"dataset.train_split={chosen['train']} dataset.test_split={chosen['train']}."
        )
    if chosen["train"] == chosen["test"]:
        return {"all": chosen["train"]}
    if chosen.get("val") in (chosen["train"], chosen["test"]):
        raise DataError(
            f"{place}: dataset.val_split={chosen['val']} is train or test as well. Name another "
            "split, or leave it out to have val cut from train."
        )
    return chosen


@dataclass(frozen=True, eq=False)
class TablePictures:
    """Pictures in tables of encoded images; row 3 of the split "train" is "train/000003"."""

    place: str  # of the data set, for errors
    tables: Mapping[str, Any]  # `datasets.Dataset` by split, with undecoded images alone
    column: str

    def digests(self, names: Sequence[str]) -> tuple[str, ...]:
        whole = {split: self._digests(split) for split in {_split_of(name) for name in names}}
        return tuple(whole[_split_of(name)][_row_of(name)] for name in names)

    def open(self, name: str, levels: Levels = FULL) -> Image.Image:
        return images.decode(io.BytesIO(self._bytes(name)), f"{name} of {self.place}", levels)

    def extent(self, name: str) -> Extent | None:
        data = self._bytes(name)
        if not images.may_be_wide(data[: images.HEAD]):
            return None
        return images.extent(io.BytesIO(data), f"{name} of {self.place}")

    def path(self, name: str) -> None:
        return None

    def _bytes(self, name: str) -> bytes:
        cell = self.tables[_split_of(name)][_row_of(name)][self.column]
        return self._stored(cell, name)

    def _digests(self, split: str) -> list[str]:
        """SHA-256 of each row; rows of arrow files that are unchanged are not read again."""
        memory = _memory(self.tables[split], self.column)
        with contextlib.suppress(OSError, ValueError):
            known = json.loads(memory.read_text(encoding="utf-8")) if memory else None
            if isinstance(known, list) and len(known) == len(self.tables[split]):
                return known
        digests: list[str] = []
        inside = True  # else files beside the table, which may change without it
        for batch in self.tables[split].iter(BATCH):
            for cell in batch[self.column]:
                name = f"{split}/{len(digests):06d}"
                digests.append(hashlib.sha256(self._stored(cell, name)).hexdigest())
                inside = inside and cell["bytes"] is not None
        if memory and inside:
            with contextlib.suppress(OSError):  # it only saves time
                memory.parent.mkdir(parents=True, exist_ok=True)
                with images.replaced(memory) as temporary:
                    temporary.write_text(json.dumps(digests), encoding="utf-8")
        return digests

    def _stored(self, cell: Mapping[str, Any] | None, name: str) -> bytes:
        """The bytes of an image as they were stored."""
        if cell is not None and cell["bytes"] is not None:
            return bytes(cell["bytes"])
        path = cell and cell["path"]
        if not path:
            raise DataError(f"{self.place}: {name} has no image. Remove the row from the data set.")
        try:
            check_plain_file(Path(path))
            return Path(path).read_bytes()
        except ValueError as error:
            raise DataError(
                f"{self.place}: the image of {name} is {path}: {error}. Remove the row."
            ) from error
        except OSError as error:
            raise DataError(
                f"{self.place}: the image of {name} is not stored in the table, and {path} cannot "
                f"be read: {error.strerror}. Store the images themselves."
            ) from error


def _undecoded(table: Any, column: str) -> Any:
    """The column of images alone, as stored bytes and paths."""
    from datasets import Image as Encoded

    return (
        table.select_columns([column]).cast_column(column, Encoded(decode=False)).with_format(None)
    )


def _split_of(name: str) -> str:
    return name.rpartition("/")[0]


def _row_of(name: str) -> int:
    return int(name.rpartition("/")[2])


def _memory(table: Any, column: str) -> Path | None:
    """Where the hashes of a table are kept, named after its files; `None` if it has none."""
    lines = [column, str(len(table))]
    try:
        for entry in table.cache_files:
            status = Path(entry["filename"]).stat()
            lines.append(f"{entry['filename']}\t{status.st_size}\t{status.st_mtime_ns}")
    except OSError:
        return None
    if len(lines) == 2:
        return None
    key = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]
    return cache_dir() / "digests" / f"hub-{key}.json"


def _columns(tables: Mapping[str, Any], spec: DatasetSpec, place: str) -> tuple[str, str]:
    """The columns of images and of labels, which every split must have."""
    features = next(iter(tables.values())).features
    image = _only(
        "image",
        spec.image_column,
        [name for name, feature in features.items() if _is_image(feature)],
        features,
        place,
    )
    if not _is_image(features[image]) and "binary" not in str(
        getattr(features[image], "dtype", "")
    ):
        raise DataError(
            f"{place}: column {image!r} holds {_kind(features[image])} and no images. Name "
            f"another one with dataset.image_column: {', '.join(features)}."
        )
    classes = [name for name, feature in features.items() if _kind(feature) == "ClassLabel"]
    usual = [name for name in features if name.lower() in (*LABEL_COLUMNS, "labels")]
    label = _only("label", spec.label_column, classes or usual, features, place)
    if not re.fullmatch(r"ClassLabel|u?int\d+|bool|(large_)?string", _kind(features[label])):
        raise DataError(
            f"{place}: column {label!r} holds {_kind(features[label])}; a label is one integer or "
            f"one word. Name another one with dataset.label_column: {', '.join(features)}."
        )
    for split, table in tables.items():
        for column in (image, label):
            if str(table.features.get(column)) != str(features[column]):
                raise DataError(
                    f"{place}: column {column!r} of split {split} is not that of the others. "
                    f"Choose columns or splits that go together: {', '.join(table.features)}."
                )
    return image, label


def _only(
    what: str, asked: str | None, candidates: list[str], features: Mapping[str, Any], place: str
) -> str:
    """The column that was asked for, else the only candidate."""
    if asked is not None:
        if asked not in features:
            raise unknown_name(f"column in dataset.{what}_column of {place}:", asked, features)
        return asked
    if len(candidates) == 1:
        return candidates[0]
    has = f"{len(candidates)} {what} columns" if candidates else f"no {what} column"
    columns = ", ".join(f"{name} ({_kind(feature)})" for name, feature in features.items())
    raise DataError(
        f"{place} has {has}. Name one with dataset.{what}_column; its columns are {columns}."
    )


def _is_image(feature: Any) -> bool:
    """Whether a column holds images, also where nothing but its fields says so."""
    return _kind(feature) == "Image" or (
        isinstance(feature, dict) and set(feature) == {"bytes", "path"}
    )


def _kind(feature: Any) -> str:
    """`Image`, `ClassLabel`, or the type of plain values."""
    name = type(feature).__name__
    return str(feature.dtype) if name == "Value" else name


def _labels(
    tables: Mapping[str, Any], column: str, place: str
) -> tuple[tuple[str, ...], dict[str, tuple[int, ...]]]:
    """Names of the classes, and the number of each row's class by split."""
    feature = next(iter(tables.values())).features[column]
    values = {
        split: list(table.select_columns([column]).with_format(None)[column][:])
        for split, table in tables.items()
    }
    for split, labels in values.items():
        _check_labels(labels, split, column, place)
    if _kind(feature) == "ClassLabel":
        names = tuple(feature.names)
        order: list[Any] = list(range(len(names)))
    else:
        order = _in_order({label for labels in values.values() for label in labels})
        names = tuple(map(str, order))
    rank = {value: index for index, value in enumerate(order)}
    for split, labels in values.items():
        strange = [label for label in labels if label not in rank]
        if strange:
            raise DataError(
                f"{place}: split {split} has label {strange[0]!r}, but column {column!r} declares "
                f"{len(names)} classes from 0 on. Repair the data set, or name another column."
            )
    return names, {split: tuple(rank[x] for x in labels) for split, labels in values.items()}


def _check_labels(labels: Sequence[Any], split: str, column: str, place: str) -> None:
    hidden = sum(label == HIDDEN for label in labels if isinstance(label, int))
    if hidden:
        raise DataError(
            f"{place}: {hidden:,} of {len(labels):,} labels of split {split} are {HIDDEN}, which "
            "is how hidden labels are written. Report another split with dataset.test_split=NAME, "
            "or name train_split and test_split alike to have all three cut from one."
        )
    for row, label in enumerate(labels):
        if label is None:
            raise DataError(
                f"{place}: {split}/{row:06d} has no label in column {column!r}. Remove the row, or "
                "name another column with dataset.label_column."
            )


def _in_order(values: set[Any]) -> list[Any]:
    """Integers by value, words by their bytes."""
    return sorted(values, key=lambda v: v.encode("utf-8") if isinstance(v, str) else v)


def _source(spec: DatasetSpec, place: str) -> str:
    if Path(place).is_absolute():
        return place
    details = ", ".join(x for x in (spec.config_name, spec.revision) if x)
    return f"{place}{f' ({details})' if details else ''} on the Hugging Face hub"

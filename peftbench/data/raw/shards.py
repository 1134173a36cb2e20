"""Folders that TensorFlow Datasets (TFDS) has prepared: what they say of themselves, and records.

`<name>/[<config>/]<version>/` holds dataset_info.json, with the number of records in each shard of
each split, and the shards, such as dtd-train.tfrecord-00000-of-00004. The records of a split lie
in them in their final order, from the first shard on. Source: TFDS 4.9.9, core/naming.py,
core/proto/dataset_info.proto, core/utils/shard_utils.py.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from peftbench.data.files import by_name
from peftbench.data.layouts.base import held
from peftbench.data.raw.tfrecord import Span, spans
from peftbench.errors import DataError

INFO = "dataset_info.json"
MOST_RECORDS = 10**7  # dSprites, the largest task, has 737,280
TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"  # of the names of shards
VERSION = "[0-9]*.[0-9]*.[0-9]*"


@dataclass(frozen=True)
class Prepared:
    """A version of a data set in its `folder`, with the lengths of the shards of each split."""

    folder: Path
    name: str
    config: str
    version: str
    lengths: Mapping[str, tuple[int, ...]]

    @property
    def title(self) -> str:
        """Such as "eurosat/rgb 2.0.0"."""
        return f"{titled(self.name, self.config)} {self.version}"

    def shards(self, split: str) -> tuple[str, ...]:
        """The names of the files of a split in their order; `DataError` where it has none."""
        count = len(self.lengths.get(split, ()))
        if not count:
            raise DataError(
                f"{self.folder / INFO} of {self.title} names no shards of the split {split}; its "
                f"splits are {', '.join(self.lengths) or 'none'}. Prepare another version with "
                "TensorFlow Datasets."
            )
        files = f"{self.name}-{split}.tfrecord"
        return tuple(f"{files}-{shard:05d}-of-{count:05d}" for shard in range(count))

    def missing(self, splits: Sequence[str]) -> tuple[str, ...]:
        """Shards of the splits that are not in the folder."""
        return held(self.folder, [name for split in splits for name in self.shards(split)])[1]


def titled(name: str, config: str) -> str:
    """A data set as TFDS names it: "dtd", or "eurosat/rgb"."""
    return f"{name}/{config}" if config else name


def prepared(folder: Path) -> Prepared:
    """What dataset_info.json in a folder says; `DataError` where it says nothing that is read."""
    path = folder / INFO
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        name, config, version = (
            str(info.get(key, "")) for key in ("name", "configName", "version")
        )
        kind = info.get("fileFormat") or "tfrecord"
        templates = {s.get("filepathTemplate") or TEMPLATE for s in info.get("splits", ())}
        lengths = {
            str(split["name"]): tuple(int(count) for count in split.get("shardLengths", ()))
            for split in info.get("splits", ())
        }
        if not re.fullmatch(r"\w+", name) or any(min(c, default=0) < 0 for c in lengths.values()):
            raise ValueError(f"the name {name!r} or a length")
        if sum(map(sum, lengths.values())) > MOST_RECORDS:
            raise ValueError(f"it has more than {MOST_RECORDS:,} records")
    except (
        OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError,
    ) as error:  # fmt: skip
        raise DataError(
            f"{path} does not describe a prepared data set: {error!r}. Prepare it again with "
            "TensorFlow Datasets."
        ) from error
    if kind != "tfrecord" or templates - {TEMPLATE}:
        raise DataError(
            f"{path}: the shards are stored as {kind}, named {' and '.join(sorted(templates))}, "
            f"and only tfrecord, named {TEMPLATE}, is read. Prepare it again in that format."
        )
    if not config and folder.parent.parent.name == name:  # where it is not written
        config = folder.parent.name
    return Prepared(folder, name, config, version or folder.name, lengths)


def find(folder: Path, name: str, config: str, splits: Sequence[str]) -> Prepared | None:
    """The version of a data set that `folder` is or holds, or None where it holds none.

    `folder` is that of a version, of a config, of the data set, or the one for all data sets. Of
    several versions, it is the one whose `splits` are complete.

    Raises:
        DataError: it is of another data set, or several versions would do.
    """
    paths = [folder / INFO] if (folder / INFO).is_file() else []
    any_config = "*" if folder.name == name else config or name
    for head in ("", f"{any_config}/", f"{name}/", f"{name}/*/"):
        there = by_name(folder.glob(f"{head}{VERSION}/{INFO}"))
        # while TFDS prepares a version, the name of its folder goes on behind it
        paths += [path for path in there if re.fullmatch(r"[\d.]+", path.parent.name)]
    known = [prepared(path.parent) for path in dict.fromkeys(paths)]
    mine = [k for k in known if k.name == name and config in ("", k.config)]
    if known and not mine:
        raise DataError(
            f"{folder} holds {', '.join(k.title for k in known)} of TensorFlow Datasets, and "
            f"{titled(name, config)} is asked for. Name its folder."
        )
    complete = [k for k in mine if not k.missing(splits)]
    if len(mine) > 1 and len(complete) != 1:
        versions = ", ".join(f"{k.version}{'' if k in complete else ' (incomplete)'}" for k in mine)
        raise DataError(
            f"{folder} holds several versions of {titled(name, config)}: {versions}. Name the "
            f"folder of one, such as {mine[-1].folder}."
        )
    return next(iter(complete or mine), None)


def record_finder(source: Prepared, split: str) -> Callable[[int], Span]:
    """A function that says where the record at a position of a split is.

    A shard is gone through when the first of its records is asked for, without reading data, and
    `DataError` says where it has not as many as dataset_info.json tells.
    """
    paths = [source.folder / name for name in source.shards(split)]
    lengths = source.lengths[split]
    ends = list(itertools.accumulate(lengths))

    @functools.cache
    def places(shard: int) -> np.ndarray:
        listed = [(span.start, span.length) for span in spans(paths[shard])]
        if len(listed) != lengths[shard]:
            raise DataError(
                f"{paths[shard]} has {len(listed):,} records, and {INFO} beside it says "
                f"{lengths[shard]:,}. Prepare {source.title} again, or copy the file again."
            )
        return np.array(listed, dtype=np.int64)

    def find_record(position: int) -> Span:
        shard = bisect.bisect_right(ends, position)
        number = position - ends[shard] + lengths[shard]
        start, length = places(shard)[number].tolist()
        return Span(paths[shard], number, start, length)

    return find_record

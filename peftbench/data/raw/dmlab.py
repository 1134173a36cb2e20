"""DMLab: six classes of distance and reward, from the TFRecord files of its archive."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from peftbench.data.files import by_name
from peftbench.data.raw.base import (
    COPIED_NOTE,
    ORDER_NOTE,
    VTAB,
    Raw,
    Records,
    SplitCounts,
    Splits,
    add,
    cut_own,
)
from peftbench.data.raw.tfrecord import Span, example, records
from peftbench.errors import DataError

SPLITS = ("train", "validation", "test")
NEEDS = tuple(f"dmlab-{split}.tfrecord*" for split in SPLITS)


@dataclass(frozen=True)
class Frame:
    """A record: its key, its class and its encoded image."""

    key: bytes
    label: int
    image: bytes


def splits(folder: Path, counts: SplitCounts = VTAB) -> Splits:
    """VTAB-1k of DMLab; images are the encoded bytes that the records hold.

    All records are read once, and their checksums verified. Raises `DataError` where one is
    damaged. Key of a record: its `filename` (TFDS 4.9.9, image_classification/dmlab.py).
    """
    return cut_own((_records(folder, split) for split in SPLITS), counts)


def _records(folder: Path, split: str) -> Records:
    paths = by_name(folder.glob(f"dmlab-{split}.tfrecord*"))
    spans, keys, labels = [], [], []
    for path in tqdm(paths, desc=f"dmlab: index of {split}", disable=None):
        for span, data in records(path):
            frame = _frame(span, data)
            spans.append(span)
            keys.append(frame.key)
            labels.append(frame.label)
    return Records(
        f"{folder}/dmlab-{split}.tfrecord*",
        split,
        keys,
        6,
        lambda row: labels[row],
        lambda row: _frame(spans[row], spans[row].read()).image,
    )


def _frame(span: Span, data: bytes) -> Frame:
    try:
        features = example(data)
        [key], [label], [image] = (features[name] for name in ("filename", "label", "image"))
        if not (isinstance(key, bytes) and isinstance(label, int) and isinstance(image, bytes)):
            raise ValueError("a feature is of another type")
    except (ValueError, KeyError) as error:
        raise DataError(
            f"{span.path}, byte {span.start:,}: no record of DMLab ({error}). Fetch it again."
        ) from error
    return Frame(key, label, image)


add(
    Raw(
        "dmlab",
        "dmlab.tar.gz unpacked: the files dmlab-{train,validation,test}.tfrecord*",
        NEEDS,
        splits,
        (ORDER_NOTE, COPIED_NOTE),
    )
)

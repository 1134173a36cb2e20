"""The data set of a run on this machine, if it is still what the run saw; no network is asked."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftbench import network
from peftbench.errors import PeftbenchError
from peftbench.results.record import RunRecord
from peftbench.spec import DatasetSpec, Preprocessing

FILES, HUB, MINI = "folder", "hf", "mini"  # readers of data that people bring, and what ships
MOST_HASHED = 20_000  # images of a set of the hub, each of which is hashed when it is listed
OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
ABSENT = "The data set is not on this machine, or not where it was, so pictures are left out."
CHANGED = "The data set has changed since, so pictures are left out."
LARGE = f"The data set has more than {MOST_HASHED:,} images, so pictures are left out."

if TYPE_CHECKING:
    from peftbench.data.listing import Listing


@dataclass(frozen=True)
class OnThisMachine:
    """A data set as it is listed now, or why it is not."""

    listing: Listing | None
    remark: str = ""


def is_own(spec: Mapping[str, Any]) -> bool:
    """Whether the `spec` of a record is about images that a user brings, or those that ship."""
    dataset = spec.get("dataset")
    return isinstance(dataset, Mapping) and dataset.get("reader") in (FILES, HUB, MINI)


def find(record: RunRecord) -> OnThisMachine:
    """The data set of a record: the same files with the same bytes in the same splits."""
    from peftbench.data import READERS

    spec = _spec(record.spec["dataset"])
    if spec is None:
        return OnThisMachine(None, ABSENT)
    if spec.reader == HUB and _images(record) > MOST_HASHED:
        return OnThisMachine(None, LARGE)
    try:
        with _without_network(spec):
            listing = READERS[spec.reader](spec)
    except (PeftbenchError, OSError, ValueError, TypeError):  # whatever a record may ask for
        return OnThisMachine(None, ABSENT)
    if listing.manifest != spec.manifest:
        return OnThisMachine(None, CHANGED)
    return OnThisMachine(listing)


def preprocessing_of(record: RunRecord) -> Preprocessing | None:
    """What happened to the pixels of a run, for those that are predicted."""
    told = record.provenance and record.provenance.preprocessing
    if not told:
        return None
    try:
        return Preprocessing(
            size=int(told["size"]),
            mean=tuple(told["mean"]),
            std=tuple(told["std"]),
            interpolation=str(told["interpolation"]),
            resize=str(told["resize"]),
            crop_fraction=float(told["crop_fraction"]),
        )
    except (KeyError, TypeError, ValueError):  # of another version
        return None


def _spec(told: Mapping[str, Any]) -> DatasetSpec | None:
    fields = {field.name for field in dataclasses.fields(DatasetSpec)} - {"facts"}
    try:
        spec = DatasetSpec(**{name: value for name, value in told.items() if name in fields})
    except (PeftbenchError, TypeError, ValueError):
        return None
    return spec if spec.reader != FILES or _is_narrow(spec.root) else None


def _is_narrow(root: Any) -> bool:
    """Whether a folder may be gone through: not a whole disk, because a record says so."""
    if not isinstance(root, str) or not root:
        return False
    place = Path(root).expanduser().absolute()
    return len(place.parts) > 2 and place != Path.home() and ".." not in place.parts


def _images(record: RunRecord) -> int:
    counts = record.provenance.data if record.provenance else {}
    numbers = [counts.get(name) for name in ("train_images", "report_images")]
    return sum(number for number in numbers if isinstance(number, int))


@contextlib.contextmanager
def _without_network(spec: DatasetSpec) -> Iterator[None]:
    """Only what is in the hub's cache is read."""
    here = spec.reader != HUB or Path(spec.hub or "").expanduser().is_dir()
    if here or network.is_offline():
        yield
        return
    if "datasets" in sys.modules:  # it has read these variables already
        raise OSError("the hub could be asked")
    os.environ |= dict.fromkeys(OFFLINE, "1")
    try:
        yield
    finally:
        for name in OFFLINE:
            os.environ.pop(name, None)

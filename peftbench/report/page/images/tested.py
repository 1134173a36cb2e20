"""The test images of a data set, where it has folds of all of them, and what runs said of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from peftbench.report.page.images import counting, finding
from peftbench.report.page.images.runs import ShownRun
from peftbench.results.record import RunRecord, parsed
from peftbench.results.store import ResultsStore
from peftbench.spec import TRAIN_AND_VAL, TRAIN_ONLY
from peftbench.untrusted import MOST_RECORD, printable, read_bounded

if TYPE_CHECKING:
    from peftbench.data.listing import Listing


@dataclass(frozen=True)
class Fold:
    """One way to divide a data set: what trains, and which images are test."""

    number: int | None  # `None` where there are no folds
    start: int  # place of its first test image among those of all folds
    counts: Mapping[str, list[int]]  # images of each class by split; of test alone if not known
    majority: counting.LargestClass | None  # of what trains, if that is known

    @property
    def images(self) -> int:
        """Of test."""
        return sum(self.counts["test"])


@dataclass(frozen=True)
class Tested:
    """What is known of the test images of all folds, one fold after the other."""

    labels: np.ndarray  # (N,)
    class_names: tuple[str, ...]
    names: tuple[str, ...] | None  # N files
    digests: tuple[str, ...]  # N; none where the data set is not here
    listing: Listing | None  # of the first fold, where the data set is here, as the runs saw it
    remark: str
    folds: tuple[Fold, ...]


@dataclass(frozen=True)
class Said:
    """What was said of some of the images, each of which is there once; arrays are (n,)."""

    places: np.ndarray  # among all test images
    labels: np.ndarray
    classes: np.ndarray
    confidence: np.ndarray


def tested(runs: Sequence[ShownRun], store: ResultsStore) -> Tested:
    """The test images of runs that have predictions, of at least one."""
    by_fold: dict[int | None, list[ShownRun]] = {}
    for run in sorted(runs, key=lambda run: run.fold or 0):
        if run.predictions is not None:
            by_fold.setdefault(run.fold, []).append(run)
    said = [run.predictions for run in runs if run.predictions is not None]
    most = max(int(max(one.classes.max(), one.labels.max())) for one in said) + 1
    parts = [_of_fold(shown, most) for shown in by_fold.values()]
    whole = all(part.listing is not None for part in parts)
    first = parts[0].listing if whole else None
    if first is None:
        told = _class_names(runs[0].record, store)
        class_names = (*told, *(f"class {number}" for number in range(len(told), most)))
        parts = [part.without_listing() for part in parts]
    else:
        class_names = tuple(map(printable, first.class_names))
    folds, start = [], 0
    for number, part in zip(by_fold, parts, strict=True):
        folds.append(_fold(number, start, part, len(class_names)))
        start += len(part.labels)
    names = [part.names for part in parts if part.names is not None]
    return Tested(
        labels=np.concatenate([part.labels for part in parts]),
        class_names=class_names,
        names=tuple(n for part in names for n in part) if len(names) == len(parts) else None,
        digests=tuple(d for part in parts for d in part.digests),
        listing=first,
        remark=next((part.remark for part in parts if part.remark), ""),
        folds=tuple(folds),
    )


def pooled(runs: Sequence[ShownRun], data: Tested) -> Said:
    """What runs on different folds said of their images, all together."""
    starts = {fold.number: fold.start for fold in data.folds}
    found = [(starts[run.fold], run.predictions) for run in runs if run.predictions is not None]
    return Said(
        np.concatenate([start + np.arange(len(one.labels)) for start, one in found]),
        *(
            np.concatenate([getattr(one, name) for _, one in found])
            for name in ("labels", "classes", "confidence")
        ),
    )


@dataclass(frozen=True)
class _Part:
    """The images of one fold."""

    record: RunRecord  # of its best run
    labels: np.ndarray
    names: tuple[str, ...] | None
    told: tuple[str, ...] | None  # the names that a run kept
    digests: tuple[str, ...]
    listing: Listing | None
    remark: str

    def without_listing(self) -> _Part:
        """The same from what the runs left."""
        return replace(self, names=self.told, digests=(), listing=None)


def _of_fold(runs: Sequence[ShownRun], most: int) -> _Part:
    """From the data set if it is here and has these test images, else from what the runs left."""
    record = runs[0].record
    said = [run.predictions for run in runs if run.predictions is not None]
    labels, here = said[0].labels, finding.find(record)
    told = next((one.names for one in said if one.names is not None), None)
    listing = here.listing
    fits = listing is not None and listing.test.labels == tuple(labels.tolist())
    if listing is not None and fits and most <= len(listing.class_names):
        test = listing.test
        return _Part(record, labels, test.names, told, test.digests, listing, here.remark)
    return _Part(record, labels, told, told, (), None, here.remark or finding.CHANGED)


def _fold(number: int | None, start: int, part: _Part, classes: int) -> Fold:
    if part.listing is None:
        counts = {"test": np.bincount(part.labels, minlength=classes).tolist()}
        return Fold(number, start, counts, None)
    counts = {
        split: np.bincount(np.asarray(rows.labels, dtype=np.int64), minlength=classes).tolist()
        for split, rows in part.listing.splits()
    }
    trained = np.asarray(counts["train"])
    if part.record.spec["dataset"].get("final_trains_on", TRAIN_AND_VAL) != TRAIN_ONLY:
        trained = trained + np.asarray(counts["val"])
    return Fold(number, start, counts, counting.majority(trained, part.labels))


def _class_names(record: RunRecord, store: ResultsStore) -> list[str]:
    """Of the card that a run left; empty without one."""
    path = store.artefacts((str(record.spec["method"]["name"]), record.run_id)) / "card.json"
    try:
        card: Any = parsed(read_bounded(path, MOST_RECORD))
    except (OSError, ValueError):
        return []
    classes = card.get("classes") if isinstance(card, dict) else None
    return [printable(str(name)) for name in classes] if isinstance(classes, list) else []

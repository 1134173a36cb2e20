"""Where methods stand after some splits: ranked by val, told apart on test, one recommended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from peftbench.statistics.images import exact_sign_p
from peftbench.tasks import PER_CLASS, TOP1

REFERENCES = ("logistic", "linear", "knn")  # whose splits show how easy each is
SAME_COST = {"linear": "logistic"}  # both are a linear classifier on frozen features
ALPHA = 0.05  # of two methods being called different, corrected for all that are compared


@dataclass(frozen=True)
class Result:
    """One method on one split."""

    method: str
    split: int
    run_id: str
    val: float  # the metric that ranks, on val
    val_images: int
    val_per_class: float  # mean per-class accuracy on val
    metrics: Mapping[str, float]  # on test
    labels: np.ndarray  # (N,) true classes of the test images
    classes: np.ndarray  # (N,) predicted
    params: int  # that train besides the head
    seconds: float  # of training
    numbers: np.ndarray | None = None  # (N,) of each image, in whatever split; None: all are new

    @property
    def images(self) -> np.ndarray:
        """(N,) what tells each image from all others, of this split and of others."""
        if self.numbers is not None:
            return np.asarray(self.numbers, np.int64)
        return -1 - (np.arange(len(self.labels), dtype=np.int64) + (self.split << 32))


@dataclass(frozen=True)
class MethodRow:
    """One method over the splits that all rows have."""

    method: str
    val: float
    test: float  # the metric that ranks, mean over the splits
    accuracy: float
    per_class: float
    error: float  # standard error of `test`, of all its images
    val_error: float  # the same of `val`
    val_per_class: float
    params: int
    seconds: float
    splits: int
    run_ids: tuple[str, ...]
    images: int  # different ones that were tested


@dataclass(frozen=True)
class Leaderboard:
    """The leaderboard and what follows from it."""

    rows: tuple[MethodRow, ...]  # best on val first
    level: tuple[str, ...]  # not told from the first on the test images
    recommended: str
    partial: tuple[str, ...] = ()  # methods that lack a split, and are ranked on fewer

    def row(self, method: str) -> MethodRow:
        """The row of a method."""
        return next(row for row in self.rows if row.method == method)


def standing(results: Sequence[Result], metric: str, order: Sequence[str]) -> Leaderboard | None:
    """Where the methods stand on the splits that they have.

    They are ranked by val. A method is level with the first unless McNemar's exact test on the test
    images of the splits that both have, corrected for the number of methods, tells them apart. Of
    those that are level and within one standard error of the first on val, the cheapest is
    recommended (the rule of Breiman et al., 1984, §3.4.3); of two errors the smaller counts, so
    that a method with few splits lets no other pass. Of equally cheap ones the better mean
    per-class accuracy on val decides. `majority` is never recommended.

    Args:
        order: methods from cheap to dear.
    """
    by_method = of_methods(results)
    full = {method: _row(method, found, metric) for method, found in by_method.items()}
    rows = [_moved(full[m], found, by_method, full, metric) for m, found in by_method.items()]
    rows.sort(key=lambda row: (-row.val, -row.test, order.index(row.method)))
    usable = [row for row in rows if row.method != "majority"] or rows
    if not usable:
        return None
    first, bound = usable[0], ALPHA / max(1, len(usable) - 1)
    level = [
        row.method
        for row in usable
        if row is first or chance(by_method[first.method], by_method[row.method]) >= bound
    ]
    near = [
        row
        for row in usable
        if row.method in level and row.val >= first.val - min(first.val_error, row.val_error)
    ]
    recommended = min(near, key=lambda row: (_cost(row.method, order), -row.val_per_class)).method
    most = max(row.splits for row in rows)
    partial = tuple(row.method for row in rows if row.splits < most)
    return Leaderboard(tuple(rows), tuple(level), recommended, partial)


def of_methods(results: Sequence[Result]) -> dict[str, list[Result]]:
    """The results of each method."""
    found: dict[str, list[Result]] = {}
    for one in results:
        found.setdefault(one.method, []).append(one)
    return found


def _cost(method: str, order: Sequence[str]) -> int:
    """The place of a method in the order, which methods of the same cost share."""
    same = SAME_COST.get(method, method)
    return order.index(same if same in order else method)


def _row(method: str, found: Sequence[Result], metric: str) -> MethodRow:
    found = sorted(found, key=lambda one: one.split)
    tested = [one.metrics[metric] for one in found]
    different = len(np.unique(np.concatenate([one.images for one in found])))
    passes = sum(len(one.labels) for one in found) / different
    error = _error(found, metric, tested, passes)
    val_images = sum(one.val_images for one in found) / passes
    return MethodRow(
        method=method,
        val=float(np.mean([one.val for one in found])),
        test=float(np.mean(tested)),
        accuracy=float(np.mean([one.metrics[TOP1] for one in found])),
        val_per_class=float(np.mean([one.val_per_class for one in found])),
        per_class=float(np.mean([one.metrics[PER_CLASS] for one in found])),
        error=error,
        val_error=error * float(np.sqrt(different / val_images)),
        params=max(one.params for one in found),
        seconds=float(np.mean([one.seconds for one in found])),
        splits=len(found),
        run_ids=tuple(one.run_id for one in found),
        images=different,
    )


def _moved(
    row: MethodRow,
    found: Sequence[Result],
    by_method: Mapping[str, Sequence[Result]],
    full: Mapping[str, MethodRow],
    metric: str,
) -> MethodRow:
    """`row` of a method that lacks splits, as far from a complete one as on those that it has.

    Some splits are easier than others, by more than methods differ.
    """
    reference = next((m for m in REFERENCES if m in full), None)
    if reference is None or row.splits >= full[reference].splits:
        return row
    own = {one.split for one in found}
    there = [one for one in by_method[reference] if one.split in own]
    if len(there) < len(own):
        return row
    part, whole = _row(reference, there, metric), full[reference]
    return replace(
        row,
        **{
            name: getattr(row, name) + getattr(whole, name) - getattr(part, name)
            for name in ("val", "test", "accuracy", "per_class")
        },
    )


def _error(found: Sequence[Result], metric: str, tested: Sequence[float], passes: float) -> float:
    """Standard error of the mean: binomial of all images; per class where that is the metric.

    An image that was tested several times counts once: there are `passes` over all of them.
    """
    labels = np.concatenate([one.labels for one in found])
    hits = np.concatenate([one.classes == one.labels for one in found])
    share, images = float(np.mean(tested)), len(labels) / passes
    if metric == TOP1:
        return float(np.sqrt(share * (1 - share) / images))
    variances = []
    for label in np.unique(labels):
        own = hits[labels == label]
        count = len(own) / passes
        rate = (own.mean() * count + 1) / (count + 2)  # of few the plain one is often 0 or 1
        variances.append(rate * (1 - rate) / count)
    return float(np.sqrt(np.sum(variances)) / len(variances))


def chance(first: Sequence[Result], second: Sequence[Result]) -> float:
    """McNemar's exact p-value of two methods on the images of the splits that both have.

    An image that several splits test counts once, for the method that is right on it more often.
    """
    ones, others = ({one.split: one for one in found} for found in (first, second))
    shared = sorted(ones.keys() & others.keys())
    if not shared:
        return 1.0
    images = np.concatenate([ones[k].images for k in shared])
    lead = np.concatenate([_hits(ones[k]) - _hits(others[k]) for k in shared])
    of_image = np.bincount(np.unique(images, return_inverse=True)[1], lead)
    return exact_sign_p(int((of_image > 0).sum()), int((of_image < 0).sum()))


def _hits(one: Result) -> np.ndarray:
    """1 where it is right, (N,)."""
    return (one.classes == one.labels).astype(np.int64)


@dataclass(frozen=True)
class ClassRow:
    """How a method does on one class."""

    name: str
    images: int  # tested
    recall: float


def by_class(found: Sequence[Result], names: Sequence[str]) -> list[ClassRow]:
    """Recall of each class that was tested, worst first."""
    labels = np.concatenate([one.labels for one in found])
    hits = np.concatenate([one.classes == one.labels for one in found])
    rows = [
        ClassRow(names[label], int((labels == label).sum()), float(hits[labels == label].mean()))
        for label in np.unique(labels)
    ]
    return sorted(rows, key=lambda row: (row.recall, row.images))

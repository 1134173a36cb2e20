"""What is told of a data set that a user brings before anything trains on it."""

from __future__ import annotations

import numpy as np

from peftbench.data.listing import Listing, Origin, SplitList
from peftbench.untrusted import printable

IMBALANCED = 1.5  # largest to smallest class, from which on top-1 says little of the small ones


def describe(listing: Listing) -> list[str]:
    """Lines for a terminal: what was found, how it was split, and what is odd about it.

    Empty for the data sets that are configured here, whose sizes are checked instead.
    """
    if listing.origin is None:
        return []
    lines = [_sizes(listing, listing.origin), *listing.origin.remarks, *listing.remarks()]
    return [*map(printable, lines), *_classes(listing), *overlaps(listing)]


def overlaps(listing: Listing) -> list[str]:
    """Images that stand in the data set more than once, byte for byte.

    Repeats within train are told of data sets that a user brings only; published ones are what
    they are.
    """
    lines = []
    copies = listing.copies_in_test()
    if copies:
        lines.append(
            f"{copies:,} of {len(listing.test):,} test images {_are(copies)} byte for byte in "
            "train or val as well: results flatter. Remove the copies."
        )
    repeats = len(listing.train) - len(set(listing.train.digests))
    if repeats and listing.origin is not None:
        torn = _labelled_twice(listing.train)
        other = f", {torn:,} of them under another class" if torn else ""
        lines.append(
            f"{repeats:,} of {len(listing.train):,} images of train repeat another one of train "
            f"byte for byte{other}."
        )
    return lines


def _sizes(listing: Listing, origin: Origin) -> str:
    total = sum(len(part) for _, part in listing.splits())
    sizes = ", ".join(f"{split} {len(part):,}" for split, part in listing.splits())
    how = "Split as given"
    if origin.fold:
        how = f"Test is {origin.fold}, drawn here"
    elif origin.drawn:
        rest = [split for split, _ in listing.splits() if split not in origin.drawn]
        how = f"{how}, {' and '.join(origin.drawn)} cut from train" if rest else "Split drawn here"
    seed = f" (dataset.split_seed={origin.split_seed})" if origin.drawn else ""
    classes = len(listing.class_names)
    return (
        f"{origin.name}: {total:,} image{'s' * (total != 1)} of {classes:,} "
        f"class{'es' * (classes != 1)} in {origin.place} ({origin.kind}). {how}: {sizes}{seed}."
    )


def _classes(listing: Listing) -> list[str]:
    """One class alone, classes without images, classes of unequal size."""
    names = listing.class_names
    counts = {
        split: np.bincount(part.labels, minlength=len(names)) for split, part in listing.splits()
    }
    totals = np.sum(list(counts.values()), axis=0)
    if len(names) == 1:
        return [
            f"There is one class alone, {names[0]!r}, so every answer is right. If its folders are "
            "the classes, give it as the root."
        ]
    lines = []
    for where, sizes in (("", totals), (" in test", counts["test"])):
        empty = np.flatnonzero((sizes == 0) & ((totals > 0) | (where == "")))
        if len(empty):
            lines.append(
                f"{len(empty):,} of {len(names):,} classes {_have(len(empty))} no image{where}, "
                f"first {names[empty[0]]!r}."
            )
    used = np.flatnonzero(totals)
    small, large = used[np.argmin(totals[used])], used[np.argmax(totals[used])]
    ratio = totals[large] / totals[small]
    if ratio > IMBALANCED:
        lines.append(
            f"Smallest class {names[small]!r} has {totals[small]:,} image"
            f"{'s' * int(totals[small] != 1)}, largest {names[large]!r} {totals[large]:,} "
            f"({ratio:.{0 if ratio >= 10 else 1}f} to 1): "
            "read mean per-class accuracy beside top-1, or choose by it with "
            "selection.metric=mean_per_class."
        )
    return lines


def _labelled_twice(part: SplitList) -> int:
    """How many images repeat an earlier one under another class."""
    first: dict[str, int] = {}
    pairs = zip(part.digests, part.labels, strict=True)
    return sum(first.setdefault(digest, label) != label for digest, label in pairs)


def _have(count: int) -> str:
    return "has" if count == 1 else "have"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"

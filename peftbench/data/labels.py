"""Labels of a list that may be no classes: gaps, measurements, several classes at once."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence

from peftbench.errors import DataError

GAPS = frozenset(("nan", "<na>", "#n/a", "nat", "-nan", "#na", "n.a.", "#n/a n/a"))  # of tables
LIKE_GAPS = frozenset(("na", "n/a", "none", "null", "nil", "?", "-", "--", "unknown", "missing"))
FEW = 20  # different numbers with fractions that may still be classes
BETWEEN = ("|", ";")  # what stands between classes and hardly ever within the name of one
MAYBE_BETWEEN = (",", "+", "&")


def check(lines: Mapping[str, int], counts: Mapping[str, int], where: str) -> tuple[str, ...]:
    """Sentences on labels that are odd.

    Args:
        lines: the first line of each label.
        counts: how many images each label has.

    Raises:
        DataError: labels that stand for no class, measurements, or lists of classes.
    """
    _check_gaps(lines, counts, where)
    numbers = _check_numbers(lines, counts, where)
    return (*_gaps(counts), *numbers, *_several(lines, counts, where))


def same_form(labels: Sequence[str]) -> dict[str, str]:
    """One spelling for labels that differ only in how Unicode writes an accent; others left out."""
    groups: dict[str, list[str]] = {}
    for label in dict.fromkeys(labels):
        groups.setdefault(unicodedata.normalize("NFC", label), []).append(label)
    return {label: form for form, group in groups.items() if len(group) > 1 for label in group}


def _check_gaps(lines: Mapping[str, int], counts: Mapping[str, int], where: str) -> None:
    gaps = [label for label in counts if label.casefold() in GAPS]
    if gaps:
        total = sum(counts[label] for label in gaps)
        raise DataError(
            f"{where}, line {lines[gaps[0]]}: {total:,} label{'s are' if total > 1 else ' is'} "
            f"{gaps[0]!r}, which is how gaps are written. Fill them, remove their lines, or spell "
            "the class in another way."
        )


def _gaps(counts: Mapping[str, int]) -> tuple[str, ...]:
    like = [label for label in counts if label.casefold() in LIKE_GAPS]
    return tuple(
        f"Label {label!r} of {counts[label]:,} image{'s' * (counts[label] != 1)} is taken for a "
        "class. If it means that there is no label, remove these lines."
        for label in like
    )


def _check_numbers(
    lines: Mapping[str, int], counts: Mapping[str, int], where: str
) -> tuple[str, ...]:
    values: dict[str, float] = {}
    for label in counts:
        try:
            values[label] = float(label)
        except ValueError:
            return ()
    if not all(map(math.isfinite, values.values())):
        return ()
    broken = [label for label, value in values.items() if value != int(value)]
    different, total = len(set(values.values())), sum(counts.values())
    measured = (different > FEW and (bool(broken) or 2 * different > total)) or (
        bool(broken) and 2 * different > total
    )
    if measured:
        first = broken[0] if broken else next(iter(counts))
        raise DataError(
            f"{where}, line {lines[first]}: the labels are numbers ({first} and others), "
            f"{different:,} different ones for {total:,} images, as of a measurement. Classes are "
            "needed: put the numbers into ranges and write the range of each image."
        )
    if broken:
        return (
            f"Labels are numbers with fractions ({broken[0]} and others): each of the "
            f"{different:,} is a class, and their order means nothing.",
        )
    return ()


def _several(lines: Mapping[str, int], counts: Mapping[str, int], where: str) -> tuple[str, ...]:
    """Labels that name several classes at once."""
    bracketed = [label for label in counts if label[0] + label[-1] in ("[]", "{}", "()")]
    if bracketed and 2 * len(bracketed) >= len(counts):
        raise _refusal(bracketed[0], lines, where)
    for mark in (*BETWEEN, *MAYBE_BETWEEN):
        joined = [label for label in counts if mark in label]
        if not joined:
            continue
        pieces = Counter(piece for label in counts for piece in _pieces(label, mark))
        shared = [label for label in joined if any(pieces[p] > 1 for p in _pieces(label, mark))]
        if shared and mark in BETWEEN:
            raise _refusal(shared[0], lines, where)
        if len(shared) > 1 or (shared and len(joined) == 1):
            return (
                f"{len(shared):,} of {len(counts):,} labels have parts in common, such as "
                f"{shared[0]!r}: each is taken for one class of its own, as an image has one "
                "class here.",
            )
    return ()


def _pieces(label: str, mark: str) -> set[str]:
    return {piece.strip().casefold() for piece in label.split(mark) if piece.strip()}


def _refusal(label: str, lines: Mapping[str, int], where: str) -> DataError:
    return DataError(
        f"{where}, line {lines[label]}: label {label!r} names several classes, and an image has "
        "one class here. Keep the images of one class, or write one class for each."
    )

"""Splits and folds of labelled images, whose groups are never torn: copies, one patient's images.

Without any group of several images, `split` draws what `stratified_split` draws.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from peftbench.data.splits import Assignment, share_of, stratified_split

Counts = npt.NDArray[np.int64]
TRAIN, VAL, TEST = range(3)


def split(
    labels: Counts,
    groups: Counts,
    val_fraction: float,
    test_fraction: float,
    generator: np.random.Generator,
) -> Assignment:
    """Train, val and test by rounded shares of each class, as near as the groups allow.

    A class with too few groups for all parts is in train first; every class of val and test is in
    train as well.

    Args:
        labels: class of each image, (N,).
        groups: number of the group of each image, (N,); below N.

    Raises:
        DataError: the fractions, or the images of a class, leave nothing to train on.
    """
    plain = stratified_split(labels, val_fraction, test_fraction, generator)
    if not _has_several(groups):
        return plain
    classes, codes = np.unique(labels, return_inverse=True)
    quotas = np.zeros((len(classes), 3))
    for code, size in enumerate(np.bincount(codes)):
        num_val, num_test = share_of(int(size), val_fraction), share_of(int(size), test_fraction)
        quotas[code] = size - num_val - num_test, num_val, num_test
    part = np.full(len(labels), -1)
    held = np.zeros(quotas.shape)
    left = np.bincount(codes, minlength=len(classes)).astype(float)
    for rows in _larger_first(groups, generator):
        counts = np.bincount(codes[rows], minlength=len(classes))
        left -= counts
        untrained = (counts > 0) & (held[:, TRAIN] == 0) & (left == 0)
        chosen = TRAIN if untrained.any() else _roomiest(counts, quotas, held, generator)
        held[:, chosen] += counts
        part[rows] = chosen
    for code in range(len(classes)):
        rows = generator.permutation(np.flatnonzero((codes == code) & (part == -1)))
        part[rows] = _filled(len(rows), quotas[code], held[code])
    return Assignment(*(np.flatnonzero(part == one) for one in (TRAIN, VAL, TEST)))


def folds(labels: Counts, groups: Counts, number: int, generator: np.random.Generator) -> Counts:
    """The fold of each image, (N,): folds share each class out evenly, as the groups allow.

    Without groups of several images, folds differ by at most one image of each class, and of all.

    Args:
        labels: class of each image, (N,).
        groups: number of the group of each image, (N,).
        number: of folds.
    """
    classes, codes = np.unique(labels, return_inverse=True)
    quotas = np.repeat(np.bincount(codes)[:, None] / number, number, axis=1)
    fold = np.full(len(labels), -1)
    held = np.zeros(quotas.shape)
    for rows in _larger_first(groups, generator):
        counts = np.bincount(codes[rows], minlength=len(classes))
        chosen = _roomiest(counts, quotas, held, generator)
        held[:, chosen] += counts
        fold[rows] = chosen
    for code in range(len(classes)):
        for row in generator.permutation(np.flatnonzero((codes == code) & (fold == -1))):
            chosen = int(np.lexsort((held.sum(axis=0), held[code]))[0])  # of equals the smallest
            held[code, chosen] += 1
            fold[row] = chosen
    return fold


def _has_several(groups: Counts) -> bool:
    return len(groups) > 0 and int(np.bincount(groups).max()) > 1


def _larger_first(groups: Counts, generator: np.random.Generator) -> list[Counts]:
    """Rows of each group of several images, the largest first and equals in a drawn order."""
    sizes = np.bincount(groups)
    several = generator.permutation(np.flatnonzero(sizes > 1))
    ordered = several[np.argsort(-sizes[several], kind="stable")]
    order = np.argsort(groups, kind="stable")
    ends = np.cumsum(sizes)
    return [order[ends[one] - sizes[one] : ends[one]] for one in ordered]


def _roomiest(
    counts: Counts, quotas: np.ndarray, held: np.ndarray, generator: np.random.Generator
) -> int:
    """The part that a group overfills least; of equals the one that is emptiest for its classes.

    Between those that are alike in both, larger parts are drawn as much more often, so that over
    many draws a group is tested as often as a single image.

    Args:
        counts: images of each class in the group, (C,).
        quotas: images of each class that a part is to have, (C, parts).
        held: those that it has, (C, parts).
    """
    over = np.maximum(0.0, held + counts[:, None] - quotas).sum(axis=0)
    sizes = quotas.sum(axis=0)
    over[sizes == 0] = np.inf  # a part that is not drawn
    race = generator.exponential(size=len(over)) / np.maximum(sizes, 1e-9)  # won by share
    empty = ((quotas - held) / np.maximum(quotas, 1e-9) * counts[:, None]).sum(axis=0)
    return int(np.lexsort((race, -np.round(empty, 9), np.round(over, 9)))[0])


def _filled(number: int, quotas: np.ndarray, held: np.ndarray) -> Counts:
    """The part of each of `number` single images of a class, (number,).

    Test and val get what they lack, as far as it reaches, and train the rest, at least one image
    where it has none yet.
    """
    missing = np.maximum(0, np.round(quotas - held)).astype(int)
    spare = number - (1 if held[TRAIN] == 0 else 0)
    num_test = max(0, min(missing[TEST], spare))
    num_val = max(0, min(missing[VAL], spare - num_test))
    sizes = [number - num_val - num_test, num_val, num_test]
    return np.repeat([TRAIN, VAL, TEST], sizes)

"""What predictions of single images say of classes; arrays and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Classes = npt.NDArray[np.integer]


@dataclass(frozen=True)
class PerClass:
    """Of each class, by its number; `None` where it is a share of no image."""

    images: tuple[int, ...]  # that are of the class
    said: tuple[int, ...]  # that were said to be
    precision: tuple[float | None, ...]  # share of `said` that are of the class
    recall: tuple[float | None, ...]  # share of `images` that were said to be


def confusions(labels: Classes, classes: Classes, num_classes: int) -> npt.NDArray[np.int64]:
    """(C, C) images of the class of a row that were said to be of the class of a column.

    labels, classes: (N,) true and predicted, numbers below `num_classes`.
    """
    places = labels.astype(np.int64) * num_classes + classes
    counts = np.bincount(places, minlength=num_classes * num_classes)
    return counts.reshape(num_classes, num_classes)


def per_class(matrix: npt.NDArray[np.int64]) -> PerClass:
    """Precision and recall of each class, from confusions (C, C)."""
    right, images, said = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
    return PerClass(
        tuple(images.tolist()),
        tuple(said.tolist()),
        _shares(right, said),
        _shares(right, images),
    )


def _shares(right: Classes, of: Classes) -> tuple[float | None, ...]:
    return tuple(r / n if n else None for r, n in zip(right.tolist(), of.tolist(), strict=True))


def cells(matrix: npt.NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """True class, predicted class and number of images where confusions (C, C) are not zero."""
    true, said = np.nonzero(matrix)
    return list(zip(true.tolist(), said.tolist(), matrix[true, said].tolist(), strict=True))


def by_confidence(confidence: npt.NDArray[np.floating], chosen: npt.NDArray[np.bool_]) -> list[int]:
    """Numbers of the `chosen` (N,) images, those of the highest confidence (N,) first."""
    numbers = np.flatnonzero(chosen)
    # of equal ones the first of the split: the page has the same bytes for the same runs
    order = np.argsort(-confidence[numbers].astype(np.float64), kind="stable")
    found: list[int] = numbers[order].tolist()
    return found


def in_cells(
    labels: Classes, classes: Classes, confidence: npt.NDArray[np.floating], most: int
) -> list[int]:
    """Numbers of images to be shown first, all (N,): at most `most` of each confusion.

    The most confident mistake of each confusion comes before the second of any, and confusions of
    more images before others.
    """
    ranks: dict[tuple[int, int], list[int]] = {}
    for number in by_confidence(confidence, labels != classes):
        ranks.setdefault((int(labels[number]), int(classes[number])), []).append(number)
    often = sorted(ranks.items(), key=lambda item: (-len(item[1]), item[0]))
    return [found[rank] for rank in range(most) for _, found in often if rank < len(found)]


@dataclass(frozen=True)
class LargestClass:
    """Saying the largest class of training of every image."""

    number: int  # of the class
    share: float  # of test images that are of it


def majority(trained: Classes, labels: Classes) -> LargestClass | None:
    """From images of each class in training (C,) and true classes (N,) of test; of ties the first.

    `None` without an image.
    """
    if not len(labels) or not trained.sum():
        return None
    number = int(trained.argmax())
    return LargestClass(number, float((labels == number).mean()))

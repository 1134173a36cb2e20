"""What is told of a user's data set, word by word."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from peftbench.data import describe
from peftbench.data.found import overlaps
from peftbench.data.listing import Listing, Origin, SplitList


def split(counts: tuple[int, ...], prefix: str) -> SplitList:
    """So many images of each class, all different."""
    labels = tuple(int(label) for label in np.repeat(range(len(counts)), counts))
    names = tuple(f"{prefix}{i}" for i in range(len(labels)))
    return SplitList(names, labels, names)


def listing(
    train: tuple[int, ...],
    val: tuple[int, ...],
    test: tuple[int, ...],
    drawn: tuple[str, ...] = ("train", "val", "test"),
) -> Listing:
    return Listing(
        title="birds",
        suite="",
        suite_version=0,
        group="",
        licence="",
        source="",
        notice="",
        class_names=("finch", "robin", "wren")[: len(train)],
        train=split(train, "a"),
        val=split(val, "b"),
        test=split(test, "c"),
        manifest="",
        decode=lambda part, preprocessing, title: np.zeros((0, 1, 1, 3), np.uint8),
        origin=Origin("folder", "/data/birds", "class folders", drawn, 0),
    )


def test_a_balanced_folder_is_one_line() -> None:
    assert describe(listing((700, 700), (100, 100), (200, 200))) == [
        "folder: 2,000 images of 2 classes in /data/birds (class folders). Split drawn here: "
        "train 1,400, val 200, test 400 (dataset.split_seed=0)."
    ]


@pytest.mark.parametrize(
    ("drawn", "expected"),
    [
        ((), "Split as given: train 2, val 2, test 2."),
        (
            ("val",),
            "Split as given, val cut from train: train 2, val 2, test 2 (dataset.split_seed=0).",
        ),
    ],
)
def test_it_says_which_splits_were_given(drawn: tuple[str, ...], expected: str) -> None:
    (line,) = describe(listing((1, 1), (1, 1), (1, 1), drawn))
    assert line == f"folder: 6 images of 2 classes in /data/birds (class folders). {expected}"


@pytest.mark.parametrize(
    ("robins", "ratio"),
    [(13, None), (14, "1.6"), (89, "9.9"), (234, "26"), (9000, "1000")],
    # 9 of the smallest class; 13 to 9 is 1.4 to 1
)
def test_unequal_classes_are_named_from_one_and_a_half_to_one_on(
    robins: int, ratio: str | None
) -> None:
    lines = describe(listing((8, robins - 2, 5), (1, 1, 2), (1, 1, 2)))[1:]
    expected = (
        f"Smallest class 'wren' has 9 images, largest 'robin' {robins:,} ({ratio} to 1): "
        "read mean per-class accuracy beside top-1, or choose by it with "
        "selection.metric=mean_per_class."
    )
    assert lines == ([] if ratio is None else [expected])


def test_classes_without_images_are_named() -> None:
    assert describe(listing((5, 5, 0), (1, 1, 0), (3, 0, 0), ()))[1:] == [
        "1 of 3 classes has no image, first 'wren'.",
        "1 of 3 classes has no image in test, first 'robin'.",
    ]


def test_one_class_alone_is_told() -> None:
    assert describe(listing((5,), (1,), (1,)))[1:] == [
        "There is one class alone, 'finch', so every answer is right. If its folders are the "
        "classes, give it as the root."
    ]


def test_copies_are_counted_across_splits_and_within_train() -> None:
    plain = listing((3, 3), (1, 1), (2, 2), ())
    # a test image of train and one of val; in train a pair, and one image under both classes
    test = replace(plain.test, digests=("a0", "b1", "c2", "c3"))
    train = replace(plain.train, digests=("a0", "a0", "a2", "a2", "a4", "a5"))
    found = replace(plain, train=train, test=test)
    expected = [
        "2 of 4 test images are byte for byte in train or val as well: results flatter. "
        "Remove the copies.",
        "2 of 6 images of train repeat another one of train byte for byte, 1 of them under "
        "another class.",
    ]
    assert describe(found)[1:] == expected
    assert overlaps(found) == expected


def test_of_data_sets_that_are_configured_here_copies_in_test_alone_are_told() -> None:
    shipped = replace(listing((1, 99), (1, 1), (1, 1)), origin=None)
    same = replace(shipped.train, digests=("a",) * len(shipped.train))
    assert describe(shipped) == overlaps(replace(shipped, train=same)) == []
    assert overlaps(replace(shipped, test=shipped.train)) == [
        "100 of 100 test images are byte for byte in train or val as well: results flatter. "
        "Remove the copies."
    ]

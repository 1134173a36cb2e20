"""Promises of the split types and of the functions that cut them."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from peftbench.data import TestSplit, TrainSplit, ValSplit
from peftbench.data.splits import stratified_cut, stratified_split
from peftbench.errors import DataError, SplitRoleError


def arrays(count: int = 4) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    images = np.arange(count * 12, dtype=np.uint8).reshape(count, 2, 2, 3)
    return images, np.arange(count, dtype=np.int64), tuple(f"{i}.png" for i in range(count))


def test_a_test_split_opens_exactly_once() -> None:
    split = TestSplit(*arrays())
    images, labels = split.open_once()
    assert np.array_equal(images, arrays()[0])
    assert labels.tolist() == [0, 1, 2, 3]
    with pytest.raises(SplitRoleError, match="opened a second time"):
        split.open_once()


def test_a_sealed_test_split_shows_names_and_length_but_no_arrays() -> None:
    split = TestSplit(*arrays())
    assert len(split) == 4
    assert split.names == ("0.png", "1.png", "2.png", "3.png")
    assert not hasattr(split, "images")
    assert not hasattr(split, "labels")
    assert repr(split) == "TestSplit(4 images, sealed)"


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_test_split_cannot_be_copied_to_be_opened_twice(duplicate) -> None:
    with pytest.raises(SplitRoleError, match="cannot be copied"):
        duplicate(TestSplit(*arrays()))


def test_the_three_roles_are_unrelated_types() -> None:
    assert not issubclass(TestSplit, TrainSplit) and not issubclass(TestSplit, ValSplit)
    assert not issubclass(ValSplit, TrainSplit) and not issubclass(TrainSplit, ValSplit)


@pytest.mark.parametrize("role", [TrainSplit, ValSplit])
def test_arrays_of_an_open_split_cannot_be_written(role) -> None:
    split = role(*arrays())
    with pytest.raises(ValueError, match="read-only"):
        split.images[0] = 0
    with pytest.raises(ValueError, match="read-only"):
        split.labels[0] = 1


def test_every_class_is_cut_by_its_rounded_share() -> None:
    labels = np.repeat([0, 1, 2], [10, 20, 5])
    drawn = stratified_split(labels, 0.1, 0.2, np.random.default_rng(0))
    # 10 -> 1 val, 2 test; 20 -> 2 val, 4 test; 5 -> 1 val (at least one), 1 test.
    assert np.bincount(labels[drawn.val]).tolist() == [1, 2, 1]
    assert np.bincount(labels[drawn.test]).tolist() == [2, 4, 1]
    assert np.bincount(labels[drawn.train]).tolist() == [7, 14, 3]


def test_parts_of_a_split_are_disjoint_and_cover_everything() -> None:
    labels = np.repeat(np.arange(7), 11)
    drawn = stratified_split(labels, 0.2, 0.3, np.random.default_rng(3))
    together = np.concatenate([drawn.train, drawn.val, drawn.test])
    assert sorted(together.tolist()) == list(range(77))


def test_a_split_depends_on_the_seed_alone() -> None:
    labels = np.repeat(np.arange(3), 20)
    one = stratified_split(labels, 0.2, 0.2, np.random.default_rng(1))
    same = stratified_split(labels, 0.2, 0.2, np.random.default_rng(1))
    other = stratified_split(labels, 0.2, 0.2, np.random.default_rng(2))
    assert one.test.tolist() == same.test.tolist()
    assert one.test.tolist() != other.test.tolist()


def test_a_split_that_leaves_nothing_to_train_on_is_refused() -> None:
    with pytest.raises(DataError, match="leave nothing to train on"):
        stratified_split(np.zeros(9, dtype=int), 0.5, 0.5, np.random.default_rng(0))
    with pytest.raises(DataError, match="Class number 1 has 2 images; this split needs at least 3"):
        stratified_split(np.array([0, 0, 0, 1, 1]), 0.1, 0.2, np.random.default_rng(0))


def test_a_cut_keeps_class_shares_and_the_order() -> None:
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    rows = stratified_cut(labels, 10, np.random.default_rng(0))
    assert np.bincount(labels[rows]).tolist() == [6, 3, 1]
    assert rows.tolist() == sorted(rows.tolist())


def test_a_cut_below_the_number_of_classes_is_filled() -> None:
    labels = np.repeat(np.arange(16), 5)
    assert len(stratified_cut(labels, 3, np.random.default_rng(0))) == 3


def test_a_cut_above_the_size_keeps_everything() -> None:
    assert stratified_cut(np.zeros(4, dtype=int), 9, np.random.default_rng(0)).tolist() == [
        0, 1, 2, 3,
    ]  # fmt: skip


def test_a_cut_to_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="limit=0 keeps no image"):
        stratified_cut(np.zeros(4, dtype=int), 0, np.random.default_rng(0))

"""Where methods stand after some splits; expected values by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from peftbench.sweep.compare.standing import Result, by_class, standing

ORDER = ("majority", "logistic", "linear", "lora")


def result(
    method: str,
    hits: Sequence[int],
    val: float,
    split: int = 0,
    val_images: int = 100,
    val_per_class: float = 0.5,
) -> Result:
    """Two classes that take turns; `hits` says which images are right."""
    labels = np.arange(len(hits)) % 2
    right = np.asarray(hits, dtype=bool)
    per_class = [float(right[labels == c].mean()) for c in (0, 1)]
    metrics = {"top1": float(right.mean()), "mean_per_class": float(np.mean(per_class))}
    classes = np.where(right, labels, 1 - labels)
    return Result(
        method,
        split,
        f"{method}{split}",
        val,
        val_images,
        val_per_class,
        metrics,
        labels,
        classes,
        7,
        1,
    )


def right(count: int, of: int) -> list[int]:
    return [1] * count + [0] * (of - count)


def test_methods_are_ranked_by_val_and_not_by_test() -> None:
    now = standing(
        [result("linear", right(40, 100), 0.6), result("lora", right(90, 100), 0.5)], "top1", ORDER
    )
    assert now is not None
    assert [row.method for row in now.rows] == ["linear", "lora"]
    assert now.row("lora").test == pytest.approx(0.9)


def test_methods_that_the_test_images_tell_apart_are_not_level() -> None:
    # 30 images on which one is right alone, none the other way: p = 2^-29
    now = standing(
        [result("lora", right(90, 100), 0.9), result("linear", right(60, 100), 0.5)], "top1", ORDER
    )
    assert now is not None
    assert (now.level, now.recommended) == (("lora",), "lora")


def test_of_level_methods_within_one_error_on_val_the_cheapest_is_taken() -> None:
    # sqrt(0.8 * 0.2 / 100) = 0.04 on as many val images
    results = [result("lora", right(80, 100), 0.82), result("linear", right(79, 100), 0.79)]
    now = standing(results, "top1", ORDER)
    assert now is not None
    assert (now.level, now.recommended) == (("lora", "linear"), "linear")
    further = [results[0], result("linear", right(79, 100), 0.77)]
    now = standing(further, "top1", ORDER)
    assert now is not None
    assert now.recommended == "lora"


def test_the_smaller_error_counts_so_that_few_val_images_let_no_other_pass() -> None:
    now = standing(
        [
            result("lora", right(80, 100), 0.9, val_images=4),  # error 0.2
            result("linear", right(80, 100), 0.8, val_images=100),  # error 0.04
        ],
        "top1",
        ORDER,
    )
    assert now is not None
    assert now.recommended == "lora"


def test_the_majority_class_is_shown_and_never_recommended() -> None:
    now = standing(
        [result("majority", right(60, 100), 0.6), result("linear", right(58, 100), 0.5)],
        "top1",
        ORDER,
    )
    assert now is not None
    assert now.rows[0].method == "majority"
    assert now.recommended == "linear"
    assert standing([], "top1", ORDER) is None


def test_a_method_that_lacks_splits_is_moved_by_how_easy_they_are() -> None:
    # logistic: 0.9 and 0.5, 0.7 on average; the first split is 0.2 easier
    now = standing(
        [
            result("logistic", right(9, 10), 0.8, 0),
            result("logistic", right(5, 10), 0.4, 1),
            result("lora", right(10, 10), 0.9, 0),
        ],
        "top1",
        ORDER,
    )
    assert now is not None
    row = now.row("lora")
    assert (row.val, row.test) == (pytest.approx(0.7), pytest.approx(0.8))
    assert now.partial == ("lora",)


def test_the_error_of_a_mean_per_class_is_that_of_its_classes() -> None:
    now = standing([result("linear", right(6, 10), 0.5)], "mean_per_class", ORDER)
    assert now is not None
    # three of five right in each class: (3 + 1) / (5 + 2), whose variance is p (1 - p) / 5
    p = 4 / 7
    assert now.rows[0].error == pytest.approx(np.sqrt(2 * p * (1 - p) / 5) / 2)


def test_recall_of_classes_is_over_all_splits_and_worst_first() -> None:
    rows = by_class(
        [result("lora", [1, 0, 1, 0], 0.5, 0), result("lora", [1, 1, 0, 0], 0.5, 1)], ["a", "b"]
    )
    assert [(row.name, row.images, row.recall) for row in rows] == [("b", 4, 0.25), ("a", 4, 0.75)]


def test_of_equally_cheap_methods_the_better_mean_per_class_on_val_decides() -> None:
    results = [
        result("logistic", right(80, 100), 0.81, val_per_class=0.3),
        result("linear", right(79, 100), 0.80, val_per_class=0.4),
    ]
    now = standing(results, "top1", ORDER)
    assert now is not None
    assert (now.rows[0].method, now.recommended) == ("logistic", "linear")

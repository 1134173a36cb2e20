"""Promises of the short way to the best method and its equals: the same answer from fewer tests."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from peftbench.statistics import best
from peftbench.statistics import leaders as module
from peftbench.statistics.best import not_distinguishable
from peftbench.statistics.leaders import leaders


def runs(means, *, seeds, datasets=3, spread=0.01, number=0):
    """A table of methods "a", "b", ... with these means, in a frame of scores."""
    draw = np.random.default_rng(number)
    rows = [
        (label, f"task{d}", seed, mean + draw.normal(0.0, spread))
        for label, mean in zip("abcdefgh", means, strict=False)
        for d in range(datasets)
        for seed in range(seeds if isinstance(seeds, int) else int(draw.integers(*seeds)))
    ]
    return pd.DataFrame(rows, columns=["label", "dataset", "seed", "score"])


@pytest.fixture
def tested(monkeypatch):
    """Pairs that the exchange test is asked for, call by call."""
    calls = []
    exchange_p = best.exchange_p

    def counting(table, pairs, **choices):
        calls.append(list(pairs))
        return exchange_p(table, pairs, **choices)

    monkeypatch.setattr(best, "exchange_p", counting)
    return calls


@pytest.mark.parametrize("at_once", [2, 100])
@pytest.mark.parametrize("alpha", [0.05, 0.3, 0.6])
@pytest.mark.parametrize("step", [0.0, 0.004, 0.008, 0.1])
def test_the_answer_is_that_of_all_pairs(monkeypatch, step, alpha, at_once):
    monkeypatch.setattr(module, "AT_ONCE", at_once)
    for number in range(3):
        table = runs(0.5 - step * np.arange(6), seeds=(2, 6), number=number)
        choice = {"alpha": alpha, "permutations": 300}
        whole = not_distinguishable(table, **choice)
        assert leaders(table, **choice) == dataclasses.replace(whole, p_holm={})


def test_where_all_differ_clearly_only_pairs_with_the_best_are_tested(tested):
    found = leaders(runs([0.9, 0.7, 0.5, 0.3], seeds=6), permutations=2000)
    assert found.members == ("a",)
    assert tested == [[("a", "b"), ("a", "c"), ("a", "d")]]


def test_where_welchs_test_tells_none_apart_no_exchange_is_made(tested):
    table = runs([0.5, 0.5, 0.5], seeds=4, spread=0.0)
    table["score"] += 0.01 * (table["seed"] % 2)  # every method has the same scores
    assert leaders(table).members == ("a", "b", "c")
    assert tested == []


def test_a_method_without_all_data_sets_is_not_compared():
    table = runs([0.9, 0.5, 0.3], seeds=4)
    table = table[(table["label"] != "a") | (table["dataset"] != "task0")]
    assert leaders(table).best == "b"
    assert leaders(table[table["label"] == "a"].iloc[:0]) is None


def test_one_method_is_the_best_of_itself(tested):
    found = leaders(runs([0.9], seeds=2))
    assert (found.members, found.conclusive, tested) == (("a",), False, [])

"""Promises of ranks and of the set not distinguishable from the best."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from simulate_false_positives import SPREADS, false_positives

from peftbench.statistics.best import against_best, exchange_p, not_distinguishable, unequal_p
from peftbench.statistics.intervals import DATASETS, SEEDS
from peftbench.statistics.ranks import (
    average_ranks,
    friedman,
    groups,
    holm,
    pairwise,
    signed_rank_p,
    win_rates,
)

# ranks: x 1 1 2, y 2 3 1, z 3 2 3
MEANS = pd.DataFrame(
    [[0.9, 0.8, 0.5], [0.7, 0.4, 0.6], [0.3, 0.5, 0.1]], index=list("xyz"), columns=list("abc")
)


def long(scores, labels=None):
    """(methods, data sets, seeds) as a frame of scores."""
    labels = labels or [f"m{i}" for i in range(len(scores))]
    rows = [
        (labels[i], f"d{j:02}", k, float(scores[i][j][k]))
        for i in range(len(scores))
        for j in range(len(scores[i]))
        for k in range(len(scores[i][j]))
    ]
    return pd.DataFrame(rows, columns=["label", "dataset", "seed", "score"])


def test_average_ranks_give_ties_their_shared_rank():
    assert average_ranks(MEANS).to_dict() == pytest.approx({"x": 4 / 3, "y": 2.0, "z": 8 / 3})
    tied = MEANS.assign(c=0.5)  # all share (1 + 2 + 3) / 3 = 2: x 1 1 2, y 2 3 2, z 3 2 2
    assert average_ranks(tied).to_dict() == pytest.approx({"x": 4 / 3, "y": 7 / 3, "z": 7 / 3})


def test_friedmans_statistic_of_three_methods_on_three_data_sets():
    found = friedman(MEANS)
    # 12 n / (k (k + 1)) (sum R^2 - k (k + 1)^2 / 4) = 3 ((16 + 36 + 64) / 9 - 12) = 8 / 3
    assert found.statistic == pytest.approx(8 / 3)
    assert found.p == pytest.approx(np.exp(-8 / 6))  # chi-square with 2 degrees of freedom
    assert friedman(MEANS.iloc[:2]).p is None and friedman(MEANS[["a"]]).p is None
    assert friedman(MEANS * 0).p is None  # no method differs anywhere


def test_holm_multiplies_by_the_tests_that_are_left():
    # sorted 0.01 x 3, 0.02 x 2, 0.9 x 1; never below the one before
    assert holm([0.02, 0.9, 0.01]) == pytest.approx([0.04, 0.9, 0.03])
    assert holm([0.01, 0.011]) == pytest.approx([0.02, 0.02])
    assert holm([0.5, 0.6]) == pytest.approx([1.0, 1.0])
    assert holm([]).shape == (0,)


def test_signed_ranks_are_exact_with_and_without_ties():
    # ranks 1 2 3 all positive: 2 of the 8 choices of signs
    assert signed_rank_p([0.1, 0.2, 0.3]) == pytest.approx(2 / 8)
    # the lowest negative: W- = 1, reached by {} and {1}, twice of 8
    assert signed_rank_p([-0.1, 0.2, 0.3]) == pytest.approx(4 / 8)
    # two tied: ranks 1.5 1.5 3; W- = 1.5 is {}, {first}, {second}: 2 x 3 / 8
    assert signed_rank_p([-0.1, 0.1, 0.3]) == pytest.approx(6 / 8)
    assert signed_rank_p([0.0, 0.1, 0.2, 0.3]) == pytest.approx(2 / 8)  # a zero does not count
    assert signed_rank_p([0.0, 1e-17]) == 1.0
    # n = 10, W = 8: 25 of 1024 in one tail (tables of Wilcoxon's statistic)
    signs = np.where(np.isin(np.arange(1, 11), [1, 7]), -1, 1)
    assert signed_rank_p(signs * np.arange(1, 11)) == pytest.approx(2 * 25 / 1024)


def test_every_pair_has_its_wins_and_a_corrected_p_value():
    rows = pairwise(MEANS).set_index(["first", "second"])
    assert list(rows.index) == [("x", "y"), ("x", "z"), ("y", "z")]
    assert rows.loc[("x", "y"), ["wins", "ties", "losses"]].tolist() == [2, 0, 1]
    assert rows.loc[("x", "z"), "difference"] == pytest.approx((2.2 - 0.9) / 3)
    # x - z: 0.6 0.3 0.4 all positive, 2 / 8; three tests: 0.75
    assert rows.loc[("x", "z"), "p"] == pytest.approx(0.25)
    assert rows.loc[("x", "z"), "p_holm"] == pytest.approx(0.75)
    rates = win_rates(MEANS)
    assert rates.loc["x", "y"] == pytest.approx(2 / 3) and np.isnan(rates.loc["x", "x"])
    assert rates.loc["y", "x"] == pytest.approx(1 / 3)
    assert win_rates(MEANS * 0).loc["x", "y"] == 0.5


def test_bars_join_neighbours_of_which_no_two_differ():
    tests = pairwise(MEANS)
    assert groups(MEANS, tests) == [("x", "y", "z")]
    apart = tests.assign(p_holm=[0.5, 0.01, 0.5])  # x and z differ
    assert groups(MEANS, apart) == [("x", "y"), ("y", "z")]
    assert groups(MEANS, tests.assign(p_holm=[0.01, 0.01, 0.01])) == []
    assert groups(MEANS, tests.assign(p_holm=[0.01, 0.01, 0.5])) == [("y", "z")]


def test_the_exchange_test_is_exact_in_a_case_that_can_be_counted():
    # one data set, 3 + 3 runs, fully apart: 2 of C(6, 3) = 20 exchanges are as extreme
    table = long([[[0.7, 0.8, 0.9]], [[0.1, 0.2, 0.3]]])
    assert exchange_p(table, [("m0", "m1")])[0] == pytest.approx(0.1, abs=0.01)
    # two data sets: 2 of 400
    table = long([[[0.7, 0.8, 0.9]] * 2, [[0.1, 0.2, 0.3]] * 2])
    assert exchange_p(table, [("m0", "m1")])[0] == pytest.approx(0.005, abs=0.002)
    same = long([[[0.5, 0.6]], [[0.5, 0.6]]])
    assert exchange_p(same, [("m0", "m1")])[0] == 1.0


def test_methods_that_win_on_different_data_sets_are_told_apart_by_their_means():
    # means 0.55 and 0.45, with differences of 0.4, -0.2, 0.1, 0.1 that seeds change by 0.01
    first = np.array([0.9, 0.3, 0.5, 0.5])[:, None] + np.array([-0.01, 0.0, 0.01])
    second = np.array([0.5, 0.5, 0.4, 0.4])[:, None] + np.array([-0.01, 0.0, 0.01])
    assert exchange_p(long([first, second]), [("m0", "m1")])[0] < 0.001


def test_a_clearly_worse_method_leaves_the_set_and_its_equals_stay():
    generator = np.random.default_rng(0)
    noise = generator.normal(0, 0.01, (4, 4, 3))
    levels = np.array([0.80, 0.80, 0.80, 0.60])[:, None, None]
    found = not_distinguishable(long(levels + noise))
    assert found.conclusive and found.over == SEEDS and (found.datasets, found.seeds) == (4, 3)
    assert set(found.members) == {"m0", "m1", "m2"} and found.best == found.members[0]
    assert found.p_holm["m3"] <= 0.05 and found.best not in found.p_holm


def test_with_few_data_sets_nothing_can_be_told_of_new_ones():
    table = long(np.array([0.9, 0.5, 0.1])[:, None, None] + np.zeros((3, 4, 3)))
    found = not_distinguishable(table, over=DATASETS)
    # four data sets: 2 / 2^4 = 0.125, three pairs: 0.375
    assert not found.conclusive and found.smallest == pytest.approx(0.375)
    assert found.members == ("m0", "m1", "m2")
    wide = long(np.array([0.9, 0.5, 0.1])[:, None, None] + np.zeros((3, 7, 1)))
    found = not_distinguishable(wide, over=DATASETS)  # 3 x 2 / 2^7 = 0.047
    assert found.conclusive and found.members == ("m0",)
    single = not_distinguishable(long([[[0.9]], [[0.1]]]))
    assert not single.conclusive and single.members == ("m0", "m1") and single.smallest == 1.0


def test_a_method_without_all_data_sets_is_not_compared():
    table = long([[[0.5], [0.5]], [[0.9]]])
    assert not_distinguishable(table).members == ("m0",)
    assert not_distinguishable(table.iloc[:0]) is None


@pytest.mark.parametrize("over, shape", [(SEEDS, (5, 4, 3)), (DATASETS, (5, 12, 1))])
def test_equal_methods_are_told_apart_no_more_often_than_stated(over, shape):
    generator = np.random.default_rng(3)
    trials = 150
    difficulty = generator.normal(0, 0.1, (trials, 1, shape[1], 1))
    values = 0.5 + difficulty + generator.normal(0, 0.02, (trials, *shape))
    means = values.mean(axis=-1)
    pairs = list(combinations(range(shape[0]), 2))
    if over == SEEDS:  # one call for all: the methods of one suite are compared with no other
        named = [[(f"{t:03}-{a}", f"{t:03}-{b}") for a, b in pairs] for t in range(trials)]
        labels = [f"{t:03}-{i}" for t in range(trials) for i in range(shape[0])]
        table = long(values.reshape(-1, *shape[1:]), labels)
        flat = exchange_p(table, [pair for part in named for pair in part], permutations=1999)
        p = flat.reshape(trials, -1)
    else:
        p = np.array([[signed_rank_p(m[a] - m[b]) for a, b in pairs] for m in means])
    wrong = 0
    for mean, row in zip(means.mean(axis=-1), p, strict=True):
        best = str(int(mean.argmax()))
        against = against_best(best, [(str(a), str(b)) for a, b in pairs], row)
        wrong += min(against.values()) <= 0.05
    # 5 % promised: more than 14 of 150 has a chance below 1 % at exactly 5 %
    assert wrong <= 14


def test_methods_of_unequal_spread_have_welchs_test():
    table = long([[[0.7, 0.8, 0.9]], [[0.1, 0.2, 0.3]]])
    # t = 0.6 / sqrt(2 x 0.01 / 3) = 7.35 with 4 degrees of freedom; 1 - F = 0.00091 on each side
    assert unequal_p(table, [("m0", "m1"), ("m1", "m0")]) == pytest.approx([0.00182] * 2, abs=2e-5)
    # all spread in one method: 2 degrees of freedom, p = 1 - t / sqrt(2 + t^2)
    wide = long([[[0.7, 0.8, 0.9]], [[0.2, 0.2, 0.2]]])
    t = 0.6 * 3**0.5 / 0.1
    assert unequal_p(wide, [("m0", "m1")])[0] == pytest.approx(1 - t / (2 + t**2) ** 0.5)
    # one seed, or seeds that all agree, leave it to the exchange of runs
    assert unequal_p(long([[[0.7]], [[0.2]]]), [("m0", "m1")])[0] == 0
    assert unequal_p(long([[[0.7, 0.7]], [[0.2, 0.2]]]), [("m0", "m1")])[0] == 0


def test_skewed_methods_of_unequal_spread_are_told_apart_no_more_often_than_stated():
    # 5 % promised; more than 8 of 60 has a chance below 1 % at exactly 5 %
    assert false_positives((4, 5), "skewed", "one wide", 60, permutations=999) <= 8 / 60


@pytest.mark.slow
@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("kind", ["normal", "skewed"])
@pytest.mark.parametrize("datasets, seeds", [(1, 3), (1, 5), (4, 3), (4, 5)])
def test_false_positives_stay_below_five_percent(datasets, seeds, kind, spread):
    # two standard errors of 400 simulations are 2.2 %
    assert false_positives((datasets, seeds), kind, spread, 400, seed=5) <= 0.072

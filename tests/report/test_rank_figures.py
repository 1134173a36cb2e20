"""Promises of the critical-difference diagram, the win rates, and the intervals beside them."""

from __future__ import annotations

import pytest

from peftbench.report.figures import critical_difference, is_empty, win_rates
from peftbench.report.figures.ranks import rankings
from peftbench.report.spreads import equals_of_the_best, spreads
from peftbench.report.view import View
from peftbench.results.frame import frame

# lora beats ssf on six data sets of twelve, both beat linear on all twelve:
# ranks (6 x 1 + 6 x 2) / 12 = 1.5, 1.5 and 3. With 3 pairs Holm needs p <= 0.05 / 3; twelve wins
# of twelve give 2 / 2^12 = 0.0005.
SCORES = {"lora": (0.7, 0.6), "ssf": (0.6, 0.7), "linear": (0.3, 0.3)}


def table(make_record, datasets=12, seeds=1):
    return frame(
        [
            make_record(method, f"d{i:02}", seed, scores[i % 2] + 0.001 * i + 0.01 * seed)
            for method, scores in SCORES.items()
            for i in range(datasets)
            for seed in range(seeds)
        ]
    )


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_methods_stand_at_their_average_rank_and_a_bar_joins_those_not_told_apart(make_record):
    runs = table(make_record)
    (ranking,) = rankings(View.of(runs))
    assert (ranking.labels, ranking.places) == (("lora", "ssf", "linear"), (1.5, 1.5, 3.0))
    assert ranking.bars == (("lora", "ssf"),) and ranking.conclusive
    (axes,) = critical_difference(runs).axes
    assert {"lora  1.50", "ssf  1.50", "3.00  linear"} <= set(texts(axes))
    (bar,) = [line for line in axes.lines if line.get_linewidth() == 2.6]
    assert list(bar.get_xdata()) == [1.5, 1.5]
    remark = next(text for text in texts(axes) if "average rank over 12 data sets" in text)
    assert "Friedman p = " in remark and "a bar: no pair differs" in remark


def test_too_few_data_sets_draw_no_bar_and_say_so(make_record):
    (axes,) = critical_difference(table(make_record, datasets=4)).axes
    assert not [line for line in axes.lines if line.get_linewidth() == 2.6]
    assert any("too few data sets to tell any two apart" in text for text in texts(axes))


def test_win_rates_are_shares_of_the_data_sets(make_record):
    (axes,) = win_rates(table(make_record)).axes
    # rows and columns lora, ssf, linear without the diagonal
    assert texts(axes) == ["50", "100", "50", "100", "0", "0"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["lora", "ssf", "linear"]


def test_one_method_is_not_ranked(make_record):
    alone = frame([make_record("lora", "a", 0, 0.5)])
    assert is_empty(critical_difference(alone)) and is_empty(win_rates(alone))


def test_averages_have_intervals_and_the_best_its_equals(make_record):
    runs = table(make_record, datasets=4, seeds=3)
    known = spreads(View.of(runs))
    interval = known["vit_mini", "mini", "lora"]["mean of 4 tasks"]
    # tasks have means 0.7, 0.601, 0.702 and 0.603, and each seed adds 0.01
    assert interval.estimate == pytest.approx(0.6515 + 0.01)
    assert interval.low < 0.6615 < interval.high and interval.over == "seeds"
    # means 0.6615, 0.6615 and 0.3115: seeds move all tasks by 0.01 at most
    assert set(equals_of_the_best(View.of(runs))["vit_mini", "mini"]) == {"lora", "ssf"}
    assert (
        equals_of_the_best(View.of(table(make_record, datasets=2))) == {}
    )  # one seed tells nothing

"""Promises of the bars and the heat map of single tasks."""

from __future__ import annotations

import pytest

from peftbench.report.figures import bars, heat_map, is_empty
from peftbench.results.frame import frame
from peftbench.results.record import Status

# Means over seeds in percent: lora 80 and 40 (mean 60), full 50 and 60 (55), ssf 30 and failed
SCORES = {"lora": {"s/a": 0.8, "s/b": 0.4}, "full": {"s/a": 0.5, "s/b": 0.6}, "ssf": {"s/a": 0.3}}


@pytest.fixture
def table(make_record):
    records = [
        make_record(method, dataset, seed, score + 0.02 * (seed - 0.5))
        for method, scores in SCORES.items()
        for dataset, score in scores.items()
        for seed in range(2)
    ]
    records.append(make_record("ssf", "s/b", 0, status=Status.ERROR, error="boom"))
    records.append(make_record("vpt", "s/a", 0, status=Status.UNSUPPORTED, error="no tokens"))
    return frame(records)


def texts(axes):
    return [text.get_text().strip() for text in axes.texts if text.get_text().strip()]


def widths(axes):
    return [path.get_extents().width for path in axes.collections[0].get_paths()]


def test_bars_have_the_height_of_the_means_and_the_best_on_top(table):
    figure = bars(table)
    (part,) = figure.subfigs
    first, second = part.axes
    assert [label.get_text() for label in first.get_yticklabels()] == ["lora", "full", "ssf"]
    assert widths(first) == pytest.approx([80, 50, 30])
    assert widths(second) == pytest.approx([40, 60])
    assert texts(second) == ["40.0", "60.0", "failed"]
    _, whiskers = first.collections
    (low, _), (high, _) = whiskers.get_segments()[0]
    # 79 and 81 have a sample standard deviation of 2 / sqrt 2
    assert (low, high) == (pytest.approx(80 - 2**0.5), pytest.approx(80 + 2**0.5))
    assert first.get_title(loc="left") == "s/a  (n = 2)"
    assert "no result: vpt" in part.get_supxlabel()


def test_the_heat_map_shades_each_column_from_worst_to_best(table):
    (axes,) = heat_map(table).axes
    heads = [label.get_text() for label in axes.get_xticklabels()]
    assert heads == ["mean of 2 tasks", "a", "b"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["lora", "full", "ssf"]
    # column by column: means, a, b
    assert texts(axes) == ["60.0", "55.0", "–", "80.0", "50.0", "30.0", "40.0", "60.0", "failed"]
    (squares,) = axes.collections
    shades = [sum(colour[:3]) for colour in squares.get_facecolors()]
    lora, full, lora_a, full_a, ssf_a, lora_b, full_b = shades
    assert lora < full and lora_a < full_a < ssf_a and full_b < lora_b  # darker is better
    assert lora == lora_a == full_b and full == ssf_a == lora_b
    assert "no result: vpt" in axes.get_xlabel()


def test_without_a_number_there_is_nothing_to_draw(make_record):
    failed = frame([make_record(status=Status.ERROR, error="boom")])
    assert is_empty(bars(failed)) and is_empty(heat_map(failed)) and is_empty(bars(frame([])))

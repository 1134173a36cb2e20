"""Promises of the figures of measured costs, and of the costs themselves."""

from __future__ import annotations

import pandas as pd
import pytest

from peftbench.errors import ConfigError
from peftbench.report.costs import measured
from peftbench.report.figures import accuracy_against
from peftbench.report.figures.points import Point, frontier
from peftbench.report.tables.cells import labelled
from peftbench.results.frame import frame

MIB = 2**20


@pytest.fixture
def records(make_record):
    """lora on two data sets with two seeds; memory by data set and seed, in MiB:

    a: 100, 110; b: 200, 230. Seeds have means 150 and 170, so the mean is 160 in 150 ... 170.
    """
    memory = {("a", 0): 100, ("a", 1): 110, ("b", 0): 200, ("b", 1): 230}
    return [
        make_record("lora", d, s, 0.5, peak_bytes=MIB * value, latency_ms_batch1=4.0)
        for (d, s), value in memory.items()
    ]


def price(records, cost):
    table = measured(labelled(frame(records)))
    return table[table["cost"] == cost].iloc[0].to_dict()


def test_a_cost_is_the_mean_over_tasks_and_its_range_that_of_the_seeds(records):
    memory = price(records, "memory")
    assert (memory["value"], memory["low"], memory["high"]) == (160, 150, 170)
    assert price(records, "parameters")["value"] == 1000
    assert price(records, "parameters_with_head")["value"] == 1100
    assert price(records, "latency")["value"] == 4.0
    assert pd.isna(price(records, "train_time")["value"])  # not measured is no zero


def test_latency_is_that_after_merging_where_a_method_merges(make_record):
    merged = make_record(latency_ms_batch1=5.0, merged_latency_ms_batch1=3.0)
    assert price([merged], "latency")["value"] == 3.0


def test_devices_are_never_averaged_and_have_panels_of_their_own(records, make_record):
    other = [
        make_record("ssf", d, s, 0.6, peak_bytes=MIB * 50, device="gpu")
        for d in "ab"
        for s in range(2)
    ]
    mixed = [
        make_record("bias", d, 0, 0.4, peak_bytes=MIB, device=device)
        for d, device in (("a", "cpu"), ("b", "gpu"))
    ]
    assert pd.isna(price(mixed, "memory")["value"])
    assert price(mixed, "parameters")["value"] == 1000
    figure = accuracy_against(frame([*records, *other, *mixed]), "memory")
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "vit_mini · mini · cpu",
        "vit_mini · mini · gpu",
    ]
    texts = [{text.get_text() for text in axes.texts} for axes in figure.axes]
    assert "lora" in texts[0] and "ssf" in texts[1] and "ssf" not in texts[0]
    assert any("not shown, incomplete: bias" in text for text in texts[0])
    only = accuracy_against(frame([*records, *other]), "parameters")
    assert [axes.get_title(loc="left") for axes in only.axes] == ["vit_mini · mini"]


def test_a_point_lies_at_its_cost_with_bars_on_both_sides(records):
    (axes,) = accuracy_against(frame(records), "memory").axes
    (container,) = axes.containers
    line, _, (across, up) = container.lines
    assert [data[0] for data in line.get_data()] == [pytest.approx(160), pytest.approx(50)]
    (left, y), (right, _) = across.get_segments()[0]
    assert (left, right, y) == (150, 170, pytest.approx(50))
    assert up.get_segments()[0][0][0] == 160
    assert axes.get_xlabel() == "peak memory in MiB"
    remark = next(t.get_text() for t in axes.texts if t.get_text().startswith("n = 2"))
    assert "across, range over seeds" in remark


def test_the_frontier_goes_up_and_never_back():
    def point(label, cost, mean):
        return Point(label, "lora", cost, None, mean, None, 1)

    # b is beaten by a at the same cost, d by c at less, and e costs more for the same score
    points = [
        point("a", 1, 50),
        point("b", 1, 40),
        point("c", 2, 60),
        point("d", 3, 55),
        point("e", 4, 60),
        point("f", 5, 61),
    ]
    assert [p.label for p in frontier(points[::-1])] == ["a", "c", "f"]


def test_an_unknown_cost_is_refused_with_a_suggestion(records):
    with pytest.raises(ConfigError, match=r"Unknown cost 'memori'\. Did you mean: memory"):
        accuracy_against(frame(records), "memori")

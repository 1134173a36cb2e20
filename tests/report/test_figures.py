"""Promises of the figures."""

from __future__ import annotations

import random

import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from peftbench.report import figures
from peftbench.report.figures import (
    METHOD_STYLES,
    accuracy_against_parameters,
    orders,
    save,
    style_of,
)
from peftbench.report.labels import Box, place
from peftbench.report.view import Views
from peftbench.results.frame import frame
from peftbench.results.record import Status
from peftbench.results.store import ResultsStore

# Means over data sets a and b (same scores on both): linear 0 params 50 %, bias 60 %, lora 70 %,
# full 65 %. lora beats full with fewer parameters, so the frontier is linear, bias, lora.
METHODS = {"linear": (0, 0.5), "bias": (500, 0.6), "lora": (40_000, 0.7), "full": (5_000_000, 0.65)}


@pytest.fixture
def table(make_record):
    records = [
        make_record(method, dataset, seed, score + 0.01 * (seed - 1), tuned=tuned, **extra)
        for backbone in ("vit_mini", "resnet_mini")
        for method, (tuned, score) in METHODS.items()
        for dataset in "ab"
        for seed in range(3)
        if (extra := {"backbone": backbone})
    ]
    return frame(records)


def names(axes):
    return {text.get_text() for text in axes.texts}


def test_each_backbone_has_a_panel_with_every_method(table):
    figure = accuracy_against_parameters(table)
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "resnet_mini · mini",
        "vit_mini · mini",
    ]
    for axes in figure.axes:
        assert set(METHODS) <= names(axes)
        assert any(
            "n = 3 seeds" in text and "95 % interval over seeds" in text for text in names(axes)
        )
        assert axes.get_ylabel() == "top-1 accuracy in %, mean of 2 tasks"
        assert axes.get_xlabel() == "tuned parameters, head excluded"


def test_points_lie_at_parameters_and_mean_with_the_interval_of_the_task_mean(table):
    axes = accuracy_against_parameters(table[table["backbone"] == "vit_mini"]).axes[0]
    found = {}
    for container in axes.containers:
        line, _, (bar,) = container.lines
        (x,), (y,) = line.get_data()
        (_, low), (_, high) = bar.get_segments()[0]
        found[x] = (y, (high - low) / 2)
    # Every data set scores mean - 1, mean, mean + 1 percent: variance 1, that of the mean of 2 x 3
    # runs 1 / 6, with 2 + 2 degrees of freedom. t of 95.92 % is 2.978, and 2.978 / sqrt 6 = 1.216.
    assert found == {
        tuned: (pytest.approx(100 * score), pytest.approx(1.216, abs=0.01))
        for tuned, score in METHODS.values()
    }


def test_the_frontier_joins_the_methods_that_no_cheaper_one_beats(table):
    axes = accuracy_against_parameters(table[table["backbone"] == "vit_mini"]).axes[0]
    (frontier,) = [line for line in axes.lines if line.get_drawstyle() == "steps-post"]
    assert list(frontier.get_xdata()) == [0, 500, 40_000]


def test_zero_parameters_have_a_place_on_the_axis(table, make_record):
    axes = accuracy_against_parameters(table).axes[0]
    low, high = axes.get_xlim()
    assert axes.get_xscale() == "symlog" and low < 0 < 5_000_000 < high
    assert [tick.get_text() for tick in axes.get_xticklabels()][:3] == ["0", "100", "1k"]
    only = accuracy_against_parameters(frame([make_record("linear", tuned=0)])).axes[0]
    assert only.get_xlim() == (-1, 1) and "linear" in names(only)
    none = accuracy_against_parameters(frame([make_record("lora")])).axes[0]
    assert none.get_xscale() == "log"


def test_an_incomplete_row_is_named_and_not_drawn(table, make_record):
    lost = (table["method"] == "bias") & (table["dataset"] == "a")
    axes = accuracy_against_parameters(table[~lost & (table["backbone"] == "vit_mini")]).axes[0]
    assert "bias" not in names(axes) and len(axes.containers) == 3
    assert any("not shown, incomplete: bias" in text for text in names(axes))


def test_seeds_are_given_where_they_differ(table):
    lost = (table["method"] == "bias") & (table["seed"] == 2)
    axes = accuracy_against_parameters(table[~lost & (table["backbone"] == "vit_mini")]).axes[0]
    assert {"bias (n=2)", "lora"} <= names(axes)
    assert any("n = 3 seeds unless given" in text for text in names(axes))


def test_one_seed_draws_no_bar(make_record):
    axes = accuracy_against_parameters(frame([make_record()])).axes[0]
    assert [container.has_yerr for container in axes.containers] == [False]
    assert any(text.startswith("n = 1 seed") and "±" not in text for text in names(axes))


def test_no_run_gives_a_figure_that_says_so(make_record):
    failed = make_record(status=Status.ERROR, error="x")
    assert names(accuracy_against_parameters(frame([])).axes[0]) == {
        "no finished final run of every task"
    }
    assert not figures.drawable(frame([])) and not figures.drawable(frame([failed]))
    axes = accuracy_against_parameters(frame([failed])).axes[0]
    assert any("no complete row" in text for text in names(axes))


def test_names_cover_neither_each_other_nor_marks_in_a_crowd(make_record):
    generator = random.Random(0)
    crowd = ["linear", "full", "bias", "adapter", "lora", "ssf", "fact_tt", "fact_tk", "vpt_deep"]
    crowd += ["vpt_shallow", "adaptformer", "convpass", "method_a", "method_b", "method_c"]
    records = [
        make_record(
            method, "a", 0, generator.uniform(0.72, 0.74), tuned=generator.randint(10_000, 100_000)
        )
        for method in crowd
    ]
    figure = accuracy_against_parameters(frame(records))
    (axes,) = figure.axes
    frame_box = axes.get_window_extent()
    boxes = [t.get_window_extent() for t in axes.texts if t.get_text() in crowd]
    assert len(boxes) == len(crowd)
    for i, box in enumerate(boxes):
        assert frame_box.x0 <= box.x0 and box.x1 <= frame_box.x1
        assert frame_box.y0 <= box.y0 and box.y1 <= frame_box.y1
        assert not any(box.overlaps(other) for other in boxes[:i])
    for container in axes.containers:
        x, y = axes.transData.transform([d[0] for d in container.lines[0].get_data()])
        assert not any(box.contains(x, y) for box in boxes)


def test_a_free_name_stands_right_of_its_point():
    (label,) = place([(20, 10)], [(50, 50)], [], Box(0, 0, 100, 100))
    assert label.box == Box(57, 45, 77, 55) and label.line is None  # 7 points away, centred


def test_a_line_through_a_box_is_noticed():
    box = Box(10, 10, 20, 20)
    assert box.crossed(((0, 0), (30, 30))) and box.crossed(((15, 0), (15, 30)))
    assert box.crossed(((12, 12), (13, 13)))
    assert not box.crossed(((0, 0), (30, 5))) and not box.crossed(((0, 0), (9, 9)))
    assert not box.crossed(((15, 21), (15, 30))) and not box.crossed(((21, 15), (30, 15)))


def test_three_formats_are_written_and_are_the_same_the_next_time(table, tmp_path):
    vit = table[table["backbone"] == "vit_mini"]
    first = save(accuracy_against_parameters(vit), tmp_path / "new" / "a.b")
    assert [path.name for path in first] == ["a.b.png", "a.b.pdf", "a.b.svg"]
    starts = [path.read_bytes()[:5] for path in first]
    assert starts == [b"\x89PNG\r", b"%PDF-", b"<?xml"]
    before = [path.read_bytes() for path in first]
    again = save(accuracy_against_parameters(vit), tmp_path / "again")
    assert [path.read_bytes() for path in again] == before
    assert len(list((tmp_path / "new").iterdir())) == 3


def test_known_methods_look_different_from_each_other_and_on_white():
    assert len(set(METHOD_STYLES.values())) == len(METHOD_STYLES)
    for colour, _ in METHOD_STYLES.values():
        red, green, blue = to_rgb(colour)
        assert 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.75


def test_an_unknown_method_keeps_its_look_and_takes_no_known_one():
    assert style_of("mine") == style_of("mine") and style_of("mine") not in METHOD_STYLES.values()
    assert len({style_of(f"method_{i}") for i in range(30)}) > 15


def test_figures_are_told_by_backbone_and_in_the_order_of_their_kinds(tmp_path, table):
    kinds = ["heat_map_{score}", "tasks_{score}"]
    order = orders.Order(tmp_path, ["svg"], kinds, metric="top1", limited=False)
    drawn = orders.draw(order, Views(table), pd.DataFrame(), ResultsStore(tmp_path / "results"))
    assert [(one.backbone, one.kind) for one in drawn] == [
        (backbone, kind) for backbone in ("resnet_mini", "vit_mini") for kind in kinds[::-1]
    ]
    assert [path.exists() for one in drawn for path in one.paths] == [True] * 4

"""Promises of the figures with lines: learning, shots, sizes, rates."""

from __future__ import annotations

import itertools
import random

import pytest

from peftbench.errors import ConfigError
from peftbench.report.figures import (
    all_figures,
    data_scale_curves,
    few_shot_curves,
    is_empty,
    learning_curves,
    sensitivity,
)
from peftbench.report.figures.lines import Score, lines, spread
from peftbench.report.view import Views
from peftbench.results.frame import epochs, frame


def curve(axes, name):
    """Places of the line whose name stands at its end."""
    names = [text.get_text() for text in axes.texts]
    line = axes.lines[names.index(name)]
    return [tuple(map(float, pair)) for pair in zip(*line.get_data(), strict=True)]


def test_a_place_of_a_line_needs_every_task_and_spreads_over_common_seeds():
    # at 1: seed means (10 + 30) / 2 = 20 and (14 + 36) / 2 = 25, sd = 5 / sqrt 2; at 2: no task b
    values = {("a", 0, 1): 10, ("a", 1, 1): 14, ("b", 0, 1): 30, ("b", 1, 1): 36, ("a", 0, 2): 99}
    scores = [Score("lora", "lora", d, seed, x, v) for (d, seed, x), v in values.items()]
    scores.append(Score("ssf", "ssf", "a", 0, 1.0, 50.0))
    first, second = lines(scores)
    assert (first.name, second.name) == ("ssf", "lora")  # highest at the end first
    (place,) = second.places
    assert (place.x, place.mean, place.n) == (1, 22.5, 2)
    assert place.sd == pytest.approx(5 / 2**0.5) and first.places[0].sd is None


def test_names_at_line_ends_keep_their_order_and_distance():
    assert spread([10.0, 50.0], 8) == [10.0, 50.0]  # free ones stay
    assert spread([10.0, 10.0, 90.0], 8) == [6.0, 14.0, 90.0]
    generator = random.Random(0)
    for _ in range(50):
        wanted = [generator.uniform(0, 100) for _ in range(12)]
        found = spread(wanted, 9.0)
        order = sorted(range(12), key=wanted.__getitem__)
        gaps = [found[b] - found[a] for a, b in itertools.pairwise(order)]
        assert min(gaps) > 9 - 1e-9


def test_learning_curves_have_a_panel_for_each_method_with_all_others_behind(make_record):
    records = [
        make_record(method, dataset, seed, 0.5, history=[rise, rise + 0.2 * seed])
        for method, rise in (("lora", 0.5), ("ssf", 0.25))
        for dataset in "ab"
        for seed in range(2)
    ]
    figure = learning_curves(frame(records), epochs(records))
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["lora", "ssf"]
    lora, ssf = figure.axes
    assert [list(map(float, data)) for data in lora.lines[1].get_data()] == [[1, 2], [50, 60]]
    assert [float(y) for y in ssf.lines[1].get_ydata()] == [25, 35]
    both = [50, 60, None, 25, 35, None]  # with a gap behind each curve
    for axes in (lora, ssf):
        assert [y if y == y else None for y in map(float, axes.lines[0].get_ydata())] == both
    assert lora.get_ylim() == ssf.get_ylim() and lora.lines[1].get_color() == "#0072B2"
    loss = learning_curves(frame(records), epochs(records), quantity="loss")
    assert [float(y) for y in loss.axes[0].lines[1].get_ydata()] == [0.75, 0.65]  # ssf ends higher
    assert is_empty(learning_curves(frame(records), epochs([])))
    with pytest.raises(ConfigError, match="Unknown quantity 'los'"):
        learning_curves(frame(records), epochs(records), quantity="los")


def test_few_shot_curves_rise_over_the_shots_and_keep_what_was_tuned_in_one_line(make_record):
    records = [
        # the scale was chosen for each data set, the rank tells two lines apart
        make_record(
            "fact_tt",
            dataset,
            seed,
            0.1 * shots + 0.2 * (rank == 8),
            suite=f"few_{shots}shot",
            shots=shots,
            hyperparameters={"rank": rank, "scale": scale},
        )
        for dataset, scale in (("cars", 0.1), ("pets", 1.0))
        for shots in (1, 2, 4)
        for seed in range(2)
        for rank in (4, 8)
    ]
    figure = few_shot_curves(frame(records))
    titles = [axes.get_title(loc="left") for axes in figure.axes[:3]]
    assert titles[0] == "vit_mini, mean of 2 tasks (test)" and "pets" in titles[2]
    assert curve(figure.axes[0], "fact_tt rank=4") == [
        (1, pytest.approx(10)),
        (2, pytest.approx(20)),
        (4, pytest.approx(40)),
    ]
    assert curve(figure.axes[1], "fact_tt rank=8")[-1] == (4, pytest.approx(60))
    assert figure.axes[0].get_xscale() == "log"
    assert "n = 2 seeds" in figure.get_supxlabel()


def test_curves_over_the_size_of_a_set_need_several_sizes(make_record):
    def runs(dataset, *sizes):
        return [
            make_record("lora", dataset, 0, size / 1000, train_images=size, limit=size)
            for size in sizes
        ]

    figure = data_scale_curves(frame([*runs("a", 100, 200, 400), *runs("b", 100)]))
    (axes,) = figure.axes
    assert axes.get_title(loc="left") == "vit_mini, a (test)"
    assert curve(axes, "lora") == [(100, 10), (200, 20), (400, pytest.approx(40))]
    assert is_empty(data_scale_curves(frame(runs("b", 100))))


def test_sensitivity_shows_the_best_over_the_other_settings_on_val(make_record):
    grid = {(1e-3, 0.0): 0.5, (1e-3, 0.1): 0.6, (1e-2, 0.0): 0.7, (1e-2, 0.1): 0.2}
    records = [
        make_record("lora", "a", 0, top1, phase="tune", recipe={"lr": lr, "weight_decay": decay})
        for (lr, decay), top1 in grid.items()
    ]
    records.append(make_record("lora", "a", 0, 0.99))  # the final run, which reports test
    records.append(make_record("ssf", "a", 0, 0.4, phase="tune", recipe={"lr": 1e-3}))
    (axes,) = sensitivity(frame(records)).axes
    assert axes.get_title(loc="left") == "vit_mini, a (val)"
    assert curve(axes, "lora") == [(0.001, 60), (0.01, 70)]
    assert [text.get_text() for text in axes.texts] == ["lora"]  # ssf has one rate
    (axes,) = sensitivity(frame(records), "weight_decay").axes
    assert curve(axes, "lora") == [(0, 70), (0.1, 60)] and axes.get_xscale() == "symlog"
    with pytest.raises(ConfigError, match="Unknown setting 'wd'"):
        sensitivity(frame(records), "wd")


def test_every_figure_is_made_for_which_there_are_data_and_no_other(make_record):
    records = [
        make_record("lora", "a", 0, 0.5, suite=suite, history=[0.1, 0.2], seconds_train=3.0)
        for suite in ("one", "two")
    ]
    table, history = frame(records), epochs(records)
    # no score of this name, but learning curves need none; suites are not averaged
    made = {name for _, name, _ in all_figures(Views(table), history, metric="mean_per_class")}
    assert made == {"learning_curves_vit_mini_one", "learning_curves_vit_mini_two"}
    kinds = ["{score}_vs_training_time", "{score}_vs_latency", "data_scale_{score}"]
    made = {name for _, name, _ in all_figures(Views(table), history, kinds=kinds)}
    assert made == {"accuracy_vs_training_time_vit_mini"}
    with pytest.raises(ConfigError, match="Unknown figure 'bars'"):
        list(all_figures(Views(table), history, kinds=["bars"]))

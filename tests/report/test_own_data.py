"""Promises of reports on one's own folders: they are never taken for one data set."""

from __future__ import annotations

import json
import re

import pytest
from own_runs import own_data
from scipy import stats

from peftbench.report import tables
from peftbench.report.advice import Budget, advise, to_text
from peftbench.report.figures import all_figures, data_scale_curves, is_empty
from peftbench.report.figures.histories import histories
from peftbench.report.figures.points import panels
from peftbench.report.page import render
from peftbench.report.view import View, Views
from peftbench.results.frame import epochs, frame
from peftbench.results.store import ResultsStore


def two_folders(make_record):
    """On cats lora is ahead, on dogs linear; over both they are equal."""
    levels = {("linear", "cats"): 0.5, ("lora", "cats"): 0.8}
    levels |= {("linear", "dogs"): 0.9, ("lora", "dogs"): 0.6}
    return [
        make_record(method, seed=seed, top1=level + noise, **own_data(name), manifest=name)
        for (method, name), level in levels.items()
        for seed, noise in enumerate((-0.01, 0.0, 0.01, 0.02))
    ]


def test_two_folders_are_two_columns(make_record):
    cells = tables.summary(frame(two_folders(make_record)))
    found = {
        (cell["label"], cell["column"]): round(cell["mean"], 3)
        for cell in cells[cells["kind"] == "task"].to_dict("records")
    }
    assert found == {
        ("linear", "cats"): 0.505,
        ("lora", "cats"): 0.805,
        ("linear", "dogs"): 0.905,
        ("lora", "dogs"): 0.605,
    }


def test_each_folder_is_advised_by_itself(make_record):
    answers = advise(frame(two_folders(make_record)), Budget())
    assert [(one.title, one.datasets) for one in answers] == [
        ("vit_mini · cats", ("cats",)),
        ("vit_mini · dogs", ("dogs",)),
    ]
    assert [one.chosen[0].label for one in answers] == ["lora", "linear"]
    text = to_text(answers, Budget())
    assert "vit_mini · cats · no limit\n1 data set: cats\n" in text
    (dogs,) = advise(frame(two_folders(make_record)), Budget(), datasets=["dogs"])
    assert dogs.title == "vit_mini · dogs"


def test_folders_of_one_name_are_two_columns_with_their_hashes(make_record):
    runs = [
        make_record(manifest=content, **own_data("cats", content=content * 16))
        for content in ("aaaa", "bbbb")
    ]
    cells = tables.summary(frame(runs))
    task = cells[cells["kind"] == "task"]
    assert sorted(task["column"]) == ["cats-aaaaaa", "cats-bbbbbb"]
    assert task["state"].tolist() == ["ok", "ok"]


def test_curves_average_over_the_splits_of_a_data_set(make_record):
    runs = [
        make_record(
            "lora",
            history=[rise, rise + 0.2],
            train_images=size,
            **own_data("cats", folds=2, fold=fold),
            manifest=f"m{fold}",
        )
        for fold, rise, size in ((0, 0.2, 101), (1, 0.4, 100))
    ]
    (known,) = histories(View.of(frame(runs)), epochs(runs), "accuracy")
    line = known.line("cats")
    assert [(place.x, round(place.mean, 6), place.n) for place in line.places] == [
        (1, 30, 2),
        (2, 50, 2),
    ]
    # that folds train on 101 and 100 images is no other size of the data set
    assert is_empty(data_scale_curves(frame(runs)))


def test_each_data_set_has_figures_of_its_own(make_record):
    runs = [
        make_record(method, history=[0.5], **own_data(name), manifest=name)
        for name in ("cats", "dogs")
        for method in ("linear", "lora")
    ]
    views = Views(frame(runs))
    named = {stem for _, stem, _ in all_figures(views, epochs(runs))}
    assert {f"learning_curves_vit_mini_{name}" for name in ("cats", "dogs")} <= named
    part = views.part("place", "dogs")
    assert set(part.table["dataset"]) == {"dogs"}
    titles = [panel.title for panel in panels(views.view())]
    assert titles == ["vit_mini · cats", "vit_mini · dogs"]


def test_the_page_has_a_panel_for_each_data_set_with_val_and_its_ranking(make_record, tmp_path):
    store = ResultsStore(tmp_path)
    for name, val in (("cats", 0.7), ("dogs", None)):
        tuning = None if val is None else {"tuner": "grid", "val_top1": val}
        metrics = {"test/num_images": 100.0}
        store.add(make_record(top1=0.8, tuning=tuning, metrics=metrics, **own_data(name)))
    records = store.scan().records
    page = render(Views(frame(records), (), store), epochs(records), store)
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1]
    cats, dogs = json.loads(text)["panels"]
    assert (cats["suite"], dogs["suite"]) == ("cats", "dogs")
    cell = cats["scores"]["top1"][0]["cells"]["cats"]
    low, high = stats.binomtest(80, 100).proportion_ci(method="wilson")
    assert (cell["val"], cell["over"]) == (0.7, "images")
    assert (cell["low"], cell["high"]) == (
        pytest.approx(low, abs=1e-5),
        pytest.approx(high, abs=1e-5),
    )
    assert cats["by_val"]["top1"] and not dogs["by_val"]["top1"]
    assert cats["ranking"]["top1"] == "Ranked by val, not by test."
    assert "val" not in dogs["scores"]["top1"][0]["cells"]["dogs"]

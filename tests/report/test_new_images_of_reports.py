"""Promises of reports on one's own data: intervals on new images, val beside test, whole splits."""

from __future__ import annotations

import numpy as np
import pytest
from own_runs import own_data, predicted_run, stored
from scipy import stats

from peftbench.report import statistics, tables
from peftbench.report.advice import Budget, advise, to_text
from peftbench.report.spreads import leaders, spreads
from peftbench.report.view import View
from peftbench.results.frame import frame
from peftbench.statistics.new_images import SHARED, wilson

FOLDS = {  # hits of each of five folds of 10 images
    "good": ["1" * 9 + "0", "1" * 9 + "0", "1" * 10, "1" * 8 + "00", "1" * 9 + "0"],
    "poor": ["1" * 5 + "0" * 5] * 5,
}


def folded(make_record, method: str, **facts):
    return [
        predicted_run(
            make_record,
            method,
            hits,
            range(10 * fold, 10 * fold + 10),
            trained=40,
            **own_data("birds", folds=5, fold=fold, split_seed=0),
            manifest=f"m{fold}",
            **facts,
        )
        for fold, hits in enumerate(FOLDS[method])
    ]


@pytest.fixture
def folds(make_record, tmp_path):
    """Two methods on five folds, with their predictions."""
    runs = [run for method in FOLDS for run in folded(make_record, method)]
    return stored(tmp_path, runs)


def cell_of(view: View, label: str, column: str = "birds"):
    cells = view.cells
    (row,) = cells[(cells["label"] == label) & (cells["column"] == column)].to_dict("records")
    return row


def test_the_folds_of_a_data_set_are_one_cell_with_an_interval_on_new_images(folds) -> None:
    view = View.of(frame(folds), store=folds)
    found = cell_of(view, "good")
    assert (found["state"], found["n"], found["splits"]) == ("ok", 5, 5)
    assert found["mean"] == pytest.approx(0.9)
    assert found["over"] == "images and splits"
    chance = 0.9 * 0.1
    # folds differ by less than their images do, so that the images alone count
    assert np.var([0.9, 0.9, 1, 0.8, 0.9], ddof=1) / 5 < chance / 50
    variance = chance / 49 + SHARED * chance / 50
    assert (found["low"], found["high"]) == pytest.approx(wilson(0.9, chance / variance))


def test_folds_that_are_missing_are_told_of(make_record, tmp_path) -> None:
    store = stored(tmp_path, folded(make_record, "good")[:3])
    found = cell_of(View.of(frame(store), store=store), "good")
    assert (found["splits"], found["note"]) == (3, "3 of 5 folds are there")


def test_a_record_may_say_that_there_are_no_folds(make_record, tmp_path) -> None:
    record = make_record("lora", top1=0.5, **own_data("birds", folds=None, fold=None))
    found = cell_of(View.of(frame([record])), "lora")
    assert (found["n"], found["splits"]) == (1, 1) and "folds" not in str(found["note"])


def test_one_run_has_the_interval_of_its_images(make_record, tmp_path) -> None:
    run = predicted_run(make_record, "lora", "1" * 64 + "0" * 33, range(97), **own_data("birds"))
    store = stored(tmp_path, [run])
    with_images = cell_of(View.of(frame(store), store=store), "lora")
    expected = stats.binomtest(64, 97).proportion_ci(method="wilson")
    # of a sample the variance has n - 1, so that it counts as one image fewer
    assert (with_images["low"], with_images["high"]) == pytest.approx(tuple(expected), abs=1e-3)
    assert with_images["over"] == "images"
    by_scores = cell_of(View.of(frame(store)), "lora")  # without the predictions
    assert (by_scores["low"], by_scores["high"]) == pytest.approx(tuple(expected))
    row = ("vit_mini", "birds", "lora")
    view = View.of(frame(store), store=store)
    assert spreads(view)[row]["birds"].low == with_images["low"]


def test_a_public_data_set_with_one_seed_has_the_interval_of_its_images(make_record) -> None:
    run = make_record("lora", suite="cifar", top1=0.8, metrics={"test/num_images": 1000.0})
    found = spreads(View.of(frame([run])))["vit_mini", "cifar", "lora"]["digits"]
    assert (found.low, found.high) == pytest.approx(wilson(0.8, 1000))
    assert found.over == "images"


def test_repeated_splits_count_an_image_once(make_record, tmp_path) -> None:
    # both splits test the same ten images: the interval is no narrower than that of one
    numbers = range(10)
    runs = [
        predicted_run(
            make_record,
            "lora",
            "1" * 8 + "00",
            numbers,
            trained=40,
            **own_data("birds", split_seed=seed),
            manifest=f"m{seed}",
        )
        for seed in (0, 1)
    ]
    store = stored(tmp_path, runs)
    found = cell_of(View.of(frame(store), store=store), "lora")
    variance = 0.16 / 9 + SHARED * 0.16 / 50
    assert (found["low"], found["high"]) == pytest.approx(wilson(0.8, 0.16 / variance))
    # scores alone do not say that the images are the same
    assert cell_of(View.of(frame(store)), "lora")["low"] > found["low"]


def test_seeds_and_splits_of_one_cell_may_not_repeat_but_differ(make_record) -> None:
    runs = [
        make_record(
            "lora", seed=seed, top1=0.5, **own_data("birds", split_seed=split), manifest=f"m{split}"
        )
        for seed in (0, 1)
        for split in (0, 1)
    ]
    found = cell_of(View.of(frame(runs)), "lora")
    assert (found["state"], found["n"], found["splits"]) == ("ok", 4, 2)
    changed = make_record("lora", seed=2, **own_data("birds", split_seed=1), manifest="other")
    found = cell_of(View.of(frame([*runs, changed])), "lora")
    assert found["state"] == "mixed" and "2 different manifests" in found["note"]


def test_folds_and_drawn_splits_are_rows_of_their_own(make_record) -> None:
    drawn = make_record("lora", **own_data("birds"), manifest="m")
    fold = make_record("lora", **own_data("birds", folds=5, fold=0), manifest="m0")
    half = make_record("lora", **own_data("birds", test_fraction=0.5), manifest="m5")
    cells = View.of(frame([drawn, fold, half])).cells
    assert sorted(set(cells["label"])) == [
        "lora folds=5, test_fraction=unset",
        "lora folds=unset, test_fraction=0.5",
        "lora folds=unset, test_fraction=unset",
    ]


def test_ahead_is_said_only_where_single_images_tell(folds, make_record, tmp_path) -> None:
    view = View.of(frame(folds), store=folds)
    (found,) = leaders(view).values()
    assert (found.best, found.members, found.over) == ("good", ("good",), "images and splits")
    (answer,) = advise(frame(folds), Budget(), store=folds)
    assert [one.label for one in answer.chosen] == ["good"]
    text = to_text([answer], Budget())
    assert "top-1 on test in %, mean of 50 test images, 5 splits, 1 seed," in text
    assert "interval over images and splits" in text
    # by one image of ten nobody is told from anybody
    few = [
        predicted_run(make_record, name, hits, range(10), **own_data("birds"))
        for name, hits in (("lora", "1" * 9 + "0"), ("linear", "1" * 8 + "00"))
    ]
    store = stored(tmp_path / "few", few)
    (answer,) = advise(frame(store), Budget(), store=store)
    assert {one.label for one in (*answer.chosen, *answer.dearer)} == {"linear", "lora"}
    text = to_text([answer], Budget())
    assert "one split of 10 test images: another one would give other numbers" in text
    assert "cannot be told apart. It would take about" in text


def test_statistics_of_ones_own_data_are_about_new_images(folds) -> None:
    view = View.of(frame(folds), store=folds)
    compared = statistics.comparisons(view, folds)
    text = statistics.to_markdown(compared)
    assert "## vit_mini · birds\n\n2 methods: 50 test images, 5 splits, 1 seed.\n" in text
    assert (
        "- On new images: good (test of single images, 50 test images, 5 splits, 1 seed)." in text
    )
    assert "| poor | 20 / 0 |" in text  # 9, 9, 10, 8 and 9 of each fold against its first 5
    assert "Friedman" not in text.partition("## vit_mini · birds")[2]
    table = statistics.to_frame(compared)
    (row,) = table[(table["statistic"] == "birds") & (table["label"] == "good")].to_dict("records")
    assert row["over"] == "images and splits" and row["low"] == cell_of(view, "good")["low"]
    assert "friedman" not in set(table["statistic"])


def test_predictions_of_older_runs_are_put_together_by_folds(make_record, tmp_path) -> None:
    runs = folded(make_record, "good")
    numbered = stored(tmp_path / "new", runs)
    for _, rows in runs:
        del rows["numbers"]
    older = stored(tmp_path / "old", runs)
    cells = [cell_of(View.of(frame(s), store=s), "good") for s in (numbered, older)]
    assert cells[0]["low"] == cells[1]["low"]


def with_val(make_record, method: str, test: float, val: float | None, tuned: int, name="birds"):
    tuning = None if val is None else {"tuner": "grid", "trials": 2, "epochs": 1, "val_top1": val}
    return make_record(method, top1=test, tuned=tuned, tuning=tuning, **own_data(name))


def test_a_table_of_ones_own_data_is_ranked_by_val_and_says_so(make_record) -> None:
    runs = [
        with_val(make_record, "linear", 0.9, 0.5, 0),
        with_val(make_record, "lora", 0.6, 0.8, 100),
        with_val(make_record, "full", 0.7, 0.7, 9000),
    ]
    text = tables.to_text(tables.summary(frame(runs)))
    lines = text.splitlines()
    assert lines[0].startswith("vit_mini · birds · hyper-parameters from grid")
    assert lines[2].split() == (
        ["method", "tuned", "with", "head", "birds", "val", "birds", "test", "95", "%", "interval"]
    )
    assert [line.split()[0] for line in lines[4:7]] == ["lora", "full", "linear"]
    assert lines[4].split()[3:5] == ["80.0", "60.0"]
    assert "Ranked by val, not by test." in text
    runs.append(with_val(make_record, "bias", 0.95, None, 10))
    text = tables.to_text(tables.summary(frame(runs)))
    assert [line.split()[0] for line in text.splitlines()[4:8]] == [
        "linear",
        "bias",
        "lora",
        "full",
    ]
    assert "Not ranked: rows rise with the tuned parameters." in text
    assert "no val of bias; phase=tune or a tuner gives it." in text
    assert "- Ranked by val" not in tables.to_markdown(tables.summary(frame(runs)))


def test_two_folders_have_columns_of_their_own_in_one_table(make_record) -> None:
    runs = [
        with_val(make_record, method, test, val, tuned, name)
        for method, test, val, tuned in (("linear", 0.9, 0.5, 0), ("lora", 0.6, 0.8, 100))
        for name in ("birds", "dogs")
    ]
    text = tables.to_text(tables.summary(frame(runs)), width=None)
    head = text.splitlines()[2]
    columns = "birds val  birds test  95 % interval  dogs val  dogs test  95 % interval"
    assert "  ".join(head.split("  ")[-6:]) == columns
    assert "mean of" not in head
    assert "Ranked by val (mean over the data sets), not by test." in text


def test_val_is_a_column_of_csv_and_pandas(make_record) -> None:
    runs = frame([with_val(make_record, "lora", 0.6, 0.8, 100)])
    assert runs["val_top1"].tolist() == [0.8]
    cells = tables.summary(runs)
    assert cells["val"].tolist() == [0.8] and cells["own"].tolist() == [True]
    header, line = tables.to_csv(cells).splitlines()
    assert dict(zip(header.split(","), line.split(","), strict=True))["val"] == "0.8"

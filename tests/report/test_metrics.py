"""A report shows each run by the metric that it declares, or all by one that is asked for."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from peftbench import report as reports
from peftbench.cli.main import main
from peftbench.errors import UnknownName
from peftbench.report.advice import Budget, advise, to_text
from peftbench.report.again import measured_again
from peftbench.report.figures import bars
from peftbench.report.scores import declared, metric_of
from peftbench.report.view import Views
from peftbench.results.frame import frame
from peftbench.results.store import ResultsStore
from peftbench.results.table_files import read_table

# by top-1 full is ahead of lora, by the mean of the classes behind it
SCORES = {"lora": (0.60, 0.50, 0.45), "full": (0.65, 0.40, 0.35)}


def judged_by(metric: str | None, dataset: str, make_record: Any, **changes: Any) -> list[Any]:
    """Two methods with three seeds that differ by a hundredth."""
    return [
        make_record(
            method,
            dataset,
            seed,
            top1 + seed / 100,
            metric=metric,
            metrics={"mean_per_class": mean + seed / 100, "f1_macro": f1 + seed / 100},
            tuned=tuned,
            **changes,
        )
        for tuned, (method, (top1, mean, f1)) in enumerate(SCORES.items(), 1)
        for seed in range(3)
    ]


@pytest.fixture
def unequal(tmp_path: Path, make_record: Any) -> Path:
    """Runs of a folder that are judged by the mean of its classes."""
    store = ResultsStore(tmp_path / "results")
    for record in judged_by("mean_per_class", "birds", make_record, suite=""):
        store.add(record)
    return store.root


@pytest.fixture
def both(unequal: Path, make_record: Any) -> Path:
    """The same beside runs of another data set that declare nothing."""
    for record in judged_by(None, "digits", make_record):
        ResultsStore(unequal).add(record)
    return unequal


def build(root: Path, **options: Any) -> reports.Report:
    return reports.build(root, parts=options.pop("parts", ("tables",)), **options)


def test_a_table_shows_what_its_runs_declare(unequal: Path) -> None:
    text = build(unequal).text
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert "lora 1 101 51.0 ± 1.0 (3)" in rows
    assert "full 2 102 41.0 ± 1.0 (3)" in rows
    assert "Test mean per-class accuracy in %: mean ± sample standard deviation" in text
    assert pd.read_csv(unequal / "statistics.csv")["metric"].eq("mean_per_class").all()
    told = (unequal / "statistics.md").read_text()
    assert "Scores are mean per-class accuracy on test, in %." in told
    assert read_table(unequal / "table.csv")["selection_metric"].eq("mean_per_class").all()


def test_runs_that_declare_others_have_tables_of_their_own(both: Path) -> None:
    report = build(both)
    first, second = report.text.split("Test top-1 accuracy in %")
    assert "62.0" not in second.split("Written")[0] and "51.0" not in first  # by mean, by top-1
    assert "digits" in first and "birds" not in first
    assert "51.0 ± 1.0 (3)" in second and "Test mean per-class accuracy in %" in second
    names = sorted(path.name for path in report.paths)
    assert names == [
        *("statistics.csv", "statistics.md"),
        *("statistics_mean_per_class.csv", "statistics_mean_per_class.md"),
        *("table.csv", "table.parquet"),
    ]
    cells = build(both, style="csv").text.splitlines()
    assert {line.rpartition(",")[2] for line in cells} == {"metric", "top1", "mean_per_class"}


def test_one_metric_can_be_asked_for_all(both: Path) -> None:
    text = build(both, metric="f1_macro").text
    assert "Test macro F1 in %" in text and text.count("46.0 ± 1.0 (3)") == 2
    with pytest.raises(UnknownName, match=r"Unknown metric 'f1'. .*Known: auroc, f1_macro, mean_"):
        build(both, metric="f1")


def test_runs_that_differ_in_their_metric_alone_are_never_averaged(make_record: Any) -> None:
    runs = judged_by(None, "a", make_record) + judged_by("f1_macro", "a", make_record)
    views = Views(frame(runs))
    labels = set(views.view("top1").cells["label"])
    assert labels == {f"{m} metric={name}" for m in SCORES for name in ("top1", "f1_macro")}
    (first, top1), (second, f1) = views.by_metric()
    assert (first, second) == ("top1", "f1_macro")
    assert set(top1.view(first).cells["label"]) == set(f1.view(second).cells["label"]) == {*SCORES}
    assert len(top1.table) == len(f1.table) == 6


def test_what_trials_declare_decides_no_table(make_record: Any) -> None:
    final = judged_by("f1_macro", "a", make_record)
    trials = judged_by(None, "a", make_record, phase="tune")
    table = frame([*final, *trials])
    assert declared(table) == ("f1_macro",) and metric_of(table) == "f1_macro"
    ((name, views),) = Views(table).by_metric()
    assert name == "f1_macro" and len(views.table) == 12
    assert declared(frame(trials)) == ("top1",)


def test_advice_follows_what_the_runs_declare(make_record: Any) -> None:
    table = frame(
        judged_by(None, "digits", make_record)
        + judged_by("mean_per_class", "birds", make_record, suite="")
    )
    by_top1, by_mean = advise(table, Budget())
    assert (by_top1.metric, by_mean.metric) == ("top1", "mean_per_class")
    best = [
        max(one.chosen + one.dearer, key=lambda c: c.interval.estimate) for one in advised(table)
    ]
    assert [one.label for one in best] == ["full", "lora"]
    text = to_text([by_mean], Budget())
    assert text.startswith("vit_mini · by mean per-class accuracy · no limit\n")
    assert "mean per class: mean per class on test in %, mean over the data sets" in text
    (first, second) = advise(table, Budget(), metric="f1_macro")
    assert first.metric == second.metric == "f1_macro"
    with pytest.raises(UnknownName, match="Unknown metric 'f2'"):
        advise(table, Budget(), metric="f2")


def advised(table: Any) -> list[Any]:
    return advise(table, Budget())


def test_the_command_line_asks_for_a_metric(both: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def answered(*arguments: str) -> tuple[object, str]:
        with pytest.raises(SystemExit) as ended:
            main([*arguments, "--results-dir", str(both)])
        return ended.value.code, "".join(capsys.readouterr())

    status, text = answered("advise", "--metric", "mean_per_class")
    assert status == 0 and text.count("by mean per-class accuracy") == 2
    status, text = answered("report", "--only", "tables", "--metric", "mean_per_class")
    assert status == 0 and text.count("Test mean per-class accuracy in %") == 1
    for command in ("advise", "report"):
        status, text = answered(command, "--metric", "aurocc")
        assert status == 2 and "Unknown metric 'aurocc'. Did you mean: auroc?" in text


def test_figures_follow_the_metric_and_are_called_by_it(both: Path) -> None:
    report = build(both, parts=("figures",), formats=("svg",), kinds=("{score}_vs_parameters",))
    assert [path.name for path in report.paths] == [
        "accuracy_vs_parameters_vit_mini.svg",
        "mean_per_class_vs_parameters_vit_mini.svg",
    ]


def test_a_figure_of_a_table_shows_what_its_runs_declare(make_record: Any) -> None:
    figure = bars(frame(judged_by("f1_macro", "a", make_record)))
    assert any("macro F1 in %" in text.get_text() for text in figure.findobj(match=_is_text))


def _is_text(artist: Any) -> bool:
    return hasattr(artist, "get_text")


def test_the_page_opens_with_what_each_panel_declares(both: Path) -> None:
    report = build(both, parts=("page",))
    page = report.paths[0].read_text(encoding="utf-8")
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert text is not None
    data = json.loads(text[1])
    opens = {panel["suite"]: panel["metric"] for panel in data["panels"]}
    assert opens == {"": "mean_per_class", "mini": "top1"}
    assert set(data["metrics"]) == {"top1", "mean_per_class", "f1_macro"}  # no run has an auroc
    asked = build(both, parts=("page",), metric="f1_macro").paths[0].read_text(encoding="utf-8")
    assert asked.count('"metric":"f1_macro"') == 2 and '<th scope="col">macro F1, %</th>' in asked


def test_old_runs_are_measured_again_from_their_predictions(
    tmp_path: Path, make_record: Any
) -> None:
    store = ResultsStore(tmp_path / "results")
    old, without, three = (
        make_record("lora", "a", 0, 0.75, classes=2),
        make_record("bias", "a", 0, 0.5, classes=2),
        make_record("full", "a", 0, 0.5, classes=3),
    )
    for record in (old, without, three):
        store.add(record)
    rows = {
        "classes": np.array([0, 0, 1, 1]),
        "confidence": np.array([0.9, 0.6, 0.7, 0.8]),
        "margin": np.array([0.8, 0.2, 0.4, 0.6]),
        "labels": np.array([0, 1, 1, 1]),
    }
    for record in (old, three):
        store.save_predictions(record.spec["method"]["name"], record.run_id, **rows)
    table = measured_again(frame(store), store, ["f1_macro", "auroc"])
    by_method = {row["method"]: row for row in table.to_dict("records")}
    # class 0: 1 hit of 1 image, given twice: 2/3; class 1: 2 hits of 3, given twice: 4/5
    assert by_method["lora"]["f1_macro"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    # the second class at 0.4, 0.7 and 0.8, all above the first at 0.1
    assert by_method["lora"]["auroc"] == 1.0
    assert by_method["full"]["f1_macro"] == by_method["lora"]["f1_macro"]
    missing = {name: set(table["method"][table[name].isna()]) for name in ("f1_macro", "auroc")}
    assert missing == {"f1_macro": {"bias"}, "auroc": {"bias", "full"}}  # kept none; of 3 classes
    text = build(store.root, metric="f1_macro").text
    assert "73.3 (1)" in text and "1 run finished without test/f1_macro" in text
    assert read_table(store.root / "table.csv")["f1_macro"].isna().all()  # as the records say


def test_rows_say_what_a_recipe_left_out(make_record: Any) -> None:
    weighed = {"class_weights": "balanced"}
    runs = [make_record("lora", "a", 0, 0.5, recipe=recipe) for recipe in ({}, weighed)]
    labels = list(Views(frame(runs)).view().cells["label"])
    assert sorted(labels) == ["lora class_weights=balanced", "lora class_weights=none"]

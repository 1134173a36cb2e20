"""Promises of the report as a whole."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from peftbench import report as reports
from peftbench.errors import ConfigError
from peftbench.report.figures import KINDS
from peftbench.report.tables import cells
from peftbench.report.view import Views
from peftbench.results.frame import frame
from peftbench.results.record import Status
from peftbench.results.store import ResultsStore
from peftbench.results.table_files import read_table


@pytest.fixture
def root(tmp_path, make_record):
    store = ResultsStore(tmp_path / "results")
    for method, tuned in (("linear", 0), ("lora", 500)):
        for seed in range(2):
            store.add(make_record(method, "a", seed, 0.5, tuned=tuned))
    store.add(make_record("bias", "a", 0, status=Status.ERROR, error="boom"))
    return store.root


def build(root, where=(), **settings):
    """A report with one kind of figure; every kind of it has a test of its own."""
    settings.setdefault("parts", ("tables", "figures"))
    return reports.build(root, where, kinds=("{score}_vs_parameters",), **settings)


def relative(paths, root):
    return sorted(str(path.relative_to(root)) for path in paths)


def test_a_report_writes_tables_and_a_figure_for_each_backbone(root, make_record):
    ResultsStore(root).add(make_record("linear", "a", 0, 0.5, backbone="resnet mini/16", tuned=0))
    report = build(root)
    assert relative(report.paths, root) == [
        *(f"figures/accuracy_vs_parameters_resnet_mini_16.{k}" for k in ("pdf", "png", "svg")),
        *(f"figures/accuracy_vs_parameters_vit_mini.{k}" for k in ("pdf", "png", "svg")),
        "statistics.csv",
        "statistics.md",
        "table.csv",
        "table.parquet",
    ]
    assert all(path.stat().st_size for path in report.paths)
    assert all(str(path) in report.text for path in report.paths)
    assert "vit_mini · mini" in report.text and "50.0 ± 0.0 (2)" in report.text
    assert "1 run failed:\n  - bias x vit_mini x a, seed 0: ERROR: boom" in report.text
    assert len(read_table(root / "table.csv")) == 6


def test_conditions_narrow_text_and_figures_but_not_the_table(root):
    build(root, formats=["svg"])
    figure = root / "figures" / "accuracy_vs_parameters_vit_mini.svg"
    before = figure.read_bytes()
    report = build(root, ["backbone=vit_mini", "method=linear"], formats=["svg"])
    assert "lora" not in report.text and "linear" in report.text
    assert figure.read_bytes() == before
    assert (
        root / "figures" / "backbone_vit_mini_method_linear" / "accuracy_vs_parameters_vit_mini.svg"
    ) in report.paths
    assert len(read_table(root / "table.csv")) == 5


def test_files_go_where_they_are_asked_to(root, tmp_path):
    report = build(root, out=tmp_path / "elsewhere", formats=["svg"])
    assert all(path.is_relative_to(tmp_path / "elsewhere") for path in report.paths)
    assert sorted(path.name for path in root.iterdir()) == ["runs"]


@pytest.mark.parametrize("folder", ["missing", "empty"])
def test_an_empty_store_says_in_one_line_what_to_run(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    report = build(tmp_path / folder)
    assert report.paths == () and "\n" not in report.text
    assert report.text.startswith(
        f"No runs in {tmp_path / folder / 'runs'} yet. Run: peftbench run"
    )
    assert list((tmp_path / "empty").iterdir()) == []


def test_conditions_that_no_run_meets_are_named(root):
    report = build(root, ["method=lora", "seed=9"])
    assert "No run has method=lora and seed=9" in report.text
    assert relative(report.paths, root) == ["table.csv", "table.parquet"]
    with pytest.raises(ConfigError, match="Unknown column 'metod'"):
        build(root, ["metod=lora"])


def test_a_backbone_without_a_complete_row_has_a_line_instead_of_a_figure(tmp_path, make_record):
    ResultsStore(tmp_path).add(make_record(status=Status.ERROR, error="boom"))
    report = build(tmp_path)
    assert "No figure for vit_mini: no method has all data sets yet." in report.text
    assert relative(report.paths, tmp_path) == ["table.csv", "table.parquet"]


def test_a_broken_file_is_printed_and_the_rest_is_reported(root):
    (root / "runs" / "lora" / "half.json").write_text("{")
    report = build(root, formats=["svg"])
    assert f"Unreadable: {root / 'runs' / 'lora' / 'half.json'} is not" in report.text
    assert len(report.broken) == 1 and "50.0 ± 0.0 (2)" in report.text
    only = root.parent / "only"
    (only / "runs" / "lora").mkdir(parents=True)
    (only / "runs" / "lora" / "half.json").write_text("{")
    assert "Unreadable" in build(only).text and "No runs in" in build(only).text


def test_a_report_loads_no_torch_and_is_the_same_the_next_time(root):
    code = """
import sys
import peftbench.results, peftbench.report
assert not {"torch", "timm", "pandas", "matplotlib"} & sys.modules.keys(), "import is not cheap"
peftbench.report.build(sys.argv[1], formats=['svg'])
assert not {"torch", "timm", "matplotlib.pyplot"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code, root], check=True)
    first = {path: path.read_bytes() for path in root.rglob("*.*") if path.is_file()}
    kinds = {path.stem.removesuffix("_vit_mini") for path in first if path.suffix == ".svg"}
    assert kinds == {
        *("accuracy_vs_parameters", "tasks_accuracy", "heat_map_accuracy"),
        "critical_difference_accuracy",
    }
    again = reports.build(root, formats=["svg"])
    assert set(again.paths) == {p for p in first if "runs" not in p.parts}
    assert all(path.read_bytes() == first[path] for path in again.paths)


def test_each_part_can_be_asked_for_alone(root):
    only = {
        part: reports.build(root, parts=(part,), formats=["svg"], kinds=list(KINDS)[:1])
        for part in reports.PARTS
    }
    assert {part: [path.suffix for path in made.paths] for part, made in only.items()} == {
        "tables": [".csv", ".parquet", ".md", ".csv"],
        "figures": [".svg"],
        "page": [".html"],
    }
    assert "50.0 ± 0.0 (2)" in only["tables"].text
    assert only["page"].text == f"Written:\n  {root / 'report.html'}"
    narrowed = reports.build(root, ["method=linear"], parts=("page",))
    assert relative(narrowed.paths, root) == ["report_method_linear.html"]


def test_runs_of_changed_code_stay_out_unless_asked_for(root, make_record):
    record = make_record("bias", "a", 3, 0.75, tuned=10)
    origin = dataclasses.replace(record.provenance, git_dirty=True)
    ResultsStore(root).add(dataclasses.replace(record, provenance=origin))
    line = "1 run of code that differs from its commit (--dirty shows them)"
    report = build(root, formats=["svg"])
    assert line in report.text and "75.0" not in report.text
    assert "75.0" in build(root, formats=["svg"], dirty=True).text
    assert len(read_table(root / "table.csv")) == 6  # the table of runs has every run
    alone = build(root, ["method=bias", "seed=3"])
    assert f"Left out: {line}." in alone.text and "No run has" not in alone.text


def test_a_report_computes_each_view_of_its_runs_once(root, make_record, monkeypatch):
    both = make_record("bias", "a", 1, 0.5, metrics={"mean_per_class": 0.4})
    ResultsStore(root).add(both)
    calls: dict[str, list[str]] = {"eligible_runs": [], "variants_of": []}
    for name, known in calls.items():
        real = getattr(cells, name)

        def counting(table, *, real=real, known=known, **choice):
            known.append(choice.get("metric", ""))
            return real(table, **choice)

        monkeypatch.setattr(cells, name, counting)
    narrowed = ["backbone=vit_mini"]
    report = reports.build(root, narrowed, formats=["svg"], kinds=["{score}_vs_parameters"])
    assert len(report.paths) == 6  # table, statistics, figure and page, all made of these views
    # the page shows two metrics, and the rest of the report the first of them
    assert calls["eligible_runs"] == ["top1", "mean_per_class"]
    assert len(calls["variants_of"]) == 2


def test_views_of_a_part_are_those_of_its_runs_alone(make_record):
    records = [
        make_record("lora", "a", 0, 0.5),
        make_record("lora", "a", 0, 0.9, backbone="other", hyperparameters={"rank": 2}),
        make_record("lora", "a", 0, 0.7, backbone="other", hyperparameters={"rank": 4}),
    ]
    views = Views(frame(records))
    assert set(views.view().cells["label"]) == {"lora rank=unset", "lora rank=2", "lora rank=4"}
    part = views.part("backbone", "vit_mini")
    assert list(part.view().cells["label"]) == ["lora"] and part.view().runs[0].score == 0.5
    assert part is views.part("backbone", "vit_mini") and part.part("suite", "mini") is part
    assert views.view() is views.view("top1") and views.view(limited=True) is not views.view()

"""Promises of the tables of papers: what fills a cell, and what does not."""

from __future__ import annotations

import dataclasses

import paper_runs
import pytest
from paper_runs import FGVC, LENGTHS, VTAB, of_published, run

from peftbench.report.papers import catalogue, html, latex, layout, markdown
from peftbench.report.papers.measured import fill, with_details
from peftbench.report.papers.options import Options
from peftbench.results import published
from peftbench.results.frame import frame
from peftbench.results.record import Cost, Status

STRUCTURED = tuple(VTAB["structured"])


@pytest.fixture(scope="module")
def numbers():
    return published.read()


def filled(name, records, numbers=None, **options):
    paper = catalogue.find(name)
    runs = with_details(frame(records), records, paper)
    return fill(paper, runs, Options(**options), numbers=numbers)


def cell(table, row, column, block=""):
    """The cell of a row and a column, found by title of the row and key of the column."""
    (rows,) = [b.rows for b in table.blocks if block in ("", b.title)]
    (found,) = [r for r in rows if r.title == row]
    return found.cells[[c.key for c in table.columns].index(column)]


def value(table, row, column):
    found = cell(table, row, column)
    return None if found.value is None else round(found.value, 2)


def test_vpt_table_1_comes_out_of_its_published_cells_as_if_they_were_measured(numbers):
    titles = [title for title in paper_runs.METHODS if title != "SSF"]
    records = of_published(numbers, "VPT", "sup_in21k_orig", titles)
    assert len(records) == 14 * 24
    table = filled("vpt_table1", records, numbers)

    # printed in the paper (FGVC, Natural, Specialized, Structured); cells have one decimal
    printed = {
        "Full": (88.54, 75.88, 83.36, 47.64),
        "Linear": (79.32, 68.93, 77.16, 26.84),
        "Bias": (88.41, 73.30, 78.25, 44.09),
        "VPT-Shallow": (84.62, 76.81, 79.66, 46.98),
        "VPT-Deep": (89.11, 78.48, 82.43, 54.98),
    }
    for row, means in printed.items():
        columns = ("fgvc", "natural", "specialized", "structured")
        for column, mean in zip(columns, means, strict=True):
            assert cell(table, row, column).value == pytest.approx(mean, abs=0.045)
    # every group mean of all 14 rows is as close to the one that the paper prints
    differences = [
        cell(table, row.title, column).difference
        for row in table.blocks[0].rows
        for column in ("fgvc", "natural", "specialized", "structured")
    ]
    assert len(differences) == 56 and max(map(abs, differences)) < 0.045

    # VPT, table 1: 24.02x for full and 1.18x for VPT-Deep; the others by the same formula
    totals = {row.title: value(table, row.title, "total") for row in table.blocks[0].rows}
    assert totals["Full"] == 24.02 and totals["VPT-Deep"] == 1.18
    assert (totals["Linear"], totals["Bias"], totals["VPT-Shallow"]) == (1.02, 1.05, 1.04)
    assert (totals["Partial-1"], totals["MLP-3"], totals["Sidetune"]) == (3.0, 1.35, 3.69)

    # "20 out of 24", which are 4 of 5, 6 of 7, 2 of 4 and 8 of 8
    assert value(table, "VPT-Deep", "wins of 24") == 20
    groups = ("fgvc wins", "natural wins", "specialized wins", "structured wins")
    assert [value(table, "VPT-Deep", g) for g in groups] == [4, 6, 2, 8]
    assert cell(table, "Full", "wins of 24").value is None  # not over itself
    # bias and full agree on Flowers (98.8), which is no win: 3 + 3 + 0 + 2
    assert value(table, "Bias", "wins of 24") == 8


def test_ssf_has_73_10_over_19_tasks_and_90_72_over_fgvc(numbers):
    records = of_published(
        numbers, "SSF", "sup_in21k_augreg", ["SSF"], protocol="ssf", weights=paper_runs.AUGREG
    )
    table = filled("ssf_vtab", records, numbers, best_on_test=True)
    assert value(table, "SSF", "mean_19") == 73.10
    assert cell(table, "SSF", "mean_19").difference == pytest.approx(0, abs=0.005)
    assert value(table, "SSF", "params") == 0.24  # 0.206 and a mean head of 0.038
    # the baselines that the paper prints are VPT's, on other weights, and nobody measured them
    full = cell(table, "Full", "mean_19")
    assert (
        full.state == "missing"
        and full.value is None
        and full.printed.value == pytest.approx(65.57, abs=0.005)
    )
    assert full.printed.notes == (
        "printed by VPT for weights sup_in21k_orig",
        "not printed: computed from the printed cells",
    )
    table = filled("ssf_fgvc", records, numbers, best_on_test=True)
    assert (value(table, "SSF", "fgvc"), value(table, "SSF", "params")) == (90.72, 0.39)
    # such runs selected the epoch on test: without being asked for they stay out
    table = filled("ssf_fgvc", records, numbers)
    assert cell(table, "SSF", "fgvc").state == "missing"
    assert "Left out: 5 runs selected on test" in table.remarks


def test_published_numbers_never_fill_a_cell(numbers):
    table = filled("vpt_table1", [], numbers)
    assert not table.measured
    assert {c.state for c in table.cells} == {"missing", "baseline"}
    assert all(c.value is None and c.difference is None for c in table.cells)
    assert cell(table, "VPT-Deep", "structured").printed.text == "54.98"


def seeds(title, dataset, scores, **changes):
    return [run(title, dataset, top1, seed=i, **changes) for i, top1 in enumerate(scores)]


def fgvc(title, scores, **changes):
    """Seeds on all five data sets; the same scores on each."""
    return [record for name in FGVC for record in seeds(title, name, scores, **changes)]


def test_cells_have_their_seeds_and_the_spread_over_them():
    records = [r for name in list(FGVC)[:4] for r in seeds("Linear", name, [50, 60, 70])]
    records += seeds("Linear", "stanford_cars", [20, 20, 50])
    table = filled("vpt_fgvc", records)
    cars = cell(table, "Linear", "fgvc/stanford_cars")
    # 20, 20, 50: mean 30, squares 100, 100, 400 over 2 = 300
    assert (cars.value, cars.sd, cars.n) == (pytest.approx(30), pytest.approx(300**0.5), 3)
    mean = cell(table, "Linear", "fgvc")
    # by seed (200 + 20) / 5 = 44, (240 + 20) / 5 = 52, (280 + 50) / 5 = 66: mean 54, squares
    # 100, 4, 144 over 2 = 124
    assert (mean.value, mean.sd, mean.n) == (pytest.approx(54), pytest.approx(124**0.5), 3)


def test_an_average_with_a_hole_is_refused_unless_asked_for_and_then_marked():
    records = [r for r in fgvc("Linear", [50]) if r.spec["dataset"]["name"] != "fgvc/nabirds"]
    records += [run("Linear", "nabirds", None, status=Status.ERROR)]
    records += fgvc("Full", [40]) + fgvc("Bias", [45])
    table = filled("vpt_fgvc", records)
    assert cell(table, "Linear", "fgvc/nabirds").state == "failed"
    mean = cell(table, "Linear", "fgvc")
    assert (mean.state, mean.value) == ("incomplete", None)
    assert mean.notes == ("no average without fgvc/nabirds",)

    asked = cell(filled("vpt_fgvc", records, incomplete=True), "Linear", "fgvc")
    assert asked.value == pytest.approx(50) and asked.partial
    assert asked.notes == ("over 4 of 5 data sets, without fgvc/nabirds",)

    # the same of wins: VTAB was not run at all, FGVC has a hole for Linear and none for Bias
    table = filled("vpt_table1", records)
    assert value(table, "Bias", "fgvc wins") == 5
    assert cell(table, "Linear", "fgvc wins").state == "incomplete"
    assert cell(table, "Bias", "natural").state == "missing"
    assert cell(table, "Bias", "total").state == "incomplete"  # 19 of 24 counts are missing
    wins = cell(filled("vpt_table1", records, incomplete=True), "Linear", "fgvc wins")
    assert wins.value == 4 and wins.notes == ("of 4 data sets, without fgvc/nabirds",)
    # a task without a column of its own keeps its remarks
    records = [r for r in records if r.status is Status.OK] + fgvc("Linear", [50, 60])[2:4]
    mixed = cell(filled("vpt_table1", records), "Linear", "fgvc")
    assert any(note.startswith("seeds differ between data sets") for note in mixed.notes)


def test_runs_of_another_protocol_fill_only_what_the_own_one_left_and_are_marked():
    own = fgvc("Linear", [50]) + fgvc("Bias", [60])
    other = fgvc("Bias", [90], protocol="peftbench") + fgvc("Full", [70], protocol="peftbench")
    table = filled("vpt_fgvc", own + other)
    assert cell(table, "Bias", "fgvc").value == pytest.approx(60)
    assert cell(table, "Bias", "fgvc").notes == ()
    full = cell(table, "Full", "fgvc/cub200")
    assert full.value == pytest.approx(70)
    assert "protocol peftbench, where this column has vpt" in full.notes
    assert set(full.differences) == {
        "protocol peftbench, not vpt",
        "normalisation checkpoint, not imagenet",
        "interpolation checkpoint, not bilinear",
        "recipe default, not vpt",
    }
    # a row of two protocols has no average
    half = own[:3] + [run("Linear", name, 50.0, protocol="peftbench") for name in list(FGVC)[3:]]
    mean = cell(filled("vpt_fgvc", half, incomplete=True), "Linear", "fgvc")
    assert mean.state == "incomplete"
    assert mean.notes == ("no average over runs of protocol peftbench and vpt",)
    # and of two other protocols none is chosen for the reader
    two = [
        run("Linear", "cub200", 50.0, protocol=p, selection="last") for p in ("ssf", "peftbench")
    ]
    mixed = cell(filled("vpt_fgvc", two), "Linear", "fgvc/cub200")
    assert mixed.state == "mixed" and "choose with --where protocol=NAME" in mixed.notes[0]
    chosen = filled("vpt_fgvc", two, where=("protocol=ssf",))
    assert cell(chosen, "Linear", "fgvc/cub200").value == pytest.approx(50)
    assert "Only runs with protocol=ssf." in chosen.remarks


def test_budgets_pixels_and_weights_that_differ_within_a_column_are_marked():
    records = [run("Linear", "cub200", 50.0), run("Full", "cub200", 50.0)]
    tuning = {"tuner": "grid", "trials": 8, "epochs": 50}
    records += [run("Bias", "cub200", 50.0, tuning=tuning)]
    records += [run("VPT-Deep", "cub200", 50.0, pixels={"normalisation": "none"})]
    records += [run("VPT-Shallow", "cub200", 50.0, sha256="other")]
    table = filled("vpt_fgvc", records)
    notes = {r.title: " ".join(r.cells[0].notes) for r in table.blocks[0].rows}
    assert "hyper-parameters from grid: 8 trials x 50 epochs, while most" in notes["Bias"]
    assert "normalisation none, where this column has imagenet" in notes["VPT-Deep"]
    assert "backbone weights other, while most runs" in notes["VPT-Shallow"]
    assert notes["Linear"] == notes["Full"] == ""


def test_arithmetic_that_differs_within_a_column_is_marked_in_every_format():
    records = [run("Linear", "cub200", 50.0), run("Full", "cub200", 50.0)]
    records += [run("Bias", "cub200", 50.0, cost=Cost("NVIDIA H200", "bfloat16"))]
    table = filled("vpt_fgvc", records)
    notes = {r.title: " ".join(r.cells[0].notes) for r in table.blocks[0].rows}
    remark = "computed in bfloat16 on a GPU, while most runs of this column are in float32 on a CPU"
    assert notes["Bias"] == remark
    assert notes["Linear"] == notes["Full"] == ""
    page = layout.lay_out(table)
    for text in (markdown.render(page), latex.render(page), html.render(page)):
        assert remark in " ".join(text.split())


def test_rows_take_the_settings_and_weights_that_they_name():
    records = [run("MLP-2", "cub200", 20.0), run("MLP-5", "cub200", 50.0)]
    records += [run("Linear", "cub200", 10.0, weights=paper_runs.AUGREG)]
    table = filled("vpt_fgvc", records)
    assert cell(table, "MLP-2", "fgvc/cub200").value == pytest.approx(20)
    assert cell(table, "MLP-3", "fgvc/cub200").state == "missing"
    assert cell(table, "MLP-5", "fgvc/cub200").value == pytest.approx(50)
    assert cell(table, "Linear", "fgvc/cub200").state == "missing"  # other weights
    assert table.remarks == (
        f"Left out: 1 run on other weights ({paper_runs.AUGREG}); "
        "take them with --where backbone_tag=TAG",
    )
    where = (f"backbone_tag={paper_runs.AUGREG}",)
    asked = cell(filled("vpt_fgvc", records, where=where), "Linear", "fgvc/cub200")
    assert asked.value == pytest.approx(10)
    assert asked.differences == (f"checkpoint {paper_runs.AUGREG}, not {paper_runs.ORIG}",)
    # two settings of one row on one data set are no cell
    twice = [run("VPT-Deep", "cub200", 50.0)]
    twice += [run("VPT-Shallow", "cub200", 50.0, seed=s, recipe={"lr": s}) for s in (1, 2)]
    table = filled("vpt_fgvc", twice)
    assert cell(table, "VPT-Deep", "fgvc/cub200").value == pytest.approx(50)
    assert cell(table, "VPT-Shallow", "fgvc/cub200").state == "mixed"


def test_a_length_chosen_for_each_task_is_said_beside_the_row():
    records = [run("VPT-Deep", name, 50.0) for name in FGVC]
    (row,) = [r for r in filled("vpt_fgvc", records).blocks[0].rows if r.title == "VPT-Deep"]
    assert sorted(LENGTHS[name] for name in FGVC) == [5, 10, 50, 100, 200]
    assert row.notes == ("chosen for each data set: num_tokens (10, 100, 200, 5, 50)",)


def test_draws_of_the_training_images_count_like_seeds():
    def shot(task, draw, top1, shots=4):
        record = run("Full", "cub200", top1, protocol="vpt", selection="last")
        record.spec["method"] = {"name": "lora", "version": 1, "hyperparameters": {"rank": 8}}
        record.spec["protocol"] = {"name": "fact"}
        record.spec["dataset"] |= {
            "name": f"fewshot/{task}",
            "suite": f"fewshot_{shots}shot",
            "manifest": f"{task} {shots} {draw}",
            "shot_seed": draw,
        }
        return type(record)(
            f"{task}{shots}{draw}",
            record.spec,
            record.status,
            metrics=record.metrics,
            parameters=record.parameters,
            provenance=record.provenance,
        )

    tasks = ("fgvc_aircraft", "food101", "flowers102", "pets", "stanford_cars")
    records = [shot(task, draw, 40 + 10 * draw) for task in tasks for draw in range(3)]
    records += [shot("pets", 0, 99.0, shots=1)]
    table = filled("fact_fewshot", records)
    pets = cell(table, "LoRA", "fewshot/pets", "4 shots")
    assert (pets.value, pets.sd, pets.n) == (pytest.approx(50), pytest.approx(10), 3)
    mean = cell(table, "LoRA", "mean", "4 shots")
    assert (mean.value, mean.sd, mean.n) == (pytest.approx(50), pytest.approx(10), 3)
    one = cell(table, "LoRA", "fewshot/pets", "1 shot")
    assert one.value == pytest.approx(99) and "1 of 3 draws of the training images" in one.notes
    assert cell(table, "LoRA", "fewshot/pets", "16 shots").state == "missing"


def test_metrics_of_a_record_beyond_the_columns_of_the_table_of_runs():
    def robust(title, error):
        record = run(title, "cub200", 80.0, protocol="ssf", weights=paper_runs.AUGREG)
        record.spec["dataset"] |= {"name": "imagenet1k", "suite": "imagenet1k"}
        record.metrics.update({"imagenet_a/top1": 0.3, "imagenet_c/mce": error})
        return record

    records = [robust("SSF", 0.4), robust("Full", 0.5)]
    table = filled("ssf_robustness", records, best_on_test=True)
    assert cell(table, "SSF", "imagenet/imagenet1k").value == pytest.approx(80)
    assert cell(table, "SSF", "imagenet/imagenet_a").value == pytest.approx(30)
    assert cell(table, "SSF", "imagenet/imagenet_c").value == pytest.approx(40)
    assert cell(table, "SSF", "imagenet/imagenet_r").state == "missing"


def test_a_run_of_changed_code_fills_no_cell_unless_asked_to(numbers):
    clean = run("Linear", "dtd", 60.0)
    origin = dataclasses.replace(clean.provenance, git_dirty=True)
    records = [dataclasses.replace(clean, provenance=origin)]
    table = filled("vpt_vtab", records)
    assert value(table, "Linear", "vtab/dtd") is None
    assert any("1 run of code that differs" in line for line in table.remarks)
    assert value(filled("vpt_vtab", records, dirty=True), "Linear", "vtab/dtd") == 60.0

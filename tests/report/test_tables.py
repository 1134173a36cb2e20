"""Promises of the tables, on cells that can be computed by hand."""

from __future__ import annotations

import dataclasses

import pandas as pd
import pytest

from peftbench.errors import ConfigError
from peftbench.report.tables.cells import overall, summary
from peftbench.report.tables.text import to_csv, to_markdown, to_text
from peftbench.results.frame import frame
from peftbench.results.record import Status

NA = pd.NA

# Three methods, three data sets in two groups, three seeds; top-1 as fractions.
#
#           nature/birds        nature/trees        symbols/digits
# linear    .50 .50 .50         .60 .62 .64         .10 .20 .30
# bias      .70 .72 .74         .60 .70 .80         .40 .40 .40
# lora      .80 .81 .82         .90 .90 .90         .50 .60 .70
SCORES = {
    "linear": {"birds": [0.50, 0.50, 0.50], "trees": [0.60, 0.62, 0.64], "digits": [0.1, 0.2, 0.3]},
    "bias": {"birds": [0.70, 0.72, 0.74], "trees": [0.60, 0.70, 0.80], "digits": [0.4, 0.4, 0.4]},
    "lora": {"birds": [0.80, 0.81, 0.82], "trees": [0.90, 0.90, 0.90], "digits": [0.5, 0.6, 0.7]},
}
GROUPS = {"birds": "nature", "trees": "nature", "digits": "symbols"}
TUNED = {"linear": 0, "bias": 500, "lora": 40_000}
HEADS = {"birds": 200, "trees": 300, "digits": 100}  # mean 200


@pytest.fixture
def records(make_record):
    """The 27 runs of the table above."""
    return [
        make_record(
            method,
            dataset,
            seed,
            top1,
            group=GROUPS[dataset],
            tuned=TUNED[method],
            head=HEADS[dataset],
        )
        for method, row in SCORES.items()
        for dataset, scores in row.items()
        for seed, top1 in enumerate(scores)
    ]


def without(records, method, dataset, seed=None):
    return [
        record
        for record in records
        if not (
            record.spec["method"]["name"] == method
            and record.spec["dataset"]["name"] == dataset
            and seed in (None, record.spec["seed"])
        )
    ]


def cell(cells, label, column):
    found = cells[(cells["label"] == label) & (cells["column"] == column)]
    assert len(found) == 1, (label, column, cells[["label", "column"]])
    return found.iloc[0]


def values(cells, label, column):
    found = cell(cells, label, column)
    return found["n"], found["mean"], found["sd"]


def notes(cells):
    return {note for notes in cells["note"].dropna() for note in notes.split("\n")}


def test_cells_hold_mean_sample_deviation_and_number_of_seeds(records):
    cells = summary(frame(records))
    # birds, bias: (.70 + .72 + .74) / 3 = .72; squares .02², 0, .02²; / (3 - 1) = .0004; root .02
    assert values(cells, "bias", "birds") == (3, pytest.approx(0.72), pytest.approx(0.02))
    # trees, bias: .6, .7, .8: mean .7; (.01 + 0 + .01) / 2 = .01; root .1 (divisor n gives .0816)
    assert values(cells, "bias", "trees") == (3, pytest.approx(0.7), pytest.approx(0.1))
    assert values(cells, "linear", "birds") == (3, pytest.approx(0.5), pytest.approx(0.0))
    assert (cells["state"] == "ok").all() and notes(cells) == set()


def test_both_averages_are_named_and_spread_over_seeds_of_the_average(records):
    cells = summary(frame(records))
    # Tasks, linear: cells .50, .62, .20: mean 1.32 / 3 = .44.
    # By seed: (.50 + .60 + .10) / 3 = .40, (.50 + .62 + .20) / 3 = .44,
    # (.50 + .64 + .30) / 3 = .48; deviations -.04, 0, .04: sd .04.
    expected = (3, pytest.approx(0.44), pytest.approx(0.04))
    assert values(cells, "linear", "mean of 3 tasks") == expected
    # nature, linear: (.50 + .62) / 2 = .56; by seed .55, .56, .57: sd .01
    assert values(cells, "linear", "nature (2)") == (3, pytest.approx(0.56), pytest.approx(0.01))
    # symbols, linear: .20; by seed .1, .2, .3: sd .1
    assert values(cells, "linear", "symbols (1)") == (3, pytest.approx(0.2), pytest.approx(0.1))
    # Groups, linear: (.56 + .20) / 2 = .38; by seed (.55 + .1) / 2 = .325, .38, .435: sd .055
    expected = (3, pytest.approx(0.38), pytest.approx(0.055))
    assert values(cells, "linear", "mean of 2 groups") == expected


def test_rows_rise_with_the_tuned_parameters_and_count_the_head_apart(records):
    cells = summary(frame(records[::-1]))
    assert list(dict.fromkeys(cells["label"])) == ["linear", "bias", "lora"]
    assert dict(zip(cells["label"], cells["params_tuned"], strict=True)) == TUNED
    # mean head (200 + 300 + 100) / 3 = 200
    expected = {"linear": 200.0, "bias": 700.0, "lora": 40_200.0}
    assert dict(zip(cells["label"], cells["params_with_head"], strict=True)) == expected


def test_text_is_aligned_and_in_percent_with_one_decimal(records):
    text = to_text(summary(frame(records)), width=None)
    head, rule, *rows = text.split("\n\n")[1].split("\n")
    assert text.startswith("vit_mini · mini\n")
    assert head.split("  ")[0] == "method" and set(rule) == {"─"}
    # linear on the tasks: 44.0 ± 4.0; lora with the head: 40 200
    assert [part.strip() for part in rows[0].split("  ") if part] == [
        *("linear", "0", "200"),
        *("44.0 ± 4.0 (3)", "38.0 ± 5.5 (3)", "56.0 ± 1.0 (3)", "20.0 ± 10.0 (3)"),
        *("50.0 ± 0.0 (3)", "62.0 ± 2.0 (3)", "20.0 ± 10.0 (3)"),
    ]
    assert rows[2].startswith("lora    40.0k      40.2k")
    assert {len(line) for line in (head, rule, *rows)} == {len(head)}


def test_wide_text_continues_in_blocks_that_fit(records):
    text = to_text(summary(frame(records)), width=60)
    blocks = [part for part in text.split("\n\n") if part.startswith("method")]
    assert len(blocks) > 1
    for block in blocks:
        lines = block.split("\n")
        assert max(map(len, lines)) <= 60
        assert [line.split()[0] for line in lines[2:]] == ["linear", "bias", "lora"]
    assert sum(block.count("±") for block in blocks) == 3 * 7
    assert [len(part) > 60 for part in to_text(summary(frame(records)), width=1).split("\n")]


def test_one_seed_shows_no_deviation(make_record):
    cells = summary(frame([make_record(top1=0.5)]))
    assert values(cells, "lora", "digits") == (1, 0.5, NA)
    text = to_text(cells)
    assert "50.0 (1)" in text and "±" not in text.split("\n\n")[1]


def test_one_data_set_has_no_average(make_record):
    cells = summary(frame([make_record()]))
    assert list(cells["column"]) == ["digits"]
    assert list(overall(cells)["column"]) == ["digits"]


def test_data_sets_without_groups_have_a_mean_of_tasks_only(make_record):
    cells = summary(frame([make_record(dataset="a"), make_record(dataset="b")]))
    assert list(cells["column"]) == ["mean of 2 tasks", "a", "b"]


def test_an_incomplete_row_gives_no_average_and_says_what_is_missing(records):
    cells = summary(frame(without(records, "bias", "digits")))
    assert cell(cells, "bias", "digits")["state"] == "missing"
    for column in ("mean of 3 tasks", "mean of 2 groups", "symbols (1)"):
        found = cell(cells, "bias", column)
        assert (found["state"], found["mean"], found["n"]) == ("incomplete", NA, NA)
        assert found["note"] == "no average without digits"
    # The group that is complete keeps its mean: (.72 + .70) / 2 = .71.
    assert values(cells, "bias", "nature (2)")[:2] == (3, pytest.approx(0.71))
    assert cell(cells, "lora", "mean of 3 tasks")["state"] == "ok"
    text = to_text(cells, width=None)
    bias = next(line for line in text.split("\n") if line.startswith("bias"))
    assert bias.count("–") == 4 and "[a] no average without digits" in text


def test_unsupported_and_failed_cells_are_told_apart(records, make_record):
    kept = without(without(records, "bias", "digits"), "lora", "digits")
    kept += [
        make_record("bias", "digits", 0, status=Status.UNSUPPORTED, error="no biases", group="x"),
        make_record("lora", "digits", 0, status=Status.DIVERGED, error="loss is nan", group="x"),
        make_record("lora", "digits", 1, status=Status.DIVERGED, error="loss is nan", group="x"),
    ]
    cells = summary(frame(kept))
    assert cell(cells, "bias", "digits")["state"] == "unsupported"
    assert cell(cells, "lora", "digits")["state"] == "failed"
    text = to_text(cells, width=None)
    rows = {line.split()[0]: line for line in text.split("\n") if line.strip()}
    assert rows["bias"].endswith("n/a") and rows["lora"].endswith("failed")
    assert "2 runs failed:\n  - lora x vit_mini x digits, seeds 0, 1: DIVERGED: loss is nan" in text
    assert "1 run of an unsupported pair:\n  - bias x vit_mini: no biases" in text


def test_a_method_that_the_backbone_does_not_support_is_not_called_incomplete(make_record):
    unsupported = {"status": Status.UNSUPPORTED, "error": "no tokens"}
    records = [make_record("vpt", name, **unsupported) for name in "ab"]
    cells = summary(frame(records))
    assert set(cells["state"]) == {"unsupported"} and notes(cells) == set()
    assert "n/a" in to_text(cells)
    cells = summary(frame([*records, make_record("linear", "c")]))
    assert cell(cells, "vpt", "mean of 3 tasks")["state"] == "incomplete"  # c was not tried


def test_a_cell_with_a_failed_seed_says_so(records, make_record):
    kept = without(records, "bias", "birds", seed=2)
    kept.append(make_record("bias", "birds", 2, status=Status.ERROR, error="x", group="nature"))
    cells = summary(frame(kept))
    # .70, .72: mean .71; (.01² + .01²) / 1 = .0002; root .01414
    assert values(cells, "bias", "birds") == (2, pytest.approx(0.71), pytest.approx(0.0002**0.5))
    assert cell(cells, "bias", "birds")["note"] == "1 of 3 seeds failed: ERROR"
    # The mean is over the cells shown; spread over seeds 0 and 1, which every data set has:
    # (.71 + .70 + .40) / 3 = 1.81 / 3; by seed (.70 + .60 + .40) / 3 and (.72 + .70 + .40) / 3,
    # which are .04 apart: two values d apart have sd d / √2
    found = values(cells, "bias", "mean of 3 tasks")
    assert found == (2, pytest.approx(1.81 / 3), pytest.approx(0.04 / 2**0.5))
    assert "the 2 that all have" in cell(cells, "bias", "mean of 3 tasks")["note"]


@pytest.mark.parametrize(
    ("change", "remark"),
    [
        ({"weights": "ffff0000ffff"}, "not averaged: 2 different backbone weights (ffff0000, w0)"),
        ({"weights": None}, "not averaged: 2 different backbone weights (unknown, w0)"),
        ({"suite_version": 2}, "not averaged: 2 different suite versions (1, 2)"),
        ({"manifest": "m1"}, "not averaged: 2 different manifests (m0, m1)"),
    ],
)
def test_runs_on_different_weights_or_files_are_never_averaged(
    records, make_record, change, remark
):
    kept = without(records, "bias", "trees", seed=2)
    kept.append(make_record("bias", "trees", 2, 0.8, group="nature", tuned=500, **change))
    cells = summary(frame(kept))
    found = cell(cells, "bias", "trees")
    assert (found["state"], found["mean"], found["sd"]) == ("mixed", NA, NA)
    assert found["note"] == remark
    assert cell(cells, "bias", "mean of 3 tasks")["state"] == "incomplete"
    assert cell(cells, "bias", "birds")["state"] == "ok"
    text = to_text(cells, width=None)
    assert "mixed [" in text and remark in text


def test_a_seed_that_ran_twice_is_not_averaged(records, make_record):
    again = make_record("bias", "trees", 2, 0.8, group="nature", tuned=500, head=HEADS["trees"])
    cells = summary(frame([*records, dataclasses.replace(again, run_id="twice")]))
    assert cell(cells, "bias", "trees")["note"] == "not averaged: seed 2 was run more than once"


def test_a_row_on_other_weights_than_its_neighbours_is_marked(make_record):
    records = [make_record(m, d) for m in ("linear", "bias") for d in "ab"]
    records += [make_record("lora", d, weights="other") for d in "ab"]
    cells = summary(frame(records))
    remark = "backbone weights other, while most runs of this table have w0"
    assert cell(cells, "lora", "a")["note"] == remark == cell(cells, "lora", "b")["note"]
    assert cell(cells, "lora", "mean of 2 tasks")["state"] == "ok"
    assert notes(cells[cells["label"] != "lora"]) == set()


def test_a_row_over_two_sets_of_weights_has_no_average(make_record):
    cells = summary(frame([make_record(dataset="a"), make_record(dataset="b", weights="other")]))
    found = cell(cells, "lora", "mean of 2 tasks")
    assert (found["state"], found["mean"]) == ("incomplete", NA)
    assert found["note"] == "no average over different backbone weights"


def test_a_cell_on_other_files_than_its_column_is_marked(make_record):
    records = [make_record(method) for method in ("linear", "bias")]
    cells = summary(frame([*records, make_record("lora", manifest="m1")]))
    remark = "digits version 1 with manifest m1, while most runs have version 1 with m0"
    assert notes(cells) == {remark}
    assert cell(cells, "lora", "digits")["note"] == remark


EPYC, H200 = "AMD EPYC 7B13 64-Core Processor", "NVIDIA H200"


@pytest.mark.parametrize(
    ("cost", "said"),
    [
        ({"dtype": "bfloat16"}, "bfloat16 on a CPU"),
        ({"device": H200}, "float32 on a GPU"),
        ({"device": H200, "dtype": "bfloat16"}, "bfloat16 on a GPU"),
        ({"device": "Tesla V100-SXM2-16GB"}, "float32 on a GPU"),
        ({"device": "AMD Instinct MI250X"}, "float32 on a GPU"),
    ],
)
def test_a_cell_computed_otherwise_than_its_column_is_marked(make_record, cost, said):
    records = [make_record(m, d, device=EPYC) for m in ("linear", "bias") for d in "ab"]
    records.append(make_record("lora", "a", **{"device": EPYC, **cost}))
    records.append(make_record("lora", "b", device=EPYC))
    cells = summary(frame(records))
    remark = f"computed in {said}, while most runs of this column are in float32 on a CPU"
    assert cell(cells, "lora", "a")["note"] == remark
    mean = cell(cells, "lora", "mean of 2 tasks")
    assert mean["state"] == "ok"
    both = sorted([f"{said} (1)", "float32 on a CPU (1)"])
    assert mean["note"] == f"runs computed in {' and '.join(both)} are averaged"
    assert notes(cells[cells["label"] != "lora"]) == set()
    assert NA is cell(cells, "lora", "b")["note"]
    for text in (to_text(cells, width=None), to_markdown(cells), to_csv(cells)):
        assert remark in text and mean["note"] in text


def test_seeds_computed_differently_are_not_averaged_in_silence(make_record):
    records = [make_record("lora", seed=s, device=EPYC) for s in (0, 1)]
    records.append(make_record("lora", seed=2, device=H200, dtype="bfloat16"))
    cells = summary(frame(records))
    assert cell(cells, "lora", "digits")["note"] == (
        "seeds computed in float32 on a CPU (2) and bfloat16 on a GPU (1) are averaged"
    )


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz",
        "AMD Ryzen 7 5800H with Radeon Graphics",
        "Intel(R) Core(TM) i7-9750H",
        "Neoverse-V1",
    ],
)
def test_two_processors_with_one_arithmetic_are_no_difference(make_record, device):
    records = [make_record("lora", device=EPYC), make_record("bias", device=device)]
    assert notes(summary(frame(records))) == set()


def test_settings_run_on_the_same_data_are_rows_labelled_by_what_differs(make_record):
    records = [
        make_record(
            dataset=name,
            hyperparameters={"rank": rank, "alpha": alpha},
            tuned=rank,
            top1=rank / 100,
        )
        for name in "ab"
        for rank, alpha in ((8, 8.0), (16, 16.0))
    ]
    cells = summary(frame(records))
    assert list(dict.fromkeys(cells["label"])) == ["lora rank=8", "lora rank=16"]
    assert values(cells, "lora rank=16", "mean of 2 tasks")[1] == pytest.approx(0.16)


def test_two_settings_that_vary_apart_are_both_named(make_record):
    records = [
        make_record(hyperparameters={"rank": rank, "dropout": dropout}, tuned=rank)
        for rank in (8, 16)
        for dropout in (0.0, 0.1)
    ]
    assert list(summary(frame(records))["label"]) == [
        "lora rank=8, dropout=0.0",
        "lora rank=8, dropout=0.1",
        "lora rank=16, dropout=0.0",
        "lora rank=16, dropout=0.1",
    ]


def test_sizes_never_share_a_row_even_on_different_data(make_record):
    records = [
        make_record(dataset=name, hyperparameters={"rank": rank}, tuned=rank)
        for name, rank in (("a", 8), ("b", 16))
    ]
    cells = summary(frame(records))
    assert list(dict.fromkeys(cells["label"])) == ["lora rank=8", "lora rank=16"]
    assert cell(cells, "lora rank=8", "b")["state"] == "missing"


def test_a_rate_chosen_for_each_data_set_leaves_one_row_with_a_remark(make_record):
    records = [
        make_record("lora", name, seed, recipe={"lr": rate})
        for name, rate in (("a", 0.001), ("b", 0.01))
        for seed in range(2)
    ]
    cells = summary(frame(records))
    assert list(dict.fromkeys(cells["label"])) == ["lora"]
    assert cell(cells, "lora", "mean of 2 tasks")["note"] == (
        "chosen for each data set: lr (0.001, 0.01)"
    )


def test_a_rate_varied_on_one_data_set_makes_rows(make_record):
    cells = summary(frame([make_record(recipe={"lr": rate}) for rate in (0.001, 0.01)]))
    assert list(cells["label"]) == ["lora lr=0.001", "lora lr=0.01"]


def test_recipes_and_versions_are_rows(make_record):
    cells = summary(frame([make_record(), make_record(recipe={"name": "long", "epochs": 300})]))
    assert set(cells["label"]) == {"lora recipe=default", "lora recipe=long"}
    cells = summary(frame([make_record(), make_record(version=2)]))
    assert set(cells["label"]) == {"lora version=1", "lora version=2"}


def test_tuning_limited_and_test_selected_runs_stay_out_and_are_counted(records, make_record):
    extra = [
        make_record("lora", "birds", 7, 0.9, phase="tune"),
        make_record("lora", "birds", 8, 0.9, limit=20),
        make_record("lora", "birds", 9, 0.9, limit=20),
        make_record("lora", "birds", 10, 0.9, selection="best_on_test"),
        make_record("lora", "birds", 11, None),
    ]
    cells = summary(frame([*records, *extra]))
    pd.testing.assert_frame_equal(cells, summary(frame(records)), check_exact=True)
    assert cells.attrs["left_out"] == [
        "1 run in the tuning phase, which reports val",
        "2 runs limited to a part of the images",
        "1 run selected on test",
        "1 run finished without test/top1",
    ]
    assert "- 2 runs limited to a part of the images\n" in to_text(cells)


def test_limited_runs_are_rows_of_their_own_when_asked_for(make_record):
    records = [make_record(), make_record(limit=20, top1=0.1)]
    cells = summary(frame(records), limited=True)
    assert set(cells["label"]) == {"lora limit=null", "lora limit=20"}


def test_runs_selected_on_test_are_rows_of_their_own_when_asked_for(make_record):
    records = [
        make_record(top1=0.5),
        make_record(top1=0.9, seed=1, selection="best_on_test"),
    ]
    cells = summary(frame(records), best_on_test=True)
    assert dict(zip(cells["label"], cells["mean"], strict=True)) == {
        "lora selection=best_on_test": 0.9,
        "lora selection=last": 0.5,
    }
    assert list(cells["n"]) == [1, 1]  # never averaged


def test_backbones_and_suites_have_tables_of_their_own(make_record):
    records = [
        make_record(backbone="vit_mini", dataset="a"),
        make_record(backbone="resnet_mini", dataset="a"),
        make_record(backbone="vit_mini", dataset="b", suite="other"),
    ]
    text = to_text(summary(frame(records)))
    headings = [part for part in text.split("\n\n") if " · " in part]
    assert headings == ["resnet_mini · mini", "vit_mini · mini", "vit_mini · other"]


def test_one_title_for_two_backbones_is_told_apart_by_their_tags(make_record):
    other = make_record("bias")
    other.spec["backbone"]["pretrained"] = False
    cells = summary(frame([make_record(), other]))
    assert set(cells["backbone"]) == {
        "vit_mini [vit_mini.tag]",
        "vit_mini [vit_mini.tag (random, seed 0)]",
    }


def test_markdown_has_a_row_for_each_method_and_its_footnotes(records):
    text = to_markdown(summary(frame(without(records, "bias", "digits"))))
    lines = text.split("\n")
    assert lines[0] == "### vit_mini · mini"
    assert lines[2].startswith(
        "| method | tuned | with head | mean of 3 tasks | mean of 2 groups |"
    )
    assert lines[3] == "| --- |" + " ---: |" * 9
    assert lines[4].startswith("| linear | 0 | 200 | 44.0 ± 4.0 (3) | 38.0 ± 5.5 (3) |")
    assert "- [a] no average without digits" in lines


def test_csv_keeps_every_digit(records):
    cells = summary(frame(records))
    lines = to_csv(cells).splitlines()
    assert len(lines) == 1 + len(cells) == 1 + 3 * 7
    start = "vit_mini,mini,bias,,bias,500,700.0,task,birds,3,"
    (line,) = [line for line in lines if line.startswith(start)]
    mean, sd = line.removeprefix(start).split(",")[:2]
    # statistics.fmean and stdev of .70, .72, .74 as floats; not .72 and .02
    assert (float(mean), float(sd)) == values(cells, "bias", "birds")[1:]
    assert len(mean) > 6 and len(sd) > 6


def test_an_unknown_metric_is_refused(records):
    with pytest.raises(ConfigError, match=r"Unknown metric 'top5'\. Did you mean: top1"):
        summary(frame(records), metric="top5")


def test_the_metric_can_be_chosen(make_record):
    record = make_record()
    record.metrics["test/mean_per_class"] = 0.25
    cells = summary(frame([record]), metric="mean_per_class")
    assert values(cells, "lora", "digits") == (1, 0.25, NA)
    assert "Test mean per-class accuracy in %" in to_text(cells)


def test_a_table_of_nothing_says_so():
    cells = summary(frame([]))
    assert cells.empty and overall(cells).empty
    expected = "No finished final run has a test top-1 accuracy yet.\n"
    assert to_text(cells) == to_markdown(cells) == expected


def tuned(record, trials, epochs=50):
    """The record, its hyper-parameters chosen by a grid."""
    told = {"tuner": "grid", "trials": trials, "epochs": epochs, "val_top1": 0.5}
    return dataclasses.replace(record, tuning=told)


def test_the_budget_of_a_search_is_printed_and_another_one_is_marked(records):
    searched = [tuned(r, 6 if r.spec["method"]["name"] == "bias" else 12) for r in records]
    text = to_text(summary(frame(searched)), width=None)
    assert "vit_mini · mini · hyper-parameters from grid: 12 trials x 50 epochs\n" in text
    note = (
        "hyper-parameters from grid: 6 trials x 50 epochs, "
        "while most runs of this table have grid: 12 trials x 50 epochs"
    )
    cells = summary(frame(searched))
    marked = cells[cells["note"].fillna("").str.contains(note, regex=False)]
    assert set(marked["method"]) == {"bias"} and f"[a] {note}" in text
    assert "hyper-parameters from" not in to_text(summary(frame(records)))


def test_seeds_of_different_budgets_are_never_averaged(records):
    mixed = [tuned(r, 12) if r.spec["seed"] == 0 else r for r in records]
    cells = summary(frame(mixed))
    birds = cell(cells, "lora", "birds")
    assert birds["state"] == "mixed" and pd.isna(birds["mean"])
    assert birds["note"] == (
        "not averaged: 2 different search budgets (grid: 12 trials x 50 epochs, no search)"
    )


def test_an_average_over_data_sets_of_different_budgets_says_so(records):
    mixed = [tuned(r, 12) if r.spec["dataset"]["name"] == "birds" else r for r in records]
    cells = summary(frame(mixed))
    note = "search budgets differ: grid: 12 trials x 50 epochs, no search"
    assert note in cell(cells, "lora", "mean of 3 tasks")["note"].split("\n")

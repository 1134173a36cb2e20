"""Promises of the statistics of a results folder."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pandas as pd
import pytest

from peftbench.report import build
from peftbench.report.statistics import STATISTICS_COLUMNS, comparisons, to_csv, to_markdown
from peftbench.report.view import View
from peftbench.results.frame import frame
from peftbench.results.record import Status
from peftbench.results.store import ResultsStore

LEVELS = {"linear": 0.5, "bias": 0.7, "lora": 0.71}
NOISE = (-0.01, 0.0, 0.01)


@pytest.fixture
def records(make_record):
    """Three methods on two data sets of two groups with three seeds; linear is far behind."""
    return [
        make_record(method, dataset, seed, level + noise + 0.1 * (dataset == "b"), group=dataset)
        for (method, level), dataset, (seed, noise) in itertools.product(
            LEVELS.items(), "ab", enumerate(NOISE)
        )
    ]


def values(found, statistic, **where):
    table = pd.read_csv(io.StringIO(to_csv(found)))
    rows = table[table["statistic"] == statistic]
    for column, value in where.items():
        rows = rows[rows[column] == value]
    return rows


def test_every_value_says_what_it_is_and_what_is_behind_it(records):
    found = comparisons(View.of(frame(records)))
    mean = values(found, "mean of 2 tasks", label="lora", over="seeds").iloc[0]
    assert mean["value"] == pytest.approx(0.76) and mean["low"] < 0.76 < mean["high"]
    assert (mean["backbone"], mean["datasets"], mean["seeds"]) == ("vit_mini", 2, 3)
    assert len(values(found, "mean of 2 groups")) == 6  # 3 methods, over seeds and over both
    ranks = values(found, "average rank").set_index("label")["value"]
    assert ranks.to_dict() == {"lora": 1.0, "bias": 2.0, "linear": 3.0}
    # chi-square 12 n / (k (k + 1)) (sum R^2 - k (k + 1)^2 / 4) = 2 (1 + 4 + 9 - 12) = 4
    assert values(found, "friedman")["value"].item() == pytest.approx(4.0)
    assert values(found, "win rate", label="lora", other="linear")["value"].item() == 1.0
    assert tuple(pd.read_csv(io.StringIO(to_csv(found))).columns) == tuple(
        column.name for column in STATISTICS_COLUMNS
    )


def test_the_set_not_distinguishable_from_the_best_is_marked_for_each_claim(records):
    found = comparisons(View.of(frame(records)))
    marked = values(found, "not distinguishable from the best", over="seeds").set_index("label")
    assert marked["value"].to_dict() == {"lora": 1.0, "bias": 1.0, "linear": 0.0}
    # 3 + 3 runs on each of two data sets: p at least 2 / 400, times three pairs
    assert marked.loc["linear", "p_holm"] == pytest.approx(0.015, abs=0.004)
    new = values(found, "not distinguishable from the best", over="seeds and data sets")
    assert new["value"].isna().all()
    text = to_markdown(found)
    claim = "lora, bias (exchange of runs and Welch's t-test, 2 data sets, 3 seeds)."
    assert f"- On these data sets: {claim}" in text
    # 2 data sets, 3 seeds in simulations of `coverage.csv`
    held = "95 % interval (holds in 97 % of normal, 93 % of skewed simulations at this size)"
    assert f"- mean of 2 tasks over seeds: {held}" in text
    assert "- probability of improvement over seeds: 95 % interval (holds in " in text
    means = values(found, "mean of 2 tasks", over="seeds")
    assert means["holds_normal"].between(0.96, 0.98).all()
    assert means["holds_skewed"].between(0.92, 0.94).all()
    assert "- On new data sets of the kind: nothing can be told." in text


def test_what_cannot_be_compared_is_left_out_and_named(records, make_record):
    more = [
        make_record("ssf", "a", 0, 0.9, group="a"),  # no data set b
        make_record("norm", "a", 0, status=Status.ERROR, error="boom", group="a"),
        *(make_record("full", d, 0, 0.9, weights="w1", group=d) for d in "ab"),
    ]
    found = comparisons(View.of(frame([*records, *more])))
    assert set(found[0].labels) == {"lora", "bias", "linear"}
    assert found[0].remarks == (
        "2 runs on other weights or files are left out",
        "ssf is left out: no b",
    )
    assert (
        comparisons(View.of(frame([r for r in records if r.spec["method"]["name"] == "lora"])))
        == []
    )
    runs = View.of(frame(records)).scored
    assert len(runs) == 18 and runs["score"].notna().all()


def test_runs_that_were_computed_differently_are_compared_with_a_remark(make_record):
    table = [make_record(m, d, s, 0.5) for m in ("bias", "lora") for d in "ab" for s in range(3)]
    table += [make_record("full", d, 0, 0.9, dtype="bfloat16") for d in "ab"]
    table += [make_record("norm", "a", 0, 0.9, device="NVIDIA A100-SXM4-80GB")]
    table += [make_record("norm", "b", 0, 0.9)]
    found = comparisons(View.of(frame(table)))
    remark = (
        "runs computed in different arithmetic are compared; float32 on a CPU: bias, lora, norm "
        "(13 runs); bfloat16 on a CPU: full (2 runs); float32 on a GPU: norm (1 run)"
    )
    assert found[0].remarks == (remark,)
    assert remark in to_markdown(found)
    assert comparisons(View.of(frame(table[:12])))[0].remarks == ()


def test_predictions_of_images_are_compared_where_all_runs_saved_them(records, tmp_path):
    store = ResultsStore(tmp_path)
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 5, 40)
    for record in records:
        store.add(record)
        method = record.spec["method"]["name"]
        right = generator.random(40) < record.metrics["test/top1"]
        store.save_predictions(
            method,
            record.run_id,
            classes=np.where(right, labels, (labels + 1) % 5),
            confidence=np.full(40, 0.5),
            margin=np.zeros(40),
            labels=labels,
        )
    found = comparisons(View.of(frame(store)), store)
    tests = values(found, "mcnemar")
    assert len(tests) == 3 and found[0].images.tests["images"].tolist() == [80] * 3
    assert values(found, "mcnemar", label="lora", other="linear")["p_holm"].item() < 0.05
    # two classes: methods agree where both are right or both are wrong
    same = values(found, "agreement", label="lora", other="bias")["value"].item()
    assert 0.4 < same < 0.8
    assert "80 test images, 3 seeds, 3 methods" in to_markdown(found)
    (store.artefacts(records[0]) / "predictions.npz").unlink()
    without = comparisons(View.of(frame(store)), store)
    assert without[0].images is None
    assert without[0].remarks == (
        f"single images are not compared: run {records[0].run_id} saved none",
    )


def test_a_second_report_writes_the_same_bytes(records, tmp_path):
    store = ResultsStore(tmp_path / "results")
    for record in records:
        store.add(record)
    first = build(store.root, out=tmp_path / "one", formats=())
    build(store.root, out=tmp_path / "two", formats=())
    for name in ("statistics.md", "statistics.csv"):
        assert (tmp_path / "one" / name) in first.paths
        one, two = ((tmp_path / part / name).read_bytes() for part in ("one", "two"))
        assert one == two and one
    some = build(store.root, ["method=lora,bias"], out=tmp_path / "two", formats=())
    assert tmp_path / "two" / "statistics_method_lora_bias.md" in some.paths

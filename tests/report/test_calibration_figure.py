"""Promises of the reliability diagrams."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from peftbench.report import build
from peftbench.report.comparison import reliability
from peftbench.report.figures import calibration, is_empty
from peftbench.report.view import View
from peftbench.results.frame import frame
from peftbench.results.store import ResultsStore

# of ten images: confidence, and how many of those that have it are right
SURE = np.array([0.3] * 4 + [0.9] * 6)
RIGHT = {"lora": (1, 5), "linear": (3, 3)}


@pytest.fixture
def store(tmp_path, make_record):
    store = ResultsStore(tmp_path)
    labels = np.arange(10) % 5
    for method, (low, high) in RIGHT.items():
        for dataset in ("a", "b"):
            for seed in (0, 1):
                record = make_record(method, dataset, seed, (low + high) / 10)
                store.add(record)
                hit = np.array([i < low for i in range(4)] + [i < high for i in range(6)])
                store.save_predictions(
                    method,
                    record.run_id,
                    classes=np.where(hit, labels, (labels + 1) % 5),
                    confidence=SURE,
                    margin=np.zeros(10),
                    labels=labels,
                )
    return store


def test_bins_are_those_of_all_seeds_and_data_sets(store):
    bins = reliability(View.of(frame(store)), store)
    assert set(bins["label"]) == {"lora", "linear"} and set(bins["runs"]) == {2}
    filled = bins[bins["images"] > 0].set_index(["label", "high"])
    # 15 bins: 0.3 is in (4/15, 5/15], 0.9 in (13/15, 14/15]
    assert filled["images"].tolist() == [16, 24, 16, 24]
    lora, linear = filled.loc["lora"], filled.loc["linear"]
    np.testing.assert_allclose(lora["confidence"], [0.3, 0.9])
    np.testing.assert_allclose(lora["accuracy"], [1 / 4, 5 / 6])
    np.testing.assert_allclose(linear["accuracy"], [3 / 4, 3 / 6])


def test_each_method_has_a_panel_the_best_calibrated_first(store):
    figure = calibration(reliability(View.of(frame(store)), store))
    first, second = figure.axes
    # |0.25 - 0.3| 0.4 + |0.8333 - 0.9| 0.6 = 0.06; |0.75 - 0.3| 0.4 + |0.5 - 0.9| 0.6 = 0.42
    assert [a.get_title(loc="left") for a in (first, second)] == ["lora  6.0", "linear  42.0"]
    diagonal, curve = (np.array(line.get_data()) for line in first.lines)
    np.testing.assert_allclose(diagonal, [[0, 100], [0, 100]])
    np.testing.assert_allclose(curve, [[30, 90], [25, 500 / 6]])
    shares = [bar.get_height() for bar in first.patches if bar.get_height()]
    np.testing.assert_allclose(shares, [40, 60])
    assert "40 predictions of n = 2 seeds" in figure.get_supxlabel()


def test_a_report_draws_it_where_predictions_are_kept_and_not_elsewhere(store, make_record):
    only = {"parts": ("figures",), "kinds": ("calibration",), "formats": ("svg",)}
    made = build(store.root, **only)
    assert [path.name for path in made.paths] == ["calibration_vit_mini.svg"]
    store.add(make_record("bias", "a", 0, 0.5))
    store.add(make_record("bias", "b", 0, 0.5))  # complete, and without predictions
    assert build(store.root, **only).paths == ()
    assert is_empty(calibration(pd.DataFrame()))

"""Promises of the texts and frames that tables and pages share."""

from __future__ import annotations

import pandas as pd

from peftbench.report.frames import typed_frame
from peftbench.report.words import commonest, counted, first_of, magnitude, mark_of, scaled, some_of
from peftbench.results.columns import Column


def test_counts_are_shown_in_the_largest_unit_that_they_reach():
    assert scaled(999) == (999, "") and scaled(36_900) == (36.9, "k")
    assert scaled(85_800_000) == (85.8, "M") and scaled(2e9) == (2.0, "B")
    shown = [magnitude(n) for n in (768, 1000, 9996, 36_930, 999_600, pd.NA)]
    assert shown == ["768", "1.00k", "10.0k", "36.9k", "1000k", "–"]


def test_lists_name_the_first_texts_and_count_the_others():
    assert some_of(["b", "a", "b"]) == "b, a"
    assert some_of("abcdefg") == "a, b, c, d, e, and 2 more"
    assert first_of(("a", "b"), 2) == "a, b" and first_of(("a", "b", "c"), 2) == "a, b and 1 more"
    assert counted(1, "seed") == "1 seed" and counted(0, "seed") == "0 seeds"
    assert commonest(["b", "a", "c", "c", "b"]) == "b" and commonest([]) == ""
    assert [mark_of(i) for i in (0, 25, 26, 52)] == ["a", "z", "aa", "ba"]


def test_a_typed_frame_has_every_column_and_holes_where_nothing_is_known():
    columns = (Column("name", "string", ""), Column("n", "Int64", ""), Column("x", "Float64", ""))
    rows = [{"name": "", "n": 0, "x": float("nan")}, {"name": "a", "n": None, "other": 1}]
    found = typed_frame(columns, rows)
    assert list(map(str, found.dtypes)) == ["string", "Int64", "Float64"]
    assert found.isna().to_numpy().tolist() == [[True, False, True], [False, True, True]]
    assert list(map(str, typed_frame(columns, []).dtypes)) == ["string", "Int64", "Float64"]

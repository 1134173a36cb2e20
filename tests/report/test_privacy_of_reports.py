"""What a report writes tells neither where files lie nor whose machine it is."""

from __future__ import annotations

import dataclasses

import pandas as pd
import pytest

from peftbench import report as reports
from peftbench.results import privacy
from peftbench.results.record import Status
from peftbench.results.store import ResultsStore
from peftbench.results.table_files import read_table


@pytest.mark.parametrize("part", ["tables", "page"])
def test_reports_hold_no_path_and_no_host(tmp_path, make_record, monkeypatch, part):
    monkeypatch.setattr(privacy, "_here", lambda: ("node17", "annelise"))
    store = ResultsStore(tmp_path / "results")
    for seed in range(2):
        record = make_record("linear", "a", seed, 0.5, tuned=0)
        told = dataclasses.replace(record.provenance, host="node17")
        store.add(dataclasses.replace(record, provenance=told))
    error = "/home/annelise/set/1.png cannot be decoded on node17"
    store.add(make_record("bias", "a", 0, status=Status.ERROR, error=error))
    (store.root / "runs" / "bias" / "odd.json").write_text("{")
    made = reports.build(store.root, parts=(part,), formats=())
    texts = [p.read_bytes() for p in made.paths]
    assert texts and len(made.broken) == 1
    for secret in (b"annelise", b"node17", b"/home", str(tmp_path).encode()):
        assert not any(secret in text for text in texts)
    if part == "tables":
        table = read_table(store.root / "table.csv")
        assert table["host"].isna().all()
        assert "1.png cannot be decoded on ..." in table["error"].dropna().tolist()
        assert isinstance(table, pd.DataFrame)


def test_dollar_signs_in_names_are_no_formulas(tmp_path, make_record):
    """`$\\frac$` ends a drawing in an error where it is read as a formula."""
    store = ResultsStore(tmp_path / "results")
    for seed in range(2):
        store.add(make_record("linear", r"$\frac$", seed, 0.5, tuned=0))
        store.add(make_record("lora", r"$\frac$", seed, 0.6, tuned=500))
    made = reports.build(
        store.root, parts=("figures",), kinds=("{score}_vs_parameters",), formats=("svg",)
    )
    assert [path.suffix for path in made.paths] == [".svg"]

"""Texts in records of others are shown as text, in every format that a report has."""

from __future__ import annotations

import dataclasses
import json
import re
import unicodedata
from pathlib import Path

import pytest

from peftbench import report as reports
from peftbench.report import advice, statistics
from peftbench.report.advice import Budget, advise
from peftbench.report.page import render
from peftbench.report.papers import latex, markdown
from peftbench.report.tables import cells as tables
from peftbench.report.tables.text import to_csv, to_markdown, to_text
from peftbench.report.view import View, Views
from peftbench.results import privacy
from peftbench.results.bundles.outgoing import export_results
from peftbench.results.frame import epochs, frame
from peftbench.results.identity import run_id_of
from peftbench.results.record import RunRecord, Status
from peftbench.results.store import ResultsStore
from peftbench.results.table_files import csv_text

NAMES = {
    "two lines": "a\nb",
    "a terminal's commands": "\x1b[2J\x1b]0;title\x07",
    "hidden direction": "x\u202egnp.exe",
    "a line separator": "x\u2028y\u2029z",
    "a formula": "=cmd|'/C calc'!A0",
    "a formula after quotes": "''=SUM(A1)",
    "mathematics": "$x^{",
    "a command of LaTeX": r"\input{/etc/passwd}\write18{id}",
    "a script": "<script>alert(1)</script>",
    "a picture": "![x](https://example.org/x.png)<img src=x onerror=alert(1)>",
    "a link": "[x](javascript:alert(1)) [y]: javascript:alert(1)",
    "the end of a cell": "`|a|b|",
    "half a surrogate pair": "caf\udce9.png",
    "the end of an element": "</script><!--",
    "a percent sign": "%s{0}{x} & # ~ _",
    "an interpolation": "${oc.env:HOME}",
    "no width": "\u200b\u0301",
}


@pytest.fixture(params=NAMES.values(), ids=NAMES.keys())
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def records(make_record, name: str) -> list[RunRecord]:
    """Runs of two methods and seeds in which every text that can be is the name."""
    found = [
        make_record(
            method,
            dataset,
            seed,
            0.5 + 0.1 * (method == "lora") + 0.01 * seed,
            backbone=name,
            suite=name,
            group=name,
            hyperparameters={"how": name},
            recipe={"name": name},
            tuned=500,
            history=(0.4, 0.5),
            device=name,
        )
        for method in ("linear", "lora")
        for dataset in (name, "b")
        for seed in range(2)
    ]
    for method, status in (("bias", Status.ERROR), ("norm", Status.UNSUPPORTED)):
        told = {"backbone": name, "suite": name, "group": name}
        found.append(make_record(method, name, 0, status=status, error=name, **told))
    return found


def lines_of(text: str) -> list[str]:
    """The lines, in which no character may act on a terminal or hide itself."""
    odd = {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")}
    assert odd <= {"\n"}
    text.encode()
    return text.split("\n")


def test_names_of_others_are_text_in_tables(records: list[RunRecord]) -> None:
    table = frame(records)
    cells = tables.summary(table)
    lines_of(to_text(cells))
    found = statistics.comparisons(View.of(table))
    assert len(found) == 1
    for text in (to_markdown(cells), statistics.to_markdown(found)):
        rows = [line for line in lines_of(text) if line.startswith("|")]
        assert rows
        assert not re.search(r"<[A-Za-z/!?]|\]\(|\]:", text)
        # a cell begins at each bar that no backslash stands before
        assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows[:4]} == {
            len(re.findall(r"(?<!\\)\|", rows[0]))
        }
    for text in (csv_text(table), to_csv(cells), statistics.to_csv(found)):
        lines_of(text)
        assert not re.search(r'(?:^|,)"?[=+@]', text, re.MULTILINE)


PAGES = (
    *("hidden direction", "a script", "a picture"),
    *("half a surrogate pair", "the end of an element"),
)


@pytest.mark.parametrize("name", [NAMES[key] for key in PAGES], indirect=True, ids=PAGES)
def test_names_of_others_are_text_on_the_page(
    tmp_path: Path, records: list[RunRecord], name: str
) -> None:
    store = ResultsStore(tmp_path)
    for record in records:
        folder = store.artefacts(record)
        folder.mkdir(parents=True, exist_ok=True)
        texts = dict.fromkeys(("title", "summary", "paper", "section", "reference"), name)
        card = {"method_card": {**texts, "deviations": [name]}}
        (folder / "card.json").write_text(json.dumps(card))
    html = render(Views(frame(records)), epochs(records), store, broken=[name])
    if name.startswith("<"):
        assert name not in html
    html.encode("utf-8", "backslashreplace")
    data = re.search(r'<script type="application/json"[^>]*>(.*?)</script>', html, re.DOTALL)
    assert data is not None
    panels = json.loads(data[1])["panels"]
    assert len(panels) == 1 and len(panels[0]["tasks"]) == 2
    assert html.count("<script") == 2 and "<img" not in html and "<!--" not in html


def test_names_of_others_are_text_in_advice_and_bundles(
    tmp_path: Path, records: list[RunRecord]
) -> None:
    store = ResultsStore(tmp_path / "results")
    for record in records:
        store.add(dataclasses.replace(record, run_id=run_id_of(record.spec)))
    assert len(store.scan().records) == len(records)
    lines_of(advice.to_text(advise(frame(store), Budget()), Budget()))
    made = export_results(store.root, tmp_path / "b.zip")
    assert (made.runs, made.broken) == (len(records), ())


DRAWN = ("two lines", "mathematics", "a command of LaTeX", "a script", "half a surrogate pair")


@pytest.mark.parametrize("name", [NAMES[key] for key in DRAWN], indirect=True, ids=DRAWN)
def test_names_of_others_are_text_in_figures(
    tmp_path: Path, records: list[RunRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(privacy, "_here", lambda: ("node17", "annelise"))
    store = ResultsStore(tmp_path / "annelise")
    for record in records:
        store.add(record)
    made = reports.build(
        store.root,
        parts=("figures",),
        kinds=("{score}_vs_parameters",),
        formats=("svg", "png", "pdf"),
    )
    found = {path.suffix: path.read_bytes() for path in made.paths}
    assert found.keys() == {".svg", ".png", ".pdf"}
    for data in found.values():  # whatever was written into it beside the drawing
        assert b"annelise" not in data and str(tmp_path).encode() not in data
    assert b"<script" not in found[".svg"] and b"<img" not in found[".svg"]


@pytest.mark.parametrize("text", NAMES.values(), ids=NAMES.keys())
def test_names_of_others_are_text_in_the_tables_of_papers(text: str) -> None:
    made = latex.escape(text)
    assert made.isprintable() and not re.search(r"\\(?:input|write)", made)
    assert not re.search(r"(?<!\\)[$%&#_^]", made.replace("$-$", ""))
    made = markdown.escape(text)
    assert "<" not in made and "\n" not in made and not re.search(r"(?<!\\)[|\[`]", made)

"""Promises of the page that need no browser: what is in it, and what is not."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import io
import json
import re
from html.parser import HTMLParser

import pandas as pd
import pytest

from peftbench.report import build
from peftbench.report.page import render
from peftbench.report.view import Views
from peftbench.results.frame import epochs, frame
from peftbench.results.record import Status
from peftbench.results.store import ResultsStore
from peftbench.results.table_files import read_table

EVIL = '<script>alert("x")</script>'
CARD = {
    "title": f"LoRA {EVIL}",
    "paper": "arXiv:2106.09685",
    "section": "4.1",
    "reference": "microsoft/LoRA",
    "identity_at_init": True,
    "mergeable": True,
    "frozen_mode": "eval",
    "deviations": ["one pair & another"],
    "summary": "W + B A in place of W.",
}


@pytest.fixture(scope="module")
def store(tmp_path_factory, make_record):
    """lora 0.6 / 0.8 on two data sets, with a card; linear 0.5 / 0.5; three without an average."""
    store = ResultsStore(tmp_path_factory.mktemp("results"))
    for seed in range(2):
        for dataset, score in (("s/a", 0.6), ("s/b", 0.8)):
            high = score + 0.02 * seed
            extra = {"group": "natural", "history": [0.3, 0.9], "peak_bytes": 2**20 * (100 + seed)}
            store.add(make_record("lora", dataset, seed, high, tuned=500, **extra))
            store.add(make_record("linear", dataset, seed, 0.5, tuned=0, group="natural"))
        store.add(make_record("full", "s/a", seed, status=Status.ERROR, error=f"boom\n{EVIL}"))
    store.add(make_record(EVIL.replace("/", "_"), "s/a", 0, 0.7, tuned=9))
    refused = make_record("vpt", "s/a", 0, status=Status.UNSUPPORTED, error="needs\ntokens")
    store.add(refused)
    record = next(r for r in store.records() if r.spec["method"]["name"] == "lora")
    folder = store.artefacts(record)
    folder.mkdir()
    (folder / "card.json").write_text(json.dumps({"method_card": CARD}))
    return store


def page_of(store):
    records = store.scan().records
    return render(Views(frame(records)), epochs(records), store)


@pytest.fixture(scope="module")
def page(store):
    return page_of(store)


class Elements(HTMLParser):
    """Every element with its attributes."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def data_of(page):
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1]
    return json.loads(text)


def test_names_and_messages_stay_text(page):
    assert "<script>alert" not in page and html.escape(EVIL, quote=False)[:14] in page
    elements = Elements(page)
    kinds = [attributes.get("type") for tag, attributes in elements.found if tag == "script"]
    assert kinds == ["application/json", None]  # the data and the one script of the page
    assert EVIL.replace("/", "_") in [row["label"] for row in panel(page)["scores"]["top1"]]
    assert not [name for _, a in elements.found for name in a if name.startswith("on")]


def test_only_the_script_of_the_page_may_run_and_nothing_may_load(page):
    elements = Elements(page)
    (policy,) = [a["content"] for t, a in elements.found if a.get("http-equiv")]
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and policy.startswith("default-src 'none'")
    loaded = [a.get("src", a.get("href")) for tag, a in elements.found if tag != "a"]
    assert set(loaded) <= {None, "data:,"}
    assert "@import" not in page and "url(" not in page
    links = {a["href"].partition(":")[0] for t, a in elements.found if t == "a"}
    assert links <= {"https", "data"} | {h for h in links if h.startswith("#")}


def panel(page):
    (found,) = data_of(page)["panels"]
    return found


def test_numbers_are_those_of_the_tables(page):
    shown = panel(page)
    assert (shown["backbone"], shown["suite"]) == ("vit_mini", "mini")
    rows = {row["label"]: row for row in shown["scores"]["top1"]}
    lora, linear, full = rows["lora"], rows["linear"], rows["full"]
    mean = lora["cells"]["mean of 2 tasks"]
    # seeds give (0.60 + 0.80) / 2 = 0.70 and (0.62 + 0.82) / 2 = 0.72: sd = 0.02 / sqrt 2
    # each data set has variance 2e-4, its mean 1e-4, the mean of both 5e-5, with 1 + 1 degrees of
    # freedom; t with 2 degrees is q sqrt(2 / (1 - q^2)) with q = 0.95 + 0.05 x 0.52 / 2^1.5
    q = 0.95 + 0.05 * 0.52 / 2**1.5
    half = 5e-5**0.5 * q * (2 / (1 - q**2)) ** 0.5
    assert mean["low"] == pytest.approx(0.71 - half, abs=1e-5)
    assert mean["high"] == pytest.approx(0.71 + half, abs=1e-5)
    assert mean["holds"] == "holds in 98 % of normal, 95 % of skewed simulations at this size"
    assert shown["best"] == {"top1": []}  # so few runs tell nothing apart
    assert data_of(page)["metrics"] == {"top1": "top-1 accuracy"}  # these records have no other
    assert "ahead" not in shown["verdict"]["top1"]
    assert (mean["mean"], mean["n"]) == (0.71, 2) and mean["sd"] == pytest.approx(0.0141421)
    assert (lora["parameters"], lora["with_head"], linear["parameters"]) == (500, 600, 0)
    assert full["cells"]["s/a"] == {"state": "failed"}
    assert full["cells"]["mean of 2 tasks"]["state"] == "incomplete"
    assert shown["costs"]["lora"]["memory"] == [100.5, 100, 101]  # MiB: mean, and the two seeds
    assert shown["tasks"][0] == {"name": "s/a", "short": "a", "group": "natural"}
    (curve,) = [c for c in shown["curves"][""]["accuracy"] if c["label"] == "lora"]
    assert (curve["x"], curve["y"]) == ([1, 2], [30, 90])


def test_each_method_has_its_card_its_cost_and_the_reason_of_a_refusal(page):
    parts = dict(re.findall(r'<article[^>]* id="method-(\w+)".*?>(.*?)</article>', page, re.S))
    lora = parts["lora"]
    assert "LoRA &lt;script&gt;alert(" in lora and "W + B A in place of W." in lora
    assert 'href="https://arxiv.org/abs/2106.09685"' in lora and "one pair &amp; another" in lora
    assert "folds into the backbone" in lora and "starts as the pretrained function" in lora
    assert "71.0 ± 1.4 (2)" in lora and "100 MiB" in lora and ">500<" in lora
    assert "Not on vit_mini:</b> needs tokens" in parts["vpt"]
    assert "No run of this method has finished" in parts["vpt"]
    assert "No run of this method has finished" not in lora


def test_failures_are_grouped_by_cause_with_their_runs(page):
    table = page[page.index('id="failures"') : page.index('id="provenance"')]
    assert table.count('class="status"') == 1 and "ERROR" in table and "<td>boom" in table
    for seed in (0, 1):
        assert f"full on vit_mini, s/a, seed {seed}" in table
    assert "vpt" not in table


def test_downloads_hold_every_digit(page, store):
    links = {a["download"]: a["href"] for t, a in Elements(page).found if "download" in a}
    assert list(links) == ["runs.csv", "cells.csv", "epochs.csv"]
    content = base64.b64decode(links["runs.csv"].partition("base64,")[2])
    path = store.root / "copy.csv"
    path.write_bytes(content)
    pd.testing.assert_frame_equal(read_table(path), frame(store))


def test_the_same_records_give_the_same_page_and_large_downloads_are_compressed(
    page, store, monkeypatch
):
    monkeypatch.setattr("peftbench.report.page.COMPRESSED", 10)
    first = page_of(store)
    assert page_of(store) == first != page
    links = {a["download"]: a["href"] for t, a in Elements(first).found if "download" in a}
    packed = base64.b64decode(links["epochs.csv.gz"].partition("base64,")[2])
    text = gzip.decompress(packed).decode()
    assert len(pd.read_csv(io.StringIO(text))) == 8  # four runs of lora, two epochs each


def test_more_epochs_than_a_page_holds_stand_in_a_file_beside_it(store, monkeypatch):
    monkeypatch.setattr("peftbench.report.page.MOST_EPOCHS", 7)
    report = build(store.root, parts=("page",))
    page, beside = report.paths
    assert beside.name == "epochs.parquet"
    assert len(pd.read_parquet(beside)) == 8  # four runs of lora, two epochs each
    links = [a["download"] for t, a in Elements(page.read_text()).found if "download" in a]
    assert links == ["runs.csv", "cells.csv"]
    assert "<code>epochs.parquet</code>" in page.read_text()


def test_runs_without_a_score_still_make_a_page(tmp_path, make_record):
    store = ResultsStore(tmp_path)
    store.add(make_record(status=Status.ERROR, error="boom"))
    (tmp_path / "runs" / "lora" / "half.json").write_text("{")
    report = build(tmp_path, parts=("page",))
    assert report.paths == (tmp_path / "report.html",)
    page = report.paths[0].read_text()
    assert "1 did not finish" in page and "half.json is not a readable run record" in page
    store.add(make_record("tuned", phase="tune"))
    assert "2 runs on 1 data set" in page_of(store)


def test_cells_that_were_computed_otherwise_than_their_column_say_so(make_record, tmp_path):
    store = ResultsStore(tmp_path)
    for method in ("linear", "bias", "norm"):
        store.add(make_record(method))
    store.add(make_record("lora", dtype="bfloat16"))
    remark = "computed in bfloat16 on a CPU, while most runs of this column are in float32 on a CPU"
    assert remark in json.dumps(data_of(page_of(store)))

"""What the page tells of methods before any run: from the atlas, marked as such, and as text."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import pytest

from peftbench.report import atlas, build
from peftbench.report.atlas import Atlas, AtlasEntry, MeasuredRatio, OwnMean, PublishedMean
from peftbench.results.store import ResultsStore

EVIL = '<script>alert("x")</script>'
ENTRY = AtlasEntry(
    key="k",
    backbone="ViT-B/16",
    sites={"attn_in": 12, EVIL: 1},
    tuned=294_912,
    stored_bytes=1_179_648,
    head_bytes=307_600,
    kept_bytes=3,
    kept_bytes_full=4,
    folding=atlas.FOLDS,
    latency=MeasuredRatio(1.234, 1.1, 1.3),
    published=(
        PublishedMean(EVIL, "sup_in21k_orig", "72.25", "74.60", ("flat",), "last epoch", "a paper"),
    ),
    own={"vit_mini": OwnMean(50.6, 0.4, 3, 4)},
)
MEASURED = {
    "device": "EPYC",
    "dtype": "float32",
    "threads": "1",
    "first": "2026-12-01T02:00",
    "last": "2026-12-01T03:00",
}


@pytest.fixture
def page(tmp_path: Path, make_record: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of lora, which the atlas has, and linear, which it has not."""
    file = tmp_path / "atlas.json"
    content = Atlas(100, 32, MEASURED, {"lora": ENTRY})
    file.write_text(atlas.written(content), encoding="utf-8")
    monkeypatch.setattr(atlas, "FILE", file)
    store = ResultsStore(tmp_path / "results")
    for method in ("lora", "linear"):
        store.add(make_record(method, "s/a", 0, 0.6, tuned=5))
    build(store.root, parts=("page",))
    return (store.root / "report.html").read_text(encoding="utf-8")


def part(page: str, method: str) -> str:
    return page.split(f'id="method-{method}"')[1].split("</article>")[0]


def test_a_method_has_its_facts_in_words(page: str) -> None:
    text = html.unescape(part(page, "lora"))
    for said in (
        "ViT-B/16, with default hyper-parameters",
        "queries, keys, values (12)",
        "294,912 parameters without the head",
        "1.18 MB a task without the head",
        "75 % of the activations of full fine-tuning",
        "1.23 times as long as the plain backbone, not folded; EPYC, 1 thread, float32, one image, "
        "2026-12-01",
        "VTAB-1k, mean of 19 tasks 72.25 (worked out), mean of 3 groups 74.60; ",
        "; ViT-B_16.npz; last epoch; a paper",
        "50.6 ± 0.4 % on vit_mini, mean of the 4 embedded data sets",
    ):
        assert f"<span>{said}" in text or said in text, said
    assert "<dt>published</dt>" in text


def test_what_the_atlas_says_is_shown_as_text(page: str) -> None:
    assert EVIL not in page
    assert html.escape(EVIL, quote=False) in part(page, "lora").replace("&#34;", '"')


def test_a_method_that_the_atlas_lacks_has_no_fold_out(page: str) -> None:
    assert 'class="atlas"' in part(page, "lora")
    assert 'class="atlas"' not in part(page, "linear")

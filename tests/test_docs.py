"""Generated documents are what `make docs` would write now, and printed counts are met."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import atlas_page  # noqa: E402 - beside the tools
import make_docs  # noqa: E402
import printed_counts  # noqa: E402
import readme_table  # noqa: E402

from peftbench.report import atlas  # noqa: E402
from peftbench.results.table_files import read_table  # noqa: E402

atlas_now = cache(atlas_page.made)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("path", "made"),
    [
        ("docs/methods.md", make_docs.methods),
        ("docs/parameters.md", make_docs.parameters),
        # every method on every tiny backbone, really run; what is supported, the contract holds too
        pytest.param("docs/support.md", make_docs.support, marks=pytest.mark.slow),
        ("peftbench/report/figures/looks.csv", make_docs.looks),
        ("peftbench/report/atlas.json", lambda: atlas.written(atlas_now())),
        ("docs/atlas.md", lambda: atlas_page.page(atlas_now())),
        ("README.md", make_docs.readme),
        ("CITATION.cff", make_docs.citation),
    ],
)
def test_a_document_is_current(path: str, made: Callable[[], str]) -> None:
    assert (ROOT / path).read_text(encoding="utf-8") == made(), "run `make docs`"


@pytest.mark.parametrize("page", readme_table.PAGES)
def test_a_table_of_results_is_that_of_the_runs_that_are_kept(page: str) -> None:
    runs = read_table(ROOT / "results" / "mini" / "table.csv")
    text = (ROOT / page).read_text(encoding="utf-8")
    made = readme_table.PAGES[page](runs)
    assert readme_table.with_table(text, made) == text, "run `make readme`"


def test_the_table_of_the_readme_has_a_line_for_each_method_and_few_columns() -> None:
    runs = read_table(ROOT / "results" / "mini" / "table.csv")
    head, _, *lines = readme_table.compact_table(runs).splitlines()
    assert head.count("|") - 1 == 5
    methods = [line.split("`")[1] for line in lines]
    assert sorted(methods) == sorted(set(runs["method"]))
    # the mean over seeds of the mean of four tasks, worked out here
    chosen = runs[(runs["method"] == "ssf") & (runs["backbone"] == "vit_mini")]
    seeds = 100 * chosen.groupby("seed")["top1"].mean()
    assert len(seeds) == 3 and set(chosen.groupby("seed").size()) == {4}
    (line,) = (line for line in lines if line.startswith("| `ssf` |"))
    assert f"| {seeds.mean():.1f} ± {seeds.std():.1f} |" in line


def test_every_printed_count_is_ours_under_its_convention() -> None:
    """The numbers are those of the papers; the other side is counted here."""
    text = (ROOT / "docs" / "parameters.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| .* \| (C\d) \| (\S+) \| (\S+) \| .* \|$", text, re.M)
    assert len(rows) == len(printed_counts.ROWS) >= 30
    assert [ours for _, _, ours in rows] == [printed for _, printed, _ in rows]


def test_task_lists_are_those_of_the_suites() -> None:
    """VTAB-1k has 940 classes over 19 tasks, FGVC 1,173 over 5."""
    assert (len(printed_counts.VTAB), sum(printed_counts.VTAB.values())) == (19, 940)
    assert (len(printed_counts.FGVC), sum(printed_counts.FGVC.values())) == (5, 1_173)
    for chosen in (
        printed_counts.DEEP,
        printed_counts.SHALLOW,
        printed_counts.TT,
        printed_counts.TK,
    ):
        assert len(chosen["VTAB"]) == 19

"""Promises of the described tables, their notations, the report of an experiment, `reproduce`."""

from __future__ import annotations

import csv
import html.parser
import io
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import paper_runs
import pytest
import yaml
from paper_runs import FGVC, run

from peftbench import report, shipped
from peftbench.cli import main as cli
from peftbench.errors import ConfigError
from peftbench.report.papers import build_published, catalogue, rendered
from peftbench.report.papers.description import TASK
from peftbench.report.papers.measured import fill
from peftbench.report.papers.model import Table
from peftbench.report.papers.printed import Collection, published_only
from peftbench.results import published
from peftbench.results.frame import frame
from peftbench.results.record import Cost
from peftbench.results.store import ResultsStore

CONF = shipped.folder("conf", "conf", "config.yaml")


@pytest.fixture(scope="module")
def numbers():
    return published.read()


@pytest.fixture(scope="module")
def papers():
    return {name: catalogue.find(name) for name in catalogue.names()}


def test_there_is_a_table_for_every_experiment_that_repeats_a_paper(papers) -> None:
    assert {table.experiment: None for table in papers.values()}.keys() == {
        *("vpt_table1", "vpt_swin", "vpt_backbone_scale", "vpt_convnets", "vpt_ssl"),
        *("ssf_vtab_fgvc", "ssf_robustness", "fact_vtab", "fact_fewshot"),
    }
    names = [table.name for table in catalogue.of_experiment("vpt_table1")]
    assert names == ["vpt_table1", "vpt_fgvc", "vpt_vtab"]
    assert [t.name for t in catalogue.of_experiment("ssf_fgvc")] == ["ssf_fgvc"]
    assert catalogue.of_experiment("demo") == []
    with pytest.raises(ConfigError, match=r"Unknown experiment 'vpt_tabel1'. Did you mean: vpt_"):
        catalogue.of_experiment("vpt_tabel1")


def test_a_table_names_methods_and_protocols_that_exist_and_numbers_that_are_there(
    papers, numbers
) -> None:
    methods = {path.stem for path in (CONF / "method").glob("*.yaml")}
    tags = {
        yaml.safe_load(path.read_text()).get("name") for path in (CONF / "backbone").glob("*.yaml")
    }
    for table in papers.values():
        assert {row.method for row in table.rows} - {None} <= methods, table.name
        assert (CONF / "protocol" / f"{table.protocol}.yaml").is_file(), table.name
        # the weights of the paper are a configuration, but for two that timm's hub does not have
        known = {row.weights[0] for row in table.rows}
        assert known - tags <= {"resnet50.tv_in1k", "vit_b16_mocov3"}
        collection = Collection(table, numbers)
        for b, block in enumerate(table.blocks):
            for r, row in enumerate(block.rows):
                found = [collection.of(b, r, c) for c in range(len(table.columns))]
                if row.published is not None and row.published.backbone not in (
                    "convnext_b",
                    "resnet50",
                ):
                    assert any(found), (table.name, block.title, row.title)
    # VPT, table 13: 19 data sets in the order of the paper, then 14 rows of 22 printed numbers
    vtab = papers["vpt_vtab"]
    assert sum(column.kind == TASK for column in vtab.columns) == 19
    cells = published_only(vtab, numbers).cells
    assert len(cells) == 14 * 22 and all(cell.state == "published" for cell in cells)


NASTY = r"<script>a_b & 50% $x$ #1 {y} ~^\ |c| `d` *e* [f] “中”"


@pytest.fixture(scope="module")
def nasty(papers, numbers) -> Table:
    """A filled table whose names are made of every sign that a notation treats in its own way."""
    paper = papers["vpt_fgvc"]
    records = [run("Linear", name, 50.0, seed=s) for name in FGVC for s in range(2)]
    (block,) = paper.blocks
    rows = tuple(
        replace(row, title=NASTY, notes=(NASTY,)) if row.title == "Linear" else row
        for row in block.rows
    )
    columns = tuple(replace(column, heading=NASTY) for column in paper.columns)
    paper = replace(paper, title=NASTY, columns=columns, blocks=(replace(block, rows=rows),))
    return fill(paper, frame(records), numbers=numbers)


class Reader(html.parser.HTMLParser):
    """Elements and texts of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.cells: list[list[str]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th") and self.cells:
            self.cells[-1].append("")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.cells and self.cells[-1]:
            self.cells[-1][-1] += data.rstrip("\n")


def test_names_stay_text_in_every_notation(nasty) -> None:
    page = rendered(nasty, "html", published=True)
    reader = Reader()
    reader.feed(page)
    assert "script" not in reader.tags and reader.text.count(NASTY) >= 3
    assert not re.search(r"(src|href)=|@import|url\(", page)  # nothing is fetched

    markdown = rendered(nasty, "md", published=True)
    assert "<script>" not in markdown
    table = [line for line in markdown.splitlines() if line.startswith("|")]
    # 5 data sets, their mean and the name, in lines of one length
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {8}
    assert len({len(line) for line in table}) == 1
    assert r"&lt;script&gt;a\_b &amp; 50%" in markdown and r"\|c\| \`d\` \*e\* \[f\]" in markdown

    tex = rendered(nasty, "tex", published=True)
    assert r"\textless{}script\textgreater{}a\_b \& 50\% \$x\$ \#1 \{y\}" in tex
    assert "U+4E2D" in tex and tex.isascii()
    rows = [line for line in tex.splitlines() if line.endswith(r" \\") and "&" in line]
    plain = [re.sub(r"\\multicolumn\{6\}", "& & & & &", line) for line in rows]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in plain} == {6}
    unescaped = re.sub(r"\\[{}]", "", tex)
    assert unescaped.count("{") == unescaped.count("}")

    lines = list(csv.DictReader(io.StringIO(rendered(nasty, "csv", published=True))))
    assert len(lines) == 14 * 6
    (cars,) = [row for row in lines if row["row"] == NASTY and row["column"] == "Stanford Cars"]
    assert (float(cars["value"]), float(cars["sd"]), cars["n"]) == (50.0, 0.0, "2")
    # VPT prints 51.3 for linear on Cars
    assert float(cars["published"]) == 51.3
    assert float(cars["difference"]) == pytest.approx(-1.3)


def test_a_row_shows_seeds_spread_printed_value_and_difference(nasty) -> None:
    reader = Reader()
    reader.feed(rendered(nasty, "html", published=True))
    places = {row[0]: i for i, row in enumerate(reader.cells) if row}
    i = places[f"{NASTY}a"]
    measured, printed, difference = reader.cells[i : i + 3]
    assert measured[5] == "50.0 ± 0.0 (2)" and measured[6] == "50.00 ± 0.00 (2)"
    assert printed[:1] + printed[5:] == ["published", "51.3", "79.32"]
    assert difference[:1] + difference[5:] == ["difference", "−1.3", "−29.32"]
    # a row that nobody ran has what is printed and no difference
    full = reader.cells[places["Full"] : places["Full"] + 2]
    values = ["87.3", "82.7", "98.8", "89.4", "84.5", "88.54"]
    assert full == [["Full", *["–"] * 6], ["published", *values]]


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX is installed")
def test_latex_compiles(nasty, papers, numbers, tmp_path: Path) -> None:
    from peftbench.report.papers.latex import document

    tables = [nasty, published_only(papers["vpt_table1"], numbers)]
    tables.append(published_only(papers["fact_fewshot"], numbers))
    text = "\n".join(rendered(table, "tex", published=True) for table in tables)
    (tmp_path / "a.tex").write_text(document(text), encoding="utf-8")
    done = subprocess.run(
        ["pdflatex", "-draftmode", "-interaction=nonstopmode", "-halt-on-error", "a.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        errors="replace",
    )
    assert done.returncode == 0, done.stdout[-2000:]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two seeds of linear on FGVC under VPT's protocol, near the paper, and one of full far off."""
    store = ResultsStore(tmp_path / "results")
    printed = {"cub200": 85.3, "nabirds": 75.9, "oxford_flowers": 97.9}
    printed |= {"stanford_dogs": 86.2, "stanford_cars": 51.3}
    for name, top1 in printed.items():
        for seed in (42, 44):
            store.add(run("Linear", name, top1 + 0.4, seed=seed))
        store.add(run("Full", name, 50.0, protocol="peftbench"))
    return store.root


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        cli.main(list(map(str, arguments)))
    said = capsys.readouterr()
    assert isinstance(end.value.code, int)
    return end.value.code, said.out, said.err


def test_the_report_of_an_experiment_writes_its_tables_the_same_twice(root, capsys) -> None:
    arguments = ("report", "vpt_table1", "--results-dir", root, "--no-figures", "--published")
    status, out, _ = call(capsys, *arguments)
    assert status == 0 and out.startswith("### VPT, table 1")
    files = sorted(path.name for path in (root / "tables").iterdir())
    names = ("vpt_fgvc", "vpt_table1", "vpt_vtab")
    assert files == sorted(f"{name}.{k}" for name in names for k in ("csv", "html", "md", "tex"))
    assert all(str(root / "tables" / name) in out for name in files)
    assert (root / "table.csv").is_file() and "Left out" not in out
    before = {path: path.read_bytes() for path in (root / "tables").iterdir()}
    assert call(capsys, *arguments)[1] == out
    assert {path: path.read_bytes() for path in (root / "tables").iterdir()} == before
    text = (root / "tables" / "vpt_fgvc.md").read_text()
    assert re.search(r"\| Linear +\| +85\.7 ± 0\.0 \(2\) ", text)
    # as data: one head, then the cells of all three tables
    _, out, _ = call(capsys, *arguments, "--format", "csv")
    found = {row["table"] for row in csv.DictReader(io.StringIO(out))}
    assert found == set(names)


def test_published_numbers_alone_need_no_run_and_cannot_be_mistaken(tmp_path, capsys) -> None:
    root = tmp_path / "nothing"
    only = ("--results-dir", root, "--published-only")
    status, out, _ = call(capsys, "report", "ssf_fgvc", *only)
    assert status == 0
    assert "### Published numbers only, nothing here was measured: SSF" in out
    assert sorted(path.name for path in (root / "tables").iterdir()) == [
        f"ssf_fgvc.published.{kind}" for kind in ("csv", "html", "md", "tex")
    ]
    text = (root / "tables" / "ssf_fgvc.published.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert {row["state"] for row in rows} == {"published", "missing"}
    assert {row["value"] for row in rows} == {""}
    assert {row["published"] for row in rows if row["column"] == "Mean of 5"} >= {"90.72", "88.54"}
    assert "published-only" in (root / "tables" / "ssf_fgvc.published.html").read_text()
    # the store was not touched, and a report without runs says so as ever
    assert not (root / "runs").exists()
    told = report.build(root, experiment="ssf_fgvc").text
    assert told.startswith(f"No runs in {root / 'runs'} yet. Run: peftbench run -m experiments=ssf")
    for arguments in (("report", *only), ("report", "--published"), ("report", "demo", *only)):
        status, _, err = call(capsys, *arguments)
        assert status == 2 and err.count("\n") == 1 and "peftbench list tables" in err
    assert "vpt_table1" in call(capsys, "list", "tables")[1]
    with pytest.raises(ConfigError, match="No table of a paper is described for experiment demo"):
        build_published("demo", root)


def test_reproduce_compares_cell_by_cell_and_judges_runs_of_the_same_protocol(root, capsys) -> None:
    status, out, _ = call(capsys, "reproduce", "vpt_fgvc", "--results-dir", root)
    # linear is 0.4 above the paper in all cells; full is under another protocol
    assert status == 0
    lines = [re.split(r"  +", line) for line in out.splitlines()]
    assert ["Linear", "NABirds", "76.3 ± 0.0 (2)", "75.9", "+0.4", "within 3"] in lines
    assert ["Linear", "Mean", "79.72 ± 0.00 (2)", "79.32", "+0.40", "within 1.5"] in lines
    assert ["Full", "NABirds", "50.0 (1)", "82.7", "−32.7", "other protocol"] in lines
    # 14 rows of 6 cells
    assert "84 cells: 6 within, 6 other protocol, 72 not measured." in out
    assert "  checkpoint: vit_base_patch16_224.orig_in21k" in out
    assert "  normalisation checkpoint, not imagenet (6 cells)" in out
    assert "  seeds 42, 44, where the protocol has 42, 44, 82, 100, 800" in out
    assert "  full fine-tuning has no dropout of 0.1" in out

    # 3.1 points below the paper on one data set
    ResultsStore(root).add(run("Bias", "nabirds", 84.2 - 3.1))
    ResultsStore(root).add(run("Bias", "cub200", 88.4 - 3.0))
    status, out, _ = call(capsys, "reproduce", "vpt_fgvc", "--results-dir", root)
    assert status == 1
    lines = [re.split(r"  +", line) for line in out.splitlines()]
    assert ["Bias", "NABirds", "81.1 (1)", "84.2", "−3.1", "MISSES 3"] in lines
    assert ["Bias", "CUB-200-2011", "85.4 (1)", "88.4", "−3.0", "within 3"] in lines


def test_reproduce_says_where_cells_were_computed_differently(tmp_path, capsys) -> None:
    store = ResultsStore(tmp_path)
    for title, cost in (
        ("Linear", Cost("cpu", "float32")),
        ("Full", Cost("cpu", "float32")),
        ("Bias", Cost("cpu", "bfloat16")),
    ):
        store.add(run(title, "cub200", 85.0, cost=cost))
    _, out, _ = call(capsys, "reproduce", "vpt_fgvc", "--results-dir", tmp_path)
    assert "Remarks on these cells:\n" in out
    remark = "computed in bfloat16 on a CPU, while most runs of this column are in float32 on a CPU"
    assert f"  {remark} (1 cell)\n" in out


def test_reproduce_says_when_nothing_was_measured_or_nothing_can_be_judged(
    root, tmp_path, capsys
) -> None:
    empty = tmp_path / "empty"
    status, out, _ = call(capsys, "reproduce", "vpt_table1", "--results-dir", empty)
    assert status == 3 and f"NOTHING WAS MEASURED: {empty} holds no final run" in out
    assert "Run: peftbench run -m experiments=vpt_table1" in out
    assert not empty.exists()
    where = ("--where", "protocol=peftbench")
    status, out, _ = call(capsys, "reproduce", "vpt_fgvc", "--results-dir", root, *where)
    assert status == 3 and "No cell was measured under the protocol of the paper" in out
    status, _, err = call(capsys, "reproduce", "vpt_tabel1", "--results-dir", root)
    assert status == 2 and "Unknown table 'vpt_tabel1'. Did you mean: vpt_table1" in err


def test_reproduce_compares_runs_that_selected_on_test_where_the_paper_did(
    tmp_path, capsys
) -> None:
    store = ResultsStore(tmp_path)
    store.add(run("SSF", "cub200", 89.0, protocol="ssf", weights=paper_runs.AUGREG))
    store.add(run("Linear", "cub200", 85.0, selection="best_on_test"))
    status, out, _ = call(capsys, "reproduce", "ssf_fgvc", "--results-dir", tmp_path)
    assert status == 0 and re.search(r"SSF +CUB-200-2011 +89.0 \(1\) +89.5 +−0.5  within 2", out)
    assert "the paper reports the best epoch on test, and so do runs of its protocol" in out
    status, out, _ = call(capsys, "reproduce", "vpt_fgvc", "--results-dir", tmp_path)
    assert status == 3 and "Left out: 1 run selected on test" in out


WHOLE = """
title: T
source: S
experiment: demo
protocol: vpt
weights: w
published: {paper: VPT, backbone: vit_b16, pretrain: sup_in21k_orig}
columns: [{kind: task, over: fgvc}]
rows: [{title: Full, method: full}]
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("title: T", "titel: T", "Unknown key of the file in PATH: 'titel'. Did you mean: title?"),
        ("protocol: vpt", "protocol:", "PATH has no protocol"),
        ("over: fgvc", "over: fgcv", "Unknown data set, group or suite in PATH: 'fgcv'."),
        (
            "kind: task",
            "kind: tusk",
            "Unknown kind of a column in PATH: 'tusk'.",
        ),
        ("kind: task,", "kind: mean,", "PATH: a column of kind mean has no title"),
        ("method: full}", "}", "PATH: the row {'title': 'Full'} has no method"),
        ("fgvc}]", "fgvc}, {kind: task, over: fgvc}]", "PATH has two columns with key fgvc/cub200"),
        ("over: fgvc", "over: fewshot", "has no value for 'shots' of fewshot/fgvc_aircraft"),
        ("kind: task", "kind: wins, title: W, against: Linear", "Unknown row in PATH: 'Linear'"),
        ("rows: [", "rows: {", "PATH, line 9 is no YAML: "),
    ],
)
def test_a_broken_description_is_refused_in_one_line(tmp_path, old, new, message) -> None:
    path = tmp_path / "mine.yaml"
    assert WHOLE.count(old) == 1
    path.write_text(WHOLE.replace(old, new))
    with pytest.raises(ConfigError) as refused:
        catalogue.read(path)
    assert message.replace("PATH", str(path)) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_table_of_ones_own_is_found_in_the_working_directory(tmp_path, monkeypatch) -> None:
    place = tmp_path / "experiments" / "tables"
    place.mkdir(parents=True)
    (place / "mine.yaml").write_text(WHOLE)
    monkeypatch.chdir(tmp_path)
    assert [table.name for table in catalogue.of_experiment("demo")] == ["mine"]
    assert "vpt_table1" in catalogue.names()

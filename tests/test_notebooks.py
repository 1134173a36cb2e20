"""The notebooks hold code that works and nothing that was computed."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# read results only: run here, in the process of the tests; the others train
READERS = ("02_read_results", "03_regenerate_paper_tables")
every = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path, kind: str) -> list[dict[str, Any]]:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def test_the_five_promised_notebooks_are_there_and_in_the_documentation() -> None:
    names = [path.stem for path in NOTEBOOKS]
    assert names == [
        "01_quickstart",
        "02_read_results",
        "03_regenerate_paper_tables",
        "04_add_a_method",
        "05_your_own_images",
    ]
    page = (ROOT / "docs" / "getting-started.md").read_text(encoding="utf-8")
    assert all(f"notebooks/{name}.ipynb" in page for name in names)


@every
def test_outputs_are_stripped_and_every_code_cell_compiles(path: Path) -> None:
    for cell in cells(path, "code"):
        assert (cell["outputs"], cell["execution_count"]) == ([], None)
        compile(source(cell), str(path), "exec")
    assert source(cells(path, "markdown")[0]).startswith("# ")


def loads(path: Path) -> set[str]:
    """Top-level packages that a notebook imports."""
    nodes = [n for cell in cells(path, "code") for n in ast.walk(ast.parse(source(cell)))]
    names = {a.name for node in nodes if isinstance(node, ast.Import) for a in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("name", READERS)
def test_a_notebook_that_only_reads_runs_and_needs_no_torch(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = ROOT / "notebooks" / f"{name}.ipynb"
    assert not loads(path) & {"torch", "timm", "torchvision"}
    monkeypatch.chdir(path.parent)
    scope: dict[str, Any] = {"__name__": "__main__"}
    for cell in cells(path, "code"):
        exec(compile(source(cell), str(path), "exec"), scope)
    assert len(capsys.readouterr().out.splitlines()) > 10


@pytest.mark.slow
@every
def test_a_notebook_runs_from_top_to_bottom(path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    place = {"metadata": {"path": str(path.parent)}}
    nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3", resources=place).execute()

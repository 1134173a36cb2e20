"""A method that is typed in from the documentation needs no other edit of the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.documents import ROOT, blocks

NAME = "attention"
# the promises to a method, and every test that goes through all methods, files or pages of them
CONTRACT = ("tests/contract", "tests/api/test_models.py", "-k", NAME)
ENUMERATING = (
    "tests/test_docs.py",
    "tests/test_documents.py",
    "tests/api/test_api.py",
    "tests/config/test_experiments.py",
    "tests/config/test_groups.py",
    "tests/experiment/test_run_id.py",
    "tests/report/test_figures.py",
)


def copy_of_the_tree(folder: Path) -> None:
    """What git knows of this tree, as it lies here."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)


@pytest.mark.slow  # the generated pages and a few hundred tests
def test_a_method_typed_into_a_clone_passes_what_goes_through_all_methods(tmp_path: Path) -> None:
    copy_of_the_tree(tmp_path)
    shown = list(blocks("docs/add-a-method.md"))
    (code,) = (block.code for block in shown if block.language == "python")
    (tmp_path / "peftbench" / "methods" / f"{NAME}.py").write_text(code, encoding="utf-8")
    (config,) = (block.code for block in shown if block.language == "yaml")
    (tmp_path / "conf" / "method" / f"{NAME}.yaml").write_text(config, encoding="utf-8")

    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment |= {"PYTHONPATH": str(tmp_path), "PEFTBENCH_CACHE": str(tmp_path / "cache")}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    # without every method on every tiny backbone: two minutes, and the contract runs the new one
    told = run("tools/make_docs.py", "--without", "support.md")
    assert {line.removeprefix("wrote ") for line in told.splitlines()} == {
        "docs/methods.md",
        "docs/atlas.md",
        "peftbench/report/atlas.json",
        "README.md",
        "CITATION.cff",
    }
    run("-m", "pytest", "-q", "-p", "no:cacheprovider", *CONTRACT)
    run("-m", "pytest", "-q", "-p", "no:cacheprovider", *ENUMERATING)

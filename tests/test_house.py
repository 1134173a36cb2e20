"""The sizes of things: what is longer has two subjects, and a reader loses one of them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import peftbench

PACKAGE = Path(peftbench.__file__).parent
FILE_LINES = 450
FUNCTION_LINES = 80


def too_long(path: Path) -> Iterator[str]:
    """Of a file, and of each function in it, the length where it is above the bound."""
    text = path.read_text(encoding="utf-8")
    lines = len(text.splitlines())
    if lines > FILE_LINES:
        yield f"{path.name} has {lines} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1  # decorators are not counted
            if lines > FUNCTION_LINES:
                yield f"{path.name}: {node.name} has {lines} lines"


def test_no_file_and_no_function_of_the_package_is_long() -> None:
    assert [line for path in sorted(PACKAGE.rglob("*.py")) for line in too_long(path)] == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pass\n" * 450, []),
        ("pass\n" * 451, ["long.py has 451 lines"]),
        ("def f():\n" + "    pass\n" * 79, []),
        ("def f():\n" + "    pass\n" * 80, ["long.py: f has 81 lines"]),
        ("class A:\n    async def f():\n" + "        pass\n" * 80, ["long.py: f has 81 lines"]),
    ],
    ids=["file at the bound", "file above", "function at the bound", "function above", "method"],
)
def test_the_bounds_are_450_lines_of_a_file_and_80_of_a_function(
    tmp_path: Path, text: str, expected: list[str]
) -> None:
    path = tmp_path / "long.py"
    path.write_text(text)
    assert list(too_long(path)) == expected


def test_the_name_of_a_public_class_has_one_meaning() -> None:
    places: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(path.relative_to(PACKAGE).as_posix())
    assert {name: found for name, found in places.items() if len(found) > 1} == {}

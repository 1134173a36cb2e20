"""Docstrings of what takes or gives tensors and arrays say shapes; types stay in annotations."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import peftbench

PACKAGE = Path(peftbench.__file__).parent
# parts whose public functions say the shapes of single arrays; mappings of them have any shapes
SHAPED = ("backbones", "data", "methods", "report", "run", "statistics", "training")
TERM = r"(?:[A-Z](?:_[a-z]+)?|\d+[A-Z]?|[a-z][a-z_]*)"
SIZE = rf"(?:\.\.\.|{TERM}(?: (?:[-+*/] )?{TERM})*)"
SHAPE = re.compile(rf"\((?:\.\.\.|{SIZE}(?:,|(?:, {SIZE})+))\)")
ARRAY = re.compile(r"\b(Tensor|ndarray|NDArray|Array|Classes|Hits|Indices)\b")
WHATEVER = re.compile(r"\b(dict|Mapping|Callable)\[.*\]")


def forwards() -> Iterator[tuple[str, str]]:
    """Each public class with a `forward`, and the docstring of that."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                for method in node.body:
                    if isinstance(method, ast.FunctionDef) and method.name == "forward":
                        yield f"{path.stem}.{node.name}", ast.get_docstring(method) or ""


def functions(owner: object, module: str) -> Iterator[tuple[str, Callable[..., object]]]:
    """Public functions of a module, and public methods of its public classes, but for `forward`."""
    for name, member in vars(owner).items():
        if name.startswith("_") or name == "forward":
            continue
        if inspect.isclass(member) and member.__module__ == module and owner is not member:
            for method, function in functions(member, module):
                yield f"{name}.{method}", function
            continue
        function = member.fget if isinstance(member, property) else inspect.unwrap(member)
        if inspect.isfunction(function) and function.__module__ == module:
            yield name, member


def shaped_functions() -> Iterator[tuple[str, str]]:
    """Each public function of `SHAPED` with a single array, and its docstring or an inherited."""
    for part in SHAPED:
        for path in sorted((PACKAGE / part).rglob("*.py")):
            parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
            module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            loaded = importlib.import_module(module)
            for name, member in functions(loaded, module):
                function = member.fget if isinstance(member, property) else member
                kinds = inspect.unwrap(function).__annotations__.values()
                if any(ARRAY.search(WHATEVER.sub("", str(kind))) for kind in kinds):
                    owner = getattr(loaded, name.partition(".")[0])
                    inherited = getattr(owner, name.rpartition(".")[2], function)
                    yield f"{path.stem}.{name}", inspect.getdoc(inherited) or ""


def test_every_public_forward_says_shapes() -> None:
    docstrings = dict(forwards())
    assert "low_rank.LowRankDelta" not in docstrings and "bottleneck.Bottleneck" in docstrings
    assert [name for name, text in docstrings.items() if not SHAPE.search(text)] == []


def test_public_functions_of_arrays_say_shapes() -> None:
    docstrings = dict(shaped_functions())
    assert {
        "evaluate.predict",
        "ranks.holm",
        "low_rank.LowRankDelta.weight_delta",
    } <= docstrings.keys()
    assert [name for name, text in docstrings.items() if not SHAPE.search(text)] == []


@pytest.mark.parametrize(
    "text",
    ["(N,)", "(B, N, d)", "(B, ..., C)", "(...)", "(B, p + H W, C)", "(B, 3, S + 2N, S + 2N)"],
)
def test_these_are_shapes(text: str) -> None:
    assert SHAPE.search(f"x: {text}.")


@pytest.mark.parametrize("text", ["", "(Holm, 1979)", "(images)", "(see `draw`)", "N, C"])
def test_these_are_no_shapes(text: str) -> None:
    assert not SHAPE.search(text)

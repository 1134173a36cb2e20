"""The commands of the documentation and of the help texts do what they are shown to do."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.documents import PAGES, ROOT, Block, blocks, commands, text_of, written
from support.tiny_runs import compose, short_timings, tiny_spec, write_images

from peftbench import data
from peftbench.cli import main as module
from peftbench.cli import profile as profiles
from peftbench.cli.run import PLAN_HELP, RUN_HELP
from peftbench.config.build import build
from peftbench.config.choices import choices
from peftbench.methods import METHODS
from peftbench.results.bundles.outgoing import export_results
from peftbench.results.store import ResultsStore
from peftbench.run import experiment, provenance
from peftbench.run.profile import Profiler, UnsupportedPair
from peftbench.spec import DatasetSpec

MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
SHELL = [block for page in PAGES for block in blocks(page) if block.language == "sh"]
RUN = [block for block in SHELL if block.not_run is None]
HELP = re.findall(r"^  (peftbench run [^#\n]*)$", RUN_HELP + PLAN_HELP, re.M)
PROGRAMS = ("peftbench", "make")  # what a block that runs may call


def lines(chosen: list[Block]) -> list[str]:
    """Each command of the blocks once."""
    return list(dict.fromkeys(line for block in chosen for line in commands(block)))


def named(line: str) -> str:
    """Name of the case of a line."""
    return line[:70]


def test_a_block_that_runs_calls_nothing_else() -> None:
    assert {line.split()[0] for line in lines(RUN)} == set(PROGRAMS)


# ------------------------------------------------------------------- run and plan


@pytest.fixture
def garden(work: Path, tmp_path: Path) -> Path:
    """A folder of images, and the files of configuration that the pages write into `conf/`."""
    root = write_images(tmp_path / "images")
    for page in PAGES:
        for block in blocks(page):
            path = written(block, work)
            if path is not None and "/schema/method/" in block.code:
                path.unlink()  # of a method that is not installed
            elif path is not None:
                path.write_text(block.code.replace("PATH", str(root)), encoding="utf-8")
    (work / "weights.safetensors").write_bytes(b"bytes")
    return root


COMPOSED = [x for x in (*lines(RUN), *HELP) if re.match(r"peftbench (run|plan) ", x)]


@pytest.mark.parametrize("line", dict.fromkeys(COMPOSED), ids=named)
def test_a_shown_run_composes_and_builds(cli, garden: Path, line: str) -> None:
    _, command, *words = shlex.split(line.replace("PATH", str(garden)))
    if "--help" in words or "--cfg" in words:
        done = cli(command, *words)
        assert (done.status, done.err) == (0, "") and done.out
        return
    if command == "run" and "-m" not in words:
        build(compose(*words))
        return
    for group in ("method", "dataset"):
        names = re.findall(rf"(?<=^{group}=)[^(\n]+$", "\n".join(words), re.M)
        assert {n for text in names for n in text.split(",")} <= choices(group)
    # the names exist, so that the first of several is enough
    first = re.compile(r"^(method|dataset|seed)=([^(,]+),.*")
    words = [first.sub(r"\1=\2", word) for word in words if word != "-m"]
    done = cli("plan", *words)
    assert (done.status, done.err) == (0, "")
    assert re.search(r"^[1-9]\d* jobs?: 0 done, \d+ unsupported, [1-9]\d* to run$", done.out, re.M)
    assert not Path("results").exists()


# ------------------------------------------------------------------- what reads results

READING = [x for x in lines(RUN) if x.startswith("peftbench ") and x not in COMPOSED]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A results folder with two tiny runs, and a bundle of one of them beside it."""
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch, short_timings():
        patch.setenv("PEFTBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        # `advise` counts runs of committed code on all images
        patch.setattr(provenance, "git_state", lambda: (None, None))
        every = data.identify(DatasetSpec("mini/digits", reader="mini", suite="mini"))
        store = ResultsStore(folder / "results")
        for method in ("linear", "lora"):
            spec = tiny_spec(method, dataset=every, recipe={"epochs": 1, "batch_size": 64})
            assert (
                experiment.run(spec, store, experiment.RunOptions(device="cpu", threads=1)).status
                == "OK"
            )
        export_results(store.root, folder / "FILE.zip", ("method=lora",))
        yield folder


@pytest.mark.parametrize("line", READING, ids=named)
def test_a_shown_command_that_reads_results_ends_well(
    cli, work: Path, results: Path, line: str
) -> None:
    (work / "results").symlink_to(results / "results")
    (work / "FILE.zip").symlink_to(results / "FILE.zip")
    (record,) = (r for r in ResultsStore(work / "results").records() if "lora" in str(r.spec))
    write_images(work / "PICTURES", per_class=1)
    line = line.replace("RUN_ID", record.run_id).replace("5ms", "60s")  # the machine may be slow
    words = shlex.split(line)[1:]
    if words[0] == "report" and "page" not in words:
        words.append("--no-figures")  # `tests/report` draws them
    done = cli(*words)
    assert (done.status, done.out != "") == (0, True), done


# ------------------------------------------------------------------- what is not run

NOT_RUN = [x for x in lines(SHELL) if x not in lines(RUN) and x.startswith("peftbench ")]


@pytest.mark.parametrize("line", NOT_RUN, ids=named)
def test_the_options_of_a_command_that_is_not_run_exist(line: str) -> None:
    _, command, *words = shlex.split(line)
    if command == "run":
        known = {"method", "backbone", "dataset", "recipe", "seed", "data_dir"}
        assert {word.partition("=")[0].partition(".")[0] for word in words} <= known
        return
    module._parser().parse_args([command, *words])


@pytest.mark.parametrize("block", [b for b in SHELL if "pytest" in b.code], ids=str)
def test_the_tests_that_a_page_names_exist(block: Block) -> None:
    paths = [word for line in commands(block) for word in line.split() if word.startswith("tests")]
    assert paths and all((ROOT / path).exists() for path in paths)


PROFILED = [
    *(line for line in lines(RUN) if line.startswith("peftbench profile ")),
    *re.findall(r"^  (peftbench profile [^#\n]*)$", profiles.HELP, re.M),
]


def _of_all(line: str) -> tuple[pytest.MarkDecorator, ...]:
    return (pytest.mark.slow,) if "method=*" in line else ()  # a composition each


@pytest.mark.parametrize(
    "line", [pytest.param(line, id=named(line), marks=_of_all(line)) for line in PROFILED]
)
def test_a_shown_profile_is_of_methods_and_backbones_that_there_are(
    cli, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def profile(self: Profiler, spec, num_classes: int) -> UnsupportedPair:
        asked.append((spec.method.name, num_classes))
        return UnsupportedPair(spec.method.name, spec.backbone.name, "not looked at")

    monkeypatch.setattr(Profiler, "__call__", profile)
    assert cli(*shlex.split(line)[1:]).err == ""
    assert {classes for _, classes in asked} == {100}
    wanted = line.partition("method=")[2].partition(" ")[0].strip("'")
    methods = [name for name in METHODS] if wanted == "*" else wanted.split(",")
    assert sorted(name for name, _ in asked) == sorted(methods)


# ------------------------------------------------------------------- lists and make


LISTS = ("methods", "backbones", "datasets", "protocols", "experiments", "tables", "runs")


@pytest.mark.parametrize("what", LISTS)
def test_everything_that_can_be_listed_is_named_and_listed(cli, what: str) -> None:
    assert what in text_of("docs/running.md")
    assert cli("list", what).status == 0


def test_every_make_target_of_the_pages_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.M))
    phony = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.M)
    shown = set()
    for page in PAGES:
        for words in re.findall(r"`make\s+([^`]*)`|^make ([^#\n]*)", text_of(page), re.M):
            shown |= {word for word in " ".join(words).split() if re.fullmatch("[a-z-]+", word)}
    assert {"demo", "test", "sweep", "check"} <= shown
    assert shown <= targets
    assert phony is not None and set(phony.group(1).split()) <= targets


@pytest.mark.parametrize("line", [x for x in lines(RUN) if x.startswith("make ")], ids=named)
def test_make_knows_how_to_make_what_is_shown(line: str) -> None:
    command = [*shlex.split(line), "-n", "-C", str(ROOT), "VENV=.nowhere"]
    environment = {k: v for k, v in os.environ.items() if k != "MAKEFLAGS"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def swept(*variables: str) -> list[str]:
    """Words of the command behind `make sweep VARIABLE=VALUE...`."""
    make = ["make", "-n", "-C", str(ROOT), "sweep", "VENV=.nowhere", *variables]
    unset = ("BACKBONE", "EXPERIMENT", "METHODS", "DATASETS", "SEEDS", "LIMIT", "MAKEFLAGS")
    environment = {k: v for k, v in os.environ.items() if k not in unset}
    printed = subprocess.run(make, env=environment, capture_output=True, text=True, check=True)
    line = next(line for line in printed.stdout.splitlines() if "peftbench run" in line)
    return shlex.split(line)[1:]


def test_make_sweep_is_an_experiment_that_variables_narrow() -> None:
    common = ["results_dir=results"]
    assert swept() == ["run", "-m", "experiments=mini", *common]
    assert swept("BACKBONE=vit_b16", "RESULTS=here") == [
        "run", "-m", "experiments=peftbench_vtab", "backbone=vit_b16", "results_dir=here"
    ]  # fmt: skip
    lite = swept("BACKBONE=efficientnet_lite0")
    assert lite == ["run", "-m", "experiments=mini", "backbone=efficientnet_lite0", *common]
    narrow = ("EXPERIMENT=vpt_swin", "METHODS=linear,mlp/3", "DATASETS=vtab/dtd", "SEEDS=42")
    assert swept(*narrow, "LIMIT=20", "LAUNCHER=slurm") == [
        "run", "-m", "experiments=vpt_swin", "method=linear,mlp/3", "dataset=vtab/dtd", "seed=42",
        "dataset.limit=20", "hydra/launcher=slurm", *common,
    ]  # fmt: skip


def test_an_experiment_is_narrowed_by_what_the_command_line_says(cli) -> None:
    done = cli("plan", "experiments=mini", "method=glob(l*)", "seed=4", "dataset=glob(mini/s*)")
    assert (done.status, done.err) == (0, "")
    # rows of a method, such as mlp/5, are no methods of their own
    for name in (name for name in METHODS if name.startswith("l")):
        for task in ("mini/sprites_location", "mini/sprites_orientation"):
            assert f"{name} x vit_mini x {task}, seed 4" in done.out
    assert "8 jobs: 0 done, 0 unsupported, 8 to run\n" in done.out  # linear, logistic, lora, lst


@pytest.mark.parametrize("command", [("plan",), ("run", "-m")])
def test_a_pattern_that_matches_nothing_is_refused(cli, command: tuple[str, ...]) -> None:
    done = cli(*command, "dataset=glob(maxi/*)")
    assert done.status == 2
    assert len(done.err.splitlines()) == 1
    assert done.err.startswith("peftbench: ")

"""The commands of the README and of the help texts do what they are shown to do."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from support.tiny_runs import compose, files_below, write_images

from peftbench import cli as module
from peftbench.config import build
from peftbench.methods import METHODS

ROOT = Path(__file__).parents[2]


def commands(text: str) -> list[str]:
    """Indented lines that begin with `peftbench run` or `peftbench plan`, comments cut off."""
    found = re.findall(r"^(?: {4}|  )(peftbench (?:run|plan) [^#\n]*?)\s*(?:#.*)?$", text, re.M)
    return [line.replace(" ...", "") for line in found]


README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
SHOWN = list(dict.fromkeys([*commands(README), *commands(module.RUN_HELP)]))


def test_the_readme_shows_commands() -> None:
    assert len(commands(README)) >= 5


@pytest.mark.parametrize("line", SHOWN)
def test_a_shown_command_composes_and_builds(cli, work: Path, tmp_path: Path, line: str) -> None:
    root = write_images(tmp_path / "images")
    (work / "weights.safetensors").write_bytes(b"bytes")
    _, command, *words = shlex.split(line.replace("PATH", str(root)))
    if command == "run" and "-m" not in words:
        build(compose(*words))
        return
    # one seed of several is enough
    words = [re.sub("^seed=0,.*", "seed=0", word) for word in words if word != "-m"]
    done = cli("plan", *words)
    assert (done.status, done.err) == (0, "")
    assert re.search(r"^[1-9]\d* jobs?: 0 done, \d+ unsupported, [1-9]\d* to run$", done.out, re.M)
    assert files_below(work) == ["weights.safetensors"]


LISTS = ("methods", "backbones", "datasets", "protocols", "experiments", "tables", "runs")


@pytest.mark.parametrize("what", LISTS)
def test_everything_that_the_readme_lists_can_be_listed(cli, what: str) -> None:
    assert f"peftbench list {'|'.join(LISTS)}" in README
    assert cli("list", what).status == 0


def test_every_make_target_of_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.M))
    phony = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.M)
    shown = set()
    for words in re.findall(r"`make ([^`]*)`|^ {4}make ([^#\n]*)", README, re.M):
        shown |= {word for word in " ".join(words).split() if re.fullmatch("[a-z-]+", word)}
    assert {"demo", "test", "sweep", "check"} <= shown
    assert shown <= targets
    assert phony is not None and set(phony.group(1).split()) <= targets


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
    assert swept(*narrow, "LIMIT=20", "LAUNCHER=plan") == [
        "run", "-m", "experiments=vpt_swin", "method=linear,mlp/3", "dataset=vtab/dtd", "seed=42",
        "dataset.limit=20", "hydra/launcher=plan", *common,
    ]  # fmt: skip


def test_an_experiment_is_narrowed_by_what_the_command_line_says(cli) -> None:
    done = cli("plan", "experiments=mini", "method=glob(l*)", "seed=4", "dataset=glob(mini/s*)")
    assert (done.status, done.err) == (0, "")
    # rows of a method, such as mlp/5, are no methods of their own
    for name in (name for name in METHODS if name.startswith("l")):
        for task in ("mini/sprites_location", "mini/sprites_orientation"):
            assert f"{name} x vit_mini x {task}, seed 4" in done.out
    assert "4 jobs: 0 done, 0 unsupported, 4 to run\n" in done.out


@pytest.mark.parametrize("command", [("plan",), ("run", "-m")])
def test_a_pattern_that_matches_nothing_is_refused(cli, command: tuple[str, ...]) -> None:
    done = cli(*command, "dataset=glob(maxi/*)")
    assert done.status == 2
    assert len(done.err.splitlines()) == 1
    assert done.err.startswith("peftbench: ")

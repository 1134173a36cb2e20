"""The commands of the README and of the help texts do what they are shown to do."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from tiny_runs import compose, files_below, write_images

from peftbench import cli as module
from peftbench import data
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


@pytest.mark.parametrize(
    "what", ["methods", "backbones", "datasets", "experiments", "tables", "runs"]
)
def test_everything_that_the_readme_lists_can_be_listed(cli, what: str) -> None:
    assert "peftbench list methods|backbones|datasets|experiments|tables|runs" in README
    assert cli("list", what).status == 0


def test_every_make_target_of_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", MAKEFILE, re.M))
    phony = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.M)
    shown = set()
    for words in re.findall(r"`make ([^`]*)`|^ {4}make ([^#\n]*)", README, re.M):
        shown |= {word for word in " ".join(words).split() if re.fullmatch("[a-z]+", word)}
    assert {"demo", "test", "sweep", "check"} <= shown
    assert shown <= targets
    assert phony is not None and set(phony.group(1).split()) <= targets


def default(variable: str) -> str:
    """What a variable of the Makefile is unless the user says otherwise."""
    found = re.search(rf"^{variable} \?= (.*)$", MAKEFILE, re.M)
    assert found is not None
    return found.group(1)


def test_make_sweep_runs_every_method(cli) -> None:
    done = cli("plan", f"method={default('METHODS')}", "dataset=mini/digits")
    assert (done.status, done.err) == (0, "")
    for name in METHODS:
        assert f"{name} x vit_mini x mini/digits, seed 0" in done.out


def test_make_sweep_runs_every_mini_data_set(cli) -> None:
    done = cli("plan", f"dataset={default('DATASETS')}", f"recipe={default('RECIPE')}")
    assert (done.status, done.err) == (0, "")
    for task in data.mini_tasks():
        assert f"linear x vit_mini x {task}, seed 0\n" in done.out
    count = len(data.mini_tasks())
    assert f"{count} jobs: 0 done, 0 unsupported, {count} to run\n" in done.out


@pytest.mark.parametrize("command", [("plan",), ("run", "-m")])
def test_a_pattern_that_matches_nothing_is_refused(cli, command: tuple[str, ...]) -> None:
    done = cli(*command, "dataset=glob(maxi/*)")
    assert done.status == 2
    assert len(done.err.splitlines()) == 1
    assert done.err.startswith("peftbench: ")

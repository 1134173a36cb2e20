"""Every configuration file that ships composes and builds, by the command in its first line."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from support.tiny_runs import compose, write_images

from peftbench.backbones.names import check_name
from peftbench.backbones.shipped import SHIPPED
from peftbench.config.build import build, dataset_specs
from peftbench.config.choices import aliases_of, catalogue, config_dir, method_of
from peftbench.methods import METHODS
from peftbench.spec import Recipe
from peftbench.training.recipe import check_recipe

CONF = config_dir()
GROUPS = ("backbone", "dataset", "method", "recipe")
# those that need files which are not shipped are in test_datasets.py
ABSENT = {
    f"dataset/{name}"
    for name, spec in dataset_specs(None).items()
    if spec.reader in ("public", "shift")
}
FILES = [
    path
    for group in GROUPS
    for path in sorted((CONF / group).rglob("*.yaml"))
    if path.relative_to(CONF).with_suffix("").as_posix() not in ABSENT
]
TUNED = sorted((CONF / "tuned").glob("*/*.yaml"))  # those of a suite: test_protocols.py


def name_of(path: Path) -> str:
    return path.relative_to(CONF).with_suffix("").as_posix()


def command_of(path: Path) -> str:
    """The `peftbench` or `make` command in the first line of a configuration file."""
    first = path.read_text(encoding="utf-8").splitlines()[0]
    found = re.search(r"(peftbench run|make) [^(]*", first)
    assert first.startswith("# ") and found, f"{path} does not begin with its command: {first!r}"
    return found.group().strip()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_the_first_line_of_a_file_is_a_command_that_builds_it(path: Path, tmp_path: Path) -> None:
    group, _, name = name_of(path).partition("/")
    command = shlex.split(command_of(path))
    if command[0] == "make":
        overrides = [f"{group}={name}"]
    else:
        overrides = command[2:]
        assert f"{group}={name}" in overrides
    if any("PATH" in override for override in overrides):
        root = write_images(tmp_path / "images")
        if group == "backbone":
            root = tmp_path / "linear-vit-b-300ep.pth.tar"
            root.write_bytes(b"weights")
        overrides = [override.replace("PATH", str(root)) for override in overrides]
    spec = build(compose(*overrides))
    entry = yaml.safe_load(path.read_text(encoding="utf-8"))
    if group == "method":
        assert spec.method.name == method_of(name)
        fixed = {key: value for key, value in entry.items() if key != "defaults"}
        assert bool(fixed) == ("/" in name)  # a row of a method fixes something of it
        options = fixed | options_of(spec.method.name, overrides)
        assert spec.method == METHODS[spec.method.name](**options)
    elif group == "backbone":
        check_name(spec.backbone)  # the tag exists; nothing is downloaded
        assert spec.backbone.name == entry.get("name", spec.backbone.name)
        assert spec.backbone.title == aliases_of("backbone").get(name, name)
    elif group == "dataset":
        assert spec.dataset.name == name
        assert len(spec.dataset.manifest) == 64
    else:
        assert dataclasses.asdict(spec.recipe).items() >= entry.items()
        assert spec.recipe.name == name
        check_recipe(spec.recipe)


def options_of(name: str, overrides: list[str]) -> dict:
    """Hyper-parameters that overrides of the form method.KEY=VALUE give."""
    options = {}
    for override in OverridesParser.create().parse_overrides(overrides):
        if override.key_or_group.startswith("method."):
            key = override.key_or_group.removeprefix("method.")
            options[key] = override.value()
            if isinstance(options[key], list):
                options[key] = tuple(map(str, options[key]))
    return options


@pytest.mark.parametrize("path", TUNED, ids=name_of)
def test_what_a_method_needs_under_a_recipe_is_composed_with_both(path: Path) -> None:
    recipe, method = name_of(path).split("/")[1:]
    spec = build(compose(f"recipe={recipe}", f"method={method}"))
    entry = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert dataclasses.asdict(spec.recipe).items() >= entry.get("recipe", {}).items()
    assert spec.method.name == method
    # and nothing of it reaches another recipe
    other = build(compose(f"method={method}"))
    assert other.recipe == Recipe()
    # what is said on the command line wins
    assert build(compose(f"recipe={recipe}", f"method={method}", "recipe.lr=0.5")).recipe.lr == 0.5


def test_vit_b16_is_another_name_of_the_original_in21k_weights() -> None:
    alias = build(compose("backbone=vit_b16"))
    backbone = build(compose("backbone=vit_b16_in21k"))
    assert alias == backbone
    assert alias.run_id == backbone.run_id
    assert alias.backbone.name == "vit_base_patch16_224.orig_in21k"
    assert aliases_of("backbone") == {"vit_b16": "vit_b16_in21k"}


def test_every_method_has_a_file_and_every_file_a_method() -> None:
    """But for the tuners of peft, which have one table together."""
    files = {path.stem for path in (CONF / "method").glob("*.yaml")}
    built_in = {
        name
        for name in METHODS
        if METHODS[name].__module__.startswith("peftbench.methods") and not name.startswith("hf_")
    }
    assert files == built_in


def test_every_shipped_backbone_has_a_file() -> None:
    names = {entry["name"] for entry in catalogue("backbone").values()}
    assert names >= SHIPPED.keys()


def test_no_two_files_of_a_group_are_the_same_run() -> None:
    for group in ("backbone", "dataset"):
        entries = [yaml.safe_dump(entry) for entry in catalogue(group).values()]
        assert len(set(entries)) == len(entries)


def test_the_schema_and_the_defaults_agree() -> None:
    """`peftbench run` without a word is the documented default run."""
    spec = build(compose())
    assert str(spec) == "linear x vit_mini x mini/digits, seed 0"
    assert spec.recipe == Recipe()
    assert (str(spec.phase), str(spec.precision)) == ("final", "auto")

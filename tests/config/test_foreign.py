"""`conf/` and `experiments/` of another project in the working directory stop nothing."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from peftbench import mappings
from peftbench.cli import listing
from peftbench.config import build as config
from peftbench.config import foreign
from peftbench.config.choices import (
    check_choices,
    choices,
    config_dir,
    config_dirs,
    group_dirs,
)
from peftbench.errors import ConfigError
from peftbench.sweep import experiments


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


BROKEN = {
    "name: [vit\n": "line 2 is no YAML",
    "name:\n\t- a\n": "line 2 is no YAML",
    "- a\n- b\n": "holds a list",
    "just words\n": "holds a str",
    "1: 2\n": "holds keys that are no words",
    "name: 2020-13-45\n": "is no YAML",
    "_target_: timm.create_model\nname: x\nreader: y\n": "has a key '_target_'",
    "name: x\nreader: folder\nroots: /x\n": "has a key 'roots'",
    "reader: folder\n": "name is missing",
    "name: x\nreader: folder\nfacts: [1]\n": "facts is no mapping",
}


@pytest.mark.parametrize("content", BROKEN, ids=range(len(BROKEN)))
def test_a_file_of_another_project_is_told_of_and_refused_where_it_is_asked_for(
    work: Path, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    path = put(work / "conf" / "dataset" / "theirs.yaml", content.encode())
    put(work / "conf" / "dataset" / "mine.yaml", b"name: mine\nreader: folder\nroot: /x\n")
    with caplog.at_level(logging.WARNING):
        assert {"mine", "mini/digits"} <= set(config.dataset_specs(None))
    (record,) = caplog.records
    assert str(path) in record.getMessage() and BROKEN[content] in record.getMessage()
    assert "\n" not in record.getMessage()
    assert "theirs" not in choices("dataset")
    with pytest.raises(ConfigError, match=r"theirs\.yaml"):
        check_choices("dataset", ["theirs"])
    check_choices("dataset", ["mine", "mini/digits"])


def test_what_is_no_text_file_is_left_out(work: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(work / "conf" / "backbone" / "latin.yaml", b"name: caf\xe9\n")
    os.mkfifo(work / "conf" / "backbone" / "pipe.yaml")
    os.symlink("gone.yaml", work / "conf" / "backbone" / "dead.yaml")
    os.symlink("round.yaml", work / "conf" / "backbone" / "round.yaml")
    (work / "conf" / "backbone" / "folder.yaml").mkdir()
    with caplog.at_level(logging.WARNING):
        assert "vit_mini" in listing._backbones()
    assert len(caplog.records) == 1 and "4 more files there are left out" in caplog.text
    for name, reason in (("latin", "is not UTF-8: byte 9 is 0xe9"), ("pipe", "a named pipe")):
        with pytest.raises(ConfigError, match=reason):
            check_choices("backbone", [name])


def test_a_misspelt_key_of_a_method_of_ones_own_is_named_with_its_file(work: Path) -> None:
    text = b"defaults: [/schema/method/lora@_here_]\nrnak: 1\n"
    put(work / "conf" / "method" / "mine.yaml", text)
    with pytest.raises(ConfigError, match=r"mine\.yaml: no method has a key 'rnak'. Known: "):
        check_choices("method", ["mine"])


def test_a_backbone_made_of_another_one_is_listed(work: Path) -> None:
    put(work / "conf" / "backbone" / "large.yaml", b"defaults: [vit_b16]\nimage_size: 384\n")
    assert "as vit_b16" in listing._backbones()


@pytest.mark.parametrize(
    "content",
    ["lr: [1,\n", "- 1\n", "hydra: 3\n", "hydra: {sweeper: {params: [1]}}\n", "defaults: x\n",
     "hydra: {sweeper: {params: {a: '[1'}}}\n", "tuner: 4\n",
     "experiments: [a]\n", "defaults: [{override /tuner: grid}]\ntuner: {grid: none such}\n"],
)  # fmt: skip
def test_an_experiment_of_another_project_is_left_out(
    work: Path, caplog: pytest.LogCaptureFixture, content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiments, "group_dirs", lambda group: [work / "experiments"])
    put(work / "experiments" / "first.yaml", content.encode())
    put(work / "experiments" / "mine.yaml", b"# @package _global_\nseed: 5\n")
    with caplog.at_level(logging.WARNING):
        assert [path.name for path in experiments.every()] == ["mine.yaml"]
    assert "first.yaml" in caplog.text


def test_a_file_or_a_circle_in_place_of_the_folders_is_no_folder(work: Path) -> None:
    put(work / "conf", b"x")
    os.symlink("experiments", work / "experiments")
    assert config_dirs()[0] == config_dir()
    assert work / "experiments" not in group_dirs("experiments")
    assert "demo" in choices("experiments")


def test_our_own_files_are_held_to_the_same_keys(tmp_path: Path) -> None:
    for group in ("backbone", "dataset", "method"):
        for path in (config_dir() / group).rglob("*.yaml"):
            foreign.read_of_group(group, path)
    bare = put(tmp_path / "a.yaml", b"")
    assert mappings.read(bare) == {}

"""Paths on the command line reach their readers as they stand, and Hydra's syntax stays Hydra's."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from peftbench.cli.quoting import hint, paths_quoted, quoted


def read(argument: str, *more: str) -> object:
    """The value that Hydra reads after quoting."""
    (found, *_) = OverridesParser.create().parse_overrides(paths_quoted([argument, *more])[:1])
    return found.value()


@pytest.mark.parametrize(
    "path",
    [
        "plain/path.pth",
        "epoch=9-step=100.ckpt",
        "images (1)",
        "Überraschung",
        "日本/写真",
        "it's",
        'say "x"',
        'it\'s "both"',
        "a[0]",
        "[x]",
        "{x}",
        "a#b",
        "a;b & c!",
        "<x>^`",
        "back\\slash=",
        "ends=in\\",
        "line\nbreak",
        "not-utf8=\udce9",
        "1e5",
        "007",
        "1_000",
        "true",
        "a,b",
        "100%",
        "a$b=",
    ],
)
def test_a_path_is_read_as_it_stands(path: str) -> None:
    for key in ("dataset.root", "backbone.checkpoint", "results_dir", "+data_dir", "++dataset.hub"):
        assert read(f"{key}={path}") == path


@pytest.mark.parametrize(
    "argument",
    [
        "dataset.root='a b'",
        'dataset.root="run=3"',
        "dataset.root=${data_dir}/x",
        "dataset.root=null",
        "dataset.root=",
        "dataset.root=a\\,b",
        "method=lora",
        "recipe.lr=1e5",
        "seed=0,1",
        "method.name=a=b",
        "~dataset.root",
        "--cfg",
    ],
)
def test_what_hydra_reads_rightly_stays_as_it_is(argument: str) -> None:
    assert paths_quoted([argument]) == [argument]


def test_a_sweep_over_paths_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert paths_quoted(["-m", "dataset.root=a,b"]) == ["-m", "dataset.root=a,b"]
    assert paths_quoted(["-m", "dataset.root=run=3,b"]) == ["-m", "dataset.root='run=3',b"]
    assert paths_quoted(["-m", "results_dir=choice(a,b)"]) == ["-m", "results_dir=choice(a,b)"]
    (tmp_path / "a,b").mkdir()  # a folder of that name is meant
    assert paths_quoted(["-m", "dataset.root=a,b"]) == ["-m", "dataset.root='a,b'"]


def test_spaces_at_the_ends_belong_to_a_folder_that_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert read("dataset.root=photos ") == "photos"
    (tmp_path / "photos ").mkdir()
    assert read("dataset.root=photos ") == "photos "


def test_a_home_is_what_it_stands_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    assert read("dataset.root=~/x") == "/home/ann/x"


def test_the_quoted_form_of_other_keys_is_shown() -> None:
    assert quoted("it's") == '"it\'s"'
    assert (
        hint("logger.project=a=b") == " Quotes make it a text: 'logger.project='\"'\"'a=b'\"'\"''"
    )
    assert hint("logger.project=a (1") != ""
    assert hint("method.layers=[1,") == ""

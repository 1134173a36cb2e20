"""What leaves this machine tells neither where files lie nor whose machine it is."""

from __future__ import annotations

import copy
import dataclasses
import json
import time
from typing import Any

import pytest

from peftbench.methods.linear import Linear
from peftbench.results import privacy
from peftbench.results.identity import run_id_of
from peftbench.results.privacy import identified_paths, last_part, public, public_text
from peftbench.spec import BackboneSpec, DatasetSpec, Recipe, RunSpec


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine `node17.cluster.example` of the user `annelise`."""
    monkeypatch.setattr(privacy, "_here", lambda: ("node17.cluster.example", "annelise"))


def spec() -> RunSpec:
    return RunSpec(
        method=Linear(),
        backbone=BackboneSpec("vit_mini", checkpoint="/home/annelise/My Weights/mine.pth"),
        dataset=DatasetSpec("cats", "folder", root="/home/annelise/Data Sets/cats", hub="/mnt/hub"),
        recipe=Recipe(),
        seed=0,
    )


def content() -> dict[str, Any]:
    return {
        "run_id": spec().run_id,
        "spec": spec().describe(),
        "status": "ERROR",
        "error": "/home/annelise/Data Sets/cats/Anna Cat/1.png on node17 cannot be decoded "
        "(trace in /home/annelise/results/runs/linear/0123/log.txt)",
        "metrics": {"test/top1": 0.5},
        "notes": ["read from node17.cluster.example:/export/annelise/list.csv", "a plain one"],
        "provenance": {
            "host": "node17",
            "platform": "Linux-6.1-x86_64",
            "backbone_source": "/home/annelise/My Weights/mine.pth",
            "cpu_threads": 4,
        },
        "classes": ["/m/0199g", "cat"],
    }


def test_no_path_host_or_user_is_left(here: None) -> None:
    text = json.dumps(public(content()))
    for secret in ("annelise", "node17", "/home", "/mnt", "/export", "My Weights", "Data Sets"):
        assert secret not in text


def test_paths_keep_their_last_part(here: None) -> None:
    made = public(content())
    assert made["spec"]["backbone"]["checkpoint"] == "mine.pth"
    assert made["spec"]["dataset"]["root"] == "cats"
    assert made["spec"]["dataset"]["hub"] == "hub"
    assert made["provenance"]["backbone_source"] == "mine.pth"
    assert made["provenance"]["host"] == ""
    assert made["notes"] == ["read from list.csv", "a plain one"]
    assert made["error"].endswith("cannot be decoded (trace in log.txt)")


def test_the_run_id_can_be_computed_from_what_is_left(here: None) -> None:
    made = public(content())
    assert run_id_of(made["spec"]) == spec().run_id == made["run_id"]


def test_numbers_class_names_and_the_original_stay(here: None) -> None:
    original = content()
    before = copy.deepcopy(original)
    made = public(original)
    assert original == before
    assert made["metrics"] == {"test/top1": 0.5}
    assert made["classes"] == ["/m/0199g", "cat"]
    assert made["provenance"]["cpu_threads"] == 4


def test_what_is_public_stays_as_it_is(here: None) -> None:
    made = public(content())
    assert public(made) == made


def test_a_record_of_a_run_that_tells_no_place_is_unchanged() -> None:
    plain = dataclasses.replace(
        spec(),
        backbone=BackboneSpec("vit_mini", checkpoint="weights/mine.pth"),
        dataset=DatasetSpec("cats", "folder", root="cats"),
    )
    kept = {"run_id": plain.run_id, "spec": plain.describe(), "status": "OK", "notes": ["a note"]}
    assert public(kept) == kept


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("/data/a/x.png cannot be read", "x.png cannot be read"),
        ("/home/Anna Meier/pics/x.png is empty", "x.png is empty"),
        ("'/srv/my pictures/a b' is missing", "'a b' is missing"),
        ("set dataset.root=/data/cats/ first", "set dataset.root=cats first"),
        (r"C:\Users\Anna Meier\x.pth is empty", "x.pth is empty"),
        (r"\\server\share\x.pth is empty", "x.pth is empty"),
        ("anna@node3:/export/x broke", "x broke"),
        ("~anna/weights/x.pth is empty", "x.pth is empty"),
        ("from file:///home/anna/x.pth now", "from x.pth now"),
        ("from https://anna:key@example.org/x now", "from https://example.org/x now"),
        ("'/home/anna' is no set", "'~' is no set"),
        ("val/top1 and 3/4 of images/s", "val/top1 and 3/4 of images/s"),
        ("see https://github.com/a/b", "see https://github.com/a/b"),
    ],
)
def test_sentences_lose_their_paths_and_nothing_else(text: str, left: str) -> None:
    assert public_text(text) == left


@pytest.mark.parametrize(
    ("place", "last"),
    [
        ("/data/Data Sets/cats/", "cats"),
        ("/home/anna", "~"),
        ("/Users/anna/", "~"),
        ("~/x", "x"),
        ("~anna", "~"),
        ("/", "/"),
        ("C:/data/x", "x"),
        ("weights/mine.pth", "weights/mine.pth"),
        ("org/name", "org/name"),
    ],
)
def test_last_part_of_a_place(place: str, last: str) -> None:
    assert last_part(place) == last


def test_common_account_names_do_not_spoil_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privacy, "_here", lambda: ("localhost", "root"))
    assert public_text("set dataset.root to the root of it") == "set dataset.root to the root of it"


def test_a_path_that_makes_the_identity_is_named() -> None:
    told = dataclasses.replace(spec(), dataset=DatasetSpec("/home/anna/cats", "folder", root="/x"))
    assert identified_paths(told.describe()) == ["/home/anna/cats"]
    assert identified_paths(spec().describe()) == []


@pytest.mark.parametrize("unit", ["/a ", "a+", "a.", "\\\\a", "~a", "a@", "C:/", "a b"])
def test_long_texts_take_linear_time(unit: str) -> None:
    """Forty kilobytes of the worst that somebody may write."""

    def seconds(count: int) -> float:
        text = unit * (count // len(unit)) + " /x"
        begin = time.process_time()
        public_text(text)
        return time.process_time() - begin

    assert seconds(40_000) < 10.0  # a search in quadratic time takes minutes

"""Promises of what one's own data sets are called in tables, from old records and new ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from support.tiny_runs import compose, write_images

from peftbench.config.build import build
from peftbench.errors import ConfigError
from peftbench.results.frame import frame
from peftbench.results.identity import run_id_of
from peftbench.results.privacy import public
from peftbench.spec import called
from peftbench.spec.naming import title_of


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        ({"name": "folder", "reader": "folder", "root": "/data/Zoo 1"}, "Zoo 1"),
        ({"name": "folder", "reader": "folder", "root": "birds/"}, "birds"),
        ({"name": "folder", "reader": "folder", "root": "/data/birds/labels.CSV"}, "labels"),
        ({"name": "folder", "reader": "folder", "root": "/data/v1.5"}, "v1.5"),
        ({"name": "folder", "reader": "folder", "root": "/a/b\x1b[2J"}, r"b\x1b[2J"),
        ({"name": "folder", "reader": "folder", "root": "/a/caf\udce9"}, r"caf\xe9"),
        # nothing is told of these places, or too much
        ({"name": "folder", "reader": "folder", "root": "."}, "folder"),
        ({"name": "folder", "reader": "folder", "root": "/home/anna"}, "folder"),
        ({"name": "folder", "reader": "folder"}, "folder"),
        ({"name": "hf", "reader": "hf", "hub": "ylecun/mnist"}, "ylecun/mnist"),
        ({"name": "hf", "reader": "hf", "hub": "/data/mnist"}, "mnist"),
        # a name that the user gave stays, and a title is what tables call it
        ({"name": "birds", "reader": "folder", "root": "/data/zoo"}, "birds"),
        ({"name": "birds", "reader": "folder", "root": "/d/zoo", "title": "My birds"}, "My birds"),
        ({"name": "mini/digits", "reader": "mini", "title": "other"}, "mini/digits"),
    ],
)
def test_a_record_says_what_its_data_set_is_called(dataset: dict[str, str], name: str) -> None:
    assert called(dataset) == name


def test_a_folder_is_titled_after_itself_however_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    birds = tmp_path / "birds"
    birds.mkdir()
    monkeypatch.chdir(birds)
    for place in (".", "../birds", str(birds), f"{birds}/"):
        assert title_of("folder", "folder", place) == "birds"
    assert title_of("hf", "hf", "org/birds") == "org/birds"
    assert title_of("hf", "hf", str(birds)) == "birds"
    assert title_of("zoo", "folder", ".") == ""  # it has a name


def test_two_folders_have_names_of_their_own_and_ids_as_before(tmp_path: Path) -> None:
    root = write_images(tmp_path / "birds")
    spec = build(compose("dataset=folder", f"dataset.root={root}"))
    assert (spec.dataset.name, spec.dataset.title, spec.dataset.called) == (
        "folder",
        "birds",
        "birds",
    )
    assert " x birds, seed 0" in str(spec)
    # neither what it is called nor the hash beside the manifest is identity, nor recorded as such
    assert not {"title", "content"} & spec.identity()["dataset"].keys()
    assert run_id_of(spec.describe()) == spec.run_id
    titled = build(compose("dataset=folder", f"dataset.root={root}", "dataset.title=Zoo 1"))
    assert (titled.run_id, titled.dataset.called) == (spec.run_id, "Zoo 1")
    with pytest.raises(ConfigError, match=r"dataset\.title='a\\x1b' is what tables would call it"):
        build(compose("dataset=folder", f"dataset.root={root}", 'dataset.title="a\x1b"'))


def test_the_content_of_a_folder_is_one_whatever_the_splits(tmp_path: Path) -> None:
    root = write_images(tmp_path / "birds")

    def dataset(*changes: str):
        return build(compose("dataset=folder", f"dataset.root={root}", *changes)).dataset

    first, other = dataset(), dataset("dataset.split_seed=1", "dataset.test_fraction=0.4")
    assert first.manifest != other.manifest
    assert first.content == other.content != ""
    (root / "cat").rename(root / "puma")
    assert dataset().content != first.content


def test_a_public_record_keeps_the_name_without_the_place(tmp_path: Path) -> None:
    root = write_images(tmp_path / "My birds")
    spec = build(compose("dataset=folder", f"dataset.root='{root}'"))
    left = public({"spec": spec.describe()})["spec"]
    assert called(left["dataset"]) == "My birds"
    assert str(tmp_path) not in str(left)


@pytest.fixture
def record_of(make_record):
    """A finished run on one's own folder."""

    def make(root: str, manifest: str, content: str = "", **dataset: object):
        made = make_record()
        own = {"name": "folder", "reader": "folder", "root": root, "suite": "", **dataset}
        own |= {"manifest": manifest} | ({"content": content} if content else {})
        run_id = f"{len(root):04x}{manifest:>12.12}".replace(" ", "0")
        origin = dataclasses.replace(made.provenance, data={"manifest": manifest})
        return dataclasses.replace(
            made, run_id=run_id, provenance=origin, spec={**made.spec, "dataset": own}
        )

    return make


def names(*records: object) -> list[str]:
    return sorted(frame(records)["dataset"])


def test_a_table_calls_no_two_data_sets_the_same(record_of) -> None:
    birds, dogs = record_of("/a/birds", "1" * 64, "aaaaaa11"), record_of("/a/dogs", "2" * 64, "bb")
    assert names(birds, dogs) == ["birds", "dogs"]
    again = record_of("/b/birds", "3" * 64, "aaaaaa22")
    # six digits would not tell these apart
    assert names(birds, dogs, again) == ["birds-aaaaaa1", "birds-aaaaaa2", "dogs"]
    other_split = record_of("/a/birds", "4" * 64, "aaaaaa11", split_seed=1)
    assert names(birds, other_split) == ["birds", "birds"]
    named = [record_of("/a/x", f"{i}" * 64, f"{i}" * 64, name="zoo") for i in (5, 6)]
    assert names(*named) == ["zoo-555555", "zoo-666666"]


def test_older_records_are_told_apart_by_files_and_splits_and_join_newer_ones(record_of) -> None:
    old, other = record_of("/a/birds", "1" * 64), record_of("/b/birds", "2" * 64)
    assert names(old, other) == ["birds-111111", "birds-222222"]
    new = record_of("/moved/to/birds", "1" * 64, "c0ffee99")
    table = frame([old, new])
    assert set(table["dataset"]) == {"birds"} and set(table["content"]) == {"c0ffee99"}


def test_data_sets_of_suites_keep_their_names(make_record) -> None:
    one = make_record()
    two = dataclasses.replace(
        one,
        run_id="f" * 16,
        provenance=dataclasses.replace(one.provenance, data={"manifest": "other"}),
    )
    table = frame([one, two])
    assert set(table["dataset"]) == {"digits"} and table["content"].isna().all()

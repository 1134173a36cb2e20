"""What the page has of single images: pictures that are here and are what the runs saw."""

from __future__ import annotations

import base64
import io
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.seen_images import add_run, folder, listed, shown, with_root, write_classes

from peftbench.report import build
from peftbench.report.page.images import finding, parts, pictures
from peftbench.results.bundles.outgoing import export_results
from peftbench.results.store import ResultsStore
from peftbench.spec import DatasetSpec, Phase

SIZES = {"cat": 15, "dog": 10}  # of which 3 and 2 are test, by fractions of 0.2
LABELS = [0, 0, 0, 1, 1]
SAID = [0, 1, 1, 1, 0]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_classes(tmp_path / "pets", SIZES)


@pytest.fixture
def store(tmp_path: Path, root: Path) -> ResultsStore:
    """One run, which took two cats for dogs and a dog for a cat."""
    store = ResultsStore(tmp_path / "results")
    dataset, listing = folder(root)
    assert listing.test.labels == tuple(LABELS)
    add_run(store, dataset, LABELS, SAID, [0.9, 0.6, 0.8, 0.7, 0.5], listing.test.names)
    return store


def decoded(uri: str) -> Image.Image:
    head, _, body = uri.partition(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(body)))


def test_a_data_set_has_its_counts_its_runs_and_small_pictures(store: ResultsStore) -> None:
    (part,) = shown(store)
    assert part["classes"] == ["cat", "dog"]
    # of 15 cats and 10 dogs a tenth is val, rounded, and a fifth is test
    assert part["counts"]["test"] == [3, 2]
    assert [sum(counts) for counts in zip(*part["counts"].values(), strict=True)] == [15, 10]
    assert part["majority"] == {"class": 0, "share": 0.6}
    ((run,),) = ([one for one in row["runs"]] for row in part["rows"])
    assert run["cells"] == [(0, 0, 1), (0, 1, 2), (1, 0, 1), (1, 1, 1)]
    assert (run["right"], run["said"]) == (0.4, SAID)
    assert run["precision"] == [0.5, 0.3333] and run["recall"] == [0.3333, 0.5]
    assert run["percent"] == [90, 60, 80, 70, 50]
    assert sorted(part["thumbs"]) == ["0", "1", "2", "3", "4"]  # all of so few
    assert all(name.startswith("cat/") for name in [part["names"][n] for n in "012"])
    assert decoded(part["thumbs"]["1"]).size == (40, 30)  # never made larger


def test_samples_show_the_square_that_the_model_sees(store: ResultsStore) -> None:
    samples = shown(store)[0]["samples"]
    assert (samples["size"], samples["how"]) == (12, "squashed to a square")
    assert [item["class"] for item in samples["items"]] == [0, 1]
    for item in samples["items"]:
        assert decoded(item["whole"]).size == (40, 30)
        assert decoded(item["seen"]).size == (12, 12)


def test_a_picture_keeps_nothing_of_its_file_but_pixels(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "photos", SIZES, side=(800, 500))
    exif = Image.Exif()
    exif[0x010E] = "taken at home"  # ImageDescription
    for path in root.rglob("*.png"):
        comment = {"exif": exif, "comment": b"a secret place"}
        Image.open(path).save(path.with_suffix(".jpg"), **comment)
        path.unlink()
    dataset, _ = folder(root)
    store = ResultsStore(tmp_path / "results")
    add_run(store, dataset, LABELS, SAID)
    thumb = decoded(shown(store)[0]["thumbs"]["1"])
    assert max(thumb.size) == 96
    assert not thumb.getexif() and "comment" not in thumb.info
    text = base64.b64decode(shown(store)[0]["thumbs"]["1"].partition(",")[2])
    assert b"secret" not in text and b"home" not in text


def test_pictures_take_no_more_than_their_room(
    store: ResultsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    (whole,) = shown(store)
    sizes = {number: len(uri) for number, uri in whole["thumbs"].items()}
    samples = sum(len(i["whole"]) + len(i["seen"]) for i in whole["samples"]["items"])
    monkeypatch.setattr(parts, "MOST_CHARACTERS", samples + sizes["2"] + sizes["1"])
    # the most confident of the commonest confusion, and then the first of the other: too large
    monkeypatch.setattr(pictures, "OF_A_CELL", 1)
    assert set(shown(store)[0]["thumbs"]) <= {"1", "2", "4"}
    found = shown(store)[0]["thumbs"]
    assert "2" in found and sum(map(len, found.values())) <= sizes["2"] + sizes["1"]
    monkeypatch.setattr(parts, "MOST_PICTURES", 4)  # which the samples take
    assert shown(store)[0]["thumbs"] == {}


def test_a_page_of_many_runs_has_predictions_of_the_best_alone(
    store: ResultsStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, _ = folder(root)
    add_run(store, dataset, LABELS, LABELS, method="bias")
    add_run(store, dataset, LABELS, LABELS, method="bias", seed=1)
    add_run(store, dataset, LABELS, [1, 1, 1, 0, 0], method="full")
    monkeypatch.setattr(parts, "MOST_IMAGES", 15)  # three runs
    (part,) = shown(store)
    told = {row["label"]: ["cells" in run for run in row["runs"]] for row in part["rows"]}
    assert told == {"bias": [True, False], "linear": [True], "full": [True]}
    monkeypatch.setattr(parts, "MOST_RUNS", 1)
    told = {row["label"]: ["cells" in r for r in row["runs"]] for row in shown(store)[0]["rows"]}
    assert told == {"bias": [True, False], "linear": [False], "full": [False]}


def test_the_switch_leaves_out_pictures_and_names_of_files(store: ResultsStore) -> None:
    (part,) = shown(store, pictures=False)
    assert (part["names"], part["thumbs"], part["samples"]) == (None, {}, None)
    assert part["remark"] == "Pictures and the names of their files are left out."
    assert part["rows"][0]["runs"][0]["cells"] == [(0, 0, 1), (0, 1, 2), (1, 0, 1), (1, 1, 1)]
    page = build(store.root, parts=("page",), pictures=False).paths[0].read_text()
    assert "data:image/" not in page and ".png" not in page
    page = build(store.root, parts=("page",)).paths[0].read_text()
    assert page.count("data:image/jpeg") == 5 + 4 and ".png" in page


def test_no_page_tells_where_the_pictures_lie(store: ResultsStore, root: Path) -> None:
    page = build(store.root, parts=("page",)).paths[0].read_text()
    assert str(root) not in page and str(root.parent) not in page


def test_no_picture_is_in_a_bundle(store: ResultsStore, tmp_path: Path) -> None:
    build(store.root, parts=("page", "tables"))
    path = export_results(store.root, tmp_path / "bundle.zip", predictions=True).path
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    assert any(name.endswith("predictions.npz") for name in contents)
    kinds = {Path(name).suffix for name in contents}
    assert kinds <= {".json", ".npz", ".csv", ".parquet", ".txt", ".md", ""}
    for content in contents.values():
        assert b"data:image" not in content and b".png" not in content
        assert not any(mark in content for mark in (b"\xff\xd8\xff", b"\x89PNG\r\n"))


@pytest.mark.parametrize("change", ["gone", "another picture", "one more", "a disk", "relative"])
def test_pictures_that_are_not_what_the_run_saw_are_not_shown(
    store: ResultsStore, root: Path, change: str
) -> None:
    (record,) = store.scan().records
    if change == "gone":
        shutil.rmtree(root)
    elif change == "another picture":
        (root / "cat" / "0.png").write_bytes((root / "dog" / "0.png").read_bytes())
    elif change == "one more":
        shutil.copy(root / "dog" / "0.png", root / "dog" / "99.png")
    elif change == "a disk":  # of a record that somebody else wrote
        store.add(with_root(record, "/"))
    else:
        store.add(with_root(record, "../.."))
    (part,) = shown(store)
    assert part["thumbs"] == {} and part["samples"] is None and part["majority"] is None
    known = finding.CHANGED if change in ("another picture", "one more") else finding.ABSENT
    assert part["remark"] == known
    assert part["counts"] == {"test": [3, 2]} and part["classes"] == ["class 0", "class 1"]
    assert len(part["names"]) == 5  # the run keeps them


def test_a_picture_that_changes_after_it_was_listed_is_a_name_alone(
    store: ResultsStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (whole,) = shown(store)
    path = root / whole["names"]["1"]
    find = finding.find

    def then_changed(record: Any) -> finding.OnThisMachine:
        found = find(record)
        Image.new("RGB", (9, 9)).save(path)
        return found

    monkeypatch.setattr(finding, "find", then_changed)
    (part,) = shown(store)
    assert sorted(part["thumbs"]) == ["0", "2", "3", "4"] and "1" in part["names"]


def test_the_names_of_a_run_from_before_they_were_kept_come_from_the_folder(
    tmp_path: Path, root: Path
) -> None:
    store = ResultsStore(tmp_path / "older")
    dataset, listing = folder(root)
    add_run(store, dataset, LABELS, SAID)
    assert list(shown(store)[0]["names"].values()) == list(listing.test.names)


def test_shipped_data_sets_are_shown_and_those_of_suites_are_not(tmp_path: Path) -> None:
    store = ResultsStore(tmp_path / "results")
    dataset, listing = listed(DatasetSpec("mini/digits", reader="mini", suite="mini"))
    labels = list(listing.test.labels)
    add_run(store, dataset, labels, [0] * len(labels))
    other = DatasetSpec("vtab/dtd", reader="public", suite="vtab", manifest="m")
    add_run(store, other, labels, [0] * len(labels))
    (part,) = shown(store)
    assert part["name"] == "mini/digits" and part["classes"] == list(listing.class_names)
    assert part["thumbs"] and decoded(part["samples"]["items"][0]["seen"]).size == (12, 12)
    assert len(json.dumps(part["thumbs"])) < parts.MOST_CHARACTERS


def test_two_folders_of_one_name_are_told_apart(
    store: ResultsStore, tmp_path: Path, root: Path
) -> None:
    other, listing = folder(write_classes(tmp_path / "more" / "pets", {"x": 5, "y": 5}))
    labels = list(listing.test.labels)
    add_run(store, other, labels, labels)
    first, second = (part["name"] for part in shown(store))
    digests = sorted((folder(root)[0].manifest[:8], other.manifest[:8]))
    assert [first, second] == [f"pets ({digest})" for digest in digests]


def test_val_is_shown_of_the_trials_that_chose_the_rate(store: ResultsStore, root: Path) -> None:
    dataset, _ = folder(root)
    for rate, said in ((1e-3, SAID), (1e-2, LABELS)):
        add_run(
            store,
            dataset,
            LABELS,
            said,
            method="bias",
            phase=Phase.TUNE,
            recipe={"lr": rate},
            looks={"1": 0.2, "2": rate * 50},
        )
    tuning = {"tuner": "grid", "trials": 2, "epochs": 2, "val_top1": 1.0}
    add_run(store, dataset, LABELS, LABELS, method="bias", recipe={"lr": 1e-2}, tuning=tuning)
    rows = {row["label"]: row for row in shown(store)[0]["rows"]}
    assert rows["linear"]["trials"] == []  # nothing was chosen
    (bias,) = (row for label, row in rows.items() if label.startswith("bias"))
    told = [(t["lr"], t["val"], t["chosen"], t["looks"]) for t in bias["trials"]]
    assert told == [
        (1e-2, 1.0, True, [(1, 0.2), (2, 0.5)]),
        (1e-3, 0.4, False, [(1, 0.2), (2, 0.05)]),
    ]
    assert (bias["runs"][0]["lr"], bias["runs"][0]["tuning"]) == (1e-2, tuning)


@pytest.mark.parametrize("classes", [[-1] * 5, [10**6] * 5, [0, 1, 2, 1, 0]])
def test_predictions_that_fit_no_class_break_no_page(
    tmp_path: Path, root: Path, classes: list[int]
) -> None:
    store = ResultsStore(tmp_path / "foreign")
    dataset, _ = folder(root)
    add_run(store, dataset, LABELS, classes, [np.nan, 2.0, -1.0, 0.5, 0.5])
    found = shown(store)
    assert len(found) == (max(classes) == 2)
    if found:  # of a class that the folder does not have
        assert found[0]["classes"] == ["class 0", "class 1", "class 2"]
        assert found[0]["rows"][0]["runs"][0]["percent"] == [0, 100, 0, 50, 50]

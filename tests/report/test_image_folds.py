"""What the page has of a data set whose folds take turns as test: each image once."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, recall_score
from support.seen_images import add_run, listed, shown, write_classes

from peftbench.report.page.images import parts
from peftbench.results.store import ResultsStore
from peftbench.spec import DatasetSpec, Phase

SIZES = {"cat": 12, "dog": 6}
FOLDS = 3
RATES = (1e-2, 1e-3, 1e-2)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folds(tmp_path: Path) -> list[Any]:
    """The data set with its listing, as each fold sees it."""
    root = str(write_classes(tmp_path / "pets", SIZES))
    specs = [
        DatasetSpec("folder", reader="folder", root=root, folds=FOLDS, fold=fold)
        for fold in range(FOLDS)
    ]
    return [listed(spec) for spec in specs]


def said_of(listing: Any, method: str) -> list[int]:
    """`linear` takes all for cats; `bias` takes every second image for the other class."""
    if method == "linear":
        return [0] * len(listing.test)
    return [label ^ (place % 2) for place, label in enumerate(listing.test.labels)]


def add(store: ResultsStore, fold: Any, method: str, seed: int = 0, **changes: Any) -> Any:
    dataset, listing = fold
    said = said_of(listing, method)
    sure = [0.5 + 0.01 * place for place in range(len(said))]
    labels = listing.test.labels
    names = listing.test.names
    return add_run(store, dataset, labels, said, sure, names, method=method, seed=seed, **changes)


@pytest.fixture
def store(tmp_path: Path, folds: list[Any]) -> ResultsStore:
    """Two methods on three folds; the rate of one was chosen for each fold."""
    store = ResultsStore(tmp_path / "results")
    for fold, rate in zip(folds, RATES, strict=True):
        for tried in sorted(set(RATES)):
            add(store, fold, "bias", phase=Phase.TUNE, recipe={"lr": tried})
        tuning = {"tuner": "grid", "trials": 2, "epochs": 2, "val_top1": 0.5}
        add(store, fold, "bias", recipe={"lr": rate}, tuning=tuning)
        add(store, fold, "linear")
    return store


def test_all_folds_are_one_data_set_in_which_each_image_is_tested_once(
    store: ResultsStore, folds: list[Any]
) -> None:
    (part,) = shown(store)
    assert part["name"] == "pets, 3 folds"
    labels = [label for _, listing in folds for label in listing.test.labels]
    assert part["labels"] == labels and Counter(labels) == {0: 12, 1: 6}
    assert part["counts"] == {"test": [12, 6]}
    assert set(part["names"].values()) == {
        f"{name}/{number}.png" for name, count in SIZES.items() for number in range(count)
    }
    mistaken = {place for place, label in enumerate(labels) if label == 1}  # by the best method
    assert mistaken <= set(map(int, part["thumbs"])) and len(part["thumbs"]) < 18
    assert [row["label"] for row in part["rows"]] == ["linear", "bias"]  # 12 and 9 of 18 right
    said = {
        method: [one for _, listing in folds for one in said_of(listing, method)]
        for method in ("linear", "bias")
    }
    for row in part["rows"]:
        whole, *single = row["runs"]
        expected = confusion_matrix(labels, said[row["label"]])
        assert whole["of"] == [1, 2, 3] and [run["fold"] for run in single] == [0, 1, 2]
        cells = {(true, other): count for true, other, count in whole["cells"]}
        assert cells == {place: count for place, count in np.ndenumerate(expected) if count}
        assert whole["right"] == round(expected.trace() / 18, 4)
        recall = recall_score(labels, said[row["label"]], average=None)
        assert whole["recall"] == [round(float(one), 4) for one in recall]
        assert whole["mean_per_class"] == round(float(recall.mean()), 4)


def test_single_folds_are_there_with_what_trained_them(
    store: ResultsStore, folds: list[Any]
) -> None:
    (part,) = shown(store)
    starts = np.cumsum([0, *(len(listing.test) for _, listing in folds)])
    for number, (fold, (_, listing)) in enumerate(zip(part["folds"], folds, strict=True)):
        assert (fold["fold"], fold["start"]) == (number, starts[number])
        assert sum(map(sum, fold["counts"].values())) == 18
        run = part["rows"][0]["runs"][1 + number]
        assert run["said"] == [0] * len(listing.test)
        # saying cat is right for the share of cats among 4 of them and 2 dogs
        assert fold["majority"] == {"class": 0, "share": 0.6667}
    assert part["majority"] == {"class": 0, "share": 0.6667}


def test_each_fold_has_the_trials_that_chose_its_rate(store: ResultsStore) -> None:
    (part,) = shown(store)
    (bias,) = (row for row in part["rows"] if row["label"] == "bias")
    _, *single = bias["runs"]
    assert [run["lr"] for run in single] == list(RATES)
    for run, rate in zip(single, RATES, strict=True):
        assert {trial["lr"] for trial in run["trials"]} == set(RATES)
        assert [trial["lr"] for trial in run["trials"] if trial["chosen"]] == [rate]
    assert bias["trials"] == []


def test_seeds_are_put_together_by_themselves_and_folds_may_lack(
    store: ResultsStore, folds: list[Any]
) -> None:
    for fold in folds[1:]:
        add(store, fold, "linear", seed=1)
    (part,) = shown(store)
    first, second, *single = part["rows"][0]["runs"]
    assert (first["seed"], second["seed"]) == (0, 1)
    assert [single[place - 2]["fold"] for place in second["of"]] == [1, 2]
    assert {single[place - 2]["seed"] for place in second["of"]} == {1}
    assert sum(count for *_, count in second["cells"]) == 12
    add(store, folds[0], "full")  # as good as bias, of one fold
    add(store, folds[0], "full", seed=1)
    last = shown(store)[0]["rows"][-1]
    assert last["label"] == "full" and all("of" not in run for run in last["runs"])


def test_folds_of_a_folder_that_is_gone_keep_what_the_runs_said(
    store: ResultsStore, folds: list[Any]
) -> None:
    root = Path(str(folds[0][0].root))
    (root / "dog" / "0.png").unlink()
    (part,) = shown(store)
    assert part["thumbs"] == {} and part["samples"] is None and part["majority"] is None
    assert len(part["names"]) == 18 and part["counts"] == {"test": [12, 6]}
    shutil.rmtree(root)
    (part,) = shown(store)
    assert part["classes"] == ["class 0", "class 1"] and len(part["labels"]) == 18


def test_all_folds_count_as_one_run_where_there_is_no_room(
    store: ResultsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "MOST_RUNS", 1)
    (part,) = shown(store)
    told = {r["label"]: [run["of"] for run in r["runs"] if "of" in run] for r in part["rows"]}
    assert told == {"linear": [[1, 2, 3]], "bias": []}
    assert all("cells" not in run for run in part["rows"][1]["runs"])

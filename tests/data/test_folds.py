"""Promises of splits that are drawn of one's own images: folds, groups, copies, ids as before."""

from __future__ import annotations

import csv
import hashlib
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from peftbench import data
from peftbench.data.listing import Listing
from peftbench.data.splits import stratified_split
from peftbench.errors import ConfigError, DataError, UnknownName
from peftbench.spec import DatasetSpec


def spec(root: Path, **changes: object) -> DatasetSpec:
    return replace(DatasetSpec(name="folder", reader="folder", root=str(root)), **changes)


def read(root: Path, **changes: object) -> Listing:
    return data.READERS["folder"](spec(root, **changes))


def parts(listing: Listing) -> list[set[str]]:
    return [set(part.names) for _, part in listing.splits()]


def test_without_copies_the_split_and_its_hash_are_those_from_before_groups(make_folder) -> None:
    root = make_folder({"cat": 20, "dog": 10})
    names = [f"{kind}/{i:03d}.png" for kind, n in (("cat", 20), ("dog", 10)) for i in range(n)]
    labels = np.repeat([0, 1], [20, 10])
    drawn = stratified_split(labels, 0.1, 0.2, np.random.default_rng(3))
    lines = ["parameters\t0.1\t0.2\t3\n"]
    for part in ("train", "val", "test"):
        for row in getattr(drawn, part):
            digest = hashlib.sha256((root / names[row]).read_bytes()).hexdigest()
            lines.append(f"{part}\t{names[row]}\t{labels[row]}\t{digest}\n")
    expected = hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()
    assert data.identify(spec(root, split_seed=3)).manifest == expected
    assert data.identify(spec(root, split_seed=3, group_copies=False)).manifest == expected


def test_folds_test_every_image_once_and_share_out_each_class(make_folder) -> None:
    root = make_folder({"cat": 23, "dog": 11})
    listings = [read(root, folds=5, fold=fold) for fold in range(5)]
    tested = Counter(name for listing in listings for name in listing.test.names)
    assert len(tested) == 34 and set(tested.values()) == {1}
    for listing in listings:
        train, val, test = parts(listing)
        assert len(train | val | test) == len(train) + len(val) + len(test) == 34
        # a tenth of each class of the rest: 18 or 19 cats and 8 or 9 dogs
        assert np.bincount(listing.val.labels).tolist() == [2, 1]
        cats, dogs = np.bincount(listing.test.labels)
        assert cats in (4, 5) and dogs in (2, 3)
    assert {len(listing.test) for listing in listings} == {6, 7}
    assert len({listing.manifest for listing in listings}) == 5
    assert len({listing.content for listing in listings}) == 1
    other = read(root, folds=5, fold=0, split_seed=1)
    assert set(other.test.names) != set(listings[0].test.names)


def test_copies_are_never_in_two_splits_of_any_draw(make_folder) -> None:
    root = make_folder({"cat": 14, "dog": 14})
    shutil.copy(root / "cat" / "000.png", root / "cat" / "same.png")
    shutil.copy(root / "cat" / "001.png", root / "dog" / "same under another name.png")
    for number in range(2):
        large = Image.fromarray(
            np.random.default_rng(number).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        ).resize((100, 80), Image.Resampling.BICUBIC)
        large.save(root / "dog" / f"large{number}.png")
        large.save(root / "dog" / f"saved again{number}.jpg", quality=80)
    pairs = [
        ("cat/000.png", "cat/same.png"),
        ("cat/001.png", "dog/same under another name.png"),
        ("dog/large0.png", "dog/saved again0.jpg"),
        ("dog/large1.png", "dog/saved again1.jpg"),
    ]
    draws = [{"split_seed": seed} for seed in range(8)]
    draws += [{"folds": 4, "fold": fold} for fold in range(4)]
    for draw in draws:
        listing = read(root, **draw)
        for one, other in pairs:
            assert sum(one in part and other in part for part in parts(listing)) == 1, draw
        assert listing.copies_in_test() == 0
    assert listing.origin is not None
    assert listing.origin.remarks[-1] == (
        "4 of 34 images are copies of others, or nearly: copies stay in one split "
        "(dataset.group_copies=false draws them like any image)."
    )
    # as they were drawn before copies were looked for, by the same hashes
    apart = [read(root, split_seed=seed, group_copies=False) for seed in range(8)]
    assert any(listing.copies_in_test() for listing in apart)
    assert apart[0].origin is not None and apart[0].origin.remarks == ()


def test_a_missing_val_is_cut_from_train_without_tearing_copies(make_folder) -> None:
    root = make_folder({"train/cat": 10, "train/dog": 10, "test/cat": 2, "test/dog": 2})
    shutil.copy(root / "train" / "cat" / "000.png", root / "train" / "cat" / "same.png")
    for seed in range(10):
        train, val, _ = parts(read(root, split_seed=seed))
        pair = {"train/cat/000.png", "train/cat/same.png"}
        assert pair <= train or pair <= val


def test_a_class_of_copies_alone_cannot_be_tested_by_folds(make_folder) -> None:
    root = make_folder({"cat": 10, "dog": 1})
    for number in range(4):
        shutil.copy(root / "dog" / "000.png", root / "dog" / f"same{number}.png")
    assert set(read(root).test.labels) == {0}  # dogs only train
    refused = []
    for fold in range(2):
        try:
            read(root, folds=2, fold=fold)
        except DataError as error:
            refused.append(str(error))
    assert len(refused) == 1  # in the other one dogs train
    assert (
        "All images of class 'dog' stay together (copies of one picture), so that fold"
        in (refused[0])
    )


def patients(root: Path, suffix: str = ".csv", splits: bool = False) -> Path:
    """A list of the images, three of each patient one after another."""
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    rows = [
        {"path": name, "label": name.partition("/")[0], "Patient": f"p{i // 3}"}
        | ({"split": ("train", "val", "test")[i % 3]} if splits else {})
        for i, name in enumerate(names)
    ]
    path = root / f"list{suffix}"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], delimiter="\t" if suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_the_images_of_a_patient_stay_in_one_split(make_folder, suffix: str) -> None:
    root = make_folder({"cat": 31, "dog": 29})  # one patient has a cat and dogs
    table = patients(root, suffix)
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    patient = {name: i // 3 for i, name in enumerate(names)}
    draws = [{"split_seed": seed} for seed in range(5)]
    draws += [{"folds": 5, "fold": fold} for fold in range(5)]
    for draw in draws:
        listing = read(table, group_column="patient", **draw)
        of_parts = [{patient[name] for name in part} for part in parts(listing)]
        assert len(set.union(*of_parts)) == sum(map(len, of_parts)) == 20
        assert 9 <= len(listing.test) <= 15
    assert listing.origin is not None
    assert listing.origin.remarks == (
        "Images with the same value in column 'patient' stay in one split: 20 values.",
    )
    torn = [{patient[name] for name in part} for part in parts(read(table))]
    assert torn[0] & torn[2]  # without the column they are drawn one by one


def test_given_splits_that_tear_a_patient_are_told_of(make_folder) -> None:
    table = patients(make_folder({"cat": 6, "dog": 6}), splits=True)
    listing = read(table, group_column="patient")
    assert listing.origin is not None
    assert listing.origin.remarks[-1] == (
        "The splits are as given, and 'p0' and 3 more of column 'patient' are in test and in "
        "train or val as well: results flatter."
    )


def test_columns_that_cannot_group_are_refused_in_one_line(make_folder) -> None:
    root = make_folder({"cat": 5, "dog": 5})
    with pytest.raises(DataError, match=r"has class folders and no columns\. List its images in a"):
        read(root, group_column="patient")
    table = patients(root)
    with pytest.raises(
        UnknownName, match=r"dataset\.group_column of .*: 'pateint'\. Did you mean: pa"
    ):
        read(table, group_column="pateint")
    lines = table.read_text().splitlines()
    lines[3] = lines[3].rpartition(",")[0] + ","
    table.write_text("\n".join(lines))
    with pytest.raises(DataError, match="line 4: no value in column 'patient'"):
        read(table, group_column="patient")


def test_folds_that_make_no_sense_are_refused_in_one_line(make_folder) -> None:
    root = make_folder({"cat": 5, "dog": 5})
    for changes, told in (
        ({"folds": 5}, r"All of them: peftbench run -m dataset.folds=5 dataset.fold=0,1,2,3,4"),
        ({"fold": 1}, r"dataset.fold=1 is one of how many\? Add dataset.folds=5"),
        ({"folds": 5, "fold": 5}, "dataset.folds=5 count from 0 to 4"),
        ({"folds": 1, "fold": 0}, "leaves nothing to train on. Use 2 or more"),
    ):
        with pytest.raises(ConfigError, match=told):
            spec(root, **changes)
    own = make_folder(
        {"own/train/cat": 5, "own/train/dog": 5, "own/test/cat": 2, "own/test/dog": 2}
    )
    with pytest.raises(DataError, match="has a test part of its own, which is what is reported"):
        read(own / "own", folds=2, fold=0)
    mini = DatasetSpec("mini/digits", reader="mini", folds=2, fold=0)
    with pytest.raises(DataError, match=r"dataset\.folds=2: mini/digits has splits of its own"):
        data.identify(mini)


def test_which_fold_is_tested_is_told(make_folder) -> None:
    root = make_folder({"cat": 10, "dog": 10})
    (line,) = data.describe(read(root, folds=5, fold=2))
    assert line == (
        f"images: 20 images of 2 classes in {root} (class folders). Test is fold 2 of 5, drawn "
        "here: train 14, val 2, test 4 (dataset.split_seed=0)."
    )

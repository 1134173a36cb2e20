"""Folders as people have them: names of splits, links, litter, other files, and odd entries."""

from __future__ import annotations

import os
import shutil
import socket
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from peftbench import data
from peftbench.data import alike, files, roles, tree
from peftbench.data.listing import Listing
from peftbench.errors import DataError
from peftbench.spec import DatasetSpec

CAFE = {form: unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD")}


def read(root: Path | str) -> Listing:
    return data.READERS["folder"](DatasetSpec(name="folder", reader="folder", root=str(root)))


def told(listing: Listing) -> str:
    """What a run says before training, without its first line."""
    return " ".join(data.describe(listing)[1:])


def refused(root: Path | str) -> str:
    with pytest.raises(DataError) as caught:
        read(root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def total(listing: Listing) -> int:
    return sum(len(part) for _, part in listing.splits())


# ---- names of splits


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Train", "train"),
        ("TRAINING", "train"),
        ("train_images", "train"),
        ("01_train", "train"),
        ("trainset", "train"),
        ("TrainSet2", "train"),
        ("train-set", "train"),
        ("train2017", "train"),
        ("Testing", "test"),
        ("test_data", "test"),
        ("tst", "test"),
        ("dev", "val"),
        ("Validation_Set", "val"),
        ("valid", "val"),
        ("eval", None),
        ("holdout", None),
        ("trainval", None),
        ("train_test", None),
        ("test_tubes", None),
        ("trains", None),
        ("contest", None),
        ("latest", None),
        ("", None),
    ],
)
def test_a_name_stands_for_a_split_or_for_none(name: str, expected: str | None) -> None:
    assert roles.role(name) == expected


def test_names_that_differ_in_the_word_alone_are_splits() -> None:
    found = roles.roles(["asl_alphabet_train", "asl_alphabet_test", "notes"])
    assert found == {"asl_alphabet_train": "train", "asl_alphabet_test": "test"}
    assert roles.roles(["express_train", "litmus_test"]) == {}
    assert roles.is_unclear("eval") and roles.is_unclear("hold-out") and not roles.is_unclear("a")


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Train", "Test"),
        ("training_set", "test_set"),
        ("01_train", "02_test"),
        ("trainset", "testset"),
        ("cars_train", "cars_test"),
        ("Dataset/Train", "Dataset/Test"),
        ("archive/images/train", "archive/images/test"),
    ],
)
def test_folders_of_splits_are_read_under_their_usual_names(make_folder, train, test) -> None:
    listing = read(make_folder({f"{train}/a": 4, f"{train}/b": 4, f"{test}/a": 2, f"{test}/b": 3}))
    assert listing.class_names == ("a", "b")
    assert (len(listing.train) + len(listing.val), len(listing.test)) == (8, 5)
    assert f"train is {train}, test is {test}." in told(listing)


def test_other_names_change_no_manifest_of_the_plain_ones(make_folder) -> None:
    listing = read(make_folder({"train/a": 4, "train/b": 4, "valid/a": 1, "valid/b": 1,
                                "test/a": 2, "test/b": 3}))  # fmt: skip
    assert listing.origin is not None
    assert (listing.origin.kind, listing.origin.remarks) == ("train, val, test folders", ())


def test_splits_inside_the_classes_are_splits(make_folder) -> None:
    root = make_folder({"cat/train": 4, "cat/test": 2, "dog/train": 4, "dog/test": 3})
    listing = read(root)
    assert listing.class_names == ("cat", "dog")
    assert len(listing.test) == 5 and all("/test/" in name for name in listing.test.names)
    shutil.rmtree(root / "dog" / "test")
    assert "class 'cat' has test, train in it, and class 'dog' has train." in refused(root)


def test_two_folders_of_one_split_and_unclear_ones_are_named(make_folder) -> None:
    root = make_folder({"train/a": 3, "Training/a": 3, "test/a": 3})
    assert "has Training and train. Keep one of them as train." in refused(root)
    shutil.rmtree(root / "Training")
    (root / "eval" / "a").mkdir(parents=True)
    assert "1 folder beside those of the splits ('eval')" in told(read(root))
    shutil.rmtree(root / "test")
    assert "has eval, train but no test folder" in refused(root)


def test_splits_without_class_folders_are_no_classes(make_folder) -> None:
    assert "without class folders" in refused(make_folder({"Training": 3, "Testing": 3}))


def test_a_picture_beside_the_classes_of_a_split_makes_it_no_class(make_folder) -> None:
    listing = read(make_folder({"train": 1, "train/a": 4, "train/b": 4, "test/a": 2, "test/b": 2,
                                "test": 1}))  # fmt: skip
    assert listing.class_names == ("a", "b")
    assert "2 pictures beside the class folders (first 'test/000.png')" in told(listing)


@pytest.mark.parametrize("name", ["test", "dev", "Training", "eval", "validation"])
def test_a_class_with_images_stays_a_class_whatever_its_name(make_folder, name: str) -> None:
    listing = read(make_folder({name: 5, "ship": 5, "car/red": 3}))
    assert set(listing.class_names) == {name, "ship", "car"}


def test_folders_that_share_the_names_of_their_folders_are_told_of(make_folder) -> None:
    root = make_folder({"art/cat": 3, "art/dog": 3, "photo/cat": 3, "photo/dog": 3})
    assert "All 2 class folders hold folders of the same names (cat, dog)." in told(read(root))
    for old, new in (("art", "fold_1"), ("photo", "fold_2")):
        (root / old).rename(root / new)
    assert "folds of a cross-validation are no classes" in refused(root)


# ---- what is left aside


def test_pictures_under_rare_endings_are_read(make_folder) -> None:
    root = make_folder({"a": 6, "b": 6})
    kinds = [(".jfif", "JPEG"), (".jpe", "JPEG"), (".PNM", "PPM"), (".apng", "PNG")]
    if ".avif" in files.SUFFIXES:
        kinds.append((".avif", "AVIF"))
    for number, (ending, kind) in enumerate(kinds):
        path = root / "a" / f"{number:03d}.png"
        Image.open(path).save(path.with_suffix(ending), kind)
        path.unlink()
    assert total(read(root)) == 12
    assert told(read(root)) == ""


def test_what_is_not_read_is_counted_by_its_ending(make_folder) -> None:
    root = make_folder({"a": 4, "b": 4})
    for name in ("a/1.HEIC", "a/2.heic", "a/raw", "b/x.cr2", "c.zip", "new.png", "a/v.name of it"):
        (root / name).write_bytes(b"x")
    os.symlink("gone", root / "d")
    assert told(read(root)) == (
        "Left aside: 2 .heic files (first 'a/1.HEIC'), 1 .cr2 file ('b/x.cr2'), 1 .zip file "
        "('c.zip'), 1 file with another ending ('a/v.name of it'), 1 file without an ending "
        "('a/raw'), 1 link that leads nowhere ('d'), and 1 more."
    )


def test_a_class_of_other_files_alone_is_refused_with_their_endings(make_folder) -> None:
    root = make_folder({"a": 4, "b": 0})
    (root / "b" / "1.heic").write_bytes(b"x")
    assert "b is empty: no file ends in " in refused(root)
    assert "Left aside: 1 .heic file ('1.heic'). Add images" in refused(root)


@pytest.mark.parametrize(
    "name",
    ["@eaDir", "__MACOSX", ".thumbnails", "$RECYCLE.BIN", "lost+found", ".Trash-1000", "#recycle"],
)
def test_litter_of_servers_and_desktops_is_passed_over(make_folder, name: str) -> None:
    root = make_folder({"a": 4, "b": 4, f"a/{name}": 3, name: 2})
    (root / "a" / "Thumbs.db").write_bytes(b"x")
    (root / "a" / "._000.png").write_bytes(b"x")
    listing = read(root)
    assert listing.class_names == ("a", "b") and total(listing) == 8
    assert told(listing) == ""


# ---- links


@pytest.mark.parametrize("target", [".", "..", "../..", "../b", "../../images/b"])
def test_a_link_back_adds_no_image(make_folder, target: str) -> None:
    root = make_folder({"a": 4, "b": 4})
    os.symlink(target, root / "a" / "again")
    listing = read(root)
    assert total(listing) == 8
    assert "1 link to folders that are read already ('a/again')" in told(listing)


def test_links_to_elsewhere_are_followed_once(make_folder, tmp_path: Path) -> None:
    root = make_folder({"a": 4, "b": 4})
    (root / "a").rename(tmp_path / "store")
    os.symlink(tmp_path / "store", root / "a")
    os.symlink(tmp_path / "store", tmp_path / "store" / "round")
    assert total(read(root)) == 8
    os.symlink(tmp_path / "store", root / "c")
    assert "Class folder" in refused(root) and "/c is empty" in refused(root)


def test_a_picture_that_two_classes_link_to_is_refused(make_folder) -> None:
    root = make_folder({"a": 4, "b": 4})
    os.symlink("000.png", root / "a" / "same.png")
    listing = read(root)
    assert total(listing) == 8
    assert "1 link to pictures that are read already ('a/same.png')" in told(listing)
    os.symlink("../a/000.png", root / "b" / "same.png")
    assert "b/same.png is a link to" in refused(root) and "Keep one of the two" in refused(root)


# ---- what may never end, and what may not be read


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_device(path: Path) -> None:
    os.symlink("/dev/zero", path)


def make_socket(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)  # the name of a socket may have a hundred bytes
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(path.name)


@pytest.mark.parametrize(
    ("make", "what"),
    [(make_pipe, "a named pipe"), (make_device, "a device"), (make_socket, "a socket")],
)
def test_what_is_no_plain_file_is_refused_at_once(
    make_folder, monkeypatch: pytest.MonkeyPatch, make, what: str
) -> None:
    root = make_folder({"a": 4, "b": 4})
    path = root / "a" / "p.png"
    make(path, monkeypatch) if make is make_socket else make(path)
    assert f"a/p.png: it is no plain file but {what}." in refused(root)
    lines = ["path,label", *(f"{c}/00{i}.png,{c}" for c in "ab" for i in range(4)), "a/p.png,a"]
    (root / "list.csv").write_text("\n".join(lines) + "\n")
    assert f"'a/p.png': it is no plain file but {what}." in refused(root / "list.csv")
    assert f"it is no plain file but {what}." in refused(path)
    with pytest.raises(DataError, match="it is no plain file but"):
        files.digests(root, ("a/p.png",))


def test_a_circle_of_links_is_named(make_folder) -> None:
    root = make_folder({"a": 4, "b": 4})
    os.symlink("x.png", root / "a" / "y.png")
    os.symlink("y.png", root / "a" / "x.png")
    assert "is a link that leads back to itself" in refused(root)
    os.symlink("round", root / "round")
    assert "Its links lead in a circle" in refused(root / "round")


def test_a_folder_without_permission_is_named(make_folder, monkeypatch) -> None:
    root = make_folder({"a": 4, "b": 4})
    plain = os.listdir

    def closed(folder: Path) -> list[str]:  # whoever runs the tests, root included
        if Path(folder).name == "b":
            raise PermissionError(13, "Permission denied", str(folder))
        return plain(folder)

    monkeypatch.setattr(tree.os, "listdir", closed)
    text = refused(root)
    assert f"Cannot read folder {root / 'b'}: Permission denied. Give this user the right" in text


# ---- names


def test_an_accent_in_its_other_form_is_the_same_class(make_folder) -> None:
    root = make_folder({f"train/{CAFE['NFC']}": 4, "train/b": 4, f"test/{CAFE['NFD']}": 2,
                        "test/b": 2})  # fmt: skip
    listing = read(root)
    assert listing.class_names == ("b", CAFE["NFC"])
    assert len(listing.test) == 4
    (root / "train" / CAFE["NFD"]).mkdir()
    assert "differ only in the Unicode form" in refused(root)


def test_a_class_that_is_no_utf8_has_a_name_that_can_be_written(make_folder) -> None:
    root = make_folder({"a": 4, "b": 4})
    os.rename(root / "b", os.fsencode(root) + b"/caf\xe9")
    listing = read(root)
    assert listing.class_names == ("a", "caf\\xe9")
    assert total(listing) == 8
    os.rename(root, os.fsencode(root) + b"\xff")
    listing = read(os.fsdecode(os.fsencode(root) + b"\xff"))
    assert (listing.title, listing.source) == ("images\\xff", f"{root}\\xff")
    "".join(data.describe(listing)).encode("utf-8")


@pytest.mark.parametrize(
    ("one", "other"),
    [("Cat", "cat"), ("1", "1.0"), ("1", "01"), ("a b", "a_b"), (CAFE["NFC"], CAFE["NFD"])],
)
def test_names_that_look_alike_are_told_of(one: str, other: str) -> None:
    assert f"{one!r} and {other!r}. If they are one, write" in alike.remark(["dog", one, other])


def test_names_that_differ_are_not_told_of() -> None:
    assert alike.remark(["1", "10", "1.5", "-1", "cat", "cats", "c", "C++"]) == ""

"""Promises of the folder reader: layouts, splits, hashes, errors and the cache."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from peftbench import data
from peftbench.data import folder, images
from peftbench.errors import DataError
from peftbench.spec import DatasetSpec, Phase, Preprocessing


def spec(root: Path | str | None, **changes: object) -> DatasetSpec:
    named = DatasetSpec(name="folder", reader="folder", root=None if root is None else str(root))
    return replace(named, **changes)


def message(wanted: DatasetSpec) -> str:
    """The one-line message of the `DataError` that identifying `wanted` raises."""
    with pytest.raises(DataError) as caught:
        data.identify(wanted)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_folder_without_parts_is_split_by_class(make_folder, small: Preprocessing) -> None:
    root = make_folder({"dog": 10, "cat": 20})
    tune = data.load(spec(root), Phase.TUNE, small)
    assert tune.class_names == ("cat", "dog")
    # val a tenth and test a fifth of each class: cat 2 and 4 of 20, dog 1 and 2 of 10.
    assert np.bincount(tune.train.labels).tolist() == [14, 7]
    assert np.bincount(tune.report.labels).tolist() == [2, 1]
    final = data.load(spec(root), Phase.FINAL, small)
    assert np.bincount(final.train.labels).tolist() == [16, 8]
    _, labels = final.report.open_once()
    assert np.bincount(labels).tolist() == [4, 2]
    names = set(final.train.names) | set(final.report.names)
    assert len(names) == 30 and not set(final.train.names) & set(final.report.names)


def test_images_belong_to_their_names(make_folder) -> None:
    root = make_folder({"cat": 4, "dog": 4})
    own = Preprocessing(size=9, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="nearest")
    train = data.load(spec(root), Phase.TUNE, own).train
    for image, name, label in zip(train.images, train.names, train.labels, strict=True):
        stored = np.asarray(Image.open(root / name).resize((9, 9), Image.Resampling.NEAREST))
        assert np.array_equal(image, stored)
        assert name.startswith(("cat/", "dog/")[label])


def test_own_parts_are_used_as_they_are(make_folder, small: Preprocessing) -> None:
    root = make_folder(
        {"train/a": 3, "train/b": 2, "valid/a": 1, "valid/b": 1, "test/a": 2, "test/b": 4}
    )
    tune = data.load(spec(root), Phase.TUNE, small)
    assert sorted(tune.train.names) == [
        "train/a/000.png", "train/a/001.png", "train/a/002.png", "train/b/000.png",
        "train/b/001.png",
    ]  # fmt: skip
    assert tune.report.names == ("valid/a/000.png", "valid/b/000.png")
    final = data.load(spec(root), Phase.FINAL, small)
    assert len(final.train) == 7
    assert all(name.startswith("test/") for name in final.report.names)


def test_a_missing_val_is_cut_from_train_and_never_from_test(
    make_folder, small: Preprocessing
) -> None:
    root = make_folder({"train/a": 10, "train/b": 10, "test/a": 3, "test/b": 3})
    tune = data.load(spec(root, val_fraction=0.2), Phase.TUNE, small)
    assert np.bincount(tune.train.labels).tolist() == [8, 8]
    assert np.bincount(tune.report.labels).tolist() == [2, 2]
    assert all(name.startswith("train/") for name in tune.train.names + tune.report.names)
    final = data.load(spec(root, val_fraction=0.2), Phase.FINAL, small)
    assert len(final.train) == 20 and len(final.report) == 6


def test_a_missing_test_is_refused(make_folder) -> None:
    text = message(spec(make_folder({"train/a": 3, "val/a": 3})))
    assert "has train, val but no test folder" in text
    assert "rename the part that is to be reported to test" in text


def test_a_missing_train_is_refused(make_folder) -> None:
    assert "has test but no train folder" in message(spec(make_folder({"test/a": 3})))


def test_two_val_folders_are_refused(make_folder) -> None:
    root = make_folder({"train/a": 3, "val/a": 1, "valid/a": 1, "test/a": 1})
    assert "has val and valid. Keep one" in message(spec(root))


def test_a_class_called_train_is_a_class(make_folder) -> None:
    root = make_folder({"train": 5, "ship": 5})
    listing = folder.read_folder(spec(root))
    assert listing.class_names == ("ship", "train")


def test_classes_that_differ_between_parts_are_named(make_folder) -> None:
    root = make_folder({"train/a": 3, "train/b": 3, "test/a": 3})
    assert "Class 'b' is in train but not in test" in message(spec(root))
    root = make_folder({"test/b": 3, "test/c": 3})
    assert "Class 'c' is in test but not in train" in message(spec(root))


def test_a_root_that_is_not_given_or_absent_is_an_error(tmp_path: Path) -> None:
    assert "Set dataset.root" in message(spec(None))
    text = message(spec(tmp_path / "nowhere"))
    assert f"{tmp_path / 'nowhere'} is nothing, not a folder" in text
    (tmp_path / "file").write_text("")
    assert "is a file, not a folder" in message(spec(tmp_path / "file"))


def test_a_root_without_class_folders_is_an_error(make_folder) -> None:
    root = make_folder({".": 2})
    assert "has no class folders (2 images directly inside)" in message(spec(root))


def test_an_empty_class_is_named(make_folder) -> None:
    root = make_folder({"cat": 4, "ghost": 0})
    (root / "ghost" / "notes.txt").write_text("nothing here")
    text = message(spec(root))
    assert f"Class folder {root / 'ghost'} is empty" in text
    assert "remove the folder" in text


def test_a_class_too_small_to_split_is_named_with_its_count(make_folder) -> None:
    text = message(spec(make_folder({"cat": 4, "rare": 2})))
    assert "Class 'rare' has 2 images; drawing train, val and test needs at least 3" in text
    root = make_folder({"train/a": 1, "test/a": 1})
    shutil.rmtree(root / "cat")
    shutil.rmtree(root / "rare")
    assert "Class 'a' has 1 image; drawing train and val needs at least 2" in message(spec(root))


@pytest.mark.parametrize("changes", [{"test_fraction": 0.0}, {"val_fraction": -0.1}])
def test_a_fraction_that_draws_nothing_is_refused(make_folder, changes) -> None:
    assert "both must be positive" in message(spec(make_folder({"a": 4}), **changes))


def test_fractions_that_leave_no_train_are_refused(make_folder) -> None:
    wanted = spec(make_folder({"a": 9}), val_fraction=0.5, test_fraction=0.5)
    assert "leave nothing to train on" in message(wanted)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n broken"])
def test_an_image_that_does_not_decode_is_named(make_folder, small, content: bytes) -> None:
    root = make_folder({"cat": 5})
    (root / "cat" / "bad.png").write_bytes(content)
    wanted = spec(root, val_fraction=0.4, test_fraction=0.2)
    with pytest.raises(
        DataError, match=r"Cannot decode image .*cat/bad\.png: .*Repair it or remove"
    ):
        data.load(wanted, Phase.TUNE, small)
        data.load(wanted, Phase.FINAL, small)


def test_an_image_cut_short_is_named(make_folder, small: Preprocessing) -> None:
    root = make_folder({"cat": 4})
    for path in (root / "cat").iterdir():
        path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(DataError, match="Cannot decode image"):
        data.load(spec(root), Phase.TUNE, small)


def test_hidden_and_foreign_files_are_ignored_and_nested_folders_are_read(make_folder) -> None:
    root = make_folder({"cat": 3, "cat/kittens": 2})
    before = data.identify(spec(root)).manifest
    (root / "cat" / "._000.png").write_bytes(b"resource fork")
    (root / ".ipynb_checkpoints").mkdir()
    (root / "cat" / "readme.md").write_text("cats")
    listing = folder.read_folder(spec(root))
    names = {name for _, part in listing.splits() for name in part.names}
    assert names == {
        "cat/000.png", "cat/001.png", "cat/002.png", "cat/kittens/000.png", "cat/kittens/001.png",
    }  # fmt: skip
    assert listing.manifest == before


def test_the_manifest_is_the_hash_of_names_bytes_and_split(make_folder) -> None:
    root = make_folder({"train/a": 1, "val/a": 1, "test/a": 1})
    lines = ["parameters\t0.1\t0.2\t0\n"]
    for part in ("train", "val", "test"):
        name = f"{part}/a/000.png"
        digest = hashlib.sha256((root / name).read_bytes()).hexdigest()
        lines.append(f"{part}\t{name}\t0\t{digest}\n")
    expected = hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()
    assert data.identify(spec(root)).manifest == expected


def test_the_manifest_changes_with_bytes_names_and_split_parameters(make_folder) -> None:
    root = make_folder({"cat": 6, "dog": 6})
    first = data.identify(spec(root)).manifest
    assert data.identify(spec(root)).manifest == first
    assert data.identify(spec(root, split_seed=1)).manifest != first
    assert data.identify(spec(root, test_fraction=0.4)).manifest != first
    (root / "cat" / "000.png").rename(root / "cat" / "zero.png")
    renamed = data.identify(spec(root)).manifest
    assert renamed != first
    pixels = np.zeros((7, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / "cat" / "zero.png")
    assert data.identify(spec(root)).manifest not in (first, renamed)


def test_a_copy_elsewhere_has_the_same_manifest_and_arrays(
    make_folder, small: Preprocessing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder({"cat": 6, "dog": 6})
    here = data.load(spec(root), Phase.TUNE, small)
    shutil.copytree(root, tmp_path / "elsewhere" / "copy")
    monkeypatch.chdir(tmp_path / "elsewhere")
    there = data.load(spec("copy"), Phase.TUNE, small)
    assert there.manifest == here.manifest
    assert there.train.names == here.train.names
    assert np.array_equal(there.train.images, here.train.images)


def test_files_changed_after_a_run_was_built_are_refused(make_folder, small: Preprocessing) -> None:
    root = make_folder({"cat": 6})
    built = data.identify(spec(root))
    (root / "cat" / "000.png").unlink()
    with pytest.raises(DataError, match="files or splits changed"):
        data.load(built, Phase.TUNE, small)


def test_unchanged_files_are_hashed_once(make_folder, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder({"cat": 6})
    known = data.identify(spec(root))
    reread: list[Path] = []
    plain = images.file_digest
    monkeypatch.setattr(images, "file_digest", lambda p: reread.append(p) or plain(p))
    assert data.identify(spec(root)) == known
    assert reread == []
    os.utime(root / "cat" / "003.png", ns=(1, 1))
    assert data.identify(spec(root)) == known
    assert reread == [root / "cat" / "003.png"]


def test_a_damaged_memory_of_hashes_is_ignored(make_folder, cache: Path) -> None:
    root = make_folder({"cat": 6})
    known = data.identify(spec(root))
    (memory,) = (cache / "digests").iterdir()
    for content in ("{", "[]", '{"cat/000.png": 3}'):
        memory.write_text(content)
        assert data.identify(spec(root)) == known


def test_resized_images_are_decoded_once(
    make_folder, small: Preprocessing, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder({"cat": 6, "dog": 6})
    first = data.load(spec(root), Phase.TUNE, small)
    files = sorted(path.suffix for path in (cache / "pixels").iterdir())
    assert files == [".json", ".npy"]  # train and val are one array; nothing temporary

    def fail(*_: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(images, "decode", fail)
    again = data.load(spec(root), Phase.TUNE, small)
    assert np.array_equal(again.train.images, first.train.images)
    other_mean = replace(small, mean=(0.1, 0.2, 0.3), crop_fraction=0.9)
    assert len(data.load(spec(root), Phase.TUNE, other_mean).train) == len(first.train)
    with pytest.raises(AssertionError, match="decoded again"):
        data.load(spec(root), Phase.TUNE, replace(small, size=9))
    with pytest.raises(AssertionError, match="decoded again"):
        data.load(spec(root), Phase.TUNE, replace(small, interpolation="nearest"))


def test_a_damaged_cache_is_built_again(make_folder, small: Preprocessing, cache: Path) -> None:
    root = make_folder({"cat": 6, "dog": 6})
    expected = np.array(data.load(spec(root), Phase.TUNE, small).train.images)

    def cut(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:-10])

    def flip_a_pixel(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[-1] ^= 255
        path.write_bytes(bytes(content))

    def empty(path: Path) -> None:
        path.write_bytes(b"")

    def replace_by_another_array(path: Path) -> None:
        np.save(path, np.zeros((1, 2, 2, 3), dtype=np.uint8))

    def forget_the_hash(path: Path) -> None:
        path.with_suffix(".json").unlink()

    for damage in (cut, flip_a_pixel, empty, replace_by_another_array, forget_the_hash):
        for path in (cache / "pixels").glob("*.npy"):
            damage(path)
        found = data.load(spec(root), Phase.TUNE, small).train.images
        assert np.array_equal(found, expected), damage.__name__


def test_nothing_half_written_stays_after_a_failure(
    make_folder, small: Preprocessing, cache: Path
) -> None:
    root = make_folder({"cat": 6})
    for path in (root / "cat").iterdir():
        path.write_bytes(f"broken {path.name}".encode())
    with pytest.raises(DataError):
        data.load(spec(root), Phase.TUNE, small)
    assert [path.suffix for path in (cache / "pixels").iterdir()] == [".lock"]


def test_a_cache_that_cannot_be_written_says_what_to_set(
    make_folder, small: Preprocessing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder({"cat": 6})
    (tmp_path / "taken").write_text("a file, not a folder")
    monkeypatch.setenv("PEFTBENCH_CACHE", str(tmp_path / "taken"))
    with pytest.raises(DataError, match="Set PEFTBENCH_CACHE to a folder"):
        data.load(spec(root), Phase.TUNE, small)


def test_a_limit_cuts_before_decoding(make_folder, small: Preprocessing) -> None:
    root = make_folder({"cat": 20, "dog": 20})
    splits = data.load(spec(root, limit=4), Phase.FINAL, small)
    assert np.bincount(splits.train.labels).tolist() == [4, 4]  # 4 of train and 4 of val
    assert len(splits.report) == 4


def test_copies_of_train_images_in_test_are_noted(make_folder, small: Preprocessing) -> None:
    root = make_folder({"train/a": 2, "val/a": 1, "test/a": 2})
    shutil.copy(root / "train/a/000.png", root / "test/a/000.png")
    loaded = data.load(spec(root), Phase.TUNE, small)
    assert loaded.notes == (
        "1 of 2 test images is byte for byte in train or val as well: results flatter. "
        "Remove the copies.",
    )
    assert "byte for byte: 1" in data.card(spec(root))


def test_parts_without_class_folders_are_no_classes(make_folder) -> None:
    text = message(spec(make_folder({"train": 3, "test": 2})))
    assert "has test, train without class folders in them" in text
    assert "a .csv of paths, labels and splits" in text


def test_the_card_of_a_folder_counts_each_class(make_folder) -> None:
    text = data.card(spec(make_folder({"cat": 20, "dog": 10})))
    assert "| cat | 14 | 2 | 4 |" in text
    assert "| dog | 7 | 1 | 2 |" in text
    assert "| **2 classes** | **21** | **3** | **6** |" in text

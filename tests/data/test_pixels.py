"""The pixel store: built once, by one process, beside the data, and taken up after a stop."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import multiprocessing
import os
import shutil
import time
from collections import namedtuple
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from peftbench import data
from peftbench.data import SplitList, files, images, pixel_memory, pixels, threads
from peftbench.data.pixels import PixelRows
from peftbench.errors import DataError
from peftbench.spec import DatasetSpec, Phase, Preprocessing


def picture(row: int) -> np.ndarray:
    return np.full((4, 4, 3), row, dtype=np.uint8)


def build_slowly(folder: str, log: str, together: Barrier) -> None:
    """Each image that is made leaves a byte in `log`."""
    os.environ["PEFTBENCH_CACHE"] = folder

    def make(row: int) -> np.ndarray:
        time.sleep(0.01)
        with open(log, "ab") as file:
            file.write(bytes([row]))
        return picture(row)

    together.wait()
    assert pixels.stored("name", PixelRows(40, 4, make, "")).sum() == 48 * sum(range(40))


def test_two_processes_that_start_together_build_it_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    together = context.Barrier(2)
    log = tmp_path / "log"
    arguments = (str(tmp_path / "cache"), str(log), together)
    processes = [context.Process(target=build_slowly, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert sorted(log.read_bytes()) == list(range(40))


def test_a_build_that_was_interrupted_goes_on_where_it_stopped(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixels, "_SAVED_EVERY", 0.0)
    made: list[int] = []

    def interrupted(row: int) -> np.ndarray:
        if row == 60:
            raise KeyboardInterrupt
        return picture(row)

    def counted(row: int) -> np.ndarray:
        made.append(row)
        return picture(row)

    with pytest.raises(KeyboardInterrupt):
        pixels.stored("name", PixelRows(90, 4, interrupted, ""))
    found = pixels.stored("name", PixelRows(90, 4, counted, ""))
    assert sorted(made) == list(range(60, 90))
    assert np.array_equal(found, np.stack([picture(row) for row in range(90)]))
    assert sorted(path.name for path in (cache / "pixels").iterdir()) == [
        "name.json", "name.npy",
    ]  # fmt: skip
    facts = json.loads((cache / "pixels" / "name.json").read_text())
    assert (facts["images"], facts["size"]) == (90, 4)


def test_pictures_are_not_made_far_ahead_of_what_is_written(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    made_when_written: list[int] = []

    def make(row: int) -> np.ndarray:
        made.append(row)
        return picture(row % 250)

    def counted(image: np.ndarray, kind: np.dtype) -> bytes:
        made_when_written.append(len(made))
        return bytes_of(image, kind)

    bytes_of = pixels._bytes_of
    monkeypatch.setattr(pixels, "_bytes_of", counted)
    monkeypatch.setattr(threads, "count", lambda: 2)
    found = pixels.stored("name", PixelRows(400, 4, make, ""))
    assert found[:, 0, 0, 0].tolist() == [row % 250 for row in range(400)]
    assert max(made - row for row, made in enumerate(made_when_written)) <= 8  # 4 for each thread


@pytest.mark.parametrize("note", ["0", "90", "91", "-3", "many", ""])
def test_a_note_that_makes_no_sense_starts_the_build_anew(cache: Path, note: str) -> None:
    (cache / "pixels").mkdir(parents=True)
    np.save(cache / "pixels" / "name.npy", np.zeros((90, 4, 4, 3), dtype=np.uint8))
    (cache / "pixels" / "name.npy").rename(cache / "pixels" / "name.part")
    (cache / "pixels" / "name.rows").write_text(note)
    found = pixels.stored("name", PixelRows(90, 4, picture, ""))
    assert np.array_equal(found[:, 0, 0, 0], np.arange(90))


def sized(row: int) -> tuple[np.ndarray, tuple[int, int]]:
    return picture(row), (100 + row, 200 - row)


def test_sizes_of_pictures_are_kept_with_their_pixels_through_an_interruption(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixels, "_SAVED_EVERY", 0.0)
    made: list[int] = []

    def make(row: int) -> tuple[np.ndarray, tuple[int, int]]:
        if row == 60 and row not in made:
            made.append(row)
            raise KeyboardInterrupt
        made.append(row)
        return sized(row)

    with pytest.raises(KeyboardInterrupt):
        pixels.stored("name", PixelRows(90, 4, make, "", whole=True))
    assert [path.suffix for path in sorted((cache / "pixels").iterdir())] == [
        ".lock", ".part", ".rows",
    ]  # fmt: skip
    made[:] = [60]
    found = pixels.stored("name", PixelRows(90, 4, make, "", whole=True))
    assert sorted(made) == [60, *range(60, 90)]  # none of the first 60 again
    assert np.array_equal(found["pixels"], np.stack([picture(row) for row in range(90)]))
    assert found["size"].tolist() == [[100 + row, 200 - row] for row in range(90)]
    assert isinstance(found["size"], np.memmap)  # read with the rows that are used
    facts = json.loads((cache / "pixels" / "name.json").read_text())
    assert (facts["images"], facts["size"]) == (90, 4)
    pixels.stored("name", PixelRows(90, 4, None, "", whole=True))  # type: ignore[arg-type]  # is there


def test_a_damaged_size_is_made_again(cache: Path) -> None:
    pixels.stored("name", PixelRows(9, 4, sized, "", whole=True))
    path = cache / "pixels" / "name.npy"
    array = np.load(path)
    array["size"][3] = 7
    np.save(path, array)
    os.utime(path, ns=(0, 0))  # what was verified is remembered by its time
    found = pixels.stored("name", PixelRows(9, 4, sized, "", whole=True))
    assert found["size"][3].tolist() == [103, 197]


def test_an_array_of_another_kind_is_not_taken_for_one_with_sizes(cache: Path) -> None:
    pixels.stored("name", PixelRows(9, 4, picture, ""))
    found = pixels.stored("name", PixelRows(9, 4, sized, "", whole=True))
    assert found["size"][8].tolist() == [108, 192]
    assert pixels.stored("name", PixelRows(9, 4, picture, "")).shape == (9, 4, 4, 3)


@pytest.mark.parametrize("final_trains_on", ["train+val", "train"])
def test_pictures_that_are_cropped_are_kept_whole_and_reported_ones_are_not(
    make_folder, small: Preprocessing, monkeypatch: pytest.MonkeyPatch, final_trains_on: str
) -> None:
    root = make_folder({"cat": 10, "dog": 10})
    spec = DatasetSpec("folder", reader="folder", root=str(root), final_trains_on=final_trains_on)
    cropping = dataclasses.replace(small, resize="crop", crop_fraction=0.9, train_size=12)
    tune = data.load(spec, Phase.TUNE, cropping)
    plain = data.load(spec, Phase.TUNE, dataclasses.replace(cropping, train_size=None))
    assert plain.train.sizes is None and plain.train.images.shape == (14, 8, 8, 3)
    assert tune.train.names == plain.train.names
    assert np.array_equal(tune.report.images, plain.report.images)  # type: ignore[union-attr]
    assert tune.train.sizes is not None
    assert tune.train.sizes.tolist() == [[9, 7]] * len(tune.train)
    for name, square in zip(tune.train.names, tune.train.images, strict=True):
        picture = Image.open(root / name).resize((12, 12), Image.Resampling.BICUBIC)
        assert np.array_equal(square, np.asarray(picture))
    final = data.load(spec, Phase.FINAL, cropping)
    assert final.report.open_once().images.shape == (4, 8, 8, 3)  # type: ignore[union-attr]
    count = len(final.train)
    assert count == (16 if final_trains_on == "train+val" else 14)
    assert np.array_equal(final.train.images[:14], tune.train.images)
    # nothing is decoded again in either phase
    monkeypatch.setattr(data._folder.files.images, "decode", None)
    assert len(data.load(spec, Phase.FINAL, cropping).train) == count
    assert len(data.load(spec, Phase.TUNE, cropping).train) == 14


def test_pictures_in_arrays_can_be_kept_whole() -> None:
    stored = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    pictures = files.ArrayPictures({"train": stored})
    names = ("train/2", "train/0")
    part = SplitList(names, (0, 1), pictures.digests(names))
    kept = Preprocessing(4, (0.5,) * 3, (0.5,) * 3, train_size=7).of_training
    found = files.decode(pictures, part, kept, "")
    assert found["pixels"].shape == (2, 7, 7, 3)
    assert found["size"].tolist() == [[4, 4]] * 2
    first = Image.fromarray(stored[2]).resize((7, 7), Image.Resampling.BICUBIC)
    assert np.array_equal(found["pixels"][0], np.asarray(first))


def test_it_lies_beside_the_data_unless_that_cannot_be_written(
    make_folder, small: Preprocessing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PEFTBENCH_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    root = make_folder({"cat": 6, "dog": 6})
    spec = data.identify(DatasetSpec("folder", reader="folder", root=str(root)))
    data.load(spec, Phase.FINAL, small)
    arrays = sorted((root / ".peftbench" / "pixels").glob("*.npy"))
    assert [np.load(path).shape for path in arrays] != []
    assert {len(np.load(path)) for path in arrays} == {10, 2}  # train and val; test
    assert data.identify(spec).manifest == spec.manifest  # it is no part of the data
    shutil.rmtree(root / ".peftbench")
    monkeypatch.setattr(os, "access", lambda *_: False)
    data.load(spec, Phase.FINAL, small)
    assert not (root / ".peftbench").exists()
    assert len(list((tmp_path / "home/.cache/peftbench/pixels").glob("*.npy"))) == 2


def test_both_phases_share_what_was_decoded(
    make_folder, small: Preprocessing, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = DatasetSpec("folder", reader="folder", root=str(make_folder({"cat": 10, "dog": 10})))
    final = data.load(spec, Phase.FINAL, small)
    monkeypatch.setattr(data._folder.files.images, "decode", None)
    tune = data.load(spec, Phase.TUNE, small)
    both = np.concatenate([tune.train.images, tune.report.images])
    assert np.array_equal(both, final.train.images)
    assert tune.train.names + tune.report.names == final.train.names


def test_a_disk_without_space_is_seen_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", ["total", "used", "free"])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 5_000_000))
    with pytest.raises(DataError, match=r"need 15\.1 GB in .*, where 0\.0 GB are free\. Set PEFTB"):
        pixels.stored("name", PixelRows(100_000, 224, picture, ""))


def never(row: int) -> np.ndarray:
    raise AssertionError("an image was decoded again")


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a data set, with the user's cache elsewhere."""
    monkeypatch.delenv("PEFTBENCH_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(pixel_memory, "_SEEN", {})
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def read(beside: Path, make=picture, count: int = 9) -> np.ndarray:
    return pixels.stored("name", PixelRows(count, 4, make, "set"), beside)


TRUE = np.stack([picture(row) for row in range(9)])


def plant(beside: Path, array: np.ndarray) -> Path:
    """An array with the facts that belong to it, as whoever gave the data could lay it there."""
    folder = beside / ".peftbench" / "pixels"
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "name.npy", array)
    facts = {"title": "set", "images": len(array), "size": 4, "pillow": "any"}
    digest = hashlib.sha256((folder / "name.npy").read_bytes()).hexdigest()
    (folder / "name.json").write_text(json.dumps({**facts, "sha256": digest}))
    return folder / "name.npy"


def test_an_array_that_was_made_here_is_read_without_decoding(beside: Path) -> None:
    assert np.array_equal(read(beside), TRUE)
    assert np.array_equal(read(beside, never), TRUE)
    moved = beside.with_name("moved")
    beside.rename(moved)  # the array is known by what is in it
    assert np.array_equal(read(moved, never), TRUE)


@pytest.mark.parametrize("rows", [slice(None), slice(8, 9), slice(0, 1)])
def test_an_array_that_was_replaced_together_with_its_facts_is_not_used(
    beside: Path, caplog: pytest.LogCaptureFixture, rows: slice
) -> None:
    read(beside)
    false = TRUE.copy()
    false[rows] = 255
    path = plant(beside, false)
    assert np.array_equal(read(beside), TRUE)
    assert "has changed since it was made, and is not used" in caplog.text
    assert np.array_equal(np.load(path), TRUE)
    assert np.array_equal(read(beside, never), TRUE)


@pytest.mark.parametrize("rows", [slice(None), slice(8, 9), slice(0, 1)])
def test_an_array_that_came_with_the_data_is_compared_with_all_its_images(
    beside: Path, caplog: pytest.LogCaptureFixture, rows: slice
) -> None:
    false = TRUE.copy()
    false[rows] = 255
    path = plant(beside, false)
    assert np.array_equal(read(beside), TRUE)
    assert "were not made by you" in caplog.text and "is not used" in caplog.text
    assert np.array_equal(np.load(path), TRUE)


def test_an_array_that_came_with_the_data_and_is_right_is_known_from_then_on(
    beside: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = plant(beside, TRUE)
    before = path.stat().st_ino
    made: list[int] = []

    def counted(row: int) -> np.ndarray:
        made.append(row)
        return picture(row)

    assert np.array_equal(read(beside, counted), TRUE)
    assert sorted(made) == list(range(9)) and path.stat().st_ino == before
    assert "they are compared with all 9 images, once" in caplog.text
    assert np.array_equal(read(beside, never), TRUE)


def test_bytes_behind_the_rows_are_no_part_of_an_array(beside: Path) -> None:
    with plant(beside, TRUE).open("ab") as file:
        file.write(b"more")
    assert np.array_equal(read(beside), TRUE)
    assert (beside / ".peftbench/pixels/name.npy").stat().st_size == 128 + TRUE.nbytes


@pytest.mark.parametrize("note", ["8", '{"rows": 8, "sha256": ""}'])
def test_rows_of_a_build_that_came_with_the_data_are_not_gone_on_with(
    beside: Path, note: str
) -> None:
    path = plant(beside, np.full_like(TRUE, 255))
    path.rename(path.with_suffix(".part"))
    path.with_suffix(".rows").write_text(note)
    assert np.array_equal(read(beside), TRUE)


def test_rows_that_were_changed_while_a_build_was_stopped_are_made_again(
    beside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixels, "_SAVED_EVERY", 0.0)

    def interrupted(row: int) -> np.ndarray:
        if row == 6:
            raise KeyboardInterrupt
        return picture(row)

    with pytest.raises(KeyboardInterrupt):
        read(beside, interrupted)
    part = beside / ".peftbench/pixels/name.part"
    (note,) = (tmp_path / "home/.cache/peftbench/arrays").glob("*.rows")
    assert json.loads(note.read_text())["rows"] == 6
    content = bytearray(part.read_bytes())
    content[130] ^= 255
    part.write_bytes(content)
    assert np.array_equal(read(beside), TRUE)


@pytest.mark.parametrize("suffix", [".part", ".lock", ".npy"])
def test_a_link_in_the_store_leads_to_nothing_that_is_written(beside: Path, suffix: str) -> None:
    folder = beside / ".peftbench" / "pixels"
    folder.mkdir(parents=True)
    precious = beside.parent / "precious"
    precious.write_text("mine")
    (folder / f"name{suffix}").symlink_to(precious)
    assert np.array_equal(read(beside), TRUE)
    assert precious.read_text() == "mine"


def test_a_pipe_in_place_of_an_array_is_not_waited_for(beside: Path) -> None:
    folder = beside / ".peftbench" / "pixels"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "name.npy")
    assert np.array_equal(read(beside), TRUE)


def test_large_arrays_are_hashed_when_their_file_has_changed(
    beside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixels, "_HASHED_EACH_TIME", 100)
    read(beside)
    hashed: list[Path] = []

    def counted(path: Path) -> str:
        hashed.append(path)
        return images.file_digest(path)

    monkeypatch.setattr(pixel_memory, "file_digest", counted)
    read(beside, never)
    assert hashed == []
    path = beside / ".peftbench/pixels/name.npy"
    status = path.stat()
    false = TRUE.copy()
    false[3] = 9
    with path.open("r+b") as file:
        file.seek(128)
        file.write(false.tobytes())
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as if nothing had happened
    assert np.array_equal(read(beside), TRUE)
    assert hashed == [path]


def test_a_lock_of_another_user_that_can_only_be_read_is_held_all_the_same(
    beside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = beside / ".peftbench" / "pixels"
    folder.mkdir(parents=True)
    (folder / "name.lock").touch()
    allowed = os.access
    monkeypatch.setattr(
        os, "access", lambda p, m: not (str(p).endswith(".lock") and m & os.W_OK) and allowed(p, m)
    )
    held: list[bool] = []

    def make(row: int) -> np.ndarray:
        with (folder / "name.lock").open() as other:
            try:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held.append(False)
            except BlockingIOError:
                held.append(True)
        return picture(row)

    assert np.array_equal(read(beside, make), TRUE)
    assert held == [True] * 9


def test_a_lock_that_cannot_even_be_read_sends_the_store_to_the_cache(
    beside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = beside / ".peftbench" / "pixels"
    folder.mkdir(parents=True)
    (folder / "name.lock").touch()
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda p, m: not str(p).endswith(".lock") and allowed(p, m))
    assert np.array_equal(read(beside), TRUE)
    assert (tmp_path / "home/.cache/peftbench/pixels/name.npy").is_file()


def test_what_builds_left_behind_is_swept_after_a_week(beside: Path) -> None:
    folder = beside / ".peftbench" / "pixels"
    folder.mkdir(parents=True)
    names = ("old.part", "old.rows", "old.lock", ".old.json.7.tmp", "held.part", "held.lock")
    for name in (*names, "new.part", "kept.npy"):
        (folder / name).write_bytes(b"x")
    for name in (*names, "kept.npy"):
        os.utime(folder / name, (1, 1))
    with (folder / "held.lock").open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        read(beside)
    left = {path.name for path in folder.iterdir()}
    assert left == {"held.part", "held.lock", "new.part", "kept.npy", "name.npy", "name.json"}


def test_a_cache_that_cannot_be_written_is_told_of(
    beside: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    (tmp_path / "home").write_text("no folder")
    assert np.array_equal(read(beside), TRUE)
    assert "Set PEFTBENCH_CACHE to a folder that stays." in caplog.text
    assert np.array_equal(read(beside, never), TRUE)  # this process knows it


def test_verifying_hashes_arrays_of_any_size(beside: Path, monkeypatch) -> None:
    monkeypatch.setattr(pixels, "_HASHED_EACH_TIME", 100)
    read(beside)
    assert pixels.verify(beside) == []
    path = plant(beside, np.full_like(TRUE, 255))
    with pytest.raises(DataError, match=r"resized images .*name\.npy have changed since they were"):
        pixels.verify(beside)
    path.rename(path.with_name("other.npy"))
    assert "1 array of resized images beside it were not made here" in pixels.verify(beside)[0]


def test_accuracy_does_not_follow_an_array_that_was_replaced(
    make_folder, small: Preprocessing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PEFTBENCH_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    root = make_folder({"cat": 6, "dog": 6})
    spec = DatasetSpec("folder", reader="folder", root=str(root))
    before = np.array(data.load(spec, Phase.FINAL, small).train.images)
    for path in (root / ".peftbench" / "pixels").glob("*.npy"):
        false = np.zeros_like(np.load(path))
        np.save(path, false)
        facts = json.loads(path.with_suffix(".json").read_text())
        facts["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        path.with_suffix(".json").write_text(json.dumps(facts))
    for home in ("home", "another"):  # who made it, and somebody else
        monkeypatch.setenv("HOME", str(tmp_path / home))
        monkeypatch.setattr(pixel_memory, "_SEEN", {})
        after = data.load(spec, Phase.FINAL, small)
        assert np.array_equal(after.train.images, before)

"""The pixel store: built once, by one process, beside the data, and taken up after a stop."""

from __future__ import annotations

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

from peftbench import data
from peftbench.data import pixels
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
    assert pixels.stored("name", 40, 4, make, title="").sum() == 48 * sum(range(40))


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
        pixels.stored("name", 90, 4, interrupted, title="")
    found = pixels.stored("name", 90, 4, counted, title="")
    assert sorted(made) == list(range(60, 90))
    assert np.array_equal(found, np.stack([picture(row) for row in range(90)]))
    assert sorted(path.name for path in (cache / "pixels").iterdir()) == [
        "name.json", "name.lock", "name.npy",
    ]  # fmt: skip
    facts = json.loads((cache / "pixels" / "name.json").read_text())
    assert (facts["images"], facts["size"]) == (90, 4)


@pytest.mark.parametrize("note", ["0", "90", "91", "-3", "many", ""])
def test_a_note_that_makes_no_sense_starts_the_build_anew(cache: Path, note: str) -> None:
    (cache / "pixels").mkdir(parents=True)
    np.save(cache / "pixels" / "name.npy", np.zeros((90, 4, 4, 3), dtype=np.uint8))
    (cache / "pixels" / "name.npy").rename(cache / "pixels" / "name.part")
    (cache / "pixels" / "name.rows").write_text(note)
    found = pixels.stored("name", 90, 4, picture, title="")
    assert np.array_equal(found[:, 0, 0, 0], np.arange(90))


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
        pixels.stored("name", 100_000, 224, picture, title="")

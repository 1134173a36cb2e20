"""Rows of arrays that are read from their file: the same bytes, and no pages of a map."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from peftbench.data import images, rows
from peftbench.data.rows import ArrayRows, FileRows, rows_of, take
from peftbench.errors import DataError

pytestmark = pytest.mark.skipif(not hasattr(os, "preadv"), reason="files are read by preadv")
INDEX = np.array([4, 0, 9, 4, 1])


@pytest.fixture(autouse=True)
def _nothing_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "SMALL", 0)


def mapped(path: Path, array: np.ndarray) -> np.ndarray:
    np.save(path, array)
    found: np.ndarray = np.load(path, mmap_mode="r")
    return found


def noise(count: int = 10) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 5, 5, 3), dtype=np.uint8)


def whole_pictures() -> np.ndarray:
    array = np.zeros(10, dtype=images.row_type(5, whole=True))
    array["pixels"] = noise()
    array["size"] = np.arange(20).reshape(10, 2)
    return array


def test_rows_come_in_the_order_that_is_asked_for(tmp_path: Path) -> None:
    array = noise()
    found = rows_of(mapped(tmp_path / "a.npy", array))
    assert isinstance(found, FileRows)
    assert found.shape == (10, 5, 5, 3)
    assert np.array_equal(take(found, INDEX), array[INDEX])
    assert take(found, np.array([], dtype=np.int64)).shape == (0, 5, 5, 3)


@pytest.mark.parametrize(
    "part", [slice(3, None), slice(None, 7), slice(1, None, 2), slice(None, None, -1)]
)
def test_a_part_of_a_map_is_read_where_it_lies(tmp_path: Path, part: slice) -> None:
    array = noise(24)
    found = rows_of(mapped(tmp_path / "a.npy", array)[part])
    assert isinstance(found, FileRows)
    assert np.array_equal(take(found, INDEX % found.shape[0]), array[part][INDEX % found.shape[0]])


@pytest.mark.parametrize("field", ["pixels", "size"])
def test_fields_of_whole_pictures_are_read_by_themselves(tmp_path: Path, field: str) -> None:
    array = whole_pictures()
    found = rows_of(mapped(tmp_path / "a.npy", array)[2:][field])
    assert isinstance(found, FileRows)
    assert np.array_equal(take(found, INDEX % 8), array[2:][field][INDEX % 8])


def test_what_is_in_memory_or_small_is_not_read_from_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = mapped(tmp_path / "a.npy", noise())
    for held in (noise(), noise()[::2], whole_pictures()["pixels"], array.copy()):
        assert isinstance(rows_of(held), ArrayRows)
        assert np.array_equal(take(rows_of(held), INDEX % len(held)), held[INDEX % len(held)])
    monkeypatch.setattr(rows, "SMALL", array.nbytes)
    assert isinstance(rows_of(array), ArrayRows)


def test_a_file_that_was_replaced_or_removed_is_not_read_in_place_of_the_map(
    tmp_path: Path,
) -> None:
    path, array = tmp_path / "a.npy", noise()
    found = mapped(path, array)
    np.save(tmp_path / "other.npy", 255 - array)
    os.replace(tmp_path / "other.npy", path)
    assert np.array_equal(take(rows_of(found), INDEX), array[INDEX])
    path.unlink()
    assert np.array_equal(take(rows_of(found), INDEX), array[INDEX])


def test_a_file_that_is_removed_while_it_is_read_is_read_to_the_end(tmp_path: Path) -> None:
    array = noise()
    found = rows_of(mapped(tmp_path / "a.npy", array))
    (tmp_path / "a.npy").unlink()
    assert np.array_equal(take(found, INDEX), array[INDEX])


def test_a_file_that_is_cut_short_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    found = rows_of(mapped(path, noise()))
    os.truncate(path, 128 + 9 * 75 + 1)  # of 10 rows of 75 bytes, all but one and a byte of it
    assert take(found, np.array([8, 0])).shape == (2, 5, 5, 3)
    with pytest.raises(DataError) as refused:
        take(found, INDEX)
    assert str(refused.value) == (
        f"{path} was cut short while it was read. Remove it; it is made again when it is used."
    )


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux which pages of a map are there")
def test_reading_all_rows_brings_no_pages_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    array = mapped(path, np.zeros((2**12, 32, 32, 3), dtype=np.uint8))  # 12 MiB
    found = rows_of(array)
    buffer = np.empty((64, 32, 32, 3), np.uint8)
    for start in range(0, len(array), 64):
        found.read(np.arange(start, start + 64), buffer)
    lines = Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.endswith(str(path)))
    resident = next(line for line in lines[start:] if line.startswith("Rss:"))
    # the ends were compared; a page comes with those around it, 2 MiB on some machines
    assert int(resident.split()[1]) < 6 * 2**10  # KiB, half of them

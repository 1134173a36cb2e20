"""Lists that published splits come in: whatever else lies in their place is one line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from peftbench.data.layouts import lists
from peftbench.errors import DataError
from peftbench.untrusted import MOST_BYTES

Reader = Callable[[Path], object]
READERS: list[Reader] = [lists.read_list, lists._read_json]


def refused(read: Reader, path: Path) -> str:
    with pytest.raises(DataError) as refusal:
        read(path)
    assert "\n" not in str(refusal.value)
    assert str(path) in str(refusal.value)
    return str(refusal.value)


@pytest.mark.parametrize("read", READERS)
def test_what_is_no_plain_file_or_too_large_is_refused_at_once(
    read: Reader, tmp_path: Path
) -> None:
    path = tmp_path / "train800.txt"
    os.mkfifo(path)
    assert "it is no plain file but a named pipe" in refused(read, path)
    path.unlink()
    path.symlink_to("/dev/zero")
    assert "it is no plain file but a device" in refused(read, path)
    path.unlink()
    path.mkdir()
    assert "it is no plain file but a folder" in refused(read, path)
    path.rmdir()
    path.touch()
    os.truncate(path, MOST_BYTES + 1)  # takes no room on the disk
    assert "more than 256 MB" in refused(read, path)
    path.write_bytes(b"a/\xff.jpg 3\n")
    assert "can't decode byte 0xff" in refused(read, path)


@pytest.mark.parametrize("label", ["-1", "1.0", "x", "٣", "²", "9" * 5000, "0x1", "1e3", "1_0"])
def test_a_label_that_is_no_number_of_a_class_is_named(tmp_path: Path, label: str) -> None:
    path = tmp_path / "train800.txt"
    path.write_text(f"a/0.jpg 1\na/1.jpg {label}\n", encoding="utf-8")
    told = refused(lists.read_list, path)
    assert told.startswith(f"{path}, line 2: ") and "is not '<path> <label>'" in told
    assert len(told) < 200 + len(str(path))


@pytest.mark.parametrize(
    "content",
    [
        '{"a.jpg": 1.7}',
        '{"a.jpg": true}',
        '{"a.jpg": null}',
        '{"a.jpg": -3}',
        '{"a.jpg": NaN}',
        '{"a.jpg": 1e400}',
        '{"a.jpg": [1]}',
        f'{{"a.jpg": {"9" * 4000}}}',
        '{"a.jpg": ' + "[" * 100_000,
        "[]",
        "{}",
        "",
    ],
)
def test_a_json_list_without_ids_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "train.json"
    path.write_text(content, encoding="utf-8")
    assert "does not map image paths to class ids" in refused(lists._read_json, path)


def test_ids_as_numbers_and_as_texts_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    path.write_text('{"b/1.jpg": 12, "a/0.jpg": "3"}', encoding="utf-8")
    assert lists._read_json(path) == [("b/1.jpg", 12), ("a/0.jpg", 3)]

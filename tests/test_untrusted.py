"""What somebody else's file can do: nothing, and what it is refused for is said in one clause."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from peftbench.untrusted import check_plain_file, printable, read_bounded, read_member, read_npz


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 漢 ± −", "plain é 漢 ± −"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("abc\u202edcb", r"abc\u202edcb"),
        ("caf\udce9", r"caf\udce9"),
        ("\u2028\u200b\x9b\x7f", r"\u2028\u200b\x9b\x7f"),
    ],
)
def test_a_terminal_gets_no_character_that_it_obeys(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_pipe_or_a_device_is_refused_without_being_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    check_plain_file(tmp_path / "link")
    assert read_bounded(tmp_path / "file", 3) == b"abc"
    for name, kind in (("pipe", "named pipe"), ("zero", "device"), (".", "folder")):
        with pytest.raises(ValueError, match=kind):
            read_bounded(tmp_path / name)
    with pytest.raises(ValueError, match="more than"):
        read_bounded(tmp_path / "file", 2)


def packed(method: int, **members: bytes) -> io.BytesIO:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    buffer.seek(0)
    return buffer


def test_a_member_of_a_zip_file_never_unpacks_to_more_than_allowed() -> None:
    with zipfile.ZipFile(packed(zipfile.ZIP_DEFLATED, a=bytes(10_000))) as archive:
        assert read_member(archive, "a", 10_000) == bytes(10_000)
        with pytest.raises(ValueError, match="10,000 bytes, more than 9,999"):
            read_member(archive, "a", 9_999)
    # 1 GB of zeros is 800 bytes as bzip2, and Python unpacks each block whole
    with (
        zipfile.ZipFile(packed(zipfile.ZIP_BZIP2, a=b"a")) as archive,
        pytest.raises(ValueError, match="neither stored nor deflate"),
    ):
        read_member(archive, "a")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_come_back_as_they_were_saved(save) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    saved = {
        "a": rng.normal(size=(3, 4)).astype(np.float32),
        "fortran": np.asfortranarray(rng.integers(0, 9, (2, 3, 4))),
        "scalar": np.float64(1.5),
        "empty": np.zeros((0, 3), np.uint8),
        "text": np.array(["ab", "c"]),
    }
    buffer = io.BytesIO()
    save(buffer, **saved)
    found = read_npz(buffer)
    assert sorted(found) == sorted(saved)
    for name, array in saved.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == np.asarray(array).dtype


def npy(shape: tuple[int, ...], data: bytes, descr: str = "|u1") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": descr, "fortran_order": False, "shape": shape}
    )
    return file.getvalue() + data


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (npy((10**12,), b""), "announces 1,000,000,000,000 bytes"),
        (npy((4,), b"123"), "has another number"),
        (npy((2,), b"123"), "has another number"),
        (npy((-1,), b"123"), "has the shape"),
        (npy((1,), b"", "|O"), "Python objects"),
        (b"\x93NUMPY\x09\x00", "version"),
        (b"no array", "magic"),
    ],
)
def test_an_array_whose_header_lies_is_refused_before_it_is_made(
    member: bytes, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        read_npz(packed(zipfile.ZIP_STORED, **{"a.npy": member}))


def test_the_sizes_are_summed_before_anything_is_unpacked() -> None:
    bomb = packed(zipfile.ZIP_DEFLATED, **{f"{i}.npy": bytes(2**20) for i in range(8)})
    with pytest.raises(ValueError, match="unpacks to 8,388,608 bytes, more than 5,000,000"):
        read_npz(bomb, 5_000_000)

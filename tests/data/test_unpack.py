"""Archives are unpacked as they are, or refused as a whole."""

from __future__ import annotations

import bz2
import functools
import gzip
import io
import lzma
import stat
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from peftbench.data.unpack import Limits, unpack
from peftbench.errors import DataError

FILES = {"top/a.txt": b"first", "top/below/b.txt": b"second" * 1000, "c.txt": b""}


def make_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def make_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tgz", "a.tar.bz2", "a.tar.xz", "a.zip"])
def test_all_files_of_an_archive_come_out(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith("zip"):
        make_zip(path, FILES)
    else:
        make_tar(path, FILES, f"w:{name.rpartition('.')[2].removeprefix('t').replace('ar', '')}")
    assert unpack(path, tmp_path / "all") == 3
    assert contents(tmp_path / "all") == FILES
    assert unpack(path, tmp_path / "inner", strip="top") == 2
    below = {"a.txt": FILES["top/a.txt"], "below/b.txt": FILES["top/below/b.txt"]}
    assert contents(tmp_path / "inner") == below
    with pytest.raises(DataError, match="has no files below nowhere"):
        unpack(path, tmp_path / "none", strip="nowhere")
    assert not (tmp_path / "none").exists()


def test_a_single_compressed_file_loses_its_suffix(tmp_path: Path) -> None:
    path = tmp_path / "labels.h5.gz"
    path.write_bytes(gzip.compress(b"labels"))
    unpack(path, tmp_path / "out")
    assert contents(tmp_path / "out") == {"labels.h5": b"labels"}


def test_archives_share_a_folder_and_do_not_overwrite_unless_asked(tmp_path: Path) -> None:
    out = tmp_path / "out"
    unpack(make_tar(tmp_path / "1.tar", {"a/1.txt": b"1"}), out)
    unpack(make_tar(tmp_path / "2.tar", {"a/2.txt": b"2"}), out)
    again = make_tar(tmp_path / "3.tar", {"a/3.txt": b"3", "a/1.txt": b"new"})
    with pytest.raises(DataError, match=r"1\.txt is there already; nothing was unpacked"):
        unpack(again, out)
    assert contents(out) == {"a/1.txt": b"1", "a/2.txt": b"2"}
    unpack(again, out, replace=True)
    assert contents(out) == {"a/1.txt": b"new", "a/2.txt": b"2", "a/3.txt": b"3"}


def tar_with(path: Path, change: Callable[[tarfile.TarInfo], None]) -> Path:
    with tarfile.open(path, "w") as archive:
        good = tarfile.TarInfo("good.txt")
        archive.addfile(good, io.BytesIO())
        entry = tarfile.TarInfo("bad")
        change(entry)
        archive.addfile(entry, io.BytesIO(b"x" * entry.size))
    return path


def kind(what: bytes, target: str = "") -> Callable[[tarfile.TarInfo], None]:
    def change(entry: tarfile.TarInfo) -> None:
        entry.type, entry.linkname = what, target

    return change


def zip_with(path: Path, name: str, mode: int = 0) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("good.txt", b"")
        entry = zipfile.ZipInfo(name)
        entry.external_attr = mode << 16
        archive.writestr(entry, b"/etc/passwd")
    return path


MALICIOUS: dict[str, Callable[[Path], Path]] = {
    "absolute tar": lambda d: make_tar(d / "a.tar", {"good.txt": b"", "/tmp/evil": b"x"}),
    "parent tar": lambda d: make_tar(d / "a.tar", {"good.txt": b"", "a/../../evil": b"x"}),
    "backslash tar": lambda d: make_tar(d / "a.tar", {"good.txt": b"", "..\\evil": b"x"}),
    "drive tar": lambda d: make_tar(d / "a.tar", {"good.txt": b"", "C:/evil": b"x"}),
    "symbolic link": lambda d: tar_with(d / "a.tar", kind(tarfile.SYMTYPE, "/etc")),
    "inner link": lambda d: tar_with(d / "a.tar", kind(tarfile.SYMTYPE, "good.txt")),
    "hard link": lambda d: tar_with(d / "a.tar", kind(tarfile.LNKTYPE, "good.txt")),
    "pipe": lambda d: tar_with(d / "a.tar", kind(tarfile.FIFOTYPE)),
    "device": lambda d: tar_with(d / "a.tar", kind(tarfile.CHRTYPE)),
    "absolute zip": lambda d: zip_with(d / "a.zip", "/tmp/evil"),
    "parent zip": lambda d: zip_with(d / "a.zip", "../evil"),
    "linked zip": lambda d: zip_with(d / "a.zip", "link", stat.S_IFLNK | 0o777),
    "the same path twice": lambda d: make_twice(d / "a.tar"),
}


def make_twice(path: Path) -> Path:
    make_tar(path, {"a.txt": b"1"})
    with tarfile.open(path, "a") as archive:
        archive.addfile(tarfile.TarInfo("./a.txt"), io.BytesIO())
    return path


@pytest.mark.parametrize("make", MALICIOUS.values(), ids=MALICIOUS)
def test_archives_that_reach_beyond_their_folder_are_refused(
    tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    (tmp_path / "in").mkdir()
    path = make(tmp_path / "in")
    with pytest.raises(DataError, match="refused") as caught:
        unpack(path, tmp_path / "x" / "out")
    assert str(path) in str(caught.value)
    assert contents(tmp_path) == {f"in/{path.name}": path.read_bytes()}


def test_bombs_are_refused_by_what_comes_out_of_them(tmp_path: Path) -> None:
    bomb = make_zip(tmp_path / "bomb.zip", {"zeros": bytes(100_000)})
    with pytest.raises(DataError, match=r"unpacks to more than 50,000 bytes; refused as a bomb"):
        unpack(bomb, tmp_path / "out", limits=Limits(50_000))
    packed = tmp_path / "zeros.gz"
    packed.write_bytes(gzip.compress(bytes(100_000)))
    with pytest.raises(DataError, match="refused as a bomb"):
        unpack(packed, tmp_path / "out", limits=Limits(50_000))
    many = make_tar(tmp_path / "many.tar", {f"{i}.txt": b"" for i in range(11)})
    with pytest.raises(DataError, match="holds more than 10 files; refused"):
        unpack(many, tmp_path / "out", limits=Limits(50_000, files=10))
    assert not (tmp_path / "out").exists()
    assert Limits.of(bomb).bytes == 2**26  # 64 MiB from whatever is small
    large = tmp_path / "large.tar"
    with large.open("wb") as file:
        file.truncate(10**6)
    assert Limits.of(large).bytes == 10**8  # and a hundred times the archive from others


def test_broken_archives_are_named_and_leave_nothing(tmp_path: Path) -> None:
    noise = bytes(i * 7919 % 251 for i in range(50_000))
    whole = [
        make_tar(tmp_path / "a.tar", {"n": noise}),
        make_tar(tmp_path / "a.tar.gz", {"n": noise}, "w:gz"),
        make_zip(tmp_path / "a.zip", {"n": noise}),
    ]
    for path in whole:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(DataError, match=rf"a\.{path.name[2:]} is no intact archive.*again"):
            unpack(path, tmp_path / "out")
        path.write_bytes(b"<html>no such file</html>")
        with pytest.raises(DataError, match="is no intact archive"):
            unpack(path, tmp_path / "out")
    changed = make_zip(tmp_path / "b.zip", {"n": noise})
    content = bytearray(changed.read_bytes())
    content[200] ^= 255
    changed.write_bytes(bytes(content))
    with pytest.raises(DataError, match="is no intact archive"):
        unpack(changed, tmp_path / "out")
    plain = make_zip(tmp_path / "c.zip", {"ü": b"n"})  # its local header keeps another name
    plain.write_bytes(plain.read_bytes().replace("ü".encode(), b"\xff\xfe", 1))
    with pytest.raises(DataError, match=r"c\.zip is no intact archive: .* Remove it and fetch"):
        unpack(plain, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size, entry.type = size, kind
    return entry.tobuf(tarfile.USTAR_FORMAT)


MEGABYTE = 2**20
HUGE = 24 * MEGABYTE


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"], ids=["pax", "global", "name", "link"])
@pytest.mark.parametrize("opener", [open, gzip.open, bz2.open, lzma.open])
def test_a_huge_header_of_a_tar_is_refused_before_it_is_read(
    tmp_path: Path, kind: bytes, opener: Callable
) -> None:
    path = tmp_path / "a.tar.gz"
    with opener(path, "wb") as file:
        file.write(header("a", HUGE, kind))
        if opener is not open:  # else it is cut short, and refused by its number already
            for _ in range(HUGE // MEGABYTE):
                file.write(b"a" * MEGABYTE)
        file.write(header("b", 0) + bytes(1024))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="headers of more than 1,048,576 bytes for one file"):
            unpack(path, tmp_path / "out")
        assert tracemalloc.get_traced_memory()[1] < 16 * MEGABYTE  # xz alone takes 8
    finally:
        tracemalloc.stop()
    assert not (tmp_path / "out").exists()


def test_many_headers_for_one_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    long = header("a", 1000, b"L") + b"n" * 1000 + bytes(24)
    path.write_bytes(long * 2000 + header("b", 0) + bytes(1024))
    with pytest.raises(DataError, match=r"headers of more than|no intact archive"):
        unpack(path, tmp_path / "out")


def test_what_is_skipped_of_a_stream_counts_as_well(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.bz2"
    with bz2.open(path, "wb") as file:
        file.write(header("skipped", 8 * MEGABYTE) + bytes(8 * MEGABYTE))
        file.write(header("top/a", 1) + b"a".ljust(512, b"\0") + bytes(1024))
    with pytest.raises(DataError, match=r"unpacks to more than 1,048,576 bytes; refused as a bomb"):
        unpack(path, tmp_path / "out", strip="top", limits=Limits(MEGABYTE))
    assert unpack(path, tmp_path / "out", strip="top") == 1


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, zipfile.ZIP_DEFLATED])
def test_a_zip_of_zeros_is_refused_whatever_packs_it(tmp_path: Path, method: int) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", method) as archive, archive.open("a", "w") as file:
        file.write(bytes(4 * MEGABYTE))
    with pytest.raises(DataError, match="unpacks to more than 1,048,576 bytes"):
        unpack(path, tmp_path / "out", limits=Limits(MEGABYTE))


PLANTED = (
    ".peftbench/pixels/0.npy",
    "./.peftbench/a.json",
    "a/.peftbench/a.json",
    "a/b/.Peftbench",
    ".PEFTBENCH/x",
    ".peftbench./x",
    ".peftbench /x",
    ".peft\u200bbench/x",
    "\uff0epeftbench/x",
    "PEFTBE~1/x",
    ".peftbench::$INDEX_ALLOCATION/x",
)


@pytest.mark.parametrize("name", PLANTED)
@pytest.mark.parametrize("packed", ["a.tar.gz", "a.zip"])
def test_what_is_trusted_beside_data_cannot_be_planted(
    tmp_path: Path, name: str, packed: str
) -> None:
    files = {"a/0.png": b"x", name: b"y"}
    make = make_zip if packed.endswith("zip") else functools.partial(make_tar, mode="w:gz")
    path = make(tmp_path / packed, files)
    for strip in ("", "a"):
        with pytest.raises(DataError, match=r"\.peftbench is where what was derived|leads out of"):
            unpack(path, tmp_path / "out", strip=strip)
        assert not (tmp_path / "out").exists()


def test_an_empty_folder_cannot_be_planted_either(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(header(".peftbench", 0, tarfile.DIRTYPE) + header("a", 0) + bytes(1024))
    with pytest.raises(DataError, match=r"\.peftbench is where what was derived"):
        unpack(path, tmp_path / "out")


def test_names_that_only_look_like_it_are_taken(tmp_path: Path) -> None:
    files = {"peftbench/a": b"1", ".peftbench2/b": b"2", "x.peftbench/c": b"3"}
    assert unpack(make_tar(tmp_path / "a.tar", files), tmp_path / "out") == 3


def test_headers_of_many_small_files_are_no_bomb(tmp_path: Path) -> None:
    files = {f"labels/{number:05d}.txt": b"1" for number in range(300)}
    path = make_tar(tmp_path / "a.tar.xz", files, "w:xz")
    assert unpack(path, tmp_path / "out", limits=Limits(30_000)) == 300


def test_a_name_in_several_lines_is_told_in_one(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(header("first\nsecond\x1b[2J", 9000) + bytes(512))
    with pytest.raises(DataError) as caught:
        unpack(path, tmp_path / "out")
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)

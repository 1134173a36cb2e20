"""Archives are unpacked as they are, or refused as a whole."""

from __future__ import annotations

import gzip
import io
import stat
import tarfile
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
    assert not (tmp_path / "out").exists()
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]

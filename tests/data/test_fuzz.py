"""Damaged files of every kind that data come in: one line, no hang, no growth."""

from __future__ import annotations

import io
import json
import os
import resource
import sys
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features
from support.mutation import COPIES, mutations

from peftbench.data import hdf5, images, matlab, tables
from peftbench.data.layouts import lists
from peftbench.data.manifest import Manifest
from peftbench.data.raw import smallnorb, tfrecord
from peftbench.data.unpack import Limits, unpack
from peftbench.errors import PeftbenchError
from peftbench.spec import DatasetSpec

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

GROWTH = 500 * 2**20  # bytes


def most_memory() -> int:
    """Bytes that this process has had at most."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def bear(data: bytes, read: Callable[[bytes], object], count: int = COPIES) -> None:
    """`read` what is intact, and damaged copies, which it may refuse by our own errors only."""
    read(data)
    before = most_memory()
    refused = 0
    for number, damaged in enumerate(mutations(data, count, seed=0)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read(damaged)
        except PeftbenchError as error:
            refused += 1
            assert "\n" not in str(error), f"copy {number}"
        except Exception as error:
            raise AssertionError(f"copy {number}: {error!r}") from error
    assert refused > 0
    assert most_memory() - before < GROWTH


def picture(kind: str, mode: str = "RGB", **options: object) -> bytes:
    source = np.random.default_rng(0)
    depth = {"I;16": np.uint16, "I": np.int32, "L": np.uint8}.get(mode)
    if depth is not None:
        image = Image.fromarray(source.integers(0, 200, (24, 20)).astype(depth))
    else:
        image = Image.fromarray(source.integers(0, 256, (24, 20, 3), dtype=np.uint8)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


EXIF = Image.Exif()
EXIF[0x0112] = 6
PICTURES = {
    "jpeg": ("JPEG", "RGB", {"exif": EXIF}),
    "jpeg cmyk": ("JPEG", "CMYK", {"progressive": True}),
    "png": ("PNG", "RGB", {"exif": EXIF}),
    "png grey 16": ("PNG", "I;16", {}),
    "png palette": ("PNG", "P", {"transparency": 3}),
    "gif": ("GIF", "P", {"save_all": True, "append_images": [Image.new("P", (20, 24), 7)]}),
    "bmp": ("BMP", "RGB", {}),
    "webp": ("WEBP", "RGB", {"exif": EXIF}),
    "tiff": ("TIFF", "RGB", {"exif": EXIF}),
    "tiff deflate": ("TIFF", "RGB", {"compression": "tiff_deflate"}),
    "tiff lzw": ("TIFF", "L", {"compression": "tiff_lzw"}),
    "tiff signed": ("TIFF", "I", {}),
    "ppm": ("PPM", "RGB", {}),
    "pgm 16": ("PPM", "I;16", {}),
    "avif": ("AVIF", "RGB", {}),
}


@pytest.mark.parametrize("name", list(PICTURES))
def test_pictures(name: str) -> None:
    kind, mode, options = PICTURES[name]
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")

    def read(data: bytes) -> None:
        images.inspect(io.BytesIO(data), "case")
        if images.may_be_wide(data[: images.HEAD]):
            images.extent(io.BytesIO(data), "case")

    bear(picture(kind, mode, **options), read)


def test_manifests() -> None:
    rows = [[f"a/{number}.png", number % 2, "0" * 64] for number in range(8)]
    from peftbench.data.listing import SplitList, rollup_of

    splits = {"train": SplitList.of(rows[:5]), "test": SplitList.of(rows[5:])}
    made = Manifest(
        "a", "A", "s", 1, "g", "l", "own", "here", ("n",), (), ("x", "y"), ".", {"a.csv": "0" * 64},
        splits, "extra\n", rollup_of(splits, "extra\n"),
    )  # fmt: skip

    def read(data: bytes) -> None:
        from peftbench.data import cards

        cards.page(Manifest.from_text(data.decode("utf-8", "surrogateescape"), "here"))

    bear(made.to_text().encode(), read)


def test_tfrecords(tmp_path: Path) -> None:
    pytest.importorskip("google_crc32c", exc_type=ImportError)
    path = tmp_path / "a.tfrecord"

    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    entry = field(1, b"label") + field(2, field(3, field(1, b"\x07\x08")))
    image = field(1, b"image") + field(2, field(1, field(1, b"bytes of it")))
    message = field(1, field(1, entry) + field(1, image))
    assert tfrecord.example(message) == {"label": [7, 8], "image": [b"bytes of it"]}

    def parse(data: bytes) -> None:
        try:
            tfrecord.example(data)
        except ValueError as error:  # its readers name the file
            raise PeftbenchError(str(error)) from error

    bear(message, parse)
    import struct

    length = struct.pack("<Q", len(message))
    sums = [struct.pack("<I", tfrecord.masked(tfrecord.crc32c(part))) for part in (length, message)]

    def read(data: bytes) -> None:
        path.write_bytes(data)
        list(tfrecord.records(path))

    bear((length + sums[0] + message + sums[1]) * 3, read)


def test_lists(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"

    def read(reader: Callable[[Path], object], name: str) -> Callable[[bytes], object]:
        def act(data: bytes) -> object:
            (tmp_path / name).write_bytes(data)
            return reader(tmp_path / name)

        return act

    bear(b"a/0.jpg 3\na/1 b.jpg 0\n" * 8, read(lists.read_list, path.name))
    table = json.dumps({f"a/{number}.jpg": number for number in range(9)}).encode()
    bear(table, read(lists._read_json, "a.json"))


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_tables_of_paths_and_labels(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "a").mkdir()
    rows = ["path,label,split"]
    for number in range(12):
        Image.new("RGB", (2, 2), (number, 0, 0)).save(tmp_path / "a" / f"{number}.png")
        split = "test" if number > 8 else "train"
        rows.append(f'"a/{number}.png",{"x" if number % 2 else "y"},{split}')
    text = "\n".join(rows) + "\n"
    if suffix == ".tsv":
        text = text.replace(",", "\t")
    path = tmp_path / f"list{suffix}"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        tables.read_table(path, DatasetSpec("folder", reader="folder", root=str(path)))

    bear(text.encode(), read)


def archive(name: str, mode: str, form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    files = {"top/a.txt": b"first", f"top/{'n' * 150}.txt": b"second" * 99, "c.txt": b""}
    if name.endswith(".zip"):
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
            for path, content in files.items():
                packed.writestr(path, content)
    else:
        with tarfile.open(fileobj=buffer, mode=mode, format=form) as tar:
            for path, content in files.items():
                entry = tarfile.TarInfo(path)
                entry.size, entry.pax_headers = len(content), {"comment": "c" * 40}
                tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "mode", "form"),
    [
        ("a.tar", "w:", tarfile.PAX_FORMAT),
        ("a.tar", "w:", tarfile.GNU_FORMAT),
        ("a.tar.gz", "w:gz", tarfile.PAX_FORMAT),
        ("a.tar.bz2", "w:bz2", tarfile.PAX_FORMAT),
        ("a.tar.xz", "w:xz", tarfile.PAX_FORMAT),
        ("a.zip", "", 0),
    ],
)
def test_archives(tmp_path: Path, name: str, mode: str, form: int) -> None:
    path, number = tmp_path / name, iter(range(10 * COPIES))

    def read(data: bytes) -> None:
        path.write_bytes(data)
        unpack(path, tmp_path / f"out{next(number)}", limits=Limits(2**22, 100))

    bear(archive(name, mode, form), read)


def test_hdf5_files(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", exc_type=ImportError)
    path, number = tmp_path / "a.h5", iter(range(10 * COPIES))
    with h5py.File(path, "w") as file:
        file.create_dataset("y", data=np.arange(600).reshape(100, 6), chunks=(10, 6), compression=4)

    def read(data: bytes) -> None:
        place = tmp_path / f"{next(number)}.h5"  # the library knows a file that is open by its name
        place.write_bytes(data)
        try:
            hdf5.whole(place, "y")
        finally:
            place.unlink()

    bear(path.read_bytes(), read)


def test_matrices_of_smallnorb(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    head = np.array([0x1E3D4C54, 2, 5, 4, 1], dtype="<i4")

    def read(data: bytes) -> None:
        path.write_bytes(data)
        smallnorb.read_matrix(path)

    bear(head.tobytes() + np.arange(20, dtype="<i4").tobytes(), read)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a new process for each copy takes seconds")
def test_matlab_files(tmp_path: Path, forked_matlab: list[bool]) -> None:
    """A fork takes as long as reading five files of other kinds, so there are fewer copies."""
    scipy = pytest.importorskip("scipy.io", exc_type=ImportError)
    path = tmp_path / "a.mat"
    records = np.array([(1, "x.jpg"), (2, "y.jpg")], dtype=[("class", "O"), ("fname", "O")])
    names = np.array(["a/b.jpg", "c/d.jpg"], dtype=object)

    def read(data: bytes) -> None:
        path.write_bytes(data)
        found = matlab.read(path)
        if "labels" in found:
            matlab.whole_numbers(path, found, "labels")

    for packed in (False, True):
        content = {"labels": np.arange(9), "file_list": names, "annotations": records}
        scipy.savemat(path, content, do_compression=packed)
        bear(path.read_bytes(), read, COPIES // 4)
    assert not forked_matlab[0]

"""What comes out of a small file of somebody else is bounded in every reader of data."""

from __future__ import annotations

import gzip
import io
import json
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from peftbench.data import hdf5, manifest, matlab, unpack
from peftbench.data.layouts import lists
from peftbench.data.raw import clevr, dsprites, shards, smallnorb, tfrecord
from peftbench.errors import DataError

DEEP = "[" * 200_000


def matrix(name: str, kind: int, shape: tuple[int, ...], content: bytes = b"") -> bytes:
    """A variable of a MATLAB file of version 5, of whatever length its content is."""
    title = name.encode().ljust(8, b"\0")
    body = struct.pack("<IIII", 6, 8, kind, 0)
    body += struct.pack("<II", 5, 4 * len(shape)) + struct.pack(f"<{len(shape)}i", *shape)
    body += struct.pack("<II", 1, len(name)) + title + content
    return struct.pack("<II", 14, len(body)) + body


def mat(path: Path, *variables: bytes) -> Path:
    path.write_bytes(b"MATLAB 5.0".ljust(124) + struct.pack("<H", 0x0100) + b"IM")
    with path.open("ab") as file:
        for variable in variables:
            file.write(variable)
    return path


def packed(data: bytes) -> bytes:
    inner = zlib.compress(data, 9)
    return struct.pack("<II", 15, len(inner)) + inner


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files may unpack to 64 kB, so that bombs can be small as well."""
    monkeypatch.setattr(unpack, "SMALLEST_LIMIT", 2**16)


def test_a_variable_of_a_matlab_file_unpacks_to_no_more_than_any_archive(
    tmp_path: Path, strict: None
) -> None:
    pytest.importorskip("scipy", exc_type=ImportError)
    zeros = struct.pack("<II", 2, 1 << 20) + bytes(1 << 20)
    path = mat(tmp_path / "a.mat", packed(matrix("labels", 9, (1, 1 << 20), zeros)))
    assert path.stat().st_size < 3000
    with pytest.raises(DataError, match="it unpacks to far more than it has"):
        matlab.read(path)


def test_cells_that_are_only_announced_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("scipy", exc_type=ImportError)
    path = mat(tmp_path / "a.mat", matrix("labels", 1, (1, 300_000_000)))
    with pytest.raises(DataError, match="labels announces 300,000,000 cells"):
        matlab.read(path)


def test_a_matlab_file_that_is_as_published_is_read(tmp_path: Path) -> None:
    scipy = pytest.importorskip("scipy.io", exc_type=ImportError)
    labels = np.arange(5000) % 7
    scipy.savemat(tmp_path / "a.mat", {"labels": labels}, do_compression=True)
    assert matlab.column(tmp_path / "a.mat", matlab.read(tmp_path / "a.mat"), "labels") == list(
        labels
    )


def test_an_array_that_was_never_written_is_not_made(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", exc_type=ImportError)
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("y", shape=(10**10,), dtype="f8", chunks=(1000,))
        file.create_dataset("x", shape=(10**10,), dtype="u1", chunks=(2**31,))
    assert path.stat().st_size < 100_000
    with pytest.raises(DataError, match="it has 80,000,000,000 bytes, more than"):
        hdf5.whole(path, "y")
    with pytest.raises(DataError, match="it is packed in pieces of 2,147,483,648 bytes"):
        hdf5.array(path, "x")


def test_an_array_of_another_file_is_not_read(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", exc_type=ImportError)
    (tmp_path / "secret").write_bytes(b"s" * 64)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["y"] = np.arange(4)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["linked"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "y")
        file.create_dataset("raw", (64,), "u1", external=[(str(tmp_path / "secret"), 0, 64)])
        layout = h5py.VirtualLayout((4,), "i8")
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "y", shape=(4,))
        file.create_virtual_dataset("virtual", layout)
        file["own"] = np.arange(3)
        file["text"] = "word"
    for name in ("linked", "raw", "virtual"):
        with pytest.raises(DataError, match="it lies in another file"):
            hdf5.whole(tmp_path / "a.h5", name)
    with pytest.raises(DataError, match="it holds no numbers"):
        hdf5.whole(tmp_path / "a.h5", "text")
    assert hdf5.whole(tmp_path / "a.h5", "own").tolist() == [0, 1, 2]


def test_a_packed_matrix_of_smallnorb_is_bounded(tmp_path: Path, strict: None) -> None:
    path = tmp_path / "a.mat.gz"
    with gzip.open(path, "wb", compresslevel=9) as file:
        file.write(bytes(1 << 20))
    with pytest.raises(DataError, match="unpacks to far more than was published"):
        smallnorb.read_matrix(path)


@pytest.mark.parametrize(
    "header",
    [
        {"descr": "<i8", "fortran_order": False, "shape": (10**10, 6)},
        {"descr": "|O", "fortran_order": False, "shape": (2, 6)},
        {"descr": "<i8", "fortran_order": False, "shape": (-1, 6)},
    ],
)
def test_factors_that_are_only_announced_are_refused(tmp_path: Path, header: dict) -> None:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, header)
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("latents_classes.npy", buffer.getvalue() + bytes(96))
    with pytest.raises(DataError, match="is not the published file"):
        dsprites._factors(path)


def field(number: int, content: bytes) -> bytes:
    length, size = len(content), b""
    while length > 127:
        size += bytes([length & 127 | 128])
        length >>= 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + content


@pytest.mark.parametrize("kind", [1, 2, 3], ids=["bytes", "floats", "numbers"])
def test_a_feature_of_very_many_values_is_refused(
    kind: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tfrecord, "MOST_VALUES", 1000)
    many = 1001
    content = {1: field(1, b"") * many, 2: field(1, bytes(4 * many)), 3: field(1, bytes(many))}
    entry = field(1, b"x") + field(2, field(kind, content[kind]))
    with pytest.raises(ValueError, match="more than 1,000 values"):
        tfrecord.example(field(1, field(1, entry)))


def test_text_that_nests_deeply_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(DEEP)
    (tmp_path / "dataset_info.json").write_text(DEEP)
    for reader in (clevr.read_scenes, lists._read_json, lists._build_notes):
        with pytest.raises(DataError, match=r"a\.json"):
            reader(path)
    with pytest.raises(DataError, match="does not describe a prepared data set"):
        shards.prepared(tmp_path)
    with pytest.raises(DataError, match="is damaged"):
        manifest.Manifest.from_text(DEEP, "here")


@pytest.mark.parametrize("length", [10**30, float("inf"), float("nan"), -1])
def test_numbers_of_records_that_cannot_be_are_refused(tmp_path: Path, length: float) -> None:
    split = {"name": "train", "shardLengths": [length]}
    content = {"name": "dtd", "version": "3.0.1", "splits": [split]}
    (tmp_path / "dataset_info.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="does not describe a prepared data set"):
        shards.prepared(tmp_path)

"""Zip files and pickles of torch as descriptions of tensors."""

from __future__ import annotations

import io
import mmap
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peftbench import untrusted
from peftbench.backbones.checkpoints import pickles
from peftbench.backbones.checkpoints.pickled import MOST_NUMBERS, WIDTHS, Name, Refused, Storage

MOST_PICKLE = 2**30  # bytes of the pickle inside a zip file; the numbers lie beside it
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file of torch < 1.6
STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
}
FOREIGN = (  # first bytes of files that are taken for weights
    (b"version https://git-lfs", "a pointer of Git LFS and not the weights: run `git lfs pull`"),
    (b"<!doctype html", "a web page and not the weights: fetch the file itself"),
    (b"<html", "a web page and not the weights: fetch the file itself"),
    (b"\x89hdf", "an HDF5 file of Keras: convert it to safetensors"),
    (b"\x1f\x8b", "packed with gzip: unpack it first"),
    (b"7z\xbc\xaf", "packed with 7-Zip: unpack it first"),
    (b"rar!", "packed with RAR: unpack it first"),
    (b"{", "JSON; where it is the index of a split checkpoint, join the parts into one file"),
)


@dataclass(frozen=True)
class Unpickled:
    """The content of a pickle, and how the numbers of one of its storages are read."""

    content: Any
    numbers: Callable[[Storage], Tensor]


def read_zip(path: Path) -> Unpickled:
    """A file of torch >= 1.6: one pickle, and a member with the numbers of each storage."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        untrusted.check_directory(file)
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: info for info in archive.infolist()}
        pickled = [n for n in members if n.count("/") == 1 and n.endswith("/data.pkl")]
        if len(pickled) != 1:
            raise ValueError("a zip file without the weights of torch in it")
        folder = pickled[0].removesuffix("data.pkl")
        if f"{folder}constants.pkl" in members:
            raise Refused("it is a TorchScript archive, which holds code")
        if any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
            raise ValueError("a zip file with packed members, which torch does not write")
        if sum(info.file_size for info in members.values()) > size:
            raise ValueError("its members announce more bytes than the file has")
        order = folder + "byteorder"
        if order in members and archive.read(order) not in (b"little", b""):
            raise ValueError("its numbers are in the byte order of another machine")
        pickle = untrusted.read_member(archive, pickled[0], MOST_PICKLE)

    def stored(identity: Any) -> Storage:
        storage = _storage(identity)
        member = members.get(f"{folder}data/{storage.key}")
        wanted = storage.numbers * WIDTHS[STORAGES[storage.kind]]
        if member is None or member.file_size < wanted:
            has = "none" if member is None else f"{member.file_size:,}"
            raise ValueError(f"a tensor in it needs {wanted:,} bytes and there are {has}")
        return storage

    def numbers(storage: Storage) -> Tensor:
        data = _member(path, members[f"{folder}data/{storage.key}"])
        return torch.frombuffer(data, dtype=torch.uint8)

    return Unpickled(pickles.read(io.BytesIO(pickle), stored), _once(numbers))


def _once(numbers: Callable[[Storage], Tensor]) -> Callable[[Storage], Tensor]:
    """Each storage is read once, and all its tensors are views of it."""
    known: dict[str, Tensor] = {}

    def read_once(storage: Storage) -> Tensor:
        if storage.key not in known:
            known[storage.key] = numbers(storage)
        return known[storage.key]

    return read_once


def _member(path: Path, info: zipfile.ZipInfo) -> bytearray:
    """The bytes of a stored member, without reading the directory of the zip file again."""
    data = bytearray(info.file_size)
    with open(path, "rb") as file:
        file.seek(info.header_offset)
        header = file.read(30)  # of fixed length; its last two numbers are lengths
        if len(header) != 30 or header[:4] != b"PK\x03\x04":
            raise zipfile.BadZipFile("a member of it does not begin where its directory says")
        name, extra = struct.unpack("<HH", header[26:])
        file.seek(name + extra, 1)
        if file.readinto(data) != len(data):
            raise EOFError("it ends in the middle of a tensor")
    if zlib.crc32(data) != info.CRC:
        raise zipfile.BadZipFile("the checksum of a tensor is wrong")
    return data


def read_pickles(path: Path, start: bytes) -> Unpickled:
    """A file of torch < 1.6, or a plain pickle of numpy arrays."""
    _check_start(start)
    storages: dict[str, Storage] = {}

    def stored(identity: Any) -> Any:
        if isinstance(identity, tuple) and identity[:1] == ("module",) and len(identity) > 1:
            return identity[1]  # a class, with its source code beside it
        storage = _storage(identity)
        if storages.setdefault(storage.key, storage) != storage:
            raise ValueError("two of its storages share a key")
        return storage

    with (
        open(path, "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        content = pickles.read(data, stored)  # type: ignore[arg-type]
        if content != LEGACY_MAGIC:
            if storages:
                raise ValueError("its tensors lie in another file")
            return Unpickled(content, _no_numbers)
        pickles.read(data, stored)  # type: ignore[arg-type]
        _check_byte_order(pickles.read(data, stored))  # type: ignore[arg-type]
        content = pickles.read(data, stored)  # type: ignore[arg-type]
        keys = pickles.read(data, stored)  # type: ignore[arg-type]
        places = _places(data, keys, storages)

    def numbers(storage: Storage) -> Tensor:
        offset, length = places[storage.key]
        raw = bytearray(length)
        with open(path, "rb") as opened:
            opened.seek(offset)
            if opened.readinto(raw) != length:
                raise EOFError("it ends in the middle of a tensor")
        return torch.frombuffer(raw, dtype=torch.uint8)

    return Unpickled(content, _once(numbers))


def _check_start(start: bytes) -> None:
    """Refuse a file whose first bytes are of no pickle, and say what they are of."""
    lowered = start.lower()
    for magic, what in FOREIGN:
        if lowered.startswith(magic):
            raise ValueError(f"it is {what}")
    if not start.startswith((b"\x80", b"(", b"c", b"]", b"}")):
        raise ValueError("it is no file of torch, numpy or safetensors")


def _check_byte_order(system: Any) -> None:
    """`system` is what a file says of the machine that wrote it."""
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("its numbers are in the byte order of another machine")


def _places(
    data: mmap.mmap, keys: Any, storages: Mapping[str, Storage]
) -> dict[str, tuple[int, int]]:
    """First byte and number of bytes of each storage; they lie one behind another from here on."""
    places: dict[str, tuple[int, int]] = {}
    at = data.tell()
    for key in keys if isinstance(keys, list) else []:
        if not isinstance(key, str) or key in places:
            raise ValueError("its list of storages is damaged")
        known = storages.get(key)
        (count,) = struct.unpack("<q", data[at : at + 8])
        width = WIDTHS[STORAGES[known.kind]] if known else 0
        at += 8
        if known is None or count < known.numbers or at + count * width > len(data):
            raise ValueError("it ends before its tensors do")
        places[key] = (at, known.numbers * width)
        at += count * width
    if storages.keys() - places.keys():
        raise ValueError("it lacks the numbers of some tensors")
    return places


def _no_numbers(storage: Storage) -> Tensor:
    raise ValueError("its tensors lie in another file")


def _storage(identity: Any) -> Storage:
    """Of a persistent id: 'storage', class, key, device, count, and in old files a part of it."""
    if (
        not isinstance(identity, tuple)
        or len(identity) < 5
        or identity[0] != "storage"
        or not isinstance(identity[1], Name)
        or identity[1].qualified not in STORAGES
        or not isinstance(identity[2], str)
        or type(identity[4]) is not int
        or not 0 <= identity[4] <= MOST_NUMBERS
    ):
        kind = identity[1] if isinstance(identity, tuple) and len(identity) > 1 else ""
        named = f": {kind.qualified[:40]}" if isinstance(kind, Name) else ""
        raise ValueError(f"a storage in it is of a kind that is not read{named}")
    if len(identity) > 5 and identity[5] is not None:
        raise ValueError("a storage in it is a part of another one")
    return Storage(identity[2], identity[1].qualified, identity[4])

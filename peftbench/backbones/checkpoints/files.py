"""Files of weights as tables of tensors: whatever they hold, nothing runs and nothing explodes.

A table gives names and shapes at once and reads the numbers of a tensor when they are asked for.
"""

from __future__ import annotations

import functools
import io
import math
import mmap
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from peftbench import untrusted
from peftbench.backbones.checkpoints import pickles
from peftbench.errors import WeightsError

MOST_PICKLE = 2**30  # bytes of the pickle inside a zip file; the numbers lie beside it
MOST_ENTRIES = 2_000_000  # visited in one file: a pickle can refer to one object many times
MOST_DEPTH = 40  # of nested mappings, and dots in one name
MOST_TENSORS = 200_000  # of one file; the largest that people have, with optimizers, have thousands
MOST_CHARACTERS = 16 * 2**20  # of all names together
MOST_HEADER = 16 * 2**20  # bytes; of a thousand tensors it has 100,000
# tensors may share numbers, as tied weights and copies do; what is more than this many times the
# file would fill the memory when it is read
MOST_SHARED = 4
# a .npz of true weights hardly shrinks when it is packed; what unpacks to more is no such file
MOST_GROWTH = 20  # times the file's size
ALWAYS_ALLOWED = 256 * 2**20  # bytes
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
class Entry:
    """One tensor of a file."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]
    size: int = 0  # bytes of its numbers


def check_file(path: Path) -> None:
    """Refuse a path that names no plain file.

    Raises:
        WeightsError: it is absent, a folder, a pipe or a device, or may not be read.
    """
    try:
        untrusted.check_plain_file(path)
        with open(path, "rb"):
            pass
    except FileNotFoundError as e:
        raise WeightsError(
            f"backbone.checkpoint={_shown(path)} does not exist. Give the path of a .safetensors, "
            ".npz or .pth file."
        ) from e
    except ValueError as e:
        inside = sorted(
            p.name
            for p in (path.iterdir() if path.is_dir() else ())
            if p.suffix in (".safetensors", ".pth", ".pt", ".bin", ".npz", ".ckpt")
        )
        found = f" It holds {untrusted.printable(', '.join(inside[:3]))}." if inside else ""
        what = "is a folder" if path.is_dir() else f"cannot be used: {e}"
        raise WeightsError(
            f"backbone.checkpoint={_shown(path)} {what}. Give the path of the .safetensors, .npz "
            f"or .pth file itself.{found}"
        ) from e
    except OSError as e:
        raise WeightsError(
            f"backbone.checkpoint={_shown(path)} cannot be opened ({e.strerror}). Give yourself "
            "the right to read it, or give the path of another file."
        ) from e


def read(path: Path) -> dict[str, Entry]:
    """Every tensor of a file under its full name: keys of nested mappings, joined with dots.

    Raises:
        WeightsError: the file is absent, damaged, too large for what it holds, or holds code or no
            tensors.
    """
    check_file(path)
    try:
        with open(path, "rb") as file:
            start = file.read(64)
        if path.suffix == ".safetensors" or (start[8:9] == b"{" and start[:1] != b"\x80"):
            return _checked(_read_safetensors(path))
        zipped = start.startswith(b"PK")
        found = _read_zip(path) if zipped else _read_pickles(path, start)
        table = _checked(_flattened(found))
        together, size = sum(entry.size for entry in table.values()), path.stat().st_size
        if together > ALWAYS_ALLOWED + MOST_SHARED * size:
            raise ValueError(f"its tensors have {together:,} bytes and the file {size:,}")
    except READING as e:
        raise corrupt(path, e) from e
    if not any(math.prod(entry.shape) > 1 for entry in table.values()):
        raise WeightsError(
            f"{_shown(path)} holds no dictionary of tensors{_described(found.content)}. Save a "
            "state dict and retry."
        )
    return table


READING = (
    ArithmeticError,
    EOFError,
    LookupError,
    NotImplementedError,
    OSError,
    RuntimeError,
    SafetensorError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


def read_entry(path: Path, name: str, entry: Entry) -> Tensor:
    """The numbers of one tensor.

    Raises:
        WeightsError: they are damaged.
    """
    try:
        return entry.read()
    except READING as e:
        raise corrupt(path, e, f"tensor {name!r}: ") from e


def corrupt(path: Path, error: Exception, where: str = "") -> WeightsError:
    """One line about a file that cannot be read."""
    lines = (str(error).strip() or type(error).__name__).splitlines()
    found = untrusted.printable(where + lines[0].rstrip("."))
    if len(found) > 160:
        found = found[:160].rpartition(" ")[0] + " ..."
    if isinstance(error, pickles.Refused):
        advice = (
            "Nothing of it was run. Where you trust its source, load it there with torch, save "
            "`model.state_dict()` as safetensors, and give that file"
        )
    else:
        advice = (
            "The file is incomplete, damaged or of another kind; fetch it again or convert it to "
            "safetensors"
        )
    return WeightsError(f"{_shown(path)} cannot be read as weights ({found}). {advice}.")


def _shown(path: Path) -> str:
    return untrusted.printable(str(path))


def _described(content: Any) -> str:
    if isinstance(content, Mapping) and content:
        keys = ", ".join(repr(str(key)[:40]) for key in list(content)[:6])  # texts or numbers
        return untrusted.printable(f", only the keys {keys}")
    if isinstance(content, pickles.Inert):
        return untrusted.printable(f", only a {content.name}")
    return ""


# ------------------------------------------------------------------- one file of each kind


@dataclass(frozen=True)
class _Found:
    """The content of a pickle, and how the numbers of one of its storages are read."""

    content: Any
    numbers: Callable[[pickles.Storage], Tensor]


def _read_safetensors(path: Path) -> dict[str, Entry]:
    with open(path, "rb") as opened:
        start = opened.read(8)
    if len(start) == 8 and (header := int.from_bytes(start, "little")) > MOST_HEADER:
        raise ValueError(f"its header announces {header:,} bytes")
    file = safe_open(path, "pt")  # closed with the last tensor that is read of it
    shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    if not shapes:
        raise ValueError("it holds no tensors")
    return {
        name: Entry(shape, functools.partial(file.get_tensor, name))
        for name, shape in shapes.items()
    }


MANY = "it has more tensors, or longer names, than weights have"


def _checked(table: dict[str, Entry]) -> dict[str, Entry]:
    """Refuse what would take forever or fill the memory to look through."""
    if len(table) > MOST_TENSORS or sum(map(len, table)) > MOST_CHARACTERS:
        raise ValueError(MANY)
    if any(name.count(".") > MOST_DEPTH for name in table):
        raise ValueError("the name of a tensor in it has too many parts")
    return table


def _read_zip(path: Path) -> _Found:
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
            raise pickles.Refused("it is a TorchScript archive, which holds code")
        if any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
            raise ValueError("a zip file with packed members, which torch does not write")
        if sum(info.file_size for info in members.values()) > size:
            raise ValueError("its members announce more bytes than the file has")
        order = folder + "byteorder"
        if order in members and archive.read(order) not in (b"little", b""):
            raise ValueError("its numbers are in the byte order of another machine")
        pickle = untrusted.read_member(archive, pickled[0], MOST_PICKLE)

    def stored(identity: Any) -> pickles.Storage:
        storage = _storage(identity)
        member = members.get(f"{folder}data/{storage.key}")
        wanted = storage.numbers * pickles.WIDTHS[STORAGES[storage.kind]]
        if member is None or member.file_size < wanted:
            has = "none" if member is None else f"{member.file_size:,}"
            raise ValueError(f"a tensor in it needs {wanted:,} bytes and there are {has}")
        return storage

    def numbers(storage: pickles.Storage) -> Tensor:
        data = _member(path, members[f"{folder}data/{storage.key}"])
        return torch.frombuffer(data, dtype=torch.uint8)

    return _Found(pickles.read(io.BytesIO(pickle), stored), _once(numbers))


def _once(numbers: Callable[[pickles.Storage], Tensor]) -> Callable[[pickles.Storage], Tensor]:
    """Each storage is read once, and all its tensors are views of it."""
    known: dict[str, Tensor] = {}

    def read_once(storage: pickles.Storage) -> Tensor:
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


def _read_pickles(path: Path, start: bytes) -> _Found:
    """A file of torch < 1.6, or a plain pickle of numpy arrays."""
    lowered = start.lower()
    for magic, what in FOREIGN:
        if lowered.startswith(magic):
            raise ValueError(f"it is {what}")
    if not start.startswith((b"\x80", b"(", b"c", b"]", b"}")):
        raise ValueError("it is no file of torch, numpy or safetensors")
    storages: dict[str, pickles.Storage] = {}

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
            return _Found(content, _no_numbers)
        pickles.read(data, stored)  # type: ignore[arg-type]
        system = pickles.read(data, stored)  # type: ignore[arg-type]
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise ValueError("its numbers are in the byte order of another machine")
        content = pickles.read(data, stored)  # type: ignore[arg-type]
        keys = pickles.read(data, stored)  # type: ignore[arg-type]
        places: dict[str, tuple[int, int]] = {}
        at = data.tell()
        for key in keys if isinstance(keys, list) else []:
            if not isinstance(key, str) or key in places:
                raise ValueError("its list of storages is damaged")
            known = storages.get(key)
            (count,) = struct.unpack("<q", data[at : at + 8])
            width = pickles.WIDTHS[STORAGES[known.kind]] if known else 0
            at += 8
            if known is None or count < known.numbers or at + count * width > len(data):
                raise ValueError("it ends before its tensors do")
            places[key] = (at, known.numbers * width)
            at += count * width
        if storages.keys() - places.keys():
            raise ValueError("it lacks the numbers of some tensors")

    def numbers(storage: pickles.Storage) -> Tensor:
        offset, length = places[storage.key]
        found = bytearray(length)
        with open(path, "rb") as opened:
            opened.seek(offset)
            if opened.readinto(found) != length:
                raise EOFError("it ends in the middle of a tensor")
        return torch.frombuffer(found, dtype=torch.uint8)

    return _Found(content, _once(numbers))


def _no_numbers(storage: pickles.Storage) -> Tensor:
    raise ValueError("its tensors lie in another file")


def _storage(identity: Any) -> pickles.Storage:
    """Of a persistent id: 'storage', class, key, device, count, and in old files a part of it."""
    if (
        not isinstance(identity, tuple)
        or len(identity) < 5
        or identity[0] != "storage"
        or not isinstance(identity[1], pickles.Name)
        or identity[1].qualified not in STORAGES
        or not isinstance(identity[2], str)
        or type(identity[4]) is not int
        or not 0 <= identity[4] <= pickles.MOST_NUMBERS
    ):
        kind = identity[1] if isinstance(identity, tuple) and len(identity) > 1 else ""
        named = f": {kind.qualified[:40]}" if isinstance(kind, pickles.Name) else ""
        raise ValueError(f"a storage in it is of a kind that is not read{named}")
    if len(identity) > 5 and identity[5] is not None:
        raise ValueError("a storage in it is a part of another one")
    return pickles.Storage(identity[2], identity[1].qualified, identity[4])


# ------------------------------------------------------------------- names


def _flattened(found: _Found) -> dict[str, Entry]:
    """The tensors of a pickle by their full names."""
    table: dict[str, Entry] = {}
    visited = characters = 0

    def collect(value: Any, name: str, depth: int) -> None:
        nonlocal visited, characters
        visited += 1
        if visited > MOST_ENTRIES or depth > MOST_DEPTH:
            raise ValueError("it is nested without end")
        if isinstance(value, pickles.StoredTensor | pickles.PickledArray):
            entry = _entry(value, found)
            if entry is not None:
                characters += len(name)
                table[name] = entry
                if characters > MOST_CHARACTERS:
                    raise ValueError(MANY)
        elif isinstance(value, Mapping):
            for key, inner in value.items():
                below = f"{name}.{key}" if name else str(key)
                collect(inner, below, depth + 1)
        elif isinstance(value, pickles.Inert):
            collect(value.items, name, depth + 1)
            if isinstance(value.state, Mapping):
                # of a whole pickled module, what its state dict would have in it
                parts = [value.state.get(part) for part in ("_parameters", "_buffers", "_modules")]
                if all(isinstance(part, Mapping) for part in parts):
                    for part in parts:
                        collect(part, name, depth + 1)
        elif isinstance(value, list | tuple) and any(
            isinstance(v, Mapping | pickles.StoredTensor) for v in value
        ):
            for i, inner in enumerate(value):
                collect(inner, f"{name}.{i}" if name else str(i), depth + 1)

    collect(found.content, "", 0)
    return table


def _entry(value: pickles.StoredTensor | pickles.PickledArray, found: _Found) -> Entry | None:
    """A tensor of a pickle, or None for an array of no numbers."""
    if isinstance(value, pickles.StoredTensor):
        width = pickles.WIDTHS[value.dtype or STORAGES[value.storage.kind]]
        size = math.prod(value.shape) * width
        return Entry(value.shape, lambda: _strided(value, found.numbers(value.storage)), size)
    if not value.dtype:
        return None
    size = math.prod(value.shape) * np.dtype(value.dtype).itemsize
    return Entry(value.shape, lambda: _from_array(value), size)


def _strided(tensor: pickles.StoredTensor, raw: Tensor) -> Tensor:
    dtype = getattr(torch, tensor.dtype or STORAGES[tensor.storage.kind])
    if not math.prod(tensor.shape):
        return torch.empty(tensor.shape, dtype=dtype)
    width = dtype.itemsize
    whole = raw[: raw.numel() - raw.numel() % width].view(dtype)
    return whole.as_strided(tensor.shape, tensor.stride, tensor.offset)


def _from_array(array: pickles.PickledArray) -> Tensor:
    dtype = np.dtype(array.dtype)
    if math.prod(array.shape) * dtype.itemsize != len(array.data):
        raise ValueError("an array in it has another size than its bytes")
    data = array.data.encode("latin1") if isinstance(array.data, str) else array.data
    flat = np.frombuffer(data, dtype=dtype).astype(dtype.newbyteorder("="))
    return torch.from_numpy(flat.reshape(array.shape, order="F" if array.fortran else "C").copy())


# ------------------------------------------------------------------- .npz


class _Recorded(io.FileIO):
    """A file that knows from which places it was read."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "rb")
        self.places: set[int] = set()

    def read(self, size: int | None = -1, /) -> bytes:
        self.places.add(self.tell())
        return super().read(-1 if size is None else size) or b""


def read_npz_into(path: Path, fill: Callable[[Any], object], needed: int) -> list[str]:
    """Let `fill`, which needs about that many bytes, read a `.npz` whose sizes were checked; the
    names that it did not look at.

    Raises:
        WeightsError: the file is damaged, or unpacks to much more than weights do.
        KeyError, AssertionError: of `fill`: the file is for another model.
    """
    check_file(path)
    try:
        size = path.stat().st_size
        most = max(ALWAYS_ALLOWED, size, min(MOST_GROWTH * size, ALWAYS_ALLOWED + 2 * needed))
        names = list(untrusted.read_npz(path, most))
        with zipfile.ZipFile(path) as archive:
            places = {i.filename.removesuffix(".npy"): i.header_offset for i in archive.infolist()}
    except (*READING, TypeError, SyntaxError) as e:
        raise corrupt(path, e) from e
    with _Recorded(path) as file:
        fill(file)
        return [name for name in names if places[name] not in file.places]


def template(name: str) -> str:
    """`name` without its numbers, to count the tensors of one kind."""
    return re.sub(r"\d+", "#", name)

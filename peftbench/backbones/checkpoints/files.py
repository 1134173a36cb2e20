"""Files of weights as tables of tensors: whatever they hold, nothing runs and nothing explodes.

A table gives names and shapes at once and reads the numbers of a tensor when they are asked for.
"""

from __future__ import annotations

import functools
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from peftbench import untrusted
from peftbench.backbones.checkpoints.containers import STORAGES, Unpickled, read_pickles, read_zip
from peftbench.backbones.checkpoints.paths import check_file, shown
from peftbench.backbones.checkpoints.pickled import (
    WIDTHS,
    Inert,
    PickledArray,
    Refused,
    StoredTensor,
)
from peftbench.errors import WeightsError

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


@dataclass(frozen=True)
class StoredEntry:
    """One tensor of a file."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]
    size: int = 0  # bytes of its numbers


def read(path: Path) -> dict[str, StoredEntry]:
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
        unpickled = read_zip(path) if zipped else read_pickles(path, start)
        table = _checked(_flattened(unpickled))
        together, size = sum(entry.size for entry in table.values()), path.stat().st_size
        if together > ALWAYS_ALLOWED + MOST_SHARED * size:
            raise ValueError(f"its tensors have {together:,} bytes and the file {size:,}")
    except READING as e:
        raise corrupt(path, e) from e
    if not any(math.prod(entry.shape) > 1 for entry in table.values()):
        raise WeightsError(
            f"{shown(path)} holds no dictionary of tensors{_described(unpickled.content)}. Save a "
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


def read_entry(path: Path, name: str, entry: StoredEntry) -> Tensor:
    """The numbers of one tensor, in its shape (...).

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
    reason = untrusted.printable(where + lines[0].rstrip("."))
    if len(reason) > 160:
        reason = reason[:160].rpartition(" ")[0] + " ..."
    if isinstance(error, Refused):
        advice = (
            "Nothing of it was run. Where you trust its source, load it there with torch, save "
            "`model.state_dict()` as safetensors, and give that file"
        )
    else:
        advice = (
            "The file is incomplete, damaged or of another kind; fetch it again or convert it to "
            "safetensors"
        )
    return WeightsError(f"{shown(path)} cannot be read as weights ({reason}). {advice}.")


def _described(content: Any) -> str:
    if isinstance(content, Mapping) and content:
        keys = ", ".join(repr(str(key)[:40]) for key in list(content)[:6])  # texts or numbers
        return untrusted.printable(f", only the keys {keys}")
    if isinstance(content, Inert):
        return untrusted.printable(f", only a {content.name}")
    return ""


# ------------------------------------------------------------------- one file of each kind


def _read_safetensors(path: Path) -> dict[str, StoredEntry]:
    with open(path, "rb") as opened:
        start = opened.read(8)
    if len(start) == 8 and (header := int.from_bytes(start, "little")) > MOST_HEADER:
        raise ValueError(f"its header announces {header:,} bytes")
    file = safe_open(path, "pt")  # closed with the last tensor that is read of it
    shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    if not shapes:
        raise ValueError("it holds no tensors")
    return {
        name: StoredEntry(shape, functools.partial(file.get_tensor, name))
        for name, shape in shapes.items()
    }


MANY = "it has more tensors, or longer names, than weights have"


def _checked(table: dict[str, StoredEntry]) -> dict[str, StoredEntry]:
    """Refuse what would take forever or fill the memory to look through."""
    if len(table) > MOST_TENSORS or sum(map(len, table)) > MOST_CHARACTERS:
        raise ValueError(MANY)
    if any(name.count(".") > MOST_DEPTH for name in table):
        raise ValueError("the name of a tensor in it has too many parts")
    return table


# ------------------------------------------------------------------- names


def _flattened(unpickled: Unpickled) -> dict[str, StoredEntry]:
    """The tensors of a pickle by their full names."""
    table: dict[str, StoredEntry] = {}
    visited = characters = 0

    def collect(value: Any, name: str, depth: int) -> None:
        nonlocal visited, characters
        visited += 1
        if visited > MOST_ENTRIES or depth > MOST_DEPTH:
            raise ValueError("it is nested without end")
        if isinstance(value, StoredTensor | PickledArray):
            entry = _entry(value, unpickled)
            if entry is not None:
                characters += len(name)
                table[name] = entry
                if characters > MOST_CHARACTERS:
                    raise ValueError(MANY)
        for below, inner in _inside(value, name):
            collect(inner, below, depth + 1)

    collect(unpickled.content, "", 0)
    return table


def _inside(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """What a value under `name` holds, with the full names of it."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield f"{name}.{key}" if name else str(key), inner
    elif isinstance(value, Inert):
        yield name, value.items
        for part in _parts_of_module(value.state):
            yield name, part
    elif isinstance(value, list | tuple) and any(
        isinstance(v, Mapping | StoredTensor) for v in value
    ):
        for i, inner in enumerate(value):
            yield f"{name}.{i}" if name else str(i), inner


def _parts_of_module(state: Any) -> list[Mapping[Any, Any]]:
    """Of a whole pickled module, what its state dict would have in it."""
    if not isinstance(state, Mapping):
        return []
    parts = [state.get(part) for part in ("_parameters", "_buffers", "_modules")]
    mappings = [part for part in parts if isinstance(part, Mapping)]
    return mappings if len(mappings) == len(parts) else []


def _entry(value: StoredTensor | PickledArray, unpickled: Unpickled) -> StoredEntry | None:
    """A tensor of a pickle, or None for an array of no numbers."""
    if isinstance(value, StoredTensor):
        width = WIDTHS[value.dtype or STORAGES[value.storage.kind]]
        size = math.prod(value.shape) * width
        return StoredEntry(
            value.shape, lambda: _strided(value, unpickled.numbers(value.storage)), size
        )
    if not value.dtype:
        return None
    size = math.prod(value.shape) * np.dtype(value.dtype).itemsize
    return StoredEntry(value.shape, lambda: _from_array(value), size)


def _strided(tensor: StoredTensor, raw: Tensor) -> Tensor:
    dtype = getattr(torch, tensor.dtype or STORAGES[tensor.storage.kind])
    if not math.prod(tensor.shape):
        return torch.empty(tensor.shape, dtype=dtype)
    width = dtype.itemsize
    whole = raw[: raw.numel() - raw.numel() % width].view(dtype)
    return whole.as_strided(tensor.shape, tensor.stride, tensor.offset)


def _from_array(array: PickledArray) -> Tensor:
    dtype = np.dtype(array.dtype)
    if math.prod(array.shape) * dtype.itemsize != len(array.data):
        raise ValueError("an array in it has another size than its bytes")
    data = array.data.encode("latin1") if isinstance(array.data, str) else array.data
    flat = np.frombuffer(data, dtype=dtype).astype(dtype.newbyteorder("="))
    return torch.from_numpy(flat.reshape(array.shape, order="F" if array.fortran else "C").copy())


# ------------------------------------------------------------------- .npz


def template(name: str) -> str:
    """`name` without its numbers, to count the tensors of one kind."""
    return re.sub(r"\d+", "#", name)

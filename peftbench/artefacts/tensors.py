"""Files of safetensors that somebody else may have written: held against what is wanted, then read.

The header alone says how much memory a file would take, so it is read first, and bounded.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from peftbench.untrusted import check_plain_file, printable

MOST_HEADER = 4 * 2**20  # bytes; 300 kB name the tensors of the deepest nets
DTYPES = {  # of safetensors, of which a task or a merged model may hold tensors
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Announced:
    """What a file says of one of its tensors."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.shape} {str(self.dtype).removeprefix('torch.')}"


def announced(path: Path) -> dict[str, Announced]:
    """The tensors that a file announces, by name; none of them is read.

    Raises:
        ValueError: it is no plain file or no safetensors, or announces more than it holds.
        OSError: it cannot be read.
    """
    check_plain_file(path)
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError("it is cut short or no file of safetensors")
        if length > MOST_HEADER:
            raise ValueError(f"its header has {length:,} bytes, more than {MOST_HEADER:,}")
        raw = file.read(length)
    try:
        header = orjson.loads(raw)
    except orjson.JSONDecodeError as e:
        raise ValueError("its header is no JSON") from e
    if not isinstance(header, dict):
        raise ValueError("its header is no mapping")
    header.pop("__metadata__", None)
    entries = {name: _entry(name, entry) for name, entry in header.items()}
    held = sum(math.prod(each.shape) * each.dtype.itemsize for each in entries.values())
    if held != size - 8 - length:
        raise ValueError(f"its header announces {held:,} bytes, and it has {size - 8 - length:,}")
    return entries


def _entry(name: str, entry: Any) -> Announced:
    dtype = DTYPES.get(str(entry.get("dtype"))) if isinstance(entry, dict) else None
    shape = entry.get("shape") if isinstance(entry, dict) else None
    if dtype is None or not isinstance(shape, list):
        raise ValueError(f"its header says nothing that is known of {printable(name[:80])!r}")
    if any(type(side) is not int or side < 0 for side in shape):
        raise ValueError(f"{printable(name[:80])!r} has a side that is no size")
    return Announced(dtype, tuple(shape))


def read(path: Path, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file that has exactly the names, shapes and types of `wanted`.

    Raises:
        ValueError: it has others, or is damaged.
        OSError: it cannot be read.
    """
    entries = announced(path)
    differing = sorted(entries.keys() ^ wanted.keys())
    if differing:
        names = ", ".join(printable(name[:80]) for name in differing[:3])
        raise ValueError(f"its tensors differ in {len(differing)} names: {names}")
    for name, tensor in wanted.items():
        needed = Announced(tensor.dtype, tuple(tensor.shape))
        if entries[name] != needed:
            raise ValueError(f"{name} is {entries[name]} in it, not {needed}")
    try:
        state: dict[str, Tensor] = load_file(path)
    except SafetensorError as e:
        raise ValueError(f"it is damaged ({printable(str(e))[:120]})") from e
    return state


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor with a NaN or an infinity in it, `None` where all are finite."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.is_meta and not bool(tensor.isfinite().all()):
            return name
    return None

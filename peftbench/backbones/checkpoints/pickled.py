"""What a pickle of weights may describe: names, storages, tensors, arrays."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

MOST_DIMENSIONS = 16
MOST_NUMBERS = 2**48  # of one tensor; larger ones exist nowhere


class Refused(ValueError):
    """The pickle asks for something that is no data; the text names it."""


@dataclass(frozen=True)
class Name:
    """A class or function that a pickle names; it is never imported."""

    module: str
    qualified: str

    def __str__(self) -> str:
        return f"{self.module}.{self.qualified}"


@dataclass(eq=False, repr=False, slots=True)  # it may hold itself
class Inert:
    """What a pickle says about an object of a class that is not rebuilt."""

    name: Name
    arguments: tuple[Any, ...] = ()
    items: dict[Any, Any] = field(default_factory=dict)
    state: Any = None


@dataclass(frozen=True)
class Storage:
    """A run of numbers outside of the pickle."""

    key: str
    kind: str  # torch's name of the storage class, such as FloatStorage
    numbers: int


@dataclass(frozen=True)
class StoredTensor:
    """A view of a storage, as `torch.as_strided` takes it; all in numbers of its dtype."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str  # torch's name of it; empty: that of the storage


@dataclass(eq=False, repr=False, slots=True)
class PickledArray:
    """A numpy array whose bytes lie in the pickle itself."""

    shape: tuple[int, ...] = ()
    dtype: str = ""  # such as <f4; empty: not numbers
    fortran: bool = False
    data: bytes | bytearray | str = b""  # as text where each character is a byte


def fill_array(array: PickledArray, state: Any) -> None:
    shape, dtype, fortran, data = state[-4:]
    if isinstance(data, bytes | bytearray | str) and isinstance(dtype, Inert):
        array.shape = sizes(shape)
        array.dtype = numpy_dtype(dtype)
        array.fortran = bool(fortran)
        array.data = data


def numpy_dtype(dtype: Inert) -> str:
    """Such as <f4; empty for everything that is not plain numbers."""
    code = dtype.arguments[0] if dtype.arguments else ""
    order = dtype.state[1] if isinstance(dtype.state, tuple) and len(dtype.state) > 1 else "|"
    if not isinstance(code, str) or not re.fullmatch(r"[biuf][1248]", code):
        return ""
    return f"{order if order in ('<', '>', '|') else '='}{code}"


def sizes(values: Any) -> tuple[int, ...]:
    if isinstance(values, Inert):  # torch.Size
        values = values.arguments[0]
    if not isinstance(values, tuple | list) or len(values) > MOST_DIMENSIONS:
        raise ValueError("a tensor in it has no shape")
    if any(type(v) is not int or not 0 <= v <= MOST_NUMBERS for v in values):
        raise ValueError("a tensor in it has a shape that is not of whole numbers")
    return tuple(values)


def stored_tensor(
    storage: Any, offset: Any, size: Any, stride: Any, *rest: Any, dtype: str = ""
) -> StoredTensor:
    """A tensor that lies within its storage and repeats none of its numbers."""
    if any(isinstance(about, dict) and any(about.values()) for about in rest[2:]):
        raise ValueError("a tensor in it is a conjugate or negative view")
    shape, steps = sizes(size), sizes(stride)
    if not isinstance(storage, Storage) or len(shape) != len(steps):
        raise ValueError("a tensor in it is damaged")
    if type(offset) is not int or not 0 <= offset <= MOST_NUMBERS:
        raise ValueError("a tensor in it is damaged")
    numbers = math.prod(shape)
    last = offset + sum((n - 1) * step for n, step in zip(shape, steps, strict=True))
    if numbers > storage.numbers or (numbers and last >= storage.numbers):
        raise ValueError(
            f"a tensor in it has the shape {shape}, and its storage only {storage.numbers:,} "
            "numbers"
        )
    return StoredTensor(storage, offset, shape, steps, dtype)


def typed_tensor(  # noqa: PLR0913 - the arguments of torch._utils._rebuild_tensor_v3
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *_: Any
) -> StoredTensor:
    """As newer dtypes are saved: the storage counts bytes."""
    if not isinstance(storage, Storage) or not isinstance(dtype, Name):
        raise ValueError("a tensor in it is damaged")
    if dtype.qualified not in WIDTHS:
        raise ValueError(f"a tensor in it is of type {dtype.qualified[:40]}, which is not read")
    width = WIDTHS[dtype.qualified]
    counted = Storage(storage.key, storage.kind, storage.numbers // width)
    return stored_tensor(counted, offset, size, stride, dtype=dtype.qualified)


def reconstructed(kind: Any, *_: Any) -> Any:
    return PickledArray()


def array_from_buffer(
    buffer: Any, dtype: Any, shape: Any, order: Any = "C", *_: Any
) -> PickledArray:
    if not isinstance(dtype, Inert):
        raise ValueError("an array in it is damaged")
    data = buffer if isinstance(buffer, bytes | bytearray | str) else b""
    return PickledArray(sizes(shape), numpy_dtype(dtype), order == "F", data)


WIDTHS = {  # bytes of a number of torch's dtypes
    **dict.fromkeys(("float64", "int64", "complex64", "uint64"), 8),
    **dict.fromkeys(("float32", "int32", "uint32"), 4),
    **dict.fromkeys(("float16", "bfloat16", "int16", "uint16"), 2),
    **dict.fromkeys(("int8", "uint8", "bool", "float8_e4m3fn", "float8_e5m2"), 1),
    "complex128": 16,
}

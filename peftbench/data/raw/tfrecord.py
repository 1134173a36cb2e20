"""TFRecord files and tf.train.Example messages, read without TensorFlow.

A record is its length (8 bytes, little-endian), a checksum of those, the data and a checksum of
them. A checksum is CRC-32C, rotated and shifted by a constant. Source: TensorFlow,
core/lib/io/record_writer.h and core/lib/hash/crc32c.h; core/example/example.proto.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from peftbench.errors import DataError

ALL = 0xFFFFFFFF
MASK = 0xA282EAD8
LONGEST = 1 << 28  # bytes; a greater length is damage, not an image
MOST_VALUES = 1 << 20  # of a feature, or fields of a message: each becomes an object of its own


@functools.cache
def _library() -> Callable[[bytes], int]:
    try:
        from google_crc32c import value
    except ImportError as error:
        raise DataError(
            "Reading TFRecord files needs google-crc32c, for their checksums. Install it with: "
            "pip install 'peftbench[data]'"
        ) from error
    checksum: Callable[[bytes], int] = value
    return checksum


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli) of `data`; `DataError` where google-crc32c is not installed."""
    return _library()(data)


def masked(checksum: int) -> int:
    """The form in which TFRecord files store a CRC-32C."""
    return ((checksum >> 15 | checksum << 17) + MASK) & ALL


@dataclass(frozen=True)
class Span:
    """Where the data of a record are in a file, and its number there, counted from 0."""

    path: Path
    number: int
    start: int
    length: int

    def read(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.start)
            return file.read(self.length)

    def checked(self) -> bytes:
        """What `read` gives, held against its checksum; `DataError` where it does not match."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            data, tail = file.read(self.length), file.read(4)
        if len(tail) < 4 or masked(crc32c(data)) != struct.unpack("<I", tail)[0]:
            raise _damaged(
                self.path, self.number, self.start - 12, "its data do not match their checksum"
            )
        return data


def spans(path: Path) -> Iterator[Span]:
    """Where the records of a file are, in its order, by their lengths alone.

    The checksum of each length is verified, data are skipped. A length that does not match, and a
    record that is cut short, raise `DataError`.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        number, position = 0, 0
        while head := file.read(12):
            if len(head) < 12:
                raise _damaged(path, number, position, "its length is cut short")
            length, checksum = struct.unpack("<QI", head)
            if masked(crc32c(head[:8])) != checksum or length > LONGEST:
                raise _damaged(path, number, position, "its length does not match its checksum")
            if position + 16 + length > size:
                raise _damaged(path, number, position, "the file ends inside it")
            yield Span(path, number, position + 12, length)
            number, position = number + 1, position + 16 + length
            file.seek(position)


def records(path: Path) -> Iterator[tuple[Span, bytes]]:
    """The records of a file in its order, with their place.

    Both checksums of each are verified; a record that does not match, or is cut short, raises
    `DataError`.
    """
    return ((span, span.checked()) for span in spans(path))


def _damaged(path: Path, number: int, position: int, reason: str) -> DataError:
    return DataError(
        f"{path}, record {number} at byte {position:,}: {reason}. Unpack or fetch the file again."
    )


Features = dict[str, list[bytes] | list[float] | list[int]]


def example(data: bytes) -> Features:
    """The features of a tf.train.Example by name: bytes, numbers of float32, or whole numbers.

    A list that is there and empty is an empty list. Bytes that are no such message raise
    `ValueError`.
    """
    features: Features = {}
    for field, value in _fields(data):
        if field != 1:  # Example.features
            continue
        for _, entry in _fields(_bytes(value)):  # Features.feature, a map
            parts = dict(_fields(_bytes(entry)))
            name = _bytes(parts.get(1, b"")).decode("utf-8")
            for kind, content in _fields(_bytes(parts.get(2, b""))):
                values = [v for _, v in _fields(_bytes(content))]
                if kind == 1:  # BytesList
                    features[name] = [_bytes(v) for v in values]
                elif kind == 2:  # FloatList, packed or not
                    features[name] = [number for v in values for number in _floats(_bytes(v))]
                elif kind == 3:  # Int64List, packed or not
                    features[name] = [number for v in values for number in _numbers(v)]
    return features


def _fields(message: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Numbers and values of the fields of a message in protobuf's wire format."""
    position = count = 0
    while position < len(message):
        count += 1
        _check_count(count)
        key, position = _varint(message, position)
        kind = key & 7
        if kind == 0:
            value, position = _varint(message, position)
            yield key >> 3, value
            continue
        if kind == 2:
            size, position = _varint(message, position)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if position + size > len(message):
            raise ValueError("a field is cut short")
        yield key >> 3, message[position : position + size]
        position += size


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            raise ValueError("a number is cut short")
        byte = message[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise ValueError("a number has more than ten bytes")


def _bytes(value: bytes | int) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where a message belongs")
    return value


def _check_count(count: int) -> None:
    if count > MOST_VALUES:
        raise ValueError(f"it has more than {MOST_VALUES:,} values")


def _floats(value: bytes) -> list[float]:
    if len(value) % 4:
        raise ValueError("a number is cut short")
    _check_count(len(value) // 4)
    return list(struct.unpack(f"<{len(value) // 4}f", value))


def _numbers(value: bytes | int) -> Iterator[int]:
    if isinstance(value, int):
        yield _signed(value)
        return
    position = count = 0
    while position < len(value):
        count += 1
        _check_count(count)
        number, position = _varint(value, position)
        yield _signed(number)


def _signed(number: int) -> int:
    """A varint as int64: negative numbers are stored as their two's complement."""
    number &= (1 << 64) - 1
    return number - (1 << 64) if number >> 63 else number

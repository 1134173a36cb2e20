"""TFRecord files and tf.train.Example messages, read without TensorFlow.

A record is its length (8 bytes, little-endian), a checksum of those, the data and a checksum of
them. A checksum is CRC-32C, rotated and shifted by a constant. Source: TensorFlow,
core/lib/io/record_writer.h and core/lib/hash/crc32c.h; core/example/example.proto.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from peftbench.errors import DataError

POLYNOMIAL = 0x82F63B78  # Castagnoli, bits reversed
ALL = 0xFFFFFFFF
MASK = 0xA282EAD8
LANE = 32  # bytes that a lane takes one after another, while all lanes step together
SHORT = 128  # fewer bytes are quicker in plain Python
LONGEST = 1 << 28  # bytes; a greater length is damage, not an image


@functools.cache
def _table() -> tuple[int, ...]:
    entries = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (POLYNOMIAL if byte & 1 else 0)
        entries.append(byte)
    return tuple(entries)


@functools.cache
def _wide_table() -> np.ndarray:
    """Two steps of the byte table at once: (65536,) uint32."""
    byte = np.array(_table(), dtype=np.uint32)
    value = np.arange(65536, dtype=np.uint32)
    once = byte[value & 255] ^ (value >> 8)
    wide: np.ndarray = byte[once & 255] ^ (once >> 8)
    return wide


@functools.cache
def _shift_tables(level: int) -> np.ndarray:
    """What LANE * 2^level zero bytes make of a checksum, by its bytes: (4, 256) uint32.

    The map is linear over bits, so twice as many zeros are the map applied to its own result.
    """
    if level:
        half = _shift_tables(level - 1)
        return _shifted(half, half.ravel()).reshape(4, 256)
    start = np.arange(256, dtype=np.uint32)
    states = np.stack([start << np.uint32(8 * place) for place in range(4)]).ravel()
    wide = _wide_table()
    for _ in range(LANE // 2):
        states = wide[states & 65535] ^ (states >> 16)
    return states.reshape(4, 256)


def _shifted(tables: np.ndarray, states: np.ndarray) -> np.ndarray:
    moved: np.ndarray = tables[0][states & 255]
    for place in range(1, 4):
        moved = moved ^ tables[place][states >> np.uint32(8 * place) & 255]
    return moved


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli) of `data`.

    Long data are cut into lanes that step together; the lanes are joined pairwise. Zeros in front
    do not change a checksum that starts at 0, so any length fills its lanes; starting at all ones
    is the same as inverting the first four bytes.
    """
    if len(data) < SHORT:
        state, table = ALL, _table()
        for byte in data:
            state = table[(state ^ byte) & 255] ^ state >> 8
        return state ^ ALL
    lanes = -(-len(data) // LANE)
    levels = (lanes - 1).bit_length()
    padded = np.zeros(LANE << levels, dtype=np.uint8)
    body = padded[-len(data) :]
    body[:] = np.frombuffer(data, dtype=np.uint8)
    body[:4] ^= 255
    words = np.ascontiguousarray(padded.view("<u2").reshape(-1, LANE // 2).T)
    wide = _wide_table()
    states = np.zeros(words.shape[1], dtype=np.uint32)
    for word in words:
        states = wide[(states ^ word) & 65535] ^ (states >> 16)
    for level in range(levels):
        states = _shifted(_shift_tables(level), states[0::2]) ^ states[1::2]
    return int(states[0]) ^ ALL


def masked(checksum: int) -> int:
    """The form in which TFRecord files store a CRC-32C."""
    return ((checksum >> 15 | checksum << 17) + MASK) & ALL


@dataclass(frozen=True)
class Span:
    """Where the data of a record are in a file."""

    path: Path
    start: int
    length: int

    def read(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.start)
            return file.read(self.length)


def records(path: Path) -> Iterator[tuple[Span, bytes]]:
    """The records of a file in its order, with their place.

    Both checksums of each are verified; a record that does not match, or is cut short, raises
    `DataError`.
    """
    with path.open("rb") as file:
        number, position = 0, 0
        while head := file.read(12):
            if len(head) < 12:
                raise _damaged(path, number, position, "its length is cut short")
            length, checksum = struct.unpack("<QI", head)
            if masked(crc32c(head[:8])) != checksum or length > LONGEST:
                raise _damaged(path, number, position, "its length does not match its checksum")
            data, tail = file.read(length), file.read(4)
            if len(data) < length or len(tail) < 4:
                raise _damaged(path, number, position, "the file ends inside it")
            if masked(crc32c(data)) != struct.unpack("<I", tail)[0]:
                raise _damaged(path, number, position, "its data do not match their checksum")
            yield Span(path, position + 12, length), data
            number, position = number + 1, position + 16 + length


def _damaged(path: Path, number: int, position: int, reason: str) -> DataError:
    return DataError(
        f"{path}, record {number} at byte {position:,}: {reason}. Unpack or fetch the file again."
    )


def example(data: bytes) -> dict[str, list[bytes] | list[int]]:
    """The features of a tf.train.Example that hold bytes or whole numbers, by name.

    Features of floats are left out. Bytes that are no such message raise `ValueError`.
    """
    features: dict[str, list[bytes] | list[int]] = {}
    for field, value in _fields(data):
        if field != 1:  # Example.features
            continue
        for _, entry in _fields(_bytes(value)):  # Features.feature, a map
            parts = dict(_fields(_bytes(entry)))
            name = _bytes(parts.get(1, b"")).decode("utf-8")
            for kind, content in _fields(_bytes(parts.get(2, b""))):
                if kind == 1:  # BytesList
                    features[name] = [_bytes(v) for _, v in _fields(_bytes(content))]
                elif kind == 3:  # Int64List, packed or not
                    features[name] = [
                        number for _, v in _fields(_bytes(content)) for number in _numbers(v)
                    ]
    return features


def _fields(message: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Numbers and values of the fields of a message in protobuf's wire format."""
    position = 0
    while position < len(message):
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


def _numbers(value: bytes | int) -> Iterator[int]:
    if isinstance(value, int):
        yield _signed(value)
        return
    position = 0
    while position < len(value):
        number, position = _varint(value, position)
        yield _signed(number)


def _signed(number: int) -> int:
    """A varint as int64: negative numbers are stored as their two's complement."""
    number &= (1 << 64) - 1
    return number - (1 << 64) if number >> 63 else number

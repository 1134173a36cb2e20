"""MATLAB files, which several archives have their labels and splits in.

SciPy's reader is fast and trusts what it reads: a damaged file can end the process. It therefore
runs in a process of its own, `matlab_child`, for each file.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from peftbench.data import matlab_child as child
from peftbench.data.unpack import CHUNK, Limits
from peftbench.errors import DataError
from peftbench.untrusted import DAMAGED, MOST_BYTES, check_plain_file, printable, read_npz

PACKED = 15  # type of a variable that is packed
SECONDS = 60  # of CPU time for a file of no size; a MB of SVHN takes 0.02
SLACK = 10  # as long on the clock, for a machine that has much else to do


def read(path: Path, names: Sequence[str] | None = None) -> dict[str, Any]:
    """The variables of a MATLAB file, or those of `names`; cells and structures as lists and
    dictionaries. `DataError` where SciPy is missing or the file is damaged.
    """
    if importlib.util.find_spec("scipy") is None:
        raise DataError(
            f"Reading {path} needs SciPy. Install it with: pip install 'peftbench[data]'"
        )
    try:
        check_plain_file(path)
        _check_size(path)
        most = max(Limits.of(path).bytes, MOST_BYTES)  # numbers are stored as small as they are
        with tempfile.TemporaryDirectory(prefix="peftbench-") as folder:
            place = Path(folder) / "variables.npz"
            _run(path, place, most, names)
            arrays = read_npz(place, most + 2 * child.MOST_TEXT)
        tree = json.loads(arrays.pop(child.TREE).tobytes())
        return {name: _value(pair, arrays) for name, pair in tree.items()}
    except (*DAMAGED, OSError, TypeError, IndexError, RecursionError) as error:
        reason = printable(str(getattr(error, "strerror", None) or error)) or type(error).__name__
        raise DataError(f"Cannot read {path}: {reason}. Fetch it again.") from error


def _run(path: Path, place: Path, most: int, names: Sequence[str] | None) -> None:
    """Have a file read by a process of its own, which leaves what it found at `place`.

    Raises:
        ValueError: the file is refused.
        DataError: the process died of it, took too long, or had no room.
    """
    seconds = SECONDS + path.stat().st_size // 2**20
    command = _command(
        [str(path.absolute()), str(place), str(most), str(seconds), json.dumps(names)]
    )
    alone = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # their buffers count as memory
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **alone},
            timeout=SLACK * seconds,
        )
        status, answer = done.returncode, done.stdout
    except subprocess.TimeoutExpired:
        status, answer = -getattr(signal, "SIGXCPU", signal.SIGTERM), b""
    if status == 0:
        return
    if status not in (child.READ, child.WRITTEN):
        raise DataError(
            f"{path} cannot be read as a MATLAB file: SciPy's reader {_end(status)}. Fetch it "
            "again."
        )
    reason = printable(str(json.loads(answer)))
    if status == child.WRITTEN:
        raise DataError(
            f"Cannot unpack {path} into {place.parent.parent}: {reason}. Set TMPDIR to a folder "
            "with space."
        )
    raise ValueError(reason)


def _command(arguments: Sequence[str]) -> list[str]:
    # -P: no module is taken from the folder of the program, whose neighbours have common names
    return [sys.executable, "-P", "-W", "ignore", str(child.__file__), *arguments]


def _end(status: int) -> str:
    """How a process ended that does not say why."""
    if status >= 0:
        return f"ended with status {status}"
    number = -status
    if number == getattr(signal, "SIGXCPU", None):
        return "found no end in it"
    known = number in {s.value for s in signal.Signals}
    return f"was ended by it ({signal.Signals(number).name if known else f'signal {number}'})"


def _value(pair: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """What `matlab_child` has made a pair of."""
    kind, content = pair
    if kind == child.ARRAY:
        return arrays[str(content)]
    if kind == child.CELLS:
        return [_value(element, arrays) for element in content]
    if kind == child.FIELDS:
        return {name: _value(element, arrays) for name, element in content.items()}
    return content


def _check_size(path: Path) -> None:
    """Raise `ValueError` where packed variables unpack to more than `Limits` allow.

    A file of version 5 is a header of 128 bytes and variables, each with its type and its length;
    those of type 15 are packed by zlib, and nothing says to how much.
    """
    room = Limits.of(path).bytes
    with path.open("rb") as file:
        head = file.read(128)
        order = {b"IM": "<", b"MI": ">"}.get(head[126:128])
        while order and len(tag := file.read(8)) == 8:
            kind, length = struct.unpack(f"{order}II", tag)
            end = file.tell() + length
            if kind == PACKED:
                room -= _unpacked(file, length, room)
                if room < 0:
                    raise ValueError("it unpacks to far more than it has")
            file.seek(end)


def _unpacked(file: IO[bytes], length: int, most: int) -> int:
    """How many bytes come out of the next `length` ones; it is not gone on with beyond `most`."""
    unpacker, count = zlib.decompressobj(), 0
    while length > 0 and not unpacker.eof and count <= most:
        chunk = unpacker.unconsumed_tail or file.read(min(length, CHUNK))
        if not chunk:
            break
        if not unpacker.unconsumed_tail:
            length -= len(chunk)
        count += len(unpacker.decompress(chunk, CHUNK))
    while unpacker.unconsumed_tail and not unpacker.eof and count <= most:
        count += len(unpacker.decompress(unpacker.unconsumed_tail, CHUNK))
    return count


def column(path: Path, variables: Mapping[str, Any], key: str) -> list[Any]:
    """A variable as a list, also where it holds one element."""
    if key not in variables:
        raise DataError(f"{path} has no variable {key!r}. Fetch it again.")
    value = variables[key]
    if isinstance(value, list | dict | str):
        return value if isinstance(value, list) else [value]
    return list(np.atleast_1d(value).ravel())


def whole_numbers(path: Path, variables: Mapping[str, Any], key: str) -> list[int]:
    """A variable as whole numbers; `DataError` where it holds something else."""
    values = column(path, variables, key)
    try:
        numbers = [int(value) for value in values]
        if all(number == value for number, value in zip(numbers, values, strict=True)):
            return numbers
        reason = "a number in it is not whole"
    except (TypeError, ValueError, OverflowError) as error:
        reason = str(error)
    raise DataError(f"{path}: {key} holds no whole numbers: {printable(reason)}. Fetch it again.")


def texts(path: Path, variables: Mapping[str, Any], key: str) -> list[str]:
    """A variable as texts; `DataError` where it holds something else."""
    values = column(path, variables, key)
    other = [value for value in values if not isinstance(value, str)]
    if other:
        raise DataError(
            f"{path}: {key} holds {type(other[0]).__name__} where texts belong. Fetch it again."
        )
    return values

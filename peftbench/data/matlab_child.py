"""Reads a MATLAB file with SciPy in a process of its own, which a damaged file may end.

`peftbench.data.matlab` runs it by its path, so that nothing of the package is imported; what it
found it leaves as a `.npz` of numbers and one text in JSON, whatever the file held.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
from typing import Any

READ, WRITTEN = 3, 4  # exit statuses: the file could not be read, what it holds not be written
MOST_CELLS = 10**7
MOST_TEXT = 16 * 2**20  # bytes of everything but arrays of numbers; as objects they take 25 times
TREE = "tree"  # name of the text in the .npz; arrays are called by their number
NUMBER, TEXT, ARRAY, CELLS, FIELDS = range(5)  # what stands first in each pair of the text
REASON = 500  # characters


def main(arguments: list[str]) -> int:
    """Read a file; gives the exit status, the reason of a refusal goes to stdout.

    `arguments` are its path, where the `.npz` goes, how many bytes that may have, how many seconds
    of CPU time may be used, and the names of the variables in JSON, or null for all.
    """
    import numpy as np
    import scipy.io.matlab as matlab

    path, place, most, seconds, names = arguments
    _bind(int(most), int(seconds))
    try:
        for name, shape, kind in matlab.whosmat(path):
            # each cell or structure becomes an object; numbers are bounded by their bytes
            if kind in ("cell", "struct", "object") and math.prod(shape) > MOST_CELLS:
                raise ValueError(f"{name} announces {math.prod(shape):,} cells")
        variables = matlab.loadmat(path, variable_names=json.loads(names), simplify_cells=True)
        arrays: list[Any] = []
        tree = {
            name: _plain(value, name, arrays)
            for name, value in variables.items()
            if not (name.startswith("__") and name.endswith("__"))
        }
        text = json.dumps(tree).encode("ascii")
        if len(text) > MOST_TEXT:
            raise ValueError(f"its cells and texts have more than {MOST_TEXT / 2**20:.0f} MB")
        if sum(array.nbytes for array in arrays) > int(most):
            raise ValueError("it unpacks to far more than it has")
    except Exception as error:  # of every kind on damaged files
        return _refuse(READ, error)
    try:
        numbered: dict[str, Any] = {str(number): array for number, array in enumerate(arrays)}
        numbered[TREE] = np.frombuffer(text, dtype=np.uint8)
        np.savez(place, **numbered)
    except OSError as error:
        return _refuse(WRITTEN, error)
    return 0


def _bind(most: int, seconds: int) -> None:
    """Bound this process, where the system can: a damaged file can ask for any length."""
    try:
        import resource
    except ImportError:  # Windows
        return
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _lower(resource.RLIMIT_CPU, seconds)
        with open("/proc/self/statm", encoding="ascii") as file:  # elsewhere it raises OSError
            now = int(file.read().split()[0]) * resource.getpagesize()
        _lower(resource.RLIMIT_AS, now + 2 * most + 2**28)


def _lower(limit: int, value: int) -> None:
    import resource

    hard = resource.getrlimit(limit)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(limit, (value, hard))


def _refuse(status: int, error: Exception) -> int:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    sys.stdout.write(json.dumps(reason[:REASON]))
    sys.stdout.flush()
    return status


def _plain(value: Any, where: str, arrays: list[Any]) -> list[Any]:
    """A value as a pair of what it is and its content; arrays of numbers go to `arrays`."""
    import numpy as np

    if isinstance(value, str):
        return [TEXT, str(value)]
    if isinstance(value, dict):
        return [FIELDS, {str(name): _plain(v, where, arrays) for name, v in value.items()}]
    if isinstance(value, bool | int | float):
        return [NUMBER, value]
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "OU":
        value = value.tolist()
    if isinstance(value, list):
        return [CELLS, [_plain(element, where, arrays) for element in value]]
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufc":
        arrays.append(np.asarray(value))
        return [ARRAY, len(arrays) - 1]
    raise ValueError(f"{where} holds {type(value).__name__}, no numbers, texts or cells of them")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

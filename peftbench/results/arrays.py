"""Arrays of the columns of a table, from plain values."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pandas as pd

from peftbench.untrusted import printable, printable_lines


def array_of(values: Iterable[Any], dtype: Any, convert: Callable[[Any], Any] | None = None) -> Any:
    """A column of `values` that fit its dtype; others are missing.

    Args:
        convert: what makes a value, or `pd.NA`, of each; by default as the dtype needs.
    """
    listed = list(values)
    kinds = set(map(type, listed))
    if convert is None and dtype == "Float64" and kinds <= {float, int, type(None)}:
        plain = np.array(listed, dtype=float)  # at once: epochs are a million numbers
        finite = np.isfinite(plain)
        return pd.arrays.FloatingArray(np.where(finite, plain, np.nan), ~finite)
    if convert is None and dtype == "Int64" and kinds <= {int, type(None)}:
        with contextlib.suppress(OverflowError):
            whole = np.array([0 if value is None else value for value in listed], dtype=np.int64)
            return pd.arrays.IntegerArray(
                whole, np.array([value is None for value in listed], bool)
            )
    convert = convert or _CONVERT[dtype]
    if listed and kinds <= {str, type(None)}:  # an id stands in every epoch of its run
        places = {value: place for place, value in enumerate(dict.fromkeys(listed))}
        once = pd.array([convert(value) for value in places], dtype=dtype)
        return once.take(np.array([places[value] for value in listed]))
    return pd.array([convert(value) for value in listed], dtype=dtype)


def _integer(value: Any) -> Any:
    if isinstance(value, int | float) and -(2**63) <= value < 2**63 and int(value) == value:
        return int(value)
    return pd.NA  # also a sum that the column cannot hold; NaN is not within the range


def _float(value: Any) -> Any:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else pd.NA


def _boolean(value: Any) -> Any:
    return value if isinstance(value, bool) else pd.NA


def _string(value: Any) -> Any:
    """Text on one line that every file format can hold and no terminal obeys; empty is missing."""
    if value is None or value == "":
        return pd.NA
    if type(value) is str and value.isascii() and value.isprintable():
        return value
    return printable(str(value))


def lines_of(value: Any) -> Any:
    """Text whose lines stay lines: the cause of a failure."""
    if type(value) is str and "\n" in value:
        return printable_lines(value)
    return _string(value)


_CONVERT: dict[str, Callable[[Any], Any]] = {
    "Int64": _integer,
    "Float64": _float,
    "boolean": _boolean,
    "string": _string,
}

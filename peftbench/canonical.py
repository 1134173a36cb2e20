"""Plain values of what is declared, and their digest."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import field
from enum import StrEnum
from typing import Any

from peftbench.errors import ConfigError

IDENTITY_VERSION = 1  # raised when the meaning of the canonical form changes


def later(default: Any, *, keyword: bool = False) -> Any:
    """The default of a field that was added when runs had been recorded already.

    With `keyword` it is given by name alone, as a field of a base class is.

    Identities and records leave such a field out where it has its default, so that a run from
    before the field and the same run today have one id and stand in one row.
    """
    return field(default=default, metadata={"later": True}, kw_only=keyword)


def declared(value: Any) -> dict[str, Any]:
    """Fields of a frozen dataclass; those added `later` only where they are not the default."""
    return {
        f.name: getattr(value, f.name)
        for f in dataclasses.fields(value)
        if not f.metadata.get("later") or getattr(value, f.name) != f.default
    }


def as_declared(value: Any) -> None:
    """Turn integers in float fields of a frozen dataclass into floats: 8 and 8.0 are one value.

    Raises:
        ConfigError: a float is not finite.
    """
    for field_ in dataclasses.fields(value):
        item = getattr(value, field_.name)
        if isinstance(item, int) and not isinstance(item, bool) and "float" in str(field_.type):
            object.__setattr__(value, field_.name, float(item))
        if isinstance(item, float) and not math.isfinite(item):
            where = {"Recipe": "recipe", "BackboneSpec": "backbone"}.get(
                type(value).__name__, "method"
            )
            raise ConfigError(f"{where}.{field_.name}={item} is not a finite number.")


def plain(value: Any) -> Any:
    """`value` with tuples as lists and enumeration members as their text, all the way down."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, StrEnum):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{value!r} of type {type(value).__name__} has no canonical form")


def plain_dict(value: dict[str, Any]) -> dict[str, Any]:
    return {key: plain(item) for key, item in value.items()}


def digest(value: Any) -> str:
    """Sixteen hexadecimal digits of SHA-256 over the sorted, compact JSON of `value`."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]

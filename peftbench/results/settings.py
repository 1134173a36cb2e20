"""Settings as one text, as on Hydra's command line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import orjson


def settings_text(values: Mapping[str, Any]) -> str:
    """`{"rank": 8, "roles": ["qkv"]}` as `rank=8,roles=[qkv]`, as on Hydra's command line."""
    return ",".join(f"{name}={_setting(value)}" for name, value in values.items())


def settings_of(text: str) -> dict[str, str]:
    """The names and the spelled values in what `settings_text` made."""
    return dict(_pairs(text))


@lru_cache(maxsize=100_000)  # of many runs, few have settings of their own
def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    pairs: list[str] = []
    depth, quoted, start = 0, False, 0
    for i, letter in enumerate(text):
        if letter == '"' and text[i - 1 : i] != "\\":
            quoted = not quoted
        elif not quoted:
            depth += (letter in "[{") - (letter in "]}")
            if letter == "," and depth == 0:
                pairs.append(text[start:i])
                start = i + 1
    pairs.append(text[start:])
    parted = (pair.partition("=") for pair in pairs)
    return tuple((name, value) for name, _, value in parted if name)


def cached_settings_text(values: Mapping[str, Any]) -> str:
    """`settings_text`, from memory where these values were spelled before."""
    try:
        return _spelled(orjson.dumps(values))
    except TypeError:  # what it cannot write, such as halves of surrogate pairs
        return settings_text(values)


@lru_cache(maxsize=100_000)
def _spelled(values: bytes) -> str:
    return settings_text(orjson.loads(values))


def _setting(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_setting(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_setting, value)) + "]"
    if isinstance(value, str) and value and not set(value) & set(',=[]{}:"\\ \n'):
        return value
    return json.dumps(value)  # null, true, 8.0 with every digit, and texts that need quotes

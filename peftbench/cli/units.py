"""Numbers with units as people write them: 1M parameters, 5ms, 8GB."""

from __future__ import annotations

import math
import re

from peftbench.errors import ConfigError

COUNTS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9}
MILLISECONDS = {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3}
BYTES = {
    "b": 1.0,
    **{f"{letter}b": 10.0**power for letter, power in (("k", 3), ("m", 6), ("g", 9), ("t", 12))},
    **{f"{letter}ib": 2.0**power for letter, power in (("k", 10), ("m", 20), ("g", 30), ("t", 40))},
}
NUMBER = re.compile(r"\s*([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([a-zµ]*)\s*", re.IGNORECASE)


def count(text: str) -> float:
    """`1M` as 1e6: a plain number, or one with k, M or B. `ConfigError` for anything else."""
    return _parse(text, COUNTS, "a number of parameters", "1M, 300k or 85000000")


def milliseconds(text: str) -> float:
    """`5ms` as 5.0; the unit, us, ms or s, is needed. `ConfigError` for anything else."""
    return _parse(text, MILLISECONDS, "a duration", "5ms or 0.2s")


def byte_count(text: str) -> float:
    """`8GB` as 8e9 and `8GiB` as 8 x 2^30; the unit is needed. `ConfigError` otherwise."""
    return _parse(text, BYTES, "a size of memory", "8GB, 512MB or 8GiB")


def _parse(text: str, units: dict[str, float], what: str, example: str) -> float:
    match = NUMBER.fullmatch(text)
    unit = match.group(2).lower() if match else ""
    value = float(match.group(1)) if match else math.nan
    if not match or unit not in units or not 0 < value < math.inf:
        raise ConfigError(f"{text!r} is not {what}. Write it as {example}.")
    return value * units[unit]

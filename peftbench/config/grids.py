"""Grids of hyper-parameters as papers searched them: data in `conf/grid`, read into overrides."""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from peftbench import mappings
from peftbench.errors import ConfigError
from peftbench.registry import unknown_name

KEYS = ("source", "methods", "axes")


@dataclass(frozen=True)
class Grid:
    """A product of axes. Each point of an axis is the overrides that it stands for."""

    name: str
    source: str  # repository and path, or table of the paper
    methods: tuple[str, ...]  # registered names that the grid is for
    axes: tuple[tuple[tuple[str, ...], ...], ...]

    def __len__(self) -> int:
        """How many trials there are."""
        count = 1
        for axis in self.axes:
            count *= len(axis)
        return count

    def without(self, keys: Collection[str]) -> Grid:
        """The grid without the axes of `keys`, which somebody has fixed."""

        def free(axis: tuple[tuple[str, ...], ...]) -> bool:
            return not any(text.partition("=")[0] in keys for point in axis for text in point)

        return replace(self, axes=tuple(axis for axis in self.axes if free(axis)))

    def points(self) -> list[tuple[tuple[str, Any], ...]]:
        """Keys and values of each trial, in the order of `overrides`."""
        return [tuple(map(_pair, point)) for point in self.overrides()]

    def overrides(self) -> list[list[str]]:
        """One list of `key=value` for each trial; the last axis varies fastest."""
        return [list(itertools.chain(*point)) for point in itertools.product(*self.axes)]


@cache
def read(path: Path) -> Mapping[str, Grid]:
    """The grids of a file by name; it is read once a process.

    An axis is `key: [values]`, or `any name: [{key: value, ...}, ...]` for keys that vary together.

    Raises:
        ConfigError: the file is not of this form.
    """
    raw = mappings.read(path)
    if not raw:
        raise ConfigError(f"{path} holds no grids. Give each a name with {', '.join(KEYS)}.")
    grids = {name: _grid(f"{path}: {name}", name, entry) for name, entry in raw.items()}
    return MappingProxyType(grids)


def find(grids: Mapping[str, Grid], method: str) -> Grid:
    """The grid of `method`; `UnknownName` where none is for it."""
    for grid in grids.values():
        if method in grid.methods:
            return grid
    raise unknown_name(
        "method in this grid:", method, {m for g in grids.values() for m in g.methods}
    )


def named(name: str) -> Mapping[str, Grid]:
    """The grids of `conf/grid/NAME.yaml`, or of a file of one's own; `UnknownName` if none."""
    from peftbench.config.choices import group_dirs

    files = {path.stem: path for d in reversed(group_dirs("grid")) for path in d.glob("*.yaml")}
    if name not in files:
        raise unknown_name("tuner.grid", name, files)
    return read(files[name])


def _pair(override: str) -> tuple[str, Any]:
    key, _, text = override.partition("=")
    try:
        return key, json.loads(text)
    except ValueError:  # a word
        return key, text


def _grid(where: str, name: str, entry: Any) -> Grid:
    if not isinstance(entry, dict) or set(entry) != set(KEYS):
        raise ConfigError(f"{where} must have exactly the keys {', '.join(KEYS)}.")
    axes = entry["axes"]
    if not isinstance(axes, dict) or not all(isinstance(v, list) and v for v in axes.values()):
        raise ConfigError(f"{where}: axes must be lists of values by key, none of them empty.")
    return Grid(
        name,
        str(entry["source"]),
        tuple(map(str, entry["methods"])),
        tuple(tuple(_point(str(key), value) for value in axes[key]) for key in axes),
    )


def _point(key: str, value: Any) -> tuple[str, ...]:
    """The overrides of one value: its own keys if it is a mapping, else the key of its axis."""
    pairs = value if isinstance(value, dict) else {key: value}
    return tuple(f"{name}={_text(item)}" for name, item in pairs.items())


def _text(value: Any) -> str:
    """As Hydra reads it; texts need no quotes here."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))

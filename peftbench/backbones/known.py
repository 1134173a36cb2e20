"""Anatomies that are known without building a model: of the backbones that every user asks about.

They are what `describe` found, in a file that `make docs` writes. They count only where the version
of timm and the described families are those of the file.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import itertools
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from peftbench import plugins
from peftbench.backbones.anatomy import Anatomy, Kind, Role, Site, Tokens
from peftbench.backbones.families import FAMILIES, Family
from peftbench.canonical import digest

FILE = Path(__file__).parent / "anatomies.json"
# by the ids of families, which stay theirs while they are kept here beside their hash
_DIGESTS: dict[tuple[int, ...], tuple[tuple[Family, ...], str]] = {}
COLUMNS = tuple(field.name for field in dataclasses.fields(Site))


def of_name(name: str) -> tuple[Anatomy, ...]:
    """What is known of the backbone that is called so exactly, first that at its own image size."""
    plugins.load("families")
    content = _read()
    if content["origin"] != _origin():
        return ()
    return tuple(map(_kept, content["names"].get(name, ())))


def written(anatomies: Mapping[str, Sequence[Anatomy]]) -> str:
    """The text of the file with these `anatomies` of each name: JSON with a site a line.

    What several names have in common is there once.
    """
    numbers: dict[Anatomy, int] = {}
    entries = []
    for anatomy in itertools.chain(*anatomies.values()):
        if anatomy in numbers:
            continue
        numbers[anatomy] = len(numbers)
        rest = dataclasses.asdict(anatomy)
        rows = ",\n".join(json.dumps(list(site.values())) for site in rest.pop("sites"))
        entries.append(f'{{"rest": {json.dumps(rest)}, "sites": [\n{rows}]}}')
    names = {name: [numbers[anatomy] for anatomy in known] for name, known in anatomies.items()}
    head = f'"origin": {json.dumps(_origin())},\n"names": {json.dumps(names)}'
    together = ",\n".join(entries)
    return f'{{{head},\n"anatomies": [\n{together}]}}\n'


@cache
def _read() -> dict[str, Any]:
    """What the file was written with, the numbers of anatomies by name, and the anatomies."""
    content: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return content


@cache
def _kept(number: int) -> Anatomy:
    """The anatomy of that number in the file."""
    return _anatomy(**_read()["anatomies"][number])


def _anatomy(rest: dict[str, Any], sites: list[list[Any]]) -> Anatomy:
    values: dict[str, Any] = {key: _frozen(value) for key, value in rest.items()}
    if rest["tokens"] is not None:
        values["tokens"] = Tokens(**{k: _frozen(v) for k, v in rest["tokens"].items()})
    return Anatomy(sites=tuple(map(_site, sites)), **values)


def _site(row: list[Any]) -> Site:
    values = {key: _frozen(value) for key, value in zip(COLUMNS, row, strict=True)}
    return Site(**{**values, "role": Role(values["role"]), "kind": Kind(values["kind"])})


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _origin() -> dict[str, str]:
    """What an anatomy depends on beside the code that describes."""
    return {"timm": _timm(), "families": _digest(tuple(FAMILIES[name] for name in FAMILIES))}


@cache
def _timm() -> str:
    """The version of timm, which is not imported."""
    return importlib.metadata.version("timm")


def _digest(families: tuple[Family, ...]) -> str:
    """A hash of all that they look for, worked out once."""
    key = tuple(map(id, families))
    if key not in _DIGESTS:
        entries = [dataclasses.asdict(family) for family in families]
        plain = [{**entry, "optional": sorted(entry["optional"])} for entry in entries]
        _DIGESTS[key] = families, digest(plain)
    return _DIGESTS[key][1]

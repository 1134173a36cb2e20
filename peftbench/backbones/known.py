"""Anatomies that are known without building a model: of the backbones that every user asks about.

They are what `describe` found, in a file that `make docs` writes. They count only where the version
of timm and our families are those of the file, and no other family could be that of one of them.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from peftbench import plugins
from peftbench.backbones.anatomy import Anatomy, Head, Kind, Role, Site, Tokens
from peftbench.backbones.families import FAMILIES, OURS
from peftbench.canonical import digest

FILE = Path(__file__).parent / "anatomies.json"
COLUMNS = tuple(field.name for field in dataclasses.fields(Site))
UNUSUAL = {"head_on_maps": False, "more_heads": ()}  # left out of the file where they are so


def of_name(name: str) -> tuple[Anatomy, ...]:
    """What is known of the backbone that is called so exactly, first that at its own image size."""
    plugins.load("families")
    content = _read()
    if content["origin"] != origin() or not _others().isdisjoint(content["classes"]):
        return ()
    return tuple(map(_kept, content["names"].get(name, ())))


def written(anatomies: Mapping[str, Sequence[Anatomy]], classes: Iterable[str]) -> str:
    """The text of the file with these `anatomies` of each name: JSON with a site a line.

    What several names have in common is there once.

    Args:
        classes: names by which a family can be that of one of them; see `families.classes_of`.
    """
    numbers: dict[Anatomy, int] = {}
    entries = []
    for anatomy in itertools.chain(*anatomies.values()):
        if anatomy in numbers:
            continue
        numbers[anatomy] = len(numbers)
        rest = dataclasses.asdict(anatomy)
        rest = {key: value for key, value in rest.items() if UNUSUAL.get(key, ...) != value}
        rows = ",\n".join(json.dumps(list(site.values())) for site in rest.pop("sites"))
        entries.append(f'{{"rest": {json.dumps(rest)}, "sites": [\n{rows}]}}')
    names = {name: [numbers[anatomy] for anatomy in known] for name, known in anatomies.items()}
    head = f'"origin": {json.dumps(origin())},\n"classes": {json.dumps(sorted(set(classes)))},\n'
    head += f'"names": {json.dumps(names)}'
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
    return thawed(**_read()["anatomies"][number])


def thawed(rest: dict[str, Any], sites: list[list[Any]]) -> Anatomy:
    """An anatomy from its values as JSON: its sites in the order of `COLUMNS`, and the rest.

    Raises:
        KeyError, TypeError, ValueError: they are not those of an anatomy.
    """
    values: dict[str, Any] = {key: _frozen(value) for key, value in rest.items()}
    if rest["tokens"] is not None:
        values["tokens"] = Tokens(**{k: _frozen(v) for k, v in rest["tokens"].items()})
    values["more_heads"] = tuple(Head(**head) for head in rest.get("more_heads", ()))
    return Anatomy(sites=tuple(map(_site, sites)), **values)


def _site(row: list[Any]) -> Site:
    values = {key: _frozen(value) for key, value in zip(COLUMNS, row, strict=True)}
    return Site(**{**values, "role": Role(values["role"]), "kind": Kind(values["kind"])})


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def origin() -> dict[str, str]:
    """What an anatomy depends on beside the code that describes."""
    fields = [field.name for field in (*dataclasses.fields(Anatomy), *dataclasses.fields(Tokens))]
    return {"timm": _timm(), "families": _families(), "fields": digest([*fields, *COLUMNS])}


def _others() -> set[str]:
    """Classes whose family is none of ours."""
    ours = {family.name for family in OURS}
    return {kind for name in FAMILIES if name not in ours for kind in FAMILIES[name].classes}


@cache
def _timm() -> str:
    """The version of timm, which is not imported."""
    return importlib.metadata.version("timm")


@cache
def _families() -> str:
    """A hash of all that our families look for."""
    entries = [dataclasses.asdict(family) for family in OURS]
    return digest([{**entry, "optional": sorted(entry["optional"])} for entry in entries])

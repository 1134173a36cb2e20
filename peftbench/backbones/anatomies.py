"""Anatomies that are known without building a model: of the backbones that every user asks about.

They are what `describe` found, in a file that `make docs` writes. They count only where the version
of timm and the described families are those of the file.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from peftbench import plugins
from peftbench.backbones.anatomy import Anatomy, Kind, Role, Site, Tokens
from peftbench.backbones.families import FAMILIES
from peftbench.canonical import digest
from peftbench.spec import BackboneSpec

FILE = Path(__file__).parent / "anatomies.json"
COLUMNS = tuple(field.name for field in dataclasses.fields(Site))


def anatomy_of(spec: BackboneSpec) -> Anatomy:
    """The anatomy of a backbone at its image size; no weights are read.

    Raises:
        PeftbenchError: there is no such backbone, or not at this size.
    """
    plugins.load("families")
    origin, known = _read()
    found = known.get(spec.name) if origin == _origin() else None
    if found is not None and spec.image_size in (None, found.image_size):
        return found
    return described(spec)


def described(spec: BackboneSpec) -> Anatomy:
    """As `anatomy_of`, of a model that is built for it."""
    from peftbench.backbones.describe import describe
    from peftbench.backbones.load import load

    loaded = load(spec, 2, device="meta")
    return describe(loaded.model, loaded.image_size)


def written(anatomies: Mapping[str, Anatomy]) -> str:
    """The text of the file with these `anatomies`: JSON with a site a line."""
    entries = []
    for name, anatomy in anatomies.items():
        rest = dataclasses.asdict(anatomy)
        rows = ",\n".join(json.dumps(list(site.values())) for site in rest.pop("sites"))
        entries.append(f'"{name}": {{"rest": {json.dumps(rest)}, "sites": [\n{rows}]}}')
    together = ",\n".join(entries)
    return f'{{"origin": {json.dumps(_origin())}, "anatomies": {{\n{together}}}}}\n'


@cache
def _read() -> tuple[dict[str, str], dict[str, Anatomy]]:
    """What the file was written with, and the anatomies in it by the name of the backbone."""
    content = json.loads(FILE.read_text(encoding="utf-8"))
    return content["origin"], {n: _anatomy(**entry) for n, entry in content["anatomies"].items()}


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
    families = []
    for name in FAMILIES:
        family = dataclasses.asdict(FAMILIES[name])
        families.append({**family, "optional": sorted(family["optional"])})
    return {"timm": importlib.metadata.version("timm"), "families": digest(families)}

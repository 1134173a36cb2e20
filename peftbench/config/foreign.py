"""Configuration files that may be somebody else's: `conf/` and `experiments/` are common names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftbench import mappings
from peftbench.errors import ConfigError
from peftbench.spec import BackboneSpec, DatasetSpec
from peftbench.untrusted import printable

FIELDS: Mapping[str, type] = {"backbone": BackboneSpec, "dataset": DatasetSpec}
PACKAGE = "# @package"  # a file that sets keys of other groups begins with it


def read_of_group(group: str, path: Path) -> dict[str, Any]:
    """As `mappings.read`, of a choice of `group`.

    Raises:
        ConfigError: it has keys that no choice of the group has, or lacks what each of them has.
    """
    text = mappings.text_of(path)
    entry = mappings.parsed(text, path)
    whole = any(line.startswith(PACKAGE) for line in text.splitlines())
    if not whole:
        _check(group, entry, path)
    elif group == "protocol" and not isinstance(entry.get("selection", {}), dict):
        raise ConfigError(f"{printable(str(path))}: selection is no mapping. Correct the file.")
    return entry


def _check(group: str, entry: Mapping[str, Any], path: Path) -> None:
    known = _known(group, entry)
    if known is None:
        return
    strange = [key for key in entry if key not in known]
    if strange:
        raise ConfigError(
            f"{printable(str(path))}: no {group} has a key {printable(strange[0])!r}. Known: "
            f"{', '.join(sorted(known - {'defaults'}))}."
        )
    lacking = (
        [] if "defaults" in entry else [key for key in _needed(group, entry) if key not in entry]
    )
    if lacking:
        raise ConfigError(f"{printable(str(path))}: {lacking[0]} is missing. Give it there.")
    facts = entry.get("facts", {})
    if not isinstance(facts, dict):
        raise ConfigError(f"{printable(str(path))}: facts is no mapping. Correct the file.")


def _known(group: str, entry: Mapping[str, Any]) -> set[str] | None:
    """Keys that a choice of the group may have; `None` where anything goes."""
    kind = FIELDS.get(group)
    if group == "method":
        kind = _method(entry)
    return None if kind is None else {"defaults", *(f.name for f in dataclasses.fields(kind))}


def _method(entry: Mapping[str, Any]) -> type | None:
    """The method whose schema a file takes."""
    from peftbench import methods

    defaults = entry.get("defaults")
    for text in map(str, defaults if isinstance(defaults, list) else ()):
        name = text.removeprefix("/schema/method/").partition("@")[0]
        if text.startswith("/schema/method/") and name in methods.METHODS:
            return methods.METHODS[name]
    return None


def _needed(group: str, entry: Mapping[str, Any]) -> tuple[str, ...]:
    if group == "backbone" and "factory" in entry:
        return ()
    return {"backbone": ("name",), "dataset": ("name", "reader")}.get(group, ())

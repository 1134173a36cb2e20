"""What the file of a protocol says, for whoever reads it without Hydra and without a method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peftbench import mappings, shipped
from peftbench.spec import LAST, PreprocessingSpec, Protocol, Selection

DEFAULT_RECIPE = "default"  # of a protocol that names none


@dataclass(frozen=True)
class Rules:
    """What a protocol declares; what its file leaves out is the default of peftbench."""

    recipe: str  # a choice of the group
    preprocessing: PreprocessingSpec
    selection: Selection
    reporting: Protocol


def rules_of(name: str, entry: Mapping[str, Any]) -> Rules:
    """The rules in the file `entry` of the protocol `name`.

    Raises:
        TypeError: a part of it has keys that such a part does not have.
    """
    reporting = {key: entry[key] for key in ("seeds", "average", "parameters") if key in entry}
    return Rules(
        recipe=recipe_of(entry),
        preprocessing=PreprocessingSpec(**entry.get("preprocessing", {})),
        selection=Selection(**entry.get("selection", {})),
        reporting=Protocol(name, **reporting),
    )


def recipe_of(entry: Mapping[str, Any]) -> str:
    """The recipe that a protocol chooses with `override /recipe`."""
    chosen = [d for d in entry.get("defaults", []) if isinstance(d, dict)]
    named = (str(d["override /recipe"]) for d in chosen if "override /recipe" in d)
    return next(named, DEFAULT_RECIPE)


def rule_of(entry: Mapping[str, Any]) -> str:
    """The rule by which a protocol chooses the epoch, whatever else its file says."""
    return str(entry.get("selection", {}).get("rule", LAST))


def shipped_entries(group: str) -> dict[str, Mapping[str, Any]]:
    """The files of a group that peftbench comes with, by name; those of no other folder.

    Raises:
        ConfigError: one cannot be read.
    """
    folder = shipped.folder("conf", "conf", "config.yaml") / group
    return {path.stem: mappings.read(path) for path in sorted(folder.glob("*.yaml"))}

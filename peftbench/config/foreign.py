"""Configuration files that may be somebody else's: `conf/` and `experiments/` are common names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from peftbench.errors import ConfigError
from peftbench.spec import BackboneSpec, DatasetSpec
from peftbench.untrusted import printable, read_bounded

MOST_BYTES = 2**22  # of one file of configuration
FIELDS: Mapping[str, type] = {"backbone": BackboneSpec, "dataset": DatasetSpec}
PACKAGE = "# @package"  # a file that sets keys of other groups begins with it


def read(path: Path) -> dict[str, Any]:
    """The mapping in a file of YAML; an empty file is an empty one.

    Raises:
        ConfigError: one line with the file: it cannot be read, or is no YAML, or no mapping.
    """
    return _mapping(_text(path), path)


def read_of_group(group: str, path: Path) -> dict[str, Any]:
    """As `read`, of a choice of `group`.

    Raises:
        ConfigError: it has keys that no choice of the group has, or lacks what each of them has.
    """
    text = _text(path)
    entry = _mapping(text, path)
    whole = any(line.startswith(PACKAGE) for line in text.splitlines())
    if not whole:
        _check(group, entry, path)
    elif group == "protocol" and not isinstance(entry.get("selection", {}), dict):
        raise ConfigError(f"{_shown(path)}: selection is no mapping. Correct the file.")
    return entry


def _text(path: Path) -> str:
    try:
        return read_bounded(path, MOST_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{_shown(path)} is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}. "
            "Save it as UTF-8."
        ) from error
    except ValueError as error:
        raise ConfigError(f"{_shown(path)}: {error}. Remove it from there.") from error
    except OSError as error:
        raise ConfigError(f"Cannot read {_shown(path)}: {error.strerror}.") from error


def _mapping(text: str, path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        reason = getattr(error, "problem", None) or "it does not parse"
        raise ConfigError(
            f"{_shown(path)}{line} is no YAML: {printable(str(reason))}. Correct the file."
        ) from error
    except (ValueError, RecursionError, OverflowError) as error:  # dates and numbers that are none
        raise ConfigError(
            f"{_shown(path)} is no YAML: {printable(str(error))}. Correct the file."
        ) from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        kind = (
            "keys that are no words" if isinstance(content, dict) else f"a {type(content).__name__}"
        )
        raise ConfigError(f"{_shown(path)} holds {kind}, not keys with values. Correct the file.")
    return content


def _check(group: str, entry: Mapping[str, Any], path: Path) -> None:
    known = _known(group, entry)
    if known is None:
        return
    strange = [key for key in entry if key not in known]
    if strange:
        raise ConfigError(
            f"{_shown(path)}: no {group} has a key {printable(strange[0])!r}. Known: "
            f"{', '.join(sorted(known - {'defaults'}))}."
        )
    lacking = [] if "defaults" in entry else [key for key in _needed(group) if key not in entry]
    if lacking:
        raise ConfigError(f"{_shown(path)}: {lacking[0]} is missing. Give it there.")
    facts = entry.get("facts", {})
    if not isinstance(facts, dict):
        raise ConfigError(f"{_shown(path)}: facts is no mapping. Correct the file.")


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


def _needed(group: str) -> tuple[str, ...]:
    return {"backbone": ("name",), "dataset": ("name", "reader")}.get(group, ())


def _shown(path: Path) -> str:
    return printable(str(path))

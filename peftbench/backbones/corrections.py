"""A few lines by which somebody corrects what inference finds in a backbone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftbench.backbones.anatomy import Role
from peftbench.errors import ConfigError
from peftbench.registry import unknown_name

KEYS = ("roles", "leave_out", "parts")
PARTS = ("q", "k", "v")


@dataclass(frozen=True)
class Corrections:
    """Roles that are told instead of inferred. Paths are patterns in which * is one name."""

    roles: Mapping[Role, tuple[str, ...]] = field(default_factory=dict)
    leave_out: tuple[str, ...] = ()  # sites that methods must not touch
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # row blocks, e.g. q, k, v

    @property
    def is_empty(self) -> bool:
        return not (self.roles or self.leave_out or self.parts)


NONE = Corrections()


def text_of(given: str) -> str:
    """The canonical text of corrections: of a YAML file, or of the text itself.

    It is what a run is identified by, so that a file may move and a change of it is another run.

    Raises:
        ConfigError: there is no such file, or it says what makes no sense.
    """
    raw = json.loads(given) if given.startswith("{") else _read(Path(given).expanduser())
    made = _made(raw, given)
    plain = {
        "leave_out": list(made.leave_out),
        "parts": {path: list(names) for path, names in made.parts.items()},
        "roles": {str(role): list(paths) for role, paths in made.roles.items()},
    }
    return json.dumps({k: v for k, v in plain.items() if v}, sort_keys=True)


def parsed(text: str) -> Corrections:
    """The corrections of a canonical text; none of an empty one.

    Raises:
        ConfigError: it says what makes no sense.
    """
    return _made(json.loads(text), text) if text else NONE


def _read(path: Path) -> Any:
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(
            f"backbone.anatomy={path} cannot be read ({e.__class__.__name__}). Give a YAML file, "
            "such as one that begins with what `peftbench anatomy BACKBONE --yaml` prints."
        ) from e
    except yaml.YAMLError as e:
        reason = str(e).splitlines()[0]
        raise ConfigError(f"backbone.anatomy={path} is no YAML: {reason}.") from e


def _made(raw: Any, where: str) -> Corrections:
    name = "backbone.anatomy" if where.startswith("{") else f"backbone.anatomy={where}"
    if not isinstance(raw, dict):
        raise ConfigError(f"{name} holds no keys. Use {', '.join(KEYS)}.")
    for key in raw:
        if key not in KEYS:
            raise unknown_name(f"key of {name}:", str(key), KEYS)
    roles = {}
    for role, paths in _mapping(raw, "roles", name).items():
        if role not in {r.value for r in Role}:
            raise unknown_name(f"role of {name}:", str(role), [r.value for r in Role])
        roles[Role(role)] = _paths(paths, f"roles.{role}", name)
    parts = {}
    for path, names in _mapping(raw, "parts", name).items():
        parts[str(path)] = _paths(names, f"parts.{path}", name)
        if unknown := set(parts[str(path)]) - set(PARTS):
            raise unknown_name(f"part of {name}:", min(unknown), PARTS)
    return Corrections(roles, _paths(raw.get("leave_out", []), "leave_out", name), parts)


def _mapping(raw: Mapping[str, Any], key: str, name: str) -> Mapping[Any, Any]:
    value = raw.get(key) or {}
    if not isinstance(value, dict):
        raise ConfigError(f"{key} of {name} is a {type(value).__name__}. Use keys and lists.")
    return value


def _paths(value: Any, key: str, name: str) -> tuple[str, ...]:
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or not all(isinstance(one, str) for one in listed):
        raise ConfigError(f"{key} of {name} is no list of names. Use [NAME, NAME].")
    return tuple(listed)

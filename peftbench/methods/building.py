"""Methods of plain values, as files and command lines give them. Registers no method."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

from peftbench.errors import ConfigError
from peftbench.methods.base import METHODS, Method
from peftbench.registry import unknown_name


def method_of(name: str, hyperparameters: Mapping[str, Any]) -> Method:
    """The method of that name with values of the declared types.

    Raises:
        UnknownName: there is no such method, or it has no such hyper-parameter.
        ConfigError: a value has another type, or makes no sense.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from peftbench.methods import discover

    discover()
    kind = METHODS[name]
    given = kind.fields_of(hyperparameters)
    known = [field.name for field in dataclasses.fields(kind)]
    for key in given:
        if key not in known:
            raise unknown_name(f"hyper-parameter of {name}:", key, known)
    schema = OmegaConf.structured(kind)
    OmegaConf.set_readonly(schema, False)
    try:
        values = OmegaConf.merge(schema, given)
    except OmegaConfBaseException as e:
        raise ConfigError(f"method={name}: {e.full_key}: {str(e).splitlines()[0]}.") from e
    return kind(**OmegaConf.to_container(values))  # type: ignore[arg-type]


def spelled(setting: str, where: str) -> tuple[str, Any]:
    """Key and value of `KEY:VALUE` or `KEY=VALUE`, the value as Hydra reads it on a command line.

    Raises:
        ConfigError: it is nothing of this form; the message starts with `where`.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    match = re.fullmatch(r"([\w.]+)\s*[:=]\s*(.+)", setting, re.DOTALL)
    try:
        if match is None:
            raise HydraException
        return match[1], OverridesParser.create().parse_override(f"value={match[2]}").value()
    except HydraException:
        raise ConfigError(f"{where} have {setting!r}, which is no KEY:VALUE.") from None


def as_override(key: str, value: Any) -> str:
    """`KEY:VALUE` as `spelled` reads it."""
    return f"{key}:{json.dumps(value)}"

"""Paths on the command line as they are, where Hydra's grammar would read something else."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from typing import Any

# keys whose value is one path, or a name of the same kind
PATHS = frozenset(
    (
        *("dataset.root", "dataset.hub", "data_dir", "results_dir", "backbone.checkpoint"),
        *("hydra.sweep.dir", "hydra.run.dir"),
    )
)
SWEEPS = ("-m", "--multirun")


def quoted(value: str) -> str:
    """`value` as Hydra's grammar writes a text that means itself."""
    mark = '"' if "'" in value and '"' not in value else "'"
    text, run = "", 0
    for character in value:
        # backslashes count double in front of a quotation mark, and nowhere else
        if character == mark:
            text += "\\" * run + "\\" + mark
        else:
            text += character
        run = run + 1 if character == "\\" else 0
    return f"{mark}{text}{chr(92) * run}{mark}"


def paths_quoted(arguments: Sequence[str]) -> list[str]:
    """The arguments, with paths in quotes where they would not be read as they stand.

    What Hydra reads as a text, an interpolation or, in a sweep, a list of choices stays as it is.
    """
    sweep = any(argument in SWEEPS for argument in arguments)
    return [_quoted(argument, sweep) for argument in arguments]


def hint(text: str) -> str:
    """How to write an override whose value Hydra does not parse; empty where quotes do not help."""
    key, equals, value = text.partition("=")
    if not equals or value[:1] in ("'", '"', "[", "{") or "${" in value:
        return ""
    written = f"{key}={quoted(value)}"
    return "" if _parsed(written) is None else f" Quotes make it a text: {shlex.quote(written)}"


def _quoted(argument: str, sweep: bool) -> str:
    key, equals, value = argument.partition("=")
    if not equals or key.lstrip("+") not in PATHS or not value:
        return argument
    override = _parsed(argument)
    if override is not None and _stands(override, value, sweep):
        return argument
    if override is None and sweep and "," in value and not os.path.exists(value):
        return f"{key}={','.join(_piece(piece) for piece in value.split(','))}"
    return f"{key}={quoted(_home(value))}"


def _piece(value: str) -> str:
    override = _parsed(f"path={value}")
    plain = override is not None and _stands(override, value, False)
    return value if plain else quoted(_home(value))


def _home(value: str) -> str:
    """A "~" in front as the folder that it stands for, which quotes would keep from all readers."""
    return os.path.expanduser(value) if value.startswith("~") else value


def _stands(override: Any, value: str, sweep: bool) -> bool:
    """Whether what Hydra reads is what is meant."""
    if override.is_sweep_override():
        simple = getattr(override.value(), "simple_form", False)
        return (sweep and not os.path.exists(value)) or not simple
    meant = override.value()
    if meant is None:
        return True
    text = getattr(meant, "text", meant)  # of a value in quotes
    if not isinstance(text, str):
        return False  # a number, a truth or a list is no path
    return text == value or not os.path.exists(value)


def _parsed(text: str) -> Any:
    """The override that Hydra reads; `None` where it reads none."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(text)
    except (HydraException, ValueError):
        return None

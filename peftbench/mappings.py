"""Files of YAML that hold a mapping; they may be somebody else's, of whatever content."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from peftbench.errors import ConfigError
from peftbench.untrusted import printable, read_bounded

MOST_BYTES = 2**22


def read(path: Path) -> dict[str, Any]:
    """The mapping in a file of YAML; an empty file is an empty one.

    Raises:
        ConfigError: one line with the file: it cannot be read, or is no YAML, or no mapping.
    """
    return parsed(text_of(path), path)


def text_of(path: Path) -> str:
    """The text of a file; `ConfigError` with one line where it has none."""
    shown = printable(str(path))
    try:
        return read_bounded(path, MOST_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{shown} is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}. "
            "Save it as UTF-8."
        ) from error
    except ValueError as error:
        raise ConfigError(f"{shown}: {error}. Remove it from there.") from error
    except OSError as error:
        raise ConfigError(f"Cannot read {shown}: {error.strerror}.") from error


def parsed(text: str, path: Path) -> dict[str, Any]:
    """The mapping in the text of a file; `ConfigError` with one line where it is none."""
    shown = printable(str(path))
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        reason = getattr(error, "problem", None) or "it does not parse"
        raise ConfigError(
            f"{shown}{line} is no YAML: {printable(str(reason))}. Correct the file."
        ) from error
    except (ValueError, RecursionError, OverflowError) as error:  # dates and numbers that are none
        raise ConfigError(
            f"{shown} is no YAML: {printable(str(error))}. Correct the file."
        ) from error
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        kind = "keys that are no words" if isinstance(found, dict) else f"a {type(found).__name__}"
        raise ConfigError(f"{shown} holds {kind}, not keys with values. Correct the file.")
    return found
